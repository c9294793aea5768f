"""Work that is done again in halves when memory runs out, and no look for garbage where there is none."""

import gc

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.memory import no_collection, out_of_memory, within_memory


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (torch.OutOfMemoryError("Tried to allocate"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_out_of_memory(error: BaseException, want: bool) -> None:
    assert out_of_memory(error) is want


def test_the_real_allocator_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert out_of_memory(caught.value)


def test_halves_until_it_fits(capsys) -> None:
    tried: list[int] = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 20:
            raise MemoryError
        return "done"

    assert within_memory(work, 100, 1, "n", "one") == ("done", 12) and tried == [100, 50, 25, 12]
    assert capsys.readouterr().out.count("memory ran out: n is") == 3
    with pytest.raises(WorkbenchError, match=r"Memory must hold one row. It ran out \(MemoryError\)"):
        within_memory(work, 100, 30, "n", "one row")
    assert tried[4:] == [100, 50, 30]


def test_no_collection_looks_for_garbage_neither_inside_nor_at_once_after() -> None:
    runs: list[dict] = []

    def watch(phase: str, info: dict) -> None:
        runs.append(info)

    gc.unfreeze()  # the command line freezes what it has made
    gc.callbacks.append(watch)
    try:
        with no_collection():
            assert not gc.isenabled()
            made = [[] for _ in range(100_000)]
            before = len(runs)
        again = [[] for _ in range(10)]
    finally:
        gc.callbacks.remove(watch)
    assert not runs and not before and gc.isenabled() and len(made) > len(again)


def test_no_collection_leaves_it_off_and_frozen_objects_frozen() -> None:
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    frozen: list[str] = []
    gc.freeze()
    try:
        with no_collection():
            pass
        assert not any(x is frozen for x in gc.get_objects())  # those do not hold what is frozen
    finally:
        gc.unfreeze()

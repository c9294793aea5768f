"""Work that is repeated in halves when memory runs out."""

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.memory import out_of_memory, within_memory


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

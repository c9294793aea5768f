"""Work that is done again in smaller parts when memory runs out, and Python's garbage."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from dpo_workbench.common.errors import WorkbenchError

T = TypeVar("T")


@contextmanager
def no_collection() -> Iterator[None]:
    """Inside, Python does not look for garbage, which it does often where many objects are made and none is any."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what was made counts as old, or it would be looked through at once
            gc.freeze()
            gc.unfreeze()
        if before:
            gc.enable()


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which a GPU, the CPU's allocator and Python say that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)


def within_memory(work: Callable[[int], T], size: int, smallest: int, name: str, hopeless: str) -> tuple[T, int]:
    """`work(size)`; each time that memory runs out, again with half the size.

    Args:
        work: must leave nothing half done when memory runs out.
        size, smallest: where to start, and below which halving cannot help.
        name: of the size, for the line that is printed.
        hopeless: what must fit, for the error.

    Returns:
        What `work` gave, and the size that it gave it with.
    Raises:
        WorkbenchError: memory ran out at the smallest size.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            words = str(error).strip().split("\n")[0][:200] or "MemoryError"
        # here the exception is gone, whose traceback held the tensors of the failed try
        gc.collect()
        torch.cuda.empty_cache()
        if size <= smallest:
            raise WorkbenchError(
                f"Memory must hold {hopeless}. It ran out ({words}). Shorten it or take a smaller model."
            )
        size = max(size // 2, smallest)
        if os.environ.get("RANK", "0") == "0":  # of several processes one is enough
            print(f"memory ran out: {name} is {size} from now on, and the same work is done again", flush=True)

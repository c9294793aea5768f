"""Work that is repeated in smaller parts when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from dpo_workbench.common.errors import WorkbenchError

S = TypeVar("S")
T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether the error is one of those with which a GPU, the CPU's allocator or Python reports a lack of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)


def repeat_with_less(work: Callable[[S], T], setting: S, less: Callable[[S, str], S]) -> tuple[T, S]:
    """Calls `work(setting)`, and again with `less(setting, problem)` each time memory runs out.

    Args:
        work: must leave nothing half done when memory runs out.
        less: gives a setting that needs less memory, or raises; gets the first line of the error.

    Returns:
        The result of `work`, and the setting with which it succeeded.
    """
    while True:
        try:
            return work(setting), setting
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            problem = str(error).strip().split("\n")[0][:200] or "MemoryError"
        # outside the except block, so that the traceback no longer holds the tensors of the failed attempt
        gc.collect()
        torch.cuda.empty_cache()
        setting = less(setting, problem)


def within_memory(work: Callable[[int], T], size: int, smallest: int, name: str, hopeless: str) -> tuple[T, int]:
    """The result of `work(size)` and the size, which is halved each time memory runs out, down to `smallest`.

    Args:
        work: must leave nothing half done when memory runs out.
        name, hopeless: what the size is, and what does not fit even at the smallest one, for messages.

    Raises:
        WorkbenchError: memory ran out at the smallest size.
    """

    def halved(size: int, problem: str) -> int:
        if size <= smallest:
            raise WorkbenchError(
                f"Memory must hold {hopeless}. It ran out ({problem}). Shorten it or use a smaller model."
            )
        size = max(size // 2, smallest)
        print(f"memory ran out: {name} is {size} from now on, and the same work is done again", flush=True)
        return size

    return repeat_with_less(work, size, halved)

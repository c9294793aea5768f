"""Work that is repeated in smaller parts when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from dpo_workbench.common.errors import WorkbenchError

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether the error is one of those with which a GPU, the CPU's allocator or Python reports a lack of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)


def memory_problem(error: BaseException) -> str:
    """The first line of an error that reports a lack of memory. Any other error is raised again."""
    if not out_of_memory(error):
        raise error
    return str(error).strip().split("\n")[0][:200] or "MemoryError"


def free_memory() -> None:
    """Give back what a failed attempt held. Call it outside `except`: inside, the traceback still holds its tensors."""
    gc.collect()
    torch.cuda.empty_cache()


def free_bytes(device: Any) -> float:
    """Memory that is left on a device; infinite if it can't be found out. In a container its limit counts (cgroup)."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    info, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if device.type != "cpu" or not info.is_file():
        return float("inf")
    free = 1024.0 * int(info.read_text().partition("MemAvailable:")[2].split()[0])
    limit, used = group / "memory.max", group / "memory.stat"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text().split()[1]))  # its first line counts what is no file cache
    return free


def within_memory(work: Callable[[int], T], size: int, smallest: int, name: str, hopeless: str) -> tuple[T, int]:
    """The result of `work(size)` and the size, which is halved each time memory runs out, down to `smallest`.

    Args:
        work: must leave nothing half done when memory runs out.
        name, hopeless: what the size is, and what does not fit even at the smallest one, for messages.

    Raises:
        WorkbenchError: memory ran out at the smallest size.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            problem = memory_problem(error)
        free_memory()
        if size <= smallest:
            raise WorkbenchError(
                f"Memory must hold {hopeless}. It ran out ({problem}). Shorten it or use a smaller model."
            )
        size = max(size // 2, smallest)
        print(f"memory ran out: {name} is {size} from now on, and the same work is done again", flush=True)

"""Data parallel: the processes that `accelerate launch` or `torchrun` started share the work.

With one process every function here gives back what it is given. All are called by all processes, in the same order.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.interrupts import Stopped
from dpo_workbench.common.memory import out_of_memory

T = TypeVar("T")


def join() -> None:
    """Meet the other processes of the launch, if there are any; on a GPU machine each takes the GPU of its number.

    Call it before a model is loaded.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(dist.destroy_process_group)  # its threads would else abort a process that ends well


def size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process; 0 prints and writes."""
    return dist.get_rank() if size() > 1 else 0


def share(items: Sequence[T]) -> list[T]:
    """This process's part: every n-th. Sort by size before, and all have about the same work."""
    return list(items[rank() :: size()])


def gathered(value: T) -> list[T]:
    """The value of each process, in the order of their numbers."""
    if size() == 1:
        return [value]
    values: list = [None] * size()
    dist.all_gather_object(values, value)
    return values


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them."""
    with agreed():
        mine = work() if rank() == 0 else None
    return gathered(mine)[0]  # type: ignore[return-value]


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the processes' gradients, one message for all parameters; no gradient counts as zeros."""
    if size() == 1:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


@contextmanager
def agreed() -> Iterator[None]:
    """What stops the block in one process stops it in all, so that none waits for one that is gone.

    Memory that ran out and interrupts are raised as such everywhere, so that all do a step again, or save, together.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        if size() == 1:
            raise
        error = caught
    if size() == 1:
        return
    mine = 0 if error is None else 1 if out_of_memory(error) else 2 if isinstance(error, KeyboardInterrupt) else 3
    worst = max(gathered(mine))
    try:
        if error is not None and mine == worst:
            raise error
        if worst == 1:
            raise MemoryError("memory ran out in another process")
        if worst == 2:
            raise Stopped
        if worst == 3:
            raise WorkbenchError("All processes must go on together. Another one stopped. Its own message says why.")
    finally:
        del error  # its traceback holds the tensors of the block

"""The built-in tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from dpo_workbench.runtime.errors import WorkbenchError
from dpo_workbench.tasks import receipts
from dpo_workbench.tasks.task import Task

_LOADERS: dict[str, Callable[[], Task]] = {"receipts": receipts.load}


def task_names() -> list[str]:
    """Names that `load_task` knows."""
    return sorted(_LOADERS)


def load_task(name: str) -> Task:
    """A built-in task by its name, with data, splits and verifier.

    Raises:
        WorkbenchError: no such task (the nearest name is given), or its data file is missing or empty.
    """
    if name not in _LOADERS:
        near = difflib.get_close_matches(name, _LOADERS, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise WorkbenchError(f"A task must be one of {', '.join(task_names())}. Got {name!r}. {hint}")
    return _LOADERS[name]()

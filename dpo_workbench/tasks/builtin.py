"""The built-in tasks by name."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import benchmarks, briefs, python, receipts, science, sql
from dpo_workbench.tasks.task import Task

_LOADERS: dict[str, Callable[..., Task]] = {
    "receipts": receipts.load,
    "python": python.load,
    "science": science.load,
    "briefs": briefs.load,
    "sql": sql.load,
}
_BENCHMARKS: dict[str, Callable[..., Task]] = {"humaneval": benchmarks.humaneval, "aclsum": benchmarks.aclsum}
_RUN_CODE = ("python", "sql", "humaneval")


def task_names() -> list[str]:
    """Names that `load_task` knows."""
    return sorted(_LOADERS)


def load_task(name: str | Path, allow_weak_sandbox: bool = False) -> Task:
    """A built-in task by its name, with data, splits and verifier; or a task of your own from a Python file.

    Args:
        name: one of `task_names()`; `humaneval` or `aclsum` (with the extra `tasks`); or the path of a file that ends
            in `.py` and has a function `load()` or a `task`. It is run, so it must be yours.
        allow_weak_sandbox: let `python` and `sql` run what a model wrote on a machine where only resource limits hold
            (see `docs/sandbox.md`).

    Raises:
        WorkbenchError: no such task (the nearest name is given), its data file is missing or empty, or the file gives
            no `Task`.
    """
    name = str(name)
    if name.endswith(".py"):
        return _from_python(Path(name))
    known = {**_LOADERS, **_BENCHMARKS}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]!r}?" if near else "A task of your own is a .py file with load() (docs/tasks.md)."
        if Path(name).suffix:
            hint = (
                "Rows of your own need a verifier: write a .py file whose load() returns "
                "Task.from_jsonl(file, prompt=..., reference=..., score=...), and name that (docs/tasks.md)."
            )
        raise WorkbenchError(f"A task must be one of {', '.join(known)}, or a .py file. Got {name!r}. {hint}")
    task = known[name](allow_weak_sandbox) if name in _RUN_CODE else known[name]()
    task.built_in = name in _LOADERS
    return task


def shipped_adapter(model: str, task: Task | None) -> str | None:
    """The name of the model's fine-tuned adapter that is shipped for a built-in task, or None."""
    if task is None or not task.built_in or not (data_folder() / "adapters" / f"{model}-{task.name}").is_dir():
        return None
    return task.name


def _from_python(path: Path) -> Task:
    if not path.is_file():
        raise WorkbenchError(f"A task's file must exist. Got no file at {path}. Check the path.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        task = module.load() if hasattr(module, "load") else getattr(module, "task", None)
    except WorkbenchError:
        raise
    except Exception as error:
        raise WorkbenchError(f"A task's file must run. Got {type(error).__name__}: {error} ({path}).") from error
    if not isinstance(task, Task):
        raise WorkbenchError(f"A task's file must have `load()` or `task`. Got {type(task).__name__} ({path}).")
    return task

"""The built-in tasks by name."""

from __future__ import annotations

import difflib
import runpy
from collections.abc import Callable
from pathlib import Path

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import briefs, instructions, long_answers, python, receipts, science, sql
from dpo_workbench.tasks.task import Task

_LOADERS: dict[str, Callable[..., Task]] = {
    "receipts": receipts.load, "python": python.load, "science": science.load, "briefs": briefs.load, "sql": sql.load,
    "long_answers": long_answers.load, "instructions": instructions.load,
}  # fmt: skip


# The flaw that we planted in about half of the fine-tuning labels of these tasks: the failure class that the verifier
# counts it as, and what it looks like.
PLANTED = {
    "receipts": ("missing_field", "the total is left blank"),
    "science": ("wrong_unit", "the unit is missing from the answer"),
    "sql": ("all_columns", "the query selects all columns instead of one"),
    "python": ("no_result", "the function prints its result instead of returning it"),
    "briefs": ("too_long", "the summary is too long"),
}


def task_names() -> list[str]:
    """The names of the built-in tasks. The labels of those in `PLANTED` carry a flaw that we planted."""
    return sorted(_LOADERS)


def load_task(name: str | Path, allow_weak_sandbox: bool = False) -> Task:
    """A built-in task by its name, or a task of your own from a Python file.

    Args:
        name: one of `task_names()`, or the path of a `.py` file with a function `load()` or a variable `task`. The file
            is executed, so use only files that you trust.
        allow_weak_sandbox: let `python` and `sql` run a model's code on a machine that only has resource limits (see
            `docs/sandbox.md`).
    """
    name = str(name)
    if name.endswith(".py"):
        return _from_python(Path(name))
    if name not in _LOADERS:
        near = difflib.get_close_matches(name, _LOADERS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else "To use your own data, see docs/tasks.md."
        raise WorkbenchError(f"A task must be one of {', '.join(_LOADERS)}, or a .py file. Got {name!r}. {hint}")
    task = _LOADERS[name](allow_weak_sandbox) if name in ("python", "sql") else _LOADERS[name]()
    task.built_in = True
    return task


def shipped_adapter(model: str, task: Task | None) -> str | None:
    """The name of the fine-tuned adapter that ships with the package for this model and built-in task, or None."""
    if task is None or not task.built_in or not (data_folder() / "adapters" / f"{model}-{task.name}").is_dir():
        return None
    return task.name


def _from_python(path: Path) -> Task:
    if not path.is_file():
        raise WorkbenchError(f"A task's file must exist. Got no file at {path}. Check the path.")
    try:
        made = runpy.run_path(str(path))
        task = made["load"]() if "load" in made else made.get("task")
    except WorkbenchError:
        raise
    except Exception as error:  # the user's file may raise anything
        raise WorkbenchError(f"A task's file must run. Got {type(error).__name__}: {error} ({path}).") from error
    if not isinstance(task, Task):
        raise WorkbenchError(f"A task's file must have `load()` or `task`. Got {type(task).__name__} ({path}).")
    return task

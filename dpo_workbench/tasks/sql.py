"""The task `sql`: tables and a question -> one SQLite query, judged by its rows. The flaw is planted."""

from __future__ import annotations

from dpo_workbench.common.environment import data_folder
from dpo_workbench.tasks import scores
from dpo_workbench.tasks.examples import load_splits
from dpo_workbench.tasks.task import Task

INSTRUCTION = "Write one SQLite query that answers the question."


def load(allow_weak_sandbox: bool = False) -> Task:
    """The built-in task with its three splits and its databases (see `data/sql/DATASHEET.md`).

    An answer scores 1 if its rows are the reference's, in an order that the reference allows, and else 0. See
    `scores.sql_result` for the failure classes.
    """
    return Task(
        "sql",
        load_splits("sql"),
        scores.sql_result(database=data_folder() / "sql" / "databases", allow_weak_sandbox=allow_weak_sandbox),
        description="text-to-SQL: tables and a question -> one SQLite query (planted flaw: SELECT *)",
        max_new_tokens=96,
    )

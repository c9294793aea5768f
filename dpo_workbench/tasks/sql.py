"""The task `sql`: tables and a question -> one SQLite query, judged by its rows. The flaw is planted."""

from __future__ import annotations

from dpo_workbench.common.environment import data_folder
from dpo_workbench.tasks import scores
from dpo_workbench.tasks.examples import load_splits
from dpo_workbench.tasks.task import Task

INSTRUCTION = "Write one SQLite query that answers the question."
HARM = {"empty_result": 2, "wrong_columns": 2, "wrong_result": 3}  # the reasons are in the datasheet


def load(allow_weak_sandbox: bool = False) -> Task:
    """The built-in task with its splits and databases (see `data/sql/DATASHEET.md`), scored by `scores.sql_result`."""
    score = scores.sql_result(database=data_folder() / "sql" / "databases", allow_weak_sandbox=allow_weak_sandbox)
    about = "text-to-SQL: tables and a question -> one SQLite query (planted flaw: SELECT *)"
    return Task("sql", load_splits("sql"), score, about, max_new_tokens=96, harm=HARM)

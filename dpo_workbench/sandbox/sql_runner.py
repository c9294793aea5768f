"""Run a model's SQL on a SQLite database: read-only, in a locked child, with limits on time, rows and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.process import Limits
from dpo_workbench.sandbox.python_runner import Call, Problem, Result, ask, loaded, start

_CHILD = Path(__file__).with_name("sql_child.py")
_VALUE_BYTES = 1 << 20  # of text and blobs that a query may give
_ERROR_KINDS = {  # what SQLite's message has in it
    "unknown_name": ("no such", "ambiguous column", "wrong number of arguments"),
    "refused": ("not authorized", "prohibited", "readonly", "too many attached", "one statement"),
    "syntax_error": ("syntax error", "incomplete input", "unrecognized"),
    "timeout": ("interrupted",),
    "too_large": ("too big", "MemoryError"),
}


@dataclass(frozen=True)
class Table:
    """What a query gave: column names and rows, or a problem. `cut` is True if there were more rows than allowed.

    Kinds of problem: `syntax_error`, `unknown_name` (table, column or function), `refused` (anything but one SELECT),
    `timeout`, `too_large`, `error`, `crash`.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    cut: bool = False
    problem: Problem | None = None


def run_sql(
    database: str | Path,
    queries: Sequence[str],
    *,
    seconds: float = 2.0,
    rows: int = 10_000,
    memory_mib: int = 512,
    allow_weak_sandbox: bool = False,
) -> list[Table]:
    """Answer each query on a database, which is opened read-only and never changed.

    SQLite's authorizer refuses everything but one SELECT per query, and all functions that do more than compute.

    Args:
        queries: any text; none of them makes this function raise.
        seconds: wall-clock time for each query.
        rows: the most rows per query.
        allow_weak_sandbox: run even if only resource limits hold; SQLite's own guards hold in any case.

    Raises:
        WorkbenchError: the database cannot be opened; or see `run_python`.
    """
    path = Path(database).resolve()
    if not path.is_file():
        raise WorkbenchError(f"A database must be a SQLite file. Got no file at {path}. Check the path.")
    limits = Limits(seconds=seconds * 1.5 + 2, memory_mib=memory_mib, value_bytes=2 * _VALUE_BYTES + 1000)
    order = {"code": _CHILD.read_text(encoding="utf-8"), "cpu": 3600}
    tables: list[Table] = []
    while len(tables) < len(queries):  # a query that ends the child costs only itself
        with start(order, limits, allow_weak_sandbox, readable=[str(path)]) as child:
            problem = loaded(child) or ask(child, Call("open_database", [str(path), _VALUE_BYTES])).problem
            if problem is not None:
                raise WorkbenchError(
                    f"A database must open. Got {path.name}: {problem.text}. Give a SQLite file that `sqlite3` reads."
                )
            while len(tables) < len(queries) and child.end is None:
                child.restart_clock()
                result = ask(child, Call("ask", [queries[len(tables)], seconds, rows, _VALUE_BYTES]))
                tables.append(_table(result, child.end))
    return tables


def _table(result: Result, end: str | None) -> Table:
    """`end` is the reason if the query ended the child."""
    if result.problem is None:
        columns, rows, cut = result.value
        return Table(tuple(columns), tuple(map(tuple, rows)), cut)
    if end is not None:
        kind = "timeout" if end == "timeout" else "crash"
        return Table(problem=Problem(kind, f"the query ended the process ({end})"))
    text = result.problem.text.removeprefix("Exception: ")
    kind = next((k for k, signs in _ERROR_KINDS.items() if any(sign in text for sign in signs)), "error")
    return Table(problem=Problem(kind, text))

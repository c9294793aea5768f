"""Run a model's SQL on a SQLite database: read-only, in a locked child, with limits on time, rows and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.process import Child, Limits, guard_level, require_guard
from dpo_workbench.sandbox.python_runner import Problem

_ERROR_KINDS = {  # what SQLite's message has in it
    "unknown_name": ("no such", "ambiguous column", "wrong number of arguments"),
    "refused": ("not authorized", "prohibited", "readonly", "too many attached", "one statement"),
    "syntax_error": ("syntax error", "incomplete input", "unrecognized"),
    "too_large": ("too big",),
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
    value_bytes: int = 1 << 20,
    memory_mib: int = 512,
    allow_weak_sandbox: bool = False,
) -> list[Table]:
    """Answer each query on a database, which is opened read-only and never changed.

    SQLite's authorizer refuses everything but one SELECT per query, and all functions that do more than compute.

    Args:
        database: a SQLite file.
        queries: any text; none of them makes this function raise.
        seconds: wall-clock time for each query.
        rows, value_bytes: the most rows, and bytes of text and blobs, per query.
        memory_mib: address space of the child.
        allow_weak_sandbox: run even if only resource limits hold; SQLite's own guards hold in any case.

    Raises:
        WorkbenchError: the database cannot be opened; or see `run_python`.
    """
    path = Path(database).resolve()
    if not path.is_file():
        raise WorkbenchError(f"A database must be a SQLite file. Got no file at {path}. Check the path.")
    require_guard(allow_weak_sandbox)
    order = {"database": str(path), "seconds": seconds, "rows": rows}
    limits = Limits(seconds=seconds * 1.5 + 2, memory_mib=memory_mib, value_bytes=value_bytes)
    tables: list[Table] = []
    while len(tables) < len(queries):  # a query that ends the child costs only itself
        with Child("sql", order, limits, guard_level() == "strong", readable=[str(path)]) as child:
            letter, value = child.reply()
            if letter != "l":
                raise WorkbenchError(
                    f"A database must open. Got {path.name}: {value[1] if letter == 'q' else value}. "
                    "Give a SQLite file that `sqlite3` reads."
                )
            while len(tables) < len(queries) and child.end is None:
                tables.append(_ask(child, queries[len(tables)]))
    return tables


def _ask(child: Child, query: str) -> Table:
    child.restart_clock()
    child.send(query)
    letter, value = child.reply()
    if letter == "v":
        columns, rows, cut = value
        return Table(tuple(columns), tuple(map(tuple, rows)), cut)
    if letter == "q":
        kind, text = value
        if kind == "error":
            kind = next((k for k, signs in _ERROR_KINDS.items() if any(sign in text for sign in signs)), kind)
        return Table(problem=Problem(kind, text))
    kind = "timeout" if child.end == "timeout" else "crash"
    return Table(problem=Problem(kind, f"the query ended the process ({child.end})"))

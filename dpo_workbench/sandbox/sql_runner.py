"""Run a model's SQL on a SQLite database: read-only, in a locked child, with time, rows and bytes capped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.process import Child, Limits, guard_level, require_guard
from dpo_workbench.sandbox.python_runner import Problem


@dataclass(frozen=True)
class Table:
    """What a query gave: column names and rows, or a problem; `cut` when there were more rows than allowed.

    Kinds of problem: `syntax_error`, `unknown_name` (table, column or function), `refused` (anything but reading),
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
    """Answer each query on `database`, which is opened read-only and never changed.

    One SELECT a query: the authoriser of SQLite refuses all else, and functions but those that compute. `seconds`
    holds for each query.

    Args:
        database: a SQLite file.
        queries: texts; anything may come, nothing raises.
        seconds: wall-clock time of one query.
        rows: at most so many are returned.
        value_bytes: at most so many bytes of text and blobs a query.
        memory_mib: address space of the child.
        allow_weak_sandbox: run it although only resource limits hold; SQLite's own guards hold even then.

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
    while len(tables) < len(queries):
        with Child("sql", order, limits, guard_level() == "strong", (), [str(path)]) as child:
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
        return Table(problem=_problem(*value))
    kind = child.end if child.end == "timeout" else "crash"
    return Table(problem=Problem(kind, f"the query ended the process ({child.end})"))


def _problem(kind: str, text: str) -> Problem:
    if kind == "error":
        if text.startswith("no such") or "ambiguous column" in text or "wrong number of arguments" in text:
            kind = "unknown_name"
        elif any(
            sign in text for sign in ("not authorized", "prohibited", "readonly", "too many attached", "one statement")
        ):
            kind = "refused"
        elif "syntax error" in text or "incomplete input" in text or "unrecognized" in text:
            kind = "syntax_error"
        elif "too big" in text:
            kind = "too_large"
    return Problem(kind, text)

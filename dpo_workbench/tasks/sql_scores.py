"""The verifier for SQL: the rows that a query gives are compared with the reference's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.sandbox.sql_runner import Table, run_sql
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction

Row = tuple[Any, ...]
_STATEMENTS = (  # other than a query
    "insert|update|delete|drop|create|alter|attach|pragma|replace|explain|vacuum|values|begin|commit|rollback|savepoint"
    "|release|detach|reindex|analyze"
)


def sql_result(
    *, database: str | Path | None = None, column: str = "database", allow_weak_sandbox: bool = False
) -> ScoreFunction:
    """1 if the query gives the reference query's rows, in the same order if the reference has an ORDER BY.

    Failures: `syntax_error`, `unknown_name`, `refused` (anything but one SELECT), `timeout`, `empty_result`,
    `all_columns` (`SELECT *`, with more columns than the reference), `wrong_columns` (another number of columns),
    `wrong_result`. A reference that fails or gives no rows cannot tell answers apart, so the answer stays unscored.

    Args:
        database: one SQLite file for all examples, or the folder in which `column` names each example's file.
        column: of `example.extra`, with the name of the file (`.sqlite` or `.db` may be left out).
        allow_weak_sandbox: see `run_sql`.
    """
    references: dict[tuple[str, str], Table] = {}

    def score(example: Example, answer: str) -> Score:
        path = _database(Path(database or "."), str(example.extra.get(column, "")))
        key = (str(path), example.reference)
        if key not in references:
            (table,) = run_sql(path, [example.reference], allow_weak_sandbox=allow_weak_sandbox)
            if table.problem or not table.rows or table.cut:
                why = table.problem.text if table.problem else "too many rows" if table.cut else "no rows"
                raise WorkbenchError(f"A reference query must give rows. Got {why[:200]} ({example.id}).")
            references[key] = table
        query = clean_sql(answer)
        (found,) = run_sql(path, [query], allow_weak_sandbox=allow_weak_sandbox)
        return _judge(query, found, references[key], has_order(example.reference))

    return score


def _database(base: Path, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    if base.is_file() or not name:
        return base
    tries = [base / name, base / f"{name}.sqlite", base / f"{name}.db", base / name / f"{name}.sqlite"]
    return next((path for path in tries if path.is_file()), tries[0])


def _judge(query: str, found: Table, wanted: Table, in_order: bool) -> Score:
    if found.problem:
        known = found.problem.kind in ("unknown_name", "refused", "timeout")
        return Score(0.0, found.problem.kind if known else "syntax_error", query, found.problem.text)
    if not found.columns:
        return Score(0.0, "syntax_error", query, "no query")
    if not found.cut and same_rows(found.rows, wanted.rows, in_order):
        return Score(1.0, None, query)
    if not found.rows:
        return Score(0.0, "empty_result", query, f"no rows instead of {len(wanted.rows)}")
    if len(found.columns) != len(wanted.columns):
        told = f"{len(found.columns)} columns instead of {len(wanted.columns)}"
        star = re.match(r"select\s+(?:distinct\s+|all\s+)?(?:[^\s,()]+\.)?\*", query, re.IGNORECASE)
        everything = star and len(found.columns) > len(wanted.columns)
        return Score(0.0, "all_columns" if everything else "wrong_columns", query, told)
    told = f"{len(found.rows)} rows that differ from the {len(wanted.rows)} wanted, or are in another order"
    return Score(0.0, "wrong_result", query, told)


def clean_sql(answer: str) -> str:
    """The query of an answer, without its code fence and without prose before it or after its semicolon."""
    text = extract_code(answer).strip()
    begin = re.search(r"\bselect\b|\bwith\s+(?:recursive\s+)?[^\s(]+\s*(?:\([^()]*\)\s*)?as\b", text, re.IGNORECASE)
    if begin and ";" not in text[: begin.start()] and not re.match(rf"(?:{_STATEMENTS})\b", text, re.IGNORECASE):
        text = text[begin.start() :]
    query, semicolon, rest = text.partition(";\n")
    another = re.search(rf"(?:^|[;\n])\s*(?:{_STATEMENTS}|select|with)\b|--|/\*", rest, re.IGNORECASE)
    return query if semicolon and not another else text


def same_rows(found: Sequence[Row], wanted: Sequence[Row], in_order: bool) -> bool:
    """Whether rows are equal, in the same order or in any. Column names do not matter."""
    one, other = ([_comparable(row) for row in rows] for rows in (found, wanted))
    return one == other if in_order else Counter(one) == Counter(other)


def has_order(query: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY; texts, comments and what is in parentheses are not looked at."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", " ", query, flags=re.DOTALL)
    while plain != (outer := re.sub(r"\([^()]*\)", " ", plain)):
        plain = outer
    return re.search(r"\border\s+by\b", plain, re.IGNORECASE) is not None


def _comparable(row: Row) -> Row:
    """A row whose numbers are equal if they agree to 9 digits. Whole numbers are exact, and 1.0 is 1."""
    return tuple(float(f"{cell:.9g}") if isinstance(cell, float) else cell for cell in row)

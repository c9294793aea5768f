"""The verifier for SQL: the rows that a query gives are compared with the reference's."""

from __future__ import annotations

import re
from pathlib import Path

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.sandbox.sql_runner import Table, run_sql
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction
from dpo_workbench.tasks.sql_order import Allowed, allowed_rows, rank_query

_STATEMENTS = (  # other than a query
    "insert|update|delete|drop|create|alter|attach|pragma|replace|explain|vacuum|values|begin|commit|rollback|savepoint"
    "|release|detach|reindex|analyze"
)


def sql_result(
    *,
    database: str | Path | None = None,
    column: str = "database",
    seconds: float = 2.0,
    allow_weak_sandbox: bool = False,
) -> ScoreFunction:
    """1 if the query gives the reference query's rows, in an order that the reference allows (see `sql_order`).

    Failures: `syntax_error`, `unknown_name`, `refused` (anything but one SELECT), `timeout`, `empty_result`,
    `all_columns` (`SELECT *`, with more columns than the reference), `wrong_columns` (another number of columns),
    `wrong_result`. A reference that fails or gives no rows cannot tell answers apart, so the answer stays unscored.

    Args:
        database: one SQLite file for all examples, or the folder in which `column` names each example's file.
        column: of `example.extra`, with the name of the file (`.sqlite` or `.db` may be left out).
        seconds: for each query.
        allow_weak_sandbox: see `run_sql`.

    Raises:
        WorkbenchError: no time for a query.
    """
    if not seconds > 0:
        raise WorkbenchError(f"`seconds` must be above 0. Got {seconds!r}. Set 2.0.")
    references: dict[tuple[str, str], tuple[Table, Allowed]] = {}

    def score(example: Example, answer: str) -> Score:
        path = _database(Path(database or "."), str(example.extra.get(column, "")))
        key = (str(path), example.reference)
        if key not in references:
            ranking = rank_query(example.reference)
            asked = [example.reference, *([ranking] if ranking else [])]
            tables = run_sql(path, asked, seconds=seconds, allow_weak_sandbox=allow_weak_sandbox)
            references[key] = _reference(example, tables)
        query = clean_sql(answer)
        (found,) = run_sql(path, [query], seconds=seconds, allow_weak_sandbox=allow_weak_sandbox)
        return _judge(query, found, *references[key])

    return score


def _database(base: Path, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    if base.is_file() or not name:
        return base
    tries = [base / name, base / f"{name}.sqlite", base / f"{name}.db", base / name / f"{name}.sqlite"]
    return next((path for path in tries if path.is_file()), tries[0])


def _reference(example: Example, tables: list[Table]) -> tuple[Table, Allowed]:
    table, *ranked = tables
    if table.problem or not table.rows or table.cut:
        why = table.problem.text if table.problem else "too many rows" if table.cut else "no rows"
        raise WorkbenchError(f"A reference query must give rows. Got {why[:200]} ({example.id}).")
    usable = ranked and not ranked[0].problem and not ranked[0].cut
    return table, allowed_rows(example.reference, table.rows, ranked[0].rows if usable else None)


def _judge(query: str, found: Table, wanted: Table, allowed: Allowed) -> Score:
    if found.problem:
        known = found.problem.kind in ("unknown_name", "refused", "timeout")
        return Score(0.0, found.problem.kind if known else "syntax_error", query, found.problem.text)
    if not found.columns:
        return Score(0.0, "syntax_error", query, "no query")
    if not found.cut and allowed.accepts(found.rows):
        return Score(1.0, None, query)
    if not found.rows:
        return Score(0.0, "empty_result", query, f"no rows instead of {len(wanted.rows)}")
    if len(found.columns) != len(wanted.columns):
        told = f"{len(found.columns)} columns instead of {len(wanted.columns)}"
        star = re.match(r"select\s+(?:distinct\s+|all\s+)?(?:[^\s,()]+\.)?\*", query, re.IGNORECASE)
        everything = star and len(found.columns) > len(wanted.columns)
        return Score(0.0, "all_columns" if everything else "wrong_columns", query, told)
    if Allowed([list(wanted.rows)], 0, len(wanted.rows)).accepts(found.rows):
        return Score(0.0, "wrong_result", query, "the right rows in the wrong order")
    return Score(0.0, "wrong_result", query, f"{len(found.rows)} rows that differ from the {len(wanted.rows)} wanted")


def clean_sql(answer: str) -> str:
    """The query of an answer, without its code fence and without prose before it or after its semicolon."""
    text = extract_code(answer).strip()
    begin = re.search(r"\bselect\b|\bwith\s+(?:recursive\s+)?[^\s(]+\s*(?:\([^()]*\)\s*)?as\b", text, re.IGNORECASE)
    if begin and ";" not in text[: begin.start()] and not re.match(rf"(?:{_STATEMENTS})\b", text, re.IGNORECASE):
        text = text[begin.start() :]
    query, semicolon, rest = text.partition(";\n")
    another = re.search(rf"(?:^|[;\n])\s*(?:{_STATEMENTS}|select|with)\b|--|/\*", rest, re.IGNORECASE)
    return query if semicolon and not another else text

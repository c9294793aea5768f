"""The verifier for SQL: the rows that a query gives are compared with the reference's.

`ORDER BY` fixes the order only as far as its keys differ: rows that tie may come in any order, and if `LIMIT` cuts
through tied rows, any of them may be kept. Without `ORDER BY` all rows tie. So a reference's rows form groups of ties,
and an answer is right if each stretch of its rows is taken from the right group.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.sandbox.sql_runner import Table, run_sql
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction

Row = tuple[Any, ...]
_UNREADABLE = (sqlglot.errors.SqlglotError, ValueError, RecursionError)
_STATEMENTS = (  # other than a query
    "insert|update|delete|drop|create|alter|attach|pragma|replace|explain|vacuum|values|begin|commit|rollback|savepoint"
    "|release|detach|reindex|analyze"
)


def sql_result(
    *, database: str | Path | None = None, column: str = "database", allow_weak_sandbox: bool = False
) -> ScoreFunction:
    """1 if the query gives the reference query's rows, in an order that the reference allows (see above).

    Failures: `syntax_error`, `unknown_name`, `refused` (anything but one SELECT), `timeout`, `empty_result`,
    `all_columns` (`SELECT *`, with more columns than the reference), `wrong_columns` (another number of columns),
    `wrong_result`. A reference that fails or gives no rows cannot tell answers apart, so the answer stays unscored.

    Args:
        database: one SQLite file for all examples, or the folder in which `column` names each example's file.
        column: of `example.extra`, with the name of the file (`.sqlite` or `.db` may be left out).
        allow_weak_sandbox: see `run_sql`.
    """
    references: dict[tuple[str, str], tuple[Table, Allowed]] = {}

    def score(example: Example, answer: str) -> Score:
        path = _database(Path(database or "."), str(example.extra.get(column, "")))
        key = (str(path), example.reference)
        if key not in references:
            ranking = rank_query(example.reference)
            asked = [example.reference, *([ranking] if ranking else [])]
            table, *ranked = run_sql(path, asked, allow_weak_sandbox=allow_weak_sandbox)
            if table.problem or not table.rows or table.cut:
                why = table.problem.text if table.problem else "too many rows" if table.cut else "no rows"
                raise WorkbenchError(f"A reference query must give rows. Got {why[:200]} ({example.id}).")
            usable = ranked and not ranked[0].problem and not ranked[0].cut
            rows = ranked[0].rows if usable else None
            references[key] = table, allowed_rows(example.reference, table.rows, rows)
        query = clean_sql(answer)
        (found,) = run_sql(path, [query], allow_weak_sandbox=allow_weak_sandbox)
        return _judge(query, found, *references[key])

    return score


def _database(base: Path, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    if base.is_file() or not name:
        return base
    tries = [base / name, base / f"{name}.sqlite", base / f"{name}.db", base / name / f"{name}.sqlite"]
    return next((path for path in tries if path.is_file()), tries[0])


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


@dataclass(frozen=True)
class Allowed:
    """Groups of tied rows in order, of which the rows from `start` to `start + count` are wanted."""

    groups: list[list[Row]]
    start: int
    count: int

    def accepts(self, rows: Sequence[Row]) -> bool:
        """Whether these rows are the reference's, up to ties. Column names do not matter."""
        if len(rows) != self.count:
            return False
        first = 0  # position of the group's first row in the reference without LIMIT
        for group in self.groups:
            begin, end = (min(max(k - self.start, 0), self.count) for k in (first, first + len(group)))
            if not Counter(map(_comparable, rows[begin:end])) <= Counter(map(_comparable, group)):
                return False
            first += len(group)
        return True


def rank_query(query: str) -> str | None:
    """The query without LIMIT and OFFSET, its order as a last column: a rank that tied rows share.

    None if the query has neither an outer ORDER BY nor a LIMIT, or cannot be rewritten this way.
    """
    tree = _parsed(query)
    if not isinstance(tree, exp.Select) or not (tree.args.get("order") or tree.args.get("limit")):
        return None
    order = tree.args.get("order")
    for clause in ("limit", "offset", "order"):
        tree.set(clause, None)
    if order is None:
        return tree.select("1").sql(dialect="sqlite")
    try:
        keys = ", ".join(_key(term.copy(), tree.selects) for term in order.expressions)
        tree = tree.select(f"DENSE_RANK() OVER (ORDER BY {keys}) AS tie_rank", dialect="sqlite").order_by("tie_rank")
        return tree.sql(dialect="sqlite")
    except (*_UNREADABLE, IndexError):
        return None


def allowed_rows(query: str, rows: Sequence[Row], ranked: Sequence[Row] | None) -> Allowed:
    """What a reference query allows that gives `rows`, and whose `rank_query` gives `ranked` (None if it failed)."""
    tree = _parsed(query)
    if ranked is not None and tree is not None:
        groups = [[row[:-1] for row in tied] for _, tied in itertools.groupby(ranked, key=lambda row: row[-1])]
        offset = tree.args.get("offset")
        start = offset.expression if offset else exp.Literal.number(0)
        found = Allowed(groups, int(start.this), len(rows)) if isinstance(start, exp.Literal) and start.is_int else None
        if found and found.accepts(rows):  # the rewritten query means the same
            return found
    ordered = bool(tree.args.get("order")) if tree is not None else "order" in query.lower()
    return Allowed([[row] for row in rows] if ordered else [list(rows)], 0, len(rows))


def _parsed(query: str) -> Any:
    """The query as a tree, or None if sqlglot cannot read it."""
    try:
        tree = sqlglot.parse_one(query, dialect="sqlite")
    except _UNREADABLE:
        return None
    return tree if isinstance(tree, exp.Query) else None


def _key(term: Any, selects: Sequence[Any]) -> str:
    """An ORDER BY term for use in a window: positions and aliases are replaced by what they name."""
    value = term.this if isinstance(term, exp.Ordered) else term
    bare = value.this if isinstance(value, exp.Collate) else value
    if isinstance(bare, exp.Literal) and bare.is_int:
        bare.replace(selects[int(bare.this) - 1].unalias().copy())
    aliases = {select.alias_or_name.lower(): select.unalias() for select in selects}
    for column in list(bare.find_all(exp.Column)):
        if not column.table and column.name.lower() in aliases:
            column.replace(aliases[column.name.lower()].copy())
    return term.sql(dialect="sqlite")


def _comparable(row: Row) -> Row:
    """A row whose numbers are equal if they agree to 9 digits. Whole numbers are exact, and 1.0 is 1."""
    return tuple(float(f"{cell:.9g}") if isinstance(cell, float) else cell for cell in row)

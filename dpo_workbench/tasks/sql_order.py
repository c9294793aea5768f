"""Which rows, in which orders, a reference query allows.

`ORDER BY` fixes the order only as far as its keys differ: rows that tie may come in any order, and if `LIMIT` cuts
through tied rows, any of them may be kept. Without `ORDER BY` all rows tie. So a reference's rows form groups of ties,
and an answer is right if each stretch of its rows is taken from the right group.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot import exp

Row = tuple[Any, ...]
_UNREADABLE = (sqlglot.errors.SqlglotError, ValueError, RecursionError)


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
    """What a reference query allows.

    Args:
        query: the reference.
        rows: what it gives.
        ranked: what its `rank_query` gives; None if there is none or it failed.
    """
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

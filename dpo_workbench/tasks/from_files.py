"""Examples from a file, a table or a Hub data set: which columns hold prompt and reference, and how rows are split."""

from __future__ import annotations

import difflib
import json
import math
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.preference import normal
from dpo_workbench.pairs.sources import open_source, stop
from dpo_workbench.pairs.splits import deal, drawn
from dpo_workbench.tasks.examples import Example

Column = str | Callable[[dict[str, Any]], Any]
SHARES = {"train": 0.6, "dev": 0.15, "test": 0.25}
_SPLIT_NAMES = {
    "training": "train", "validation": "dev", "validate": "dev", "valid": "dev", "val": "dev", "testing": "test",
}  # fmt: skip
_RANK = {"train": 0, "dev": 1, "test": 2}  # a group that is in two splits stays in the later one


@dataclass(frozen=True)
class Columns:
    """Where an example's fields come from: a column, a template with columns in braces, or a function of the row."""

    prompt: Column
    reference: Column
    id: Column | None = None
    group: Column | None = None
    split: Column | None = None
    label: Column | None = None


def examples_from(source: Any, columns: Columns) -> tuple[str, dict[str, list[Example]]]:
    """A name for the source, and its examples by split; the split is "" for rows that name none.

    Args:
        source: see `Task.from_jsonl`.
        columns: where the fields come from.

    Raises:
        WorkbenchError: a row cannot be read, lacks a column, or has an empty prompt, reference or split.
    """
    parts = source if isinstance(source, Mapping) else {"": source}
    found: dict[str, list[Example]] = defaultdict(list)
    names = []
    for given, part in parts.items():
        opened = open_source(part)
        names.append(opened.name)
        for number, row in enumerate(opened.rows, 1):  # one line may hold several rows
            where = f"{opened.name}:{row.line}"
            if row.problem is not None:
                raise stop(row.problem.code, row.problem.got, where, row.problem.fix)
            if not isinstance(row.value, dict):
                raise WorkbenchError(
                    f"Each row must have columns. Got {str(row.value)[:60]!r} ({where}). Write a JSON object per line."
                )
            own_id = "-".join(filter(None, (Path(opened.name).stem, given, str(number))))
            example, split = _example(row.value, where, own_id, columns)
            found[given or split].append(example)
    if not found:
        raise WorkbenchError(f"A task must have rows. Got none in {', '.join(names)}. Write at least one example.")
    stem = Path(names[0].removeprefix("hub:")).stem
    return "".join(c if c.isalnum() else "-" for c in stem).strip("-"), found


def split_by_group(
    examples: Iterable[Example], shares: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, list[Example]]:
    """Examples drawn into splits (by default 0.6 train, 0.15 dev, 0.25 test), each group whole in one of them."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    return deal(groups, shares or SHARES, seed)


def shuffled(splits: Mapping[str, list[Example]], seed: int = 0) -> dict[str, list[Example]]:
    """Each split in an order drawn by group, so that its first rows represent all of it: files are often sorted."""
    return {name: sorted(rows, key=lambda example: drawn(example.group, seed)) for name, rows in splits.items()}


def without_leaks(splits: Mapping[str, list[Example]]) -> dict[str, list[Example]]:
    """The splits with each group only in the last that has it (test after dev after train). Prints what it drops."""
    order = sorted(splits, key=lambda split: _RANK.get(split, 0))
    home = {example.group: split for split in order for example in splits[split]}
    left = {split: [e for e in rows if home[e.group] == split] for split, rows in splits.items()}
    dropped = {split: len(rows) - len(left[split]) for split, rows in splits.items() if len(rows) > len(left[split])}
    if dropped:
        told = ", ".join(f"{n} of {len(splits[split])} from {split}" for split, n in dropped.items())
        print(f"Dropped rows whose groups are in a later split too: {told}")
    return left


def _example(row: dict[str, Any], where: str, own_id: str, columns: Columns) -> tuple[Example, str]:
    """One row as an example, and the name of its split ("" if none is given)."""
    reference = _take(row, columns.reference, "reference", where)
    if isinstance(reference, list) and reference and all(isinstance(text, str) for text in reference):
        reference = reference[0]
    texts = {"prompt": _text(_take(row, columns.prompt, "prompt", where)), "reference": _text(reference)}
    for what, text in texts.items():
        if not text.strip():
            raise WorkbenchError(f"Each row must have a {what} with text. Got {text!r} ({where}). Fix or drop the row.")
    optional = {"id": columns.id, "group": columns.group, "split": columns.split, "label": columns.label}
    given = {what: _text(_take(row, c, what, where)) for what, c in optional.items() if c is not None}
    split = given.get("split", "").strip()
    if "split" in given and not split:
        raise WorkbenchError(f"Each row must name its split. Got none ({where}). Fill in the column.")
    example = Example(
        given.get("id", own_id),
        texts["prompt"],
        texts["reference"],
        given.get("group", normal(texts["prompt"])),
        {str(key): value for key, value in row.items()},
        given.get("label"),
    )
    return example, _SPLIT_NAMES.get(split.lower(), split)


def _take(row: dict[str, Any], column: Column, what: str, where: str) -> Any:
    """The value of a column, a filled template, or what the user's function returns."""
    if callable(column):
        try:
            return column(row)
        except Exception as error:  # the user's function may raise anything
            raise WorkbenchError(
                f"The function for the {what} must work on each row. Got {type(error).__name__}: {error} ({where})."
            ) from error
    if column in row:
        return row[column]
    fields = _fields(column, what) if "{" in column or "}" in column else [column]
    for field in fields:
        if field not in row:
            near = difflib.get_close_matches(field, map(str, row), 1)
            hint = f"Did you mean {near[0]!r}?" if near else "Name a column that every row has."
            if len(fields) > 1 and not near:
                hint = "Name columns that every row has; double braces that are meant as text: {{ and }}."
            raise WorkbenchError(
                f"Each row must have the {what}'s column {field!r}. Got {', '.join(map(str, row))[:200]} ({where}). "
                + hint
            )
    return column.format(**{field: _text(row[field]) for field in fields})


def _fields(template: str, what: str) -> list[str]:
    """The columns that a template names in braces."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:  # a single brace
        parsed, problem = [], str(error)
    else:
        odd = [name for _, name, form, conversion in parsed if name is not None and (form or conversion or not name)]
        odd += [name for _, name, _, _ in parsed if name and any(sign in name for sign in "\"'[].{\n")]
        problem = f"braces around {odd[0]!r}" if odd else ""
    if problem:
        raise WorkbenchError(
            f"The template for the {what} must have only column names in braces. Got {problem} in {template[:80]!r}. "
            'Double each brace that is meant as text, as in {{"id": 1}} {text}, or give a function of the row.'
        )
    return [name for _, name, _, _ in parsed if name]


def _text(value: Any) -> str:
    """A cell as text: whole floats without their decimal point, and other values as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)

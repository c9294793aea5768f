"""Examples from a file, a table or a Hub data set: which columns hold prompt and reference, and how rows are split."""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.codes import Refusal, stop
from dpo_workbench.pairs.conversations import decoded
from dpo_workbench.pairs.messages import Turns, are_messages, prompt_as_text, read_prompt
from dpo_workbench.pairs.preference import normal
from dpo_workbench.pairs.sources import open_source
from dpo_workbench.pairs.splits import deal, drawn
from dpo_workbench.tasks.examples import Example

Column = str | Callable[[dict[str, Any]], Any]
SHARES = {"train": 0.6, "dev": 0.15, "test": 0.25}
_SPLIT_NAMES = {
    "training": "train", "validation": "dev", "validate": "dev", "valid": "dev", "val": "dev", "testing": "test",
}  # fmt: skip
_RANK = {"train": 0, "dev": 1, "test": 2}  # a group that is in two splits stays in the later one


def examples_from(source: Any, columns: Mapping[str, Column | None]) -> tuple[str, dict[str, list[Example]]]:
    """A name for the source, and its examples by split; the split is "" for rows that name none.

    `columns` says where each field of an example comes from, as in `Task.from_jsonl`; None means the default.
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


def _example(row: Any, where: str, own_id: str, columns: Mapping[str, Column | None]) -> tuple[Example, str]:
    """One row as an example, and the name of its split ("" if none is given)."""
    if not isinstance(row, dict):
        raise WorkbenchError(
            f"Each row must have columns. Got {str(row)[:60]!r} ({where}). Write a JSON object per line."
        )
    taken = {what: _take(row, column, what, where) for what, column in columns.items() if column is not None}
    prompt = _prompt(taken.pop("prompt"), where)
    given = {what: _text(value) for what, value in taken.items()}
    for what in ("prompt", "reference", "split"):
        if not (prompt_as_text(prompt) if what == "prompt" else given.get(what, "x")).strip():
            raise WorkbenchError(f"Each row must have a {what} with text. Got none ({where}). Fix or drop the row.")
    split = given.pop("split", "").strip()
    fields: dict[str, Any] = {"id": own_id, "reference": "", "group": normal(prompt_as_text(prompt)), **given}
    example = Example(prompt=prompt, **fields, extra={str(key): value for key, value in row.items()})
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
        value = row[column]
        texts = what == "reference" and isinstance(value, list) and value and all(isinstance(v, str) for v in value)
        return value[0] if texts else value
    try:
        if "{" not in column and "}" not in column:
            raise KeyError(column)
        return column.format_map({key: _text(value) for key, value in row.items()})
    except KeyError as error:
        near = difflib.get_close_matches(error.args[0], map(str, row), 1)
        hint = f"Did you mean {near[0]!r}?" if near else "Name columns that every row has."
        problem = f"Each row must have the {what}'s column {error.args[0]!r}. Got {', '.join(map(str, row))[:200]}"
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        hint, problem = "", f"The template for the {what} must have only column names in braces. Got {error}"
    if "{" in column or "}" in column:
        hint += ' Double each brace that is meant as text, as in {{"id": 1}} {text}.'
    raise WorkbenchError(f"{problem} ({where}). {hint}")


def _prompt(value: Any, where: str) -> str | Turns:
    """Messages, also those that a text spells out, with their roles; other values as text."""
    try:
        value = decoded(value, "prompt", [])
    except Refusal as refusal:
        raise stop(refusal.code, refusal.got, where, refusal.fix) from None
    return read_prompt(value, where) if are_messages(value) else _text(value)


def _text(value: Any) -> str:
    """A cell as text: whole floats without their decimal point, and other values as JSON."""
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)

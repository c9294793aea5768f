"""The task `receipts`: noisy text of a receipt or delivery note -> JSON. The flaw in the labels is planted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from dpo_workbench.tasks.examples import Example, Score, load_splits
from dpo_workbench.tasks.json_scores import json_fields, scalar
from dpo_workbench.tasks.task import Task

HARM = {
    "missing_item": 2,
    "repeated_item": 2,
    "invented_value": 3,
    "wrong_value": 3,
}  # the reasons are in the datasheet
_FIELDS = ("vendor", "date", "items", "total")
_score_fields = json_fields(invented=("vendor", "items", "total"))  # dates are rewritten, so they need not appear


def load() -> Task:
    """The built-in task with its three splits (see `data/receipts/DATASHEET.md`)."""
    about = "structured extraction: noisy text of a receipt -> JSON (planted flaw: blank total)"
    return Task("receipts", load_splits("receipts"), score, about, max_new_tokens=288, harm=HARM)


def score(example: Example, answer: str) -> Score:
    """The F1 over the fields of the answer's JSON (see `json_fields`), and the first failure class that applies.

    The fields are vendor, date, total, and the name, quantity and amount of each item. Classes, in this order:
    `invalid_json`, `wrong_schema`, `missing_field` (a blank one), `repeated_item` (an item more often than in the
    document), `missing_item` (fewer items), `invented_value` (a value that the document does not print), `wrong_value`.
    """
    page = example.prompt_as_text.split("\n\n", 1)[-1]  # without the instruction
    found = _score_fields(replace(example, prompt=page), answer)
    if found.failure == "invalid_json":
        return found
    if not _fits(found.answer):
        why = f"must be an object with {', '.join(_FIELDS)}: texts, and items as [name, quantity, amount]"
        return Score(0.0, "wrong_schema", found.answer, why)
    if found.failure in ("invented_value", "wrong_value"):
        want, got = _items(json.loads(example.reference)), _items(found.answer)
        for row, n in got.items():
            if n > max(want[row], 1):
                why = f"{row[0][1][:80]!r} is listed {n} times; the document has it {want[row]} times"
                return replace(found, failure="repeated_item", explanation=why)
        if got.total() < want.total():
            lacking = next((row[0][1] for row in want if row not in got), "an item")
            return replace(found, failure="missing_item", explanation=f"lacks {lacking!r}")
    return found


def _fits(found: Any) -> bool:
    if not isinstance(found, dict) or set(found) != set(_FIELDS) or not isinstance(found["items"], list):
        return False
    rows = all(isinstance(row, list) and [type(cell) for cell in row] == [str, int, str] for row in found["items"])
    return rows and all(isinstance(found[key], str) for key in ("vendor", "date", "total"))


def _items(answer: dict[str, Any]) -> Counter[tuple[tuple[str, str], ...]]:
    return Counter(tuple(map(scalar, row)) for row in answer["items"])

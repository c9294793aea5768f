"""The task `receipts`: noisy text of a receipt or delivery note -> JSON. The flaw in the labels is planted."""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import Any

from dpo_workbench.tasks.examples import Example, Score, load_splits
from dpo_workbench.tasks.json_scores import STRICT_JSON
from dpo_workbench.tasks.task import Task

_KEYS = ("vendor", "date", "items", "total")
_AMOUNT = re.compile(r"-?\d+\.\d\d")


def load() -> Task:
    """The built-in task with its three splits (see `data/receipts/DATASHEET.md`)."""
    return Task(
        "receipts",
        load_splits("receipts"),
        score,
        description="structured extraction: noisy text of a receipt -> JSON (planted flaw: blank total)",
        max_new_tokens=288,
    )


def score(example: Example, answer: str) -> Score:
    """The F1 over the fields of the answer's JSON, and the first failure class that applies.

    The fields are vendor, date, total, and the name, quantity and amount of each item. Text is compared without regard
    to case and spacing, amounts as decimal numbers. Classes, in this order: `invalid_json`, `wrong_schema`,
    `missing_field` (a blank one), `repeated_item` (an item more often than in the document), `missing_item` (fewer
    items), `invented_value` (a value that the document does not print), `wrong_value`.
    """
    reference = json.loads(example.reference)
    try:
        found = parse(answer)
    except ValueError as error:
        return Score(0.0, "invalid_json", None, str(error))
    problem = _schema_problem(found)
    if problem:
        return Score(0.0, "wrong_schema", found, problem)
    want, got = _in_one_spelling(reference), _in_one_spelling(found)
    wanted, given = _fields(want), _fields(got)
    if wanted == given and Counter(want["items"]) == Counter(got["items"]):
        return Score(1.0, None, found, "every field agrees")
    value = 2 * sum((wanted & given).values()) / (sum(wanted.values()) + sum(given.values()))
    failure, why = _failure(example.prompt, want, got)
    return Score(min(value, 0.99), failure, found, why)


def parse(text: str) -> Any:
    """The JSON value of an answer, which one code fence may surround; raises ValueError if it is not strict JSON."""
    text = text.strip()
    first, _, rest = text.partition("\n")
    if first.strip() in ("```", "```json") and rest.endswith("\n```"):
        text = rest[:-4]
    try:
        return STRICT_JSON.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _schema_problem(found: Any) -> str | None:
    if not isinstance(found, dict):
        return "the answer is not an object"
    if set(found) != set(_KEYS):
        return f"the keys must be {', '.join(_KEYS)}; got {', '.join(map(repr, found))[:80]}"
    if not all(isinstance(found[key], str) for key in ("vendor", "date", "total")):
        return "vendor, date and total must be text"
    if not isinstance(found["items"], list):
        return "items must be a list"
    for row in found["items"]:
        whole = isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[2], str)
        if not whole or isinstance(row[1], bool) or not isinstance(row[1], int):
            return f"an item must be [name, quantity, amount]; got {reprlib.repr(row)[:60]}"
    return None


def _text(value: str) -> str:
    return " ".join(value.split()).casefold()


def _amount(value: str) -> str:
    try:
        number = Decimal(value.strip())
        return str(number.quantize(Decimal("0.01"))) if number.is_finite() else value
    except InvalidOperation:
        return value.strip()


def _in_one_spelling(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with its texts and amounts in the form in which they are compared."""
    rows = [(_text(name), quantity, _amount(amount)) for name, quantity, amount in answer["items"]]
    texts = {"vendor": _text(answer["vendor"]), "date": answer["date"].strip(), "total": _amount(answer["total"])}
    return {**texts, "items": rows}


def _fields(answer: dict[str, Any]) -> Counter[Any]:
    fields: Counter[Any] = Counter((key, answer[key]) for key in ("vendor", "date", "total"))
    for name, quantity, amount in answer["items"]:
        fields.update([("name", name), ("quantity", name, quantity), ("amount", name, amount)])
    return fields


def _failure(prompt: str, reference: dict[str, Any], found: dict[str, Any]) -> tuple[str, str]:
    """The first failure class that applies to an answer that differs from the reference, and why."""
    blank = [key for key in ("vendor", "date", "total") if not found[key]]
    if not all(name and amount for name, _, amount in found["items"]):
        blank.append("an item's name or amount")
    if blank:
        return "missing_field", f"{blank[0]} is blank"
    want, got = Counter(reference["items"]), Counter(found["items"])
    for row, n in got.items():
        if n > max(want[row], 1):
            return "repeated_item", f"{row[0][:80]!r} is listed {n} times; the document has it {want[row]} times"
    if sum(got.values()) < sum(want.values()):
        lacking = next((row[0] for row in want if row not in got), "an item")
        return "missing_item", f"lacks {lacking!r}"
    page = _text(prompt.split("\n\n", 1)[-1]).replace(",", ".")
    printed = set(re.findall(r"\d+\.\d\d", page))  # whole amounts: 2.00 is not in 12.00
    texts = [text.replace(",", ".") for text in (found["vendor"], *(name for name, _, _ in found["items"]))]
    amounts = [text.replace(",", ".") for text in (found["total"], *(amount for *_, amount in found["items"]))]
    invented = [v for v in texts if v not in page]
    invented += [v for v in amounts if v not in printed and (_AMOUNT.fullmatch(v) or _text(v) not in page)]
    if invented:
        return "invented_value", f"{invented[0][:80]!r} is not in the document"
    wrong = next((key for key in ("vendor", "date", "total") if found[key] != reference[key]), "an item")
    return "wrong_value", f"{wrong} differs from the reference"

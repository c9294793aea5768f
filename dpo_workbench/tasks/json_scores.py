"""The verifier for JSON answers: each field is compared with the reference's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.codes import Refusal
from dpo_workbench.pairs.sources import STRICT_JSON
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction
from dpo_workbench.tasks.numbers_in_text import find_numbers, read_number
from dpo_workbench.tasks.text_scores import plain_text

_Leaf = tuple[str, ...]


def json_fields(*, invented: bool | Sequence[str] = False) -> ScoreFunction:
    """1 if the answer has the reference's fields; else the F1 over fields, with nested fields by their path.

    Text is compared by `plain_text`, numbers by value ("12.50" is 12.5), and lists without regard to order, their
    elements by the first text in each. Failures, in this order: `invalid_json`, `wrong_schema` (not an object, or a
    top-level field that the reference lacks), `missing_field` (lacking, or blank where the reference is not),
    `invented_value` (only with `invented`), `wrong_value`.

    Args:
        invented: look for texts and numbers that do not appear in the prompt; True for all top-level fields, or the
            names of those to look at.
    """

    def score(example: Example, answer: str) -> Score:
        try:
            reference = parse_json(example.reference)
        except ValueError as error:
            raise WorkbenchError(f"A reference must be JSON. {error} ({example.id}).") from None
        try:
            found = parse_json(answer)
            same = _canonical(reference) == _canonical(found)
        except (ValueError, RecursionError) as error:
            return Score(0.0, "invalid_json", None, str(error))
        if not isinstance(found, dict):
            return Score(0.0, "wrong_schema", found, "the answer is not an object")
        if same:
            return Score(1.0, None, found)
        want, got = Counter(_leaves(reference)), Counter(_leaves(found))
        value = 2 * (want & got).total() / max(1, want.total() + got.total())
        looked_at = found if invented is True else invented or ()
        failure, why = _failure(want, got, looked_at, example.prompt_as_text)
        return Score(min(value, 0.99), failure, found, why)

    return score


def parse_json(text: str) -> Any:
    """The JSON value of an answer; one code fence around it, or text before and after an object, is allowed.

    Raises:
        ValueError: the text is not JSON, has NaN or Infinity, repeats a key, or is nested too deeply.
    """
    text = extract_code(text).strip()
    try:
        start = text.index("{") if "{" in text and not text.startswith(("[", '"')) else 0
        value, end = STRICT_JSON.raw_decode(text, start)
    except Refusal as refusal:
        why = f"key {refusal.got!r} appears twice" if refusal.field else f"{refusal.got} is not JSON"
        raise ValueError(why) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    rest = text[end:].strip()
    if rest and ("{" in rest or not isinstance(value, dict)):
        raise ValueError("more than one object" if "{" in rest else f"text after the value: {rest[:40]!r}")
    return value


def _canonical(value: Any) -> Any:
    """Equal for values that count as the same: objects without the order of keys, lists without their order."""
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    return sorted(map(_canonical, value), key=repr) if isinstance(value, list) else scalar(value)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    """Each scalar of a JSON value (see `scalar`) with the keys that lead to it; empty lists and objects too.

    An element of a list has the first text in it as its key, so that the amounts of two articles are told apart.
    """
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _leaves(value[key], (*path, key))
    elif isinstance(value, list) and value:
        for inner in value:
            cells = [inner[key] for key in sorted(inner)] if isinstance(inner, dict) else inner
            texts = (scalar(cell) for cell in cells if isinstance(cell, str)) if isinstance(inner, dict | list) else ()
            yield from _leaves(inner, (*path, next((text for kind, text in texts if kind == "text"), "")))
    else:
        yield (*path, *scalar(value))


def scalar(value: Any) -> tuple[str, str]:
    """A kind (blank, constant, text or number) and a text that are equal for values that count as the same."""
    if isinstance(value, bool):
        return "constant", str(value)
    number = read_number(value) if isinstance(value, str) else value
    if isinstance(number, int | float):
        return "number", _digits(number)
    text = plain_text(str(value))
    return "text" if isinstance(value, str) and text else "blank", text


def _digits(number: float) -> str:
    """A number as text, equal for numbers that agree to 12 digits. Whole numbers of any length are exact."""
    if isinstance(number, int) and abs(number) >= 10**12:
        return str(number)
    short = float(f"{number:.12g}")
    return str(int(short)) if short.is_integer() and abs(short) < 1e12 else repr(short)


def _failure(want: Counter[_Leaf], got: Counter[_Leaf], looked_at: Container[str], prompt: str) -> tuple[str, str]:
    """The failure class of an answer that differs from the reference, and why."""
    wanted, given = {leaf[0]: 1 for leaf in want}, {leaf[0]: 1 for leaf in got}  # top-level fields, in order
    for key in given:
        if key not in wanted:
            return "wrong_schema", f"has a field {key[:60]!r}"
    may_be_blank = {leaf[:-2] for leaf in want if leaf[-2] == "blank"}
    blank = [leaf[0] for leaf in got if leaf[-2] == "blank" and leaf[:-2] not in may_be_blank]
    for key in [*(key for key in wanted if key not in given), *blank]:
        return "missing_field", f"{key!r} is missing or blank"
    page, numbers = plain_text(prompt), {_digits(n.value) for n in find_numbers(prompt) if n.value is not None}
    for *path, kind, text in got:
        there: Any = path[0] not in looked_at or kind in ("blank", "constant") or text in numbers
        if kind == "number" and not there:  # it may be in a date or a name
            there = re.search(rf"(?<![\d.,]){re.escape(text)}(?!\d|[.,]\d)", prompt)
        elif kind == "text" and not there:  # not as a part of a longer word
            there = text in page and re.search(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9])", page)
        if not there:
            return "invented_value", f"{text[:60]!r} does not appear in the prompt"
    return "wrong_value", f"{next(iter(want - got), ('a field',))[0]!r} differs from the reference"

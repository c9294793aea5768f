"""The verifier for JSON answers: each field is compared with the reference's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction
from dpo_workbench.tasks.numbers_in_text import find_numbers, read_number
from dpo_workbench.tasks.text_scores import plain_text

_PLAIN_NUMBER = re.compile(r"\s*[-−–]?[\d.,'\u00a0\u2009\u202f]{1,40}\s*")
_CODE = re.compile(r"^\s*0\d|\d{16}")
_BLANK: tuple[Any, ...] = (None, "", [], {})


def json_fields(*, invented: bool = False) -> ScoreFunction:
    """1 if the answer has the reference's fields; else the F1 over fields, with nested fields by their path.

    Text is compared by `plain_text`, numbers by value ("12.50" is 12.5), and lists without regard to order. Failures,
    in this order: `invalid_json`, `wrong_schema` (not an object, or a top-level field that the reference lacks),
    `missing_field`, `invented_value` (only with `invented`), `wrong_value`.

    Args:
        invented: look for texts and numbers that do not appear in the prompt.
    """

    def score(example: Example, answer: str) -> Score:
        try:
            reference = parse_json(example.reference)
        except ValueError as error:
            raise WorkbenchError(f"A reference must be JSON. {error} ({example.id}).") from None
        try:
            found = parse_json(answer)
        except ValueError as error:
            return Score(0.0, "invalid_json", None, str(error))
        if not isinstance(found, dict):
            return Score(0.0, "wrong_schema", found, "the answer is not an object")
        if _canonical(reference) == _canonical(found):
            return Score(1.0, None, found)
        want, got = Counter(_leaves(reference)), Counter(_leaves(found))
        value = 2 * sum((want & got).values()) / max(1, sum(want.values()) + sum(got.values()))
        failure, why = _failure(reference, found, example.prompt if invented else None)
        return Score(min(value, 0.99), failure, found, why)

    return score


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if repeated:
        raise ValueError(f"key {repeated[0]!r} appears twice")
    return dict(pairs)


STRICT_JSON = json.JSONDecoder(parse_constant=_reject_constant, object_pairs_hook=_unique_keys)


def parse_json(text: str) -> Any:
    """The JSON value of an answer; one code fence around it, or text before and after an object, is allowed.

    Raises:
        ValueError: the text is not JSON, has NaN or Infinity, repeats a key, or is nested too deeply.
    """
    text = extract_code(text).strip()
    try:
        start = text.index("{") if "{" in text and not text.startswith(("[", '"')) else 0
        value, end = STRICT_JSON.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    rest = text[end:].strip()
    if rest and ("{" in rest or not isinstance(value, dict)):
        raise ValueError("more than one object" if "{" in rest else f"text after the value: {rest[:40]!r}")
    return value


def _canonical(value: Any) -> Any:
    """Equal for values that count as the same: objects without the order of keys, lists without their order."""
    if isinstance(value, dict):
        return "object", tuple(sorted((key, repr(_canonical(inner))) for key, inner in value.items()))
    if isinstance(value, list):
        return "list", tuple(sorted(repr(_canonical(inner)) for inner in value))
    return _scalar(value)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each scalar of a JSON value with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    else:
        yield (*path, *_scalar(value))


def _scalar(value: Any) -> tuple[str, str]:
    """A kind and a text. Texts that are codes, such as 007 or a number of 16 digits, are not numbers."""
    if isinstance(value, bool) or value is None:
        return "constant", str(value)
    if isinstance(value, str):
        number = read_number(value) if _PLAIN_NUMBER.fullmatch(value) and not _CODE.search(value) else None
        return ("text", plain_text(value)) if number is None else ("number", _digits(number))
    return "number", _digits(value)


def _digits(number: float) -> str:
    """A number as text, equal for numbers that agree to 12 digits. Whole numbers of any length are exact."""
    if isinstance(number, int) and abs(number) >= 10**12:
        return str(number)
    short = float(f"{number:.12g}")
    return str(int(short)) if short.is_integer() and abs(short) < 1e12 else repr(short)


def _failure(reference: Any, found: dict[str, Any], prompt: str | None) -> tuple[str, str]:
    """The failure class of an answer that differs from the reference, and why."""
    fields = reference if isinstance(reference, dict) else {}
    extra = [key for key in found if key not in fields]
    if extra:
        return "wrong_schema", f"has a field {extra[0][:60]!r}"
    for key in fields:
        if key not in found or (found[key] in _BLANK and fields[key] not in _BLANK):
            return "missing_field", f"{key!r} is missing or blank"
    if prompt is not None:
        for *_, kind, leaf in _leaves(found):
            if kind != "constant" and not _appears(kind, leaf, prompt):
                return "invented_value", f"{leaf[:60]!r} does not appear in the prompt"
    return "wrong_value", "a field differs from the reference"


def _appears(kind: str, leaf: str, prompt: str) -> bool:
    """Whether the prompt has a text, not inside a longer word, or a number."""
    if kind == "number":
        if re.search(rf"(?<![\d.,]){re.escape(leaf)}(?!\d|[.,]\d)", prompt):  # also in a date or a name
            return True
        return leaf in {_digits(number.value) for number in find_numbers(prompt) if number.value is not None}
    return re.search(rf"(?<![a-z0-9]){re.escape(leaf)}(?![a-z0-9])", plain_text(prompt)) is not None

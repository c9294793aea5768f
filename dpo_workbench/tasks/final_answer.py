"""The quantity that an answer ends with. If the text leaves open which number is meant, there is none, and a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dpo_workbench.tasks.numbers_in_text import find_numbers, plain_math, with_plain_fractions
from dpo_workbench.tasks.quantities import Quantity, close, convert, is_measured, read_unit, unit_after

_MARK = re.compile(
    r"(?:(?<!/)answer\s*(?:is(?!n)|=|:|>)+|^####(?=\s*[-+−–—±$€(]*\s*[\d.]))\s*(.{1,200})",
    re.IGNORECASE | re.MULTILINE,
)
_EXPLICIT_MARK = re.compile(r"(?<!/)answer\s*(?:is\s*)?[:>=]|\\boxed\s*\{", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\}){1,200})\}")
_CLEAN_UP = (
    (r"(?<![\w.^×*·⋅])(?<![x×*·⋅] )10(?=\s?(?:\^|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]))", "1×10"),  # 10^3 that multiplies nothing
    (r"\(\s*([^()±]{0,30}\d\s*(?:±|\+/-)\s*\d[\d.,]*)\s*\)", r"\1"),  # (3.0 ± 0.1)
    (r"(?<=\d)(?:\s*(?:±|\+/-|\+-)\s*\d[\d.,]*|\(\d{1,3}\))", ""),  # 3.0 ± 0.1 and 3.0(1), without the uncertainty
    (r"(?m)^[^\S\n]*\d{1,2}[.)][^\S\n]+(?=\S)", ""),  # list markers
)
_ONLY_A_QUANTITY = re.compile(r"\W*\d[\d ,.'_\u2009\u202f\u00a0]*(?:[^\d\s]\D*(?:\^?[-−]?\d)?)?\W{0,4}")
_SPACE_GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?!\d)")  # 6 300

# What may be between two numbers, and then leaves open which of them is the answer.
_TWO_VALUES = re.compile(r"\b([A-Za-z]\w?)\s*=[^=]{0,40}\d[^=]{0,20}(?:,|;|\bor|\band)\s*\1\s*=")  # x = 2 or x = 3
_OPERATOR = re.compile(
    r"\s*(?:(?:to|of|out of|in|by|per|plus|minus|times|divided by|versus|vs\.?|x)\s+|[-+−–—×·⋅*/:÷…]|\.\.+)\s*[($€]?"
    r"|\s+",
    re.IGNORECASE,
)
_LIST = re.compile(r"\s*(?:,\s*and\s|,|;|&|and\s|\(?\s*(?P<choice>or)\s+(?:\w+\s+)?)\s*[$€]?", re.IGNORECASE)
# What may not be directly before the number: 2 * 3, √3, -(3), sqrt(3), log 3, less than 3, x > 3, ±3
_BEFORE = re.compile(
    r"[\w)\]}](?:[*×·⋅/÷^]|\s+[*×·⋅/÷]\s+)\(?$|[√^]\s*[({]?$|[-−–]\s*\(+\s*$"
    r"|(?:(?<![a-z])[a-z]|sqrt|log|ln|sin|cos|tan|exp|max|min)\($"
    r"|\b(?:sqrt|log|ln|sin|cos|tan|exp|root of|twice|half of"
    r"|(?:less|more|fewer|greater|smaller|larger|higher|lower) than)\s+$"
    r"|[<>≤≥]=?\s*$|[-+−–±∓]\s*$|(?<!\w)—\s*$",
    re.IGNORECASE,
)
_AFTER = re.compile(  # nor directly after it: 2π, 2^10, 2 + 3, 3..4, 3+, 3 squared, 3 or more, 2 thirds
    r"\s?(?:√|π|pi\b)|x?\s?[\^⁰¹²³⁴⁵⁶⁷⁸⁹⁻]|x?\s?[*×·⋅/÷+]\s?[\d(√]|\s[-−]\s(?:[\d(√]|\w\b)|\.\.+\d|\+(?!\w)"
    r"|\s(?:squared|cubed|to the power|sqrt|log|ln|sin|cos|tan|or\s+(?:more|less|fewer|above|below|higher|lower))\b"
    r"|\s(?:and an? )?(?:half|halves|thirds?|quarters?|fourths|fifths|tenths)\b"
)
_NEGATION = re.compile(r"(?:\bnot|n['’]t|\bnever|\bneither|\bnor)\s+(?:\w+\s+)?$", re.IGNORECASE)
# letters that may follow a digit without being a unit: 2nd, 3D, 10k, 5pm, 1990s
_NOT_UNITS = {*"abcefijkpquvwyzBDEGIOPQRSUXYZ", *"st nd rd th am pm".split()}


@dataclass(frozen=True)
class _Place:
    """A number in a text with its unit. `value` is None if the digits cannot be read."""

    value: float | None
    unit: str
    start: int
    number_end: int
    end: int  # of the unit


def final_answer(text: str) -> tuple[Quantity | None, str]:
    """The quantity that an answer ends with and "", or None and the reason.

    It is the first quantity after the last `Answer:` or `####`, or in the last `\\boxed{}`, or else the last one of the
    text. LaTeX is read as plain text. An answer that names two numbers (`29 or 30`, `29–30`), an expression (`√2`,
    `10 - 3`) or a bound (`x > 3`) has no final quantity.
    """
    plain = _prepared(text)
    for marked in reversed(_MARK.findall(plain) or [_prepared(inside) for inside in _BOXED.findall(text)]):
        found = _read(marked, marked=True)
        if found:
            return found
    if not _EXPLICIT_MARK.search(text):
        for line in reversed(plain[-2000:].splitlines()):
            found = _read(line, marked=False)
            if found:
                return found
    return None, "no number in the answer"


def _prepared(text: str) -> str:
    text = re.sub(r"</?(?!answer)[a-z]\w*>|<<[^<>]*>>", " ", text)  # HTML tags, and calculator notes as in GSM8K
    text = with_plain_fractions(plain_math(text))
    for pattern, plain in _CLEAN_UP:
        text = re.sub(pattern, plain, text)
    return text


def _read(text: str, *, marked: bool) -> tuple[Quantity | None, str] | None:
    """The first quantity of a text after a mark, or the last of a line; None if the text has no number.

    Of a text with equality signs, only the last part with a number counts.
    """
    if marked or _ONLY_A_QUANTITY.fullmatch(text):
        text = _SPACE_GROUPS.sub(lambda match: match[0].replace(" ", ""), text)
    parts = re.split(r"(?<![<>!=])=(?!=)|[≈≃]", text)
    for k in reversed(range(len(parts))):
        places = _places(parts[k], marked=marked)
        if places and _TWO_VALUES.search(text):
            return None, f"two values: {text.strip()[:60]}"
        if places:
            return _checked(parts[k], places, 0 if marked else len(places) - 1, marked=marked or k > 0)
    return None


def _places(text: str, *, marked: bool) -> list[_Place]:
    """The numbers of a text that could be its answer: no ordinals, parts of names, or numbers that it denies."""
    found: list[_Place] = []
    for number in find_numbers(text):
        before, after = text[max(0, number.start - 80) : number.start], text[number.end : number.end + 80]
        if found and number.start < found[-1].end:  # part of the unit before it, as in `17 1/m^2`
            continue
        attached = re.match(r"[^\W\d_][^\s,;:!?]*", after)
        part_of_a_name = re.search(r"[^\W\d_][-–]$", before) or (attached and not _may_follow(attached[0]))
        decade = not marked and re.match(r"[12]\d\d0s\b", text[number.start :])
        if part_of_a_name or decade or _NEGATION.search(before):
            continue
        unit, end = unit_after(text, number.end)
        place = _Place(number.value, unit, number.start, number.end, end)
        whole = _compound(text, found[-1], place) if found else None
        found[len(found) - bool(whole) :] = [whole or place]
    return found


def _may_follow(word: str) -> bool:
    """Whether a word may follow a digit without a space: a unit (5km), a counted thing (5apples), but not 2nd or 3D."""
    word = word.rstrip(".)")
    if word in ("x", "π", "pi") or re.fullmatch(r"[a-z]{3,}", word):
        return True
    return word not in _NOT_UNITS and read_unit(word) is not None


def _compound(text: str, large: _Place, small: _Place) -> _Place | None:
    """`1 h 30 min` as one quantity."""
    joined = re.fullmatch(r",?\s*(?:and\s+)?", text[large.end : small.start])
    if not joined or large.value is None or small.value is None or large.unit == small.unit:
        return None
    ratio = convert(Quantity(1.0, small.unit), large.unit) if is_measured(large.unit) else None
    if ratio is None or not 0 < ratio < 1 or not 0 <= small.value * ratio < 1:
        return None
    return _Place(large.value + small.value * ratio, large.unit, large.start, small.number_end, small.end)


def _checked(text: str, places: list[_Place], chosen: int, *, marked: bool) -> tuple[Quantity | None, str]:
    """The chosen quantity, unless the text around it leaves open which number is meant."""
    place = places[chosen]
    shown = text[place.start : place.end].strip()
    if place.value is None:
        return None, f"{shown} cannot be read as one number"
    before, sign = text[: place.start], 1.0
    minus = re.search(r"(?:^\s*[-−–]|\b(?:minus|negative))\s+$", before, re.IGNORECASE)
    if minus and (marked or minus[0][0].isalpha()):  # `= - 3`, `minus 3`
        before, sign = "", -1.0
    elif not marked and re.fullmatch(r"\s*(?:[-–—*+•>]\s+)+", before):  # a bullet or a quotation
        before = ""
    if any(_unclear(text, one, other) for one, other in zip(places, places[1:], strict=False) if place in (one, other)):
        return None, f"two numbers: {text.strip()[:60]}"
    if _BEFORE.search(before) or _AFTER.match(text, place.number_end) or _AFTER.match(text, place.end):
        return None, f"{shown} is part of an expression, a range or a bound"
    return Quantity(sign * place.value, place.unit), ""


def _unclear(text: str, one: _Place, other: _Place) -> bool:
    """Whether two neighbouring numbers leave open which is meant. The same quantity in other words is fine."""
    between = text[one.end : other.start]
    if between.strip() == "in" and is_measured(one.unit):  # 5 m in 3 s
        return False
    if _OPERATOR.fullmatch(between):
        return True
    joined = _LIST.fullmatch(between)
    if not joined or (other.unit and not is_measured(other.unit) and not joined["choice"]):  # `30, and 2 others`
        return False
    number = convert(Quantity(one.value or 0.0, one.unit), other.unit)
    return None in (one.value, other.value, number) or not close(number, other.value, 1e-3)  # type: ignore[arg-type]

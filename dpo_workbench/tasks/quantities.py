"""Numbers with units, and steps of a calculation. pint reads the units and evaluates plain arithmetic."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

from dpo_workbench.tasks.numbers_in_text import SUPERSCRIPTS, find_numbers, plain_math

_SPELLINGS = (  # of units, in the form that pint reads
    (r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", lambda match: "^" + match[1].translate(SUPERSCRIPTS)),
    (r"\s*(?:\*\*|\^)\s*", "^"),
    (r"[·⋅]", "*"),
    ("μ", "µ"),
    ("Ω", "ohm"),
    (r"%|\bper\s?cent\b", "percent"),
    (r"(?<=[A-Za-z])-(?=[A-Za-z])", "*"),  # N-m
    (r"[°º]\s?C\b|\bdegrees? Celsius\b", "degC"),
    (r"[°º]\s?F\b|\bdegrees? Fahrenheit\b", "degF"),
    (r"\Aper\s+", "1/"),
    (r"(?<=[A-Za-z])\s*(?<!\^)(-?\d)\b", r"^\1"),  # m2, s-1
    (r"metres?\b", "meter"),
    (r"litres?\b", "liter"),
    (r"(?<=[A-Za-z0-9)])\s+(?=[A-Za-z(])(?!per\b)(?<!per )", "*"),
)
_UNIT_TEXT = re.compile(
    r"(?:[ \t\u00a0\u2009\u202f]{0,2}|-(?=[A-Za-z]))"
    r"(?P<unit>[%‰]|[°º]\s?[CF]\b|(?:1\s?/\s?)?[A-Za-zµμΩ°º][A-Za-zµμΩ°^*·⋅/().\-0-9⁰¹²³⁴⁵⁶⁷⁸⁹⁻ ]{0,40})"
)
_PROSE = re.compile(  # words that pint would take for inches, ares, attoseconds, ...
    r"(?:^|\s)(?:in(?=\s+[\w(])|at|a|an|as|am|are|and|or|to|of|out|on|for|by|is|us|per(?=\s+\d)|with|x|pi|plus|minus)"
    r"(?![\w/^*·⋅])|(?<=\w)\s+\("
)
_MEASURES = re.compile(  # symbols and names of units, as opposed to counted things that pint reads as units too
    r"[%‰°º].*|[A-Za-zµΩ]{1,3}(?:\s?[-/*^·⋅⁻²³ 0-9].*)?|deg[CF]|k?ohm|mmol|mbar"
    r"|(?i:(?:nano|micro|milli|centi|deci|hecto|kilo|mega|giga)?(?:met(?:er|re)|gram|lit(?:er|re)|second|minute|hour|day"
    r"|week|month|year|mile|foot|feet|inch|yard|pound|ounce|tonne|ton|newton|joule|watt|volt|amp|ampere|ohm|pascal|hertz"
    r"|kelvin|mole|calorie|coulomb|farad|tesla|bar|degree|radian|byte|percent|per cent|acre|hectare"
    r"|gallon)(?:e?s)?\b.*)"
)


@dataclass(frozen=True)
class Quantity:
    """A number with the text of its unit ("" if there is none)."""

    number: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.number:g} {self.unit}".strip()


@functools.lru_cache(1)
def _registry() -> Any:
    import pint

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True, cache_folder=None)


@functools.lru_cache(4096)
def read_unit(text: str) -> Any:
    """The pint unit that a text names, or None. `m s^-1`, `m/s`, `m·s⁻¹` and `metres per second` are the same unit."""
    text = _without_punctuation(text)
    if not text or len(text) > 40 or text == "pi":
        return None
    for pattern, plain in _SPELLINGS:
        text = re.sub(pattern, plain, text)  # type: ignore[arg-type]
    if re.search(r"[\d^]", re.sub(r"(?<=[A-Za-z)µ])\^-?\d{1,2}(?![\d^])|\A\(?1(?=\s?/)", "", text)):
        return None  # only units may have powers: pint would evaluate `9^9^9^9`, which never finishes
    try:
        if re.fullmatch(r"[a-z]{4,}s", text) and any(
            prefix and not text.startswith(prefix) for prefix, _, _ in _registry().parse_unit_name(text)
        ):
            return None  # `finches` is a word, although pint reads it as femto-inches
        return _registry().parse_units(text)
    except Exception:  # pint raises errors of many kinds for text that is not a unit
        return None


def is_measured(unit: str) -> bool:
    """Whether a unit clearly measures something (km, %, hours). Counted things (apples, points, finches) do not."""
    return read_unit(unit) is not None and bool(_MEASURES.fullmatch(unit))


def unit_after(text: str, start: int) -> tuple[str, int]:
    """The unit or the counted thing that follows a number, and where it ends.

    That is the longest run of up to six words that is a unit ("m/s over the whole way" gives "m/s"), or else the next
    word.
    """
    match = _UNIT_TEXT.match(text, start)
    if not match:
        return "", start
    given = _PROSE.split(match["unit"], maxsplit=1)[0]
    for end in reversed([word.end() for word in re.finditer(r"\S+", given)][:6]):
        if read_unit(given[:end]) is not None:
            unit = _without_punctuation(given[:end])
            return unit, match.start("unit") + len(unit)
    word = re.match(r"[^\W\d_]+(?:[\d^*/·⋅(]\S*)?", given)
    return (word[0], match.start("unit") + word.end()) if word else ("", start)


def _without_punctuation(text: str) -> str:
    """The text without the punctuation after it. A bracket stays if it closes one, as in `J/(kg K)`."""
    text = text.strip().rstrip(".,;:!? ")
    while text.endswith(")") and text.count(")") > text.count("("):
        text = text[:-1].rstrip(".,;:!? ")
    return text


def convert(found: Quantity, unit: str) -> float | None:
    """The number in another unit. None if the units measure different things or one of them is not a unit."""
    if found.unit.strip() == unit.strip():
        return found.number
    here, there = read_unit(found.unit), read_unit(unit)
    if here is None or there is None:
        return None
    try:
        return float(_registry().Quantity(found.number, here).to(there).magnitude)
    except Exception:  # pint raises errors of many kinds
        return None


def close(found: float, wanted: float, tolerance: float) -> bool:
    """Whether two numbers agree within a relative tolerance; for a wanted 0 the tolerance is absolute."""
    return abs(found - wanted) <= tolerance * (abs(wanted) or 1.0)


def arithmetic(text: str) -> float | None:
    """The value of a text that is plain arithmetic (`2.5 × (3 + 4)^2`) and nothing else."""
    if len(text) > 120 or not re.search(r"\d", text):
        return None
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text).translate(SUPERSCRIPTS)
    text = re.sub(r"[×·⋅]|(?<=\d)\s*x\s*(?=[\d(])", "*", text).replace("÷", "/").replace("^", "**").strip()
    unclear = re.search(
        r"[\d.)]\s+[\d.(]|[\d.)]\(|\)[\d.]|\.\d*\.|//|\d{16}", text
    )  # pint would multiply 2 by 3 in `2 3`
    if unclear or not re.fullmatch(r"(?:[\d.+\-*/() ]|(?<=\d)[eE](?=[-+]?\d))+", text):
        return None
    text = re.sub(r"(?<![\d.eE])(?<![eE][-+])\d+(?![\d.eE])", r"\g<0>.0", text)  # powers of floats overflow quickly
    try:
        value = float(_registry().parse_expression(text))
    except Exception:  # pint raises errors of many kinds
        return None
    return value if math.isfinite(value) else None


def wrong_step(text: str, tolerance: float = 0.02) -> str | None:
    """The first wrong step of a calculation, as `a = b`; None if every step that can be checked is right.

    The parts of each line between equality signs are read as arithmetic, with a unit allowed after the last number. Two
    neighbouring parts that can both be read must agree within the tolerance, if one of them has an operator.
    """
    for line in plain_math("\n".join(line[:400] for line in text.splitlines()[:60])).splitlines():
        parts = [re.sub(r"^.*[:;]\s*", "", part).strip() for part in re.split(r"[=≈]", line[:400])]
        sides = [_side(part) for part in parts]
        for k, ((left, left_is_number), (right, right_is_number)) in enumerate(zip(sides, sides[1:], strict=False)):
            if left is None or right is None or (left_is_number and right_is_number):
                continue
            if not close(right, left, tolerance):
                return f"{parts[k]} = {parts[k + 1]}"
    return None


def _side(text: str) -> tuple[float | None, bool]:
    """The value of one side of a step, and whether it is just a number (with or without a unit)."""
    text = text.rstrip(" .,;")
    value = arithmetic(text)
    if value is not None:
        return value, not re.search(r"[\d)]\s*[-+−–*/×·⋅÷^x]", text)
    first = next(find_numbers(text), None)
    if first and first.start == 0 and read_unit(text[first.end :]) is not None:
        return first.value, True
    return None, False

"""Numbers with units (which pint reads), and the steps of a calculation."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dpo_workbench.tasks.numbers_in_text import find_numbers, plain_math, plain_powers

_SPELLINGS = (  # of units that pint does not read
    (r"\s*(?:\*\*|\^)\s*", "^"),
    (r"%|\bper\s?cent\b", "percent"),
    (r"(?<=[A-Za-z])-(?=[A-Za-z])", "*"),  # N-m
    (r"(?:[°º]\s?|\bdegrees? )(C|F)(?:elsius|ahrenheit)?\b", r"deg\1"),
    (r"\Aper\s+", "1/"),
    (r"(?<=[A-Za-z])\s*(?<!\^)(-?\d)\b", r"^\1"),  # m2, s-1
)
_UNIT_TEXT = re.compile(
    r"(?:[ \t\u00a0\u2009\u202f]{0,2}|-(?=[A-Za-z]))"
    r"(?P<unit>[%‰]|[°º]\s?[CF]\b|(?:1\s?/\s?)?[A-Za-zµμΩ°º][A-Za-zµμΩ°^*·⋅/().\-0-9⁰¹²³⁴⁵⁶⁷⁸⁹⁻ ]{0,40})"
)
_PROSE = re.compile(  # words that pint would take for inches, ares, attoseconds, ...
    r"(?:^|\s)(?:in(?=\s+[\w(])|at|a|an|as|am|are|and|or|to|of|out|on|for|by|is|us|per(?=\s+\d)|with|x|pi|plus|minus)"
    r"(?![\w/^*·⋅])|(?<=\w)\s+\("
)
_MEASURES = tuple(  # ends of the names of units, as opposed to counted things that pint reads as units too (points)
    "meter gram liter second minute hour day week month year mile foot inch yard pound ounce ton newton joule watt "
    "volt ampere ohm pascal hertz kelvin mole molar calorie coulomb farad tesla bar degree_Celsius "
    "degree_Fahrenheit degree radian bel byte percent permille acre hectare gallon knot standard_atmosphere".split()
)
_OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip


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
    text = plain_powers(_without_punctuation(text))
    if not text or len(text) > 40 or text == "pi":
        return None
    for pattern, plain in _SPELLINGS:
        text = re.sub(pattern, plain, text)
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
    return all(name.endswith(_MEASURES) for name in re.findall(r"[^\W\d]+", str(read_unit(unit))))


def unit_after(text: str, start: int) -> tuple[str, int]:
    """The unit that follows a number, and where it ends: the longest run of up to six words that is a unit.

    "m/s over the whole way" gives "m/s"; "finches" gives "".
    """
    match = _UNIT_TEXT.match(text, start)
    if match:
        given = _PROSE.split(match["unit"], maxsplit=1)[0]
        for end in reversed([word.end() for word in re.finditer(r"\S+", given)][:6]):
            if read_unit(given[:end]) is not None:
                unit = _without_punctuation(given[:end])
                return unit, match.start("unit") + len(unit)
    return "", start


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
    text = re.sub(r"(?<=\d),(?=\d{3})", "", plain_powers(text))
    text = re.sub(r"[×·⋅]|(?<=\d)\s*x\s*(?=[\d(])", "*", text).replace("÷", "/").replace("^", "**").strip()
    if len(text) > 120 or not re.fullmatch(r"(?:[\d.+\-*/() ]|(?<=\d)[eE](?=[-+]?\d))+", text):
        return None
    try:
        value = _value(ast.parse(text, mode="eval").body)
        return value if math.isfinite(value) else None
    except (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError):
        return None


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.BinOp):
        return float(_OPERATIONS[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]  # the text has no quotes, so it is a number
    raise ValueError("not plain arithmetic")


def wrong_step(text: str, tolerance: float = 0.02) -> str | None:
    """The first wrong step of a calculation, as `a = b`; None if every step that can be checked is right.

    The parts of each line between equality signs are read as arithmetic, with a unit allowed after the last number. Two
    neighbouring parts that can both be read must agree within the tolerance, if one of them has an operator.
    """
    for line in plain_math("\n".join(line[:400] for line in text.splitlines()[:60])).splitlines():
        parts = [re.sub(r"^.*[:;]\s*", "", part).strip() for part in re.split(r"[=≈]", line[:400])]
        for one, other in pairwise(parts):
            (left, computed), (right, also_computed) = _side(one), _side(other)
            if left is None or right is None or not (computed or also_computed):
                continue
            if not close(right, left, tolerance):
                return f"{one} = {other}"
    return None


def _side(text: str) -> tuple[float | None, bool]:
    """The value of one side of a step, and whether it is more than a number (with or without a unit)."""
    text = text.rstrip(" .,;")
    value = arithmetic(text)
    if value is not None:
        return value, bool(re.search(r"[\d)]\s*[-+−–*/×·⋅÷^x]", text))
    first = next(find_numbers(text), None)
    is_quantity = first and first.start == 0 and read_unit(text[first.end :]) is not None
    return (first.value if first and is_quantity else None), False

"""Numbers and units in text: found, read, compared. Units by pint; nothing in the text is evaluated but arithmetic."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_NUMBER = r"[-+−]?(?:\d{1,3}(?:[,\u202f\u00a0']\d{3})+|\d+)?(?:\.\d+)?(?<=\d)"
_POWER = (
    r"(?:\s*(?:[×x*·⋅]\s*10\s*(?:(?:\^|\*\*)?\s*[({]?\s*(?P<power>[-+−]?\d{1,3})[)}]?|(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))"
    r"|[eE](?P<exponent>[-+−]?\d{1,3})))?"
)
_UNIT = r"(?P<unit>\s?(?:%|[°º]\s?[CF]|(?:1\s?/\s?)?[A-Za-zµμΩ°][A-Za-zµμΩ°^*·⋅/().\-0-9⁰¹²³⁴⁵⁶⁷⁸⁹⁻ ]{0,40})?)"
_QUANTITY = re.compile(rf"(?P<number>{_NUMBER}){_POWER}{_UNIT}")
_PLAIN_NUMBER = re.compile(rf"(?<![\w.])(?P<number>{_NUMBER}){_POWER}(?![\w])")
_PLACE = re.compile(  # of a number, with the word that stands right behind it: 5km, not 1990s
    rf"(?<![\w.])(?![12]\d\d0s\b)(?P<number>{_NUMBER}){_POWER}"
    r"(?:(?P<unit>[A-Za-zµμΩ][A-Za-zµμΩ^*·⋅/\-0-9⁰¹²³⁴⁵⁶⁷⁸⁹⁻]*)|(?!\w))"
)
_NO_UNITS = {*"abcfijkpquvwxyzBDEGIOPQRSUXYZ", *"st nd rd th am pm".split()}  # 2nd, 10k, 3D, 5pm: pint knows some
_ALONE = re.compile(r"\W*\d[\d ,.'\u202f\u00a0]*(?:[^\d\s]\D*(?:\^?[-−]?\d)?)?\W{0,4}")  # a number and perhaps a unit
_ANSWER = re.compile(
    r"(?:(?<!/)answer\s*(?:is|=|:|>)+|^####(?=\s*[-+−$]?[\d.]))\s*(.{1,200})", re.IGNORECASE | re.MULTILINE
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\}){1,200})\}")
_TEN = re.compile(r"(?<![\w.^×*·⋅])(?<![x×*·⋅] )10(?=\s?\^)")  # 10^3, with nothing that it multiplies
_RATIO = re.compile(r"(?<![\w./^])(?:(\d{1,9})\s+)?\(?(\d{1,9})\s*/\s*(\d{1,9})\)?(?![\w./(])")
_POWERS = re.compile(  # ^2, **-1, ^(1/2)
    r"(?:\^|\*\*)\s*(?:[-+]?\d{1,2}(?![\d.])|\(\s*[-+]?\d{1,2}(?:\s*/\s*\d{1,2})?\s*\))"
)
_TOWER = re.compile(r"\*\*|\^(?!1)|\^1[\d\s)]*\^|\^.*\)\s*\^")  # any other power, or a power of what has one
_LATEX: tuple[tuple[re.Pattern[str], Any], ...] = (  # how a typeset answer is read
    (re.compile(r"\\(?:boxed|fbox|mathrm|text|textbf|mathbf|operatorname|rm)\b\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), lambda m: _fraction(m[1], m[2])),
    (re.compile(r"\^\s*\{\s*([-+−]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"(?:\^ ?)?\{? ?\\(?:circ|degree)(?![a-z]) ?\}?"), "°"),
    (re.compile(r"\\times(?![a-z])"), "×"),
    (re.compile(r"\\cdot(?![a-z])"), "·"),
    (re.compile(r"\\Omega(?![a-z])"), "Ω"),
    (re.compile(r"\\mu(?![a-z])\s*"), "µ"),
    (re.compile(r"\\(?:[,;:! ]|q?quad(?![a-z]))|~"), " "),
    (re.compile(r"(?<=[\w)])\*\*(?=[-(]?\d)"), "^"),
)


@dataclass(frozen=True)
class Quantity:
    """A number with the text of its unit ("" where there is none)."""

    number: float
    unit: str = ""

    @property
    def measured(self) -> bool:
        """Whether the unit is one, and not of a pure number such as %."""
        unit = read_unit(self.unit)
        return unit is not None and not unit.dimensionless

    def __str__(self) -> str:
        return f"{self.number:g} {self.unit}".strip()


@functools.lru_cache(1)
def _registry() -> Any:
    import pint

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True, cache_folder=None)


@functools.lru_cache(4096)
def read_unit(text: str) -> Any:
    """A pint unit, or None where the text is none. `m s^-1`, `m/s`, `m·s⁻¹` and `metres per second` are one."""
    text = _bare(text)
    if not text or len(text) > 40 or re.search(r"\d{3}", text):
        return None
    text = re.sub(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", lambda m: "^" + m[1].translate(_SUPERSCRIPT), text)
    text = text.replace("·", "*").replace("⋅", "*").replace("μ", "µ").replace("Ω", "ohm").replace("%", "percent")
    text = re.sub(r"\bper\s?cent\b", "percent", text.replace("º", "°"))
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", "*", text)  # N-m
    text = re.sub(r"°\s?C\b|\bdegrees? Celsius\b", "degC", text)
    text = re.sub(r"°\s?F\b|\bdegrees? Fahrenheit\b", "degF", text)
    text = re.sub(r"\Aper\s+", "1/", text)
    text = re.sub(r"(?<=[A-Za-z])\s*(?<!\^)(-?\d)\b", r"^\1", text)  # m2, s-1
    text = re.sub(r"\bmetres?\b", "meter", re.sub(r"metres?\b", "meter", text))
    text = re.sub(r"litres?\b", "liter", text)
    text = re.sub(r"(?<=[A-Za-z0-9)])\s+(?=[A-Za-z(])(?!per\b)(?<!per )", "*", text)
    if _TOWER.search(_POWERS.sub("^1", text)):
        return None  # pint evaluates powers of plain numbers, and `m^9^9^9` would never end
    try:
        return _registry().parse_units(text)
    except Exception:  # pint raises errors of many kinds for text that is no unit
        return None


def read_number(text: str) -> float | None:
    """The number that the text is, with thousands separators and powers of ten; None where it is none."""
    match = re.fullmatch(rf"\s*(?P<number>{_NUMBER}){_POWER}\s*", text)
    return _value(match) if match else None


def _value(match: re.Match[str]) -> float | None:
    digits = re.sub(r"[,\u202f\u00a0']", "", match["number"]).replace("−", "-")
    power = (match["power"] or match["exponent"] or match["raised"] or "0").translate(_SUPERSCRIPT).replace("−", "-")
    try:
        value = float(digits) * 10.0 ** int(power)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def numbers(text: str) -> Iterator[float]:
    """The numbers in a text, in order."""
    for match in _PLAIN_NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            yield value


def read_quantity(text: str) -> Quantity | None:
    """The first number of a text with the unit behind it, as far as the words behind it are one."""
    for match in _QUANTITY.finditer(text):
        value = _value(match)
        if value is not None:
            return Quantity(value, _longest_unit(match["unit"]))
    return None


def _longest_unit(text: str) -> str:
    """The longest beginning of the text that is a unit ("m/s over the whole way" -> "m/s"); else its first word."""
    text = text.strip()
    ends = [m.end() for m in re.finditer(r"[^\s]+", text)]
    for end in reversed(ends[:6]):
        if read_unit(text[:end]) is not None:
            return _bare(text[:end])
    first = re.match(r"[^\s,;]+", text)
    return _bare(first[0]) if first else ""


def _bare(text: str) -> str:
    """Without the punctuation behind it; a bracket stays where it closes one: `J/(kg K)`."""
    text = text.strip().rstrip(".,;:!?").strip()
    while text.endswith(")") and text.count(")") > text.count("("):
        text = text[:-1].rstrip(".,;:!? ")
    return text


def final_answer(text: str) -> Quantity | None:
    """The quantity that an answer ends on.

    It stands behind the last `Answer:` or `####`, else in the last `\\boxed{}`, else it is the last number of the text.
    LaTeX is read as plain text, `1/3` as a number; behind such a mark, or alone in their line, `6 300` and `0,5` too.
    """
    plain = _TEN.sub("1×10", plain_math(text))
    marked = _ANSWER.findall(plain) or [_TEN.sub("1×10", plain_math(inside)) for inside in _BOXED.findall(text)]
    if marked:
        return read_quantity(_RATIO.sub(_ratio, _alone(marked[-1].split("=")[-1])))
    for line in reversed(plain[-2000:].splitlines()):
        line = _RATIO.sub(_ratio, _alone(line) if _ALONE.fullmatch(line) else line)
        places = [
            m.start()
            for m in _PLACE.finditer(line)
            if m["number"] and line[m.start() - 1 : m.start()] != "^" and (not m["unit"] or _is_unit(m["unit"]))
        ]
        if places:
            return read_quantity(line[places[-1] :])
    return None


def _alone(text: str) -> str:
    """A text that is a quantity and no more: in it `6 300` is one number, and `0,5` a half."""
    text = re.sub(r"(?<![\d.])\d{1,3}(?: \d{3})+(?!\d)", lambda m: m[0].replace(" ", ""), text)
    return re.sub(r"(?<![\d.,])(\d+),(?=\d{1,2}(?![\d,]))|(?<![\d.,])(0),(?=\d)", r"\1\2.", text)


def _is_unit(text: str) -> bool:
    return _bare(text) not in _NO_UNITS and read_unit(text) is not None


def _ratio(match: re.Match[str]) -> str:
    """`1/3` and `2 1/3` as decimals."""
    whole, above, below = match.groups()
    return repr(int(whole or 0) + int(above) / int(below)) if int(below) else match[0]


def plain_math(text: str) -> str:
    """Text without LaTeX: `$1.2\\times10^{3}\\,\\mathrm{J}$` as `1.2×10^3 J`, `\\boxed{4}` as `4`."""
    if not any(sign in text for sign in "\\$*~"):
        return text
    for pattern, plain in _LATEX * 2:  # one may stand inside another
        text = pattern.sub(plain, text)
    return re.sub(r"\*\*|[$\\]", "", text)


def _fraction(above: str, below: str) -> str:
    """In brackets where it is a number; a unit is none."""
    parts = [part if re.fullmatch(r"\s*[\w.]+\s*", part) else f"({part})" for part in (above, below)]
    return f"({'/'.join(parts)})" if re.search(r"\d", above) else "/".join(parts)


def convert(found: Quantity, unit: str) -> float | None:
    """The number in another unit; None where the units measure different things or one is no unit."""
    if found.unit.strip() == unit.strip():
        return found.number
    here, there = read_unit(found.unit), read_unit(unit)
    if here is None or there is None:
        return None
    try:
        return float(_registry().Quantity(found.number, here).to(there).magnitude)
    except Exception:
        return None


def close(found: float, wanted: float, tolerance: float) -> bool:
    """Within a relative tolerance, or near zero within it absolutely."""
    return abs(found - wanted) <= tolerance * max(abs(wanted), 1e-9 if wanted else 1.0)


_OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda a, b: a**b if abs(b) <= 20 and abs(a) <= 1e12 else math.nan,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def arithmetic(text: str) -> float | None:
    """The value of plain arithmetic (`2.5 × (3 + 4)^2`), where the text is that and no more."""
    if len(text) > 120 or not re.search(r"\d", text):
        return None
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text).translate(_SUPERSCRIPT)
    text = re.sub(r"[×·⋅]|(?<=\d)\s*x\s*(?=[\d(])", "*", text).replace("÷", "/").replace("−", "-").replace("^", "**")
    if not re.fullmatch(r"[\d.eE+\-*/() ]+", text) or re.search(r"\d{16}", text):
        return None
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, KeyError, MemoryError):
        return None


def _evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp):
        return float(_OPERATIONS[type(node.op)](_evaluate(node.left), _evaluate(node.right)))
    if isinstance(node, ast.UnaryOp):
        return float(_OPERATIONS[type(node.op)](_evaluate(node.operand)))
    raise ValueError


def wrong_step(text: str, tolerance: float = 0.02) -> str | None:
    """The first step of a calculation that does not compute, as `a = b`; None where all that can be checked do.

    Of each line the parts between equality signs are read as arithmetic, with a unit behind the last number allowed;
    two neighbours that both are arithmetic, one of them with an operator, must agree within the tolerance.
    """
    for line in plain_math("\n".join(line[:400] for line in text.splitlines()[:60])).splitlines():
        parts = [re.sub(r"^.*[:;]\s*", "", part).strip() for part in re.split(r"[=≈]", line[:400])]
        values = [_side(part) for part in parts]
        for (one, plain), (other, simple), left, right in zip(values, values[1:], parts, parts[1:], strict=False):
            if one is None or other is None or (plain and simple):
                continue
            if not close(other, one, tolerance) and not math.isnan(one):
                return f"{left} = {right}"
    return None


def _side(text: str) -> tuple[float | None, bool]:
    """Value of one side of a step and whether it is a number alone (with or without its unit)."""
    text = text.rstrip(" .,;")
    value = arithmetic(text)
    if value is not None:
        return value, read_number(text) is not None
    quantity = re.fullmatch(rf"(?P<number>{_NUMBER}){_POWER}\s*(?P<unit>\D.{{0,40}})", text)
    if quantity and read_unit(quantity["unit"]) is not None:
        return _value(quantity), True
    return None, False

"""The quantity that an answer ends with, and the verifier that compares it with the reference's.

An answer that leaves open which number is meant (`29 or 30`, `29–30`, `√2`, `x > 3`) has no final quantity, but a
reason.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from numbers import Real

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction
from dpo_workbench.tasks.numbers_in_text import Number, find_numbers, plain_math
from dpo_workbench.tasks.quantities import Quantity, close, convert, is_measured, read_unit, unit_after

_MARK = re.compile(
    r"(?:(?<!/)answer\s*(?:is(?!n)|=|:|>)+|^####(?=\s*[-+−–—±€(]*\s*[\d.]))\s*(.{1,200})", re.IGNORECASE | re.MULTILINE
)
_EXPLICIT_MARK = re.compile(r"(?<!/)answer\s*(?:is\s*)?[:>=]", re.IGNORECASE)
_CLEAN_UP = (
    (r"</?(?!answer)[a-z]\w*>|<<[^<>]*>>", " "),  # HTML tags, and calculator notes as in GSM8K
    (r"(?m)^[^\S\n]*(?:(?:[-*+•>–—]|\d{1,2}[.)])[^\S\n]+(?=\S))+", ""),  # list markers and quotations
    (r"(?<![\w.^×*·⋅])(?<![x×*·⋅] )10(?=\s?(?:\^|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]))", "1×10"),  # 10^3 that multiplies nothing
    (r"(?i)(?:\b(?:minus|negative)|(?<=[=:#])\s*[-−–])\s+(?=\.?\d)", " -"),  # minus 3, = - 3
)
_SPACE_GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?!\d)")  # 6 300
_TWO_VALUES = re.compile(r"\b([A-Za-z]\w?)\s*=[^=]{0,40}\d[^=]{0,20}(?:,|;|\bor|\band)\s*\1\s*=")  # x = 2 or x = 3
# What may not be between two numbers (only signs and words such as `to`), ...
_BETWEEN = re.compile(
    r"\W*(?:(?:to|of|out|in|by|per|plus|minus|times|divided|versus|vs|x|and)\b\W*)*"
    r"|\W*(?:\w+\W+)?(?:or|to)\b\W*(?:\w+\W+)?",
    re.IGNORECASE,
)
# ... before the number (2 * 3, √3, -(3), sqrt(3), log 3, less than 3, not 3, x > 3, ±3, pump-3), ...
_BEFORE = re.compile(
    r"[-+−–—±∓*×·⋅/÷^√<>≤≥]=?\s*[({]*\s*$|\w\($|\b(?:sqrt|log|ln|sin|cos|tan|exp|max|min|root of|twice|half of"
    r"|(?:less|more|fewer|greater|smaller|larger|higher|lower) than)\W*$"
    r"|(?:\bnot|n['’]t|\bnever|\bneither|\bnor)\s+(?:\w+\s+)?$",
    re.IGNORECASE,
)
# ... or after it: 2π, 2^10, 2(x + 1), 5 - y, 3+, 3 squared, 3 or more, 2 thirds
_AFTER = re.compile(
    r"x\d|\.\.|x?\s?(?:[√π^⁰¹²³⁴⁵⁶⁷⁸⁹⁻]|pi\b|[*×·⋅/÷+]\s?(?:\w\b|[(√])|\+(?!\w))|\(|\s[-−]\s(?:[(√]|\w\b)"
    r"|\s(?:squared|cubed|to the power|sqrt|log|ln|sin|cos|tan|or\s+(?:more|less|fewer|above|below|higher|lower))\b"
    r"|\s(?:and an? )?(?:half|halves|thirds?|quarters?|fourths|fifths|tenths)\b"
)
# letters directly after a number that are no unit, although pint reads them as one: 2nd, 3D, 5i, 5pm
_NOT_UNITS = {*"abcefijkpquvwyzBDEGIOPQRSUXYZ", *"st nd rd th am pm".split()}


def number(*, tolerance: float = 1e-6, unit: str | None = None) -> ScoreFunction:
    """1 if the answer's final number, in the reference's unit, is the reference's within a relative tolerance.

    See `final_answer` for which number is the final one. Units are compared by what they measure: 36 km/h is 10 m/s. A
    right number whose unit is missing or wrong, or which has a unit that the reference lacks (`29 km` for 29), is worth
    0.5. Counted things are not units: `29 apples` is 29. Failures: `no_answer`, `wrong_unit`, and `wrong_value`, which
    includes answers that do not commit to one number (`29 or 30`).

    Args:
        tolerance: relative; absolute if the reference is 0.
        unit: of the references, if they are bare numbers; `""` to ignore units.

    Raises:
        WorkbenchError: the tolerance is negative or not a number, or `unit` is not a unit.
    """
    if not isinstance(tolerance, Real) or not 0 <= float(tolerance) < math.inf:
        raise WorkbenchError(f"`tolerance` must be a number from 0 upwards. Got {tolerance!r}. Set 0.01 for 1 %.")
    if unit and read_unit(unit) is None:
        raise WorkbenchError(f"`unit` must be a unit. Got {unit!r}. Write it like m/s or kg m^2, or leave it out.")

    def score(example: Example, answer: str) -> Score:
        wanted, why = final_answer(example.reference)
        if wanted is None:
            raise WorkbenchError(
                f"A reference must hold one number. Got {example.reference[:60]!r} ({example.id}: {why}). Fix the row."
            )
        wanted = Quantity(wanted.number, wanted.unit if unit is None else unit)
        return judge_quantity(answer, wanted, tolerance, ignore_unit=unit == "")

    return score


def judge_quantity(answer: str, wanted: Quantity, tolerance: float, *, ignore_unit: bool = False) -> Score:
    """The score of an answer's final quantity; see `number`."""
    found, why = final_answer(answer)
    if found is None:
        return Score(0.0, "no_answer" if why == _NO_NUMBER else "wrong_value", None, why)
    here: float | None = found.number
    if wanted.unit:
        here, why = convert(found, wanted.unit), f"{found} is not in {wanted.unit}"
    elif is_measured(found.unit) and not ignore_unit:
        here, why = None, f'{found} has a unit that the reference lacks (number(unit="") ignores units)'
    if here is None:
        return Score(0.5 if close(found.number, wanted.number, tolerance) else 0.0, "wrong_unit", found, why)
    if close(here, wanted.number, tolerance):
        return Score(1.0, None, found)
    return Score(0.0, "wrong_value", found, f"{found} is not {wanted}")


_NO_NUMBER = "no number in the answer"


def final_answer(text: str) -> tuple[Quantity | None, str]:
    """The quantity that an answer ends with and "", or None and the reason.

    It is the first quantity after the last `Answer:`, `####` or in the last `\\boxed{}`, or else the last one of the
    text. LaTeX is read as plain text. An answer that names two numbers (`29 or 30`, `29–30`), an expression (`√2`,
    `10 - 3`), a bound (`x > 3`) or a margin (`3 ± 1`) has no final quantity.
    """
    text = plain_math(text)
    for pattern, plain in _CLEAN_UP:
        text = re.sub(pattern, plain, text)
    marked = [_SPACE_GROUPS.sub(lambda match: match[0].replace(" ", ""), line) for line in _MARK.findall(text)]
    others = [] if _EXPLICIT_MARK.search(text) else text[-2000:].splitlines()
    found = (_read(line, marked=lines is marked) for lines in (marked, others) for line in reversed(lines))
    return next(filter(None, found), (None, _NO_NUMBER))


def _read(text: str, *, marked: bool) -> tuple[Quantity | None, str] | None:
    """The first quantity of a text after a mark, or the last of a line; None if the text has no number.

    Of a text with equality signs, only the last part with a number counts.
    """
    for part in reversed(re.split(r"(?<![<>!=])=(?!=)|[≈≃]", text)):
        numbers = list(find_numbers(part))
        if numbers and _TWO_VALUES.search(text):
            return None, f"two values: {text.strip()[:60]}"
        if numbers:
            return _checked(part, numbers, marked=marked)
    return None


def _checked(text: str, numbers: list[Number], *, marked: bool) -> tuple[Quantity | None, str]:
    """The first or last number of a text, unless what is around it leaves open which number is meant."""
    places: list[tuple[Number, str, int]] = []  # with its unit and where that ends
    for number in numbers:
        if not places or number.start >= places[-1][2]:  # not part of a unit, as in `17 1/m^2`
            places.append((number, *unit_after(text, number.end)))
    chosen = 0 if marked else len(places) - 1
    number, unit, end = places[chosen]
    shown = text[number.start : end].strip()
    attached = re.match(r"[^\W\d_]+", text[number.end :])
    ordinal = attached and (attached[0] in _NOT_UNITS or not (unit or attached[0] == "x"))  # also parts of names
    decade = not marked and re.match(r"[12]\d\d0s\b", text[number.start :])
    if number.value is None or ordinal or decade:
        return None, f"{shown} cannot be read as one number"
    for (_, _, left), (right, _, _) in pairwise(places[max(chosen - 1, 0) : chosen + 2]):
        if _BETWEEN.fullmatch(text[left : right.start]):
            return None, f"two numbers: {text.strip()[:60]}"
    if _BEFORE.search(text[max(0, number.start - 80) : number.start]) or _AFTER.match(text, end):
        return None, f"{shown} is part of an expression, a range or a bound"
    return Quantity(number.value, unit), ""

"""Verifiers for short texts: the exact text, a choice, a pattern, a number."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from numbers import Real

import regex as timed

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction
from dpo_workbench.tasks.final_answer import final_answer
from dpo_workbench.tasks.quantities import Quantity, close, convert, is_measured, read_unit


def plain_text(text: str) -> str:
    """Text for comparison: Unicode NFKC, lower case, one space between words, no end punctuation."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", r"^\g<0>", text)  # NFKC would make 102 out of 10²
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.rstrip(" .!") or text


def exact_match() -> ScoreFunction:
    """1 if the answer is the reference, apart from spaces, end punctuation and case; failure `wrong_answer`."""

    def score(example: Example, answer: str) -> Score:
        wanted, given = plain_text(example.reference), answer.strip()
        if plain_text(answer) == wanted:
            return Score(1.0, None, given)
        return Score(0.0, "wrong_answer", given, f"not {wanted[:80]!r}")

    return score


def multiple_choice(choices: str | Sequence[str] = "ABCDE") -> ScoreFunction:
    """1 if the answer makes the same choice as the reference; failures `no_choice` and `wrong_choice`.

    The choice is read in this order: "answer: B", "answer is (B)", `<answer>B` or `\\boxed{B}` (the last one); an
    answer that is a choice or begins with one ("B", "(B) because", "B. text"); a single choice in brackets or after
    "option", "choose" or "so"; the last line, if it is a choice. An answer that offers two choices ("A or B") or says
    that a choice is wrong has not made one.
    """
    names = list(choices)
    one = rf"(?P<choice>{'|'.join(re.escape(name) for name in sorted(names, key=len, reverse=True))})(?!\w)"
    marked = re.compile(
        r"(?:\b(?<!/)(?:answer|option|choice)\b[\s*]*(?:(?:is|:|=|>|\*)\s*)+|^\W*answer\s+|\\boxed\s*\{\s*(?:\\\w+\s*\{)?)"
        rf"[(\[*\s]*{one}",
        re.IGNORECASE | re.MULTILINE,
    )
    opening = re.compile(rf"\A\s*[(\[*]*{one}(?=[)\].:*,/&]|\s*\Z|\s+(?:because|since|as|or|and)\b|\n)", re.IGNORECASE)
    inside = re.compile(
        rf"(?:[(\[]|\b(?:option|choice|choose|pick|select|so|thus|hence|therefore,?)\s+\**){one}"
        r"(?=[)\]]|(?!\s+(?!or\b|and\b)\w))",
        re.IGNORECASE,
    )
    closing = re.compile(rf"\n\s*[(\[*]*{one}[)\]*]*\.?\s*\Z", re.IGNORECASE)
    second = re.compile(
        rf"[)\]}}*]*\s*(?:,?\s*\b(?:or|and)\b|[,/&+])\s*(?:option\s+)?[(\[*]*{one}(?!\s+(?:is|are|was)\b)",
        re.IGNORECASE,
    )

    def read(text: str) -> str | None:
        for pattern in (marked, opening, inside, closing):
            found = [match for match in pattern.finditer(text) if _is_a_choice(match)]
            if pattern is inside and len({match["choice"].casefold() for match in found}) != 1:
                continue
            if found:
                another = second.match(text, found[-1].end("choice"))
                if another and _is_a_choice(another):
                    return None
                return next(name for name in names if name.casefold() == found[-1]["choice"].casefold())
        return None

    def score(example: Example, answer: str) -> Score:
        wanted = read(example.reference)
        if wanted is None:
            raise WorkbenchError(f"A reference must name a choice. Got {example.reference[:60]!r} ({example.id}).")
        found = read(answer)
        if found is None:
            return Score(0.0, "no_choice", None, f"does not choose one of {', '.join(names)}")
        return Score(1.0, None, found) if found == wanted else Score(0.0, "wrong_choice", found, f"not {wanted}")

    return score


_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|is|for|and|or|due|so)\b)[^\W\d_]{2,}")
_DENIED = re.compile(
    r"[)\]}*]*\s+(?:is|are|was)(?:n['’]t|\s+(?:not|never|wrong|incorrect|false)\b)|[)\]}*]*\s*\b(?:can|could)(?:not|n['’]t)\b",
    re.IGNORECASE,
)


def _is_a_choice(match: re.Match[str]) -> bool:
    """Not the article in `Answer: a cell`, and not said to be wrong."""
    after = match.string[match.end("choice") :]
    return not (match["choice"] in ("a", "A") and _ARTICLE.match(after)) and not _DENIED.match(after)


def regex(pattern: str) -> ScoreFunction:
    """1 if the last match of the pattern (its first group, if it has one) is the same in answer and reference.

    Case is ignored. If the pattern does not match the reference, the whole reference is wanted. Failures: `no_match`,
    `wrong_answer`. The answer's last 100,000 characters are searched.

    Raises:
        WorkbenchError: the pattern is not a regular expression. From the verifier: a search took more than a second,
            so the answer stays unscored.
    """
    try:
        compiled = timed.compile(pattern, re.IGNORECASE)
    except timed.error as error:
        raise WorkbenchError(f"A pattern must be a regular expression. Got {pattern!r}: {error}.") from None

    def read(text: str) -> str | None:
        try:
            found = [m[1] if compiled.groups else m[0] for m in compiled.finditer(text[-100_000:], timeout=1.0)]
        except TimeoutError:
            raise WorkbenchError(
                f"A search must finish within a second. Got {pattern[:60]!r}, which has too many ways to match "
                f"{text[:40]!r}. Avoid repetitions inside repetitions, such as (a|aa)+."
            ) from None
        return plain_text(found[-1] or "") if found else None

    def score(example: Example, answer: str) -> Score:
        wanted, found = read(example.reference), read(answer)
        wanted = plain_text(example.reference) if wanted is None else wanted
        if found is None:
            return Score(0.0, "no_match", None, f"nothing matches {pattern[:60]!r}")
        return Score(1.0, None, found) if found == wanted else Score(0.0, "wrong_answer", found, f"not {wanted!r}")

    return score


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
        wanted_unit = wanted.unit if unit is None else unit
        if read_unit(wanted_unit) is None:  # a counted thing, as in `7 apples`
            wanted_unit = ""
        found, why = final_answer(answer)
        if found is None:
            return no_quantity(why)
        if unit == "":
            found = Quantity(found.number)
        return judge_quantity(found, Quantity(wanted.number, wanted_unit), tolerance)

    return score


def no_quantity(why: str) -> Score:
    """The score of an answer from which `final_answer` read no quantity."""
    return Score(0.0, "no_answer" if why.startswith("no number") else "wrong_value", None, why)


def judge_quantity(found: Quantity, wanted: Quantity, tolerance: float) -> Score:
    """The score of one quantity against another; see `number`."""
    same_number = close(found.number, wanted.number, tolerance)
    if not wanted.unit:
        if is_measured(found.unit):
            why = f'{found} has a unit that the reference lacks (number(unit="") ignores units)'
            return Score(0.5 if same_number else 0.0, "wrong_unit", found, why)
        here: float | None = found.number
    else:
        here = convert(found, wanted.unit)
    if here is None:
        return Score(0.5 if same_number else 0.0, "wrong_unit", found, f"{found} is not in {wanted.unit}")
    if close(here, wanted.number, tolerance):
        return Score(1.0, None, found)
    return Score(0.0, "wrong_value", found, f"{found} is not {wanted}")

"""Verifiers for short texts: the exact text, a choice, a pattern."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import regex as timed

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction


def plain_text(text: str) -> str:
    """Text for comparison: Unicode NFKC, lower case, one space between words, no end punctuation."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", r"^\g<0>", text)  # NFKC would make 102 out of 10²
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.rstrip(" .!") or text


def exact_match() -> ScoreFunction:
    """1 if the answer is the reference, apart from spaces, end punctuation and case; failure `wrong_answer`."""
    return lambda example, answer: _compared(plain_text(answer), plain_text(example.reference), "", "wrong_answer")


_NOT_CHOSEN = (  # what may not follow a choice: the article in `Answer: a cell`, and what says that it is wrong
    r"(?<=\b[aA])\s+(?!(?:because|since|as|is|for|and|or|due|so)\b)[^\W\d_]{2,}"
    r"|[)\]}*]*\s+(?:is|are|was)(?:n['’]t|\s+(?:not|never|wrong|incorrect|false)\b)|[)\]}*]*\s*\bc(?:an|ould)(?:not|n['’]t)\b"
)


def multiple_choice(choices: str | Sequence[str] = "ABCDE") -> ScoreFunction:
    """1 if the answer makes the same choice as the reference; failures `no_choice` and `wrong_choice`.

    The choice is read in this order: "answer: B", "answer is (B)", `<answer>B` or `\\boxed{B}` (the last one); an
    answer that is a choice or begins with one ("B", "(B) because", "B. text"); a single choice in brackets, on a line
    of its own or after "option", "choose" or "so". An answer that offers two choices ("A or B") or says that a choice
    is wrong has not made one.
    """
    names = {name.casefold(): name for name in sorted(choices, key=len, reverse=True)}
    one = rf"[(\[*\s]{{0,9}}(?P<choice>{'|'.join(map(re.escape, names))})(?!\w)(?!{_NOT_CHOSEN})"
    marked, opening, inside, second = (
        re.compile(pattern, re.IGNORECASE | re.MULTILINE)
        for pattern in (
            r"(?:\b(?<!/)(?:answer|option|choice)\b[\s*]*(?:(?:is|:|=|>|\*)\s*)+|^\W*answer\s+|\\boxed\s*\{\s*(?:\\\w+\s*\{)?)"
            + one,
            rf"\A{one}(?=[)\].:*,/&]|\s*\Z|\s+(?:because|since|as|or|and)\b|\n)",
            rf"(?:[(\[\n]|\b(?:option|choice|choose|pick|select|so|thus|hence|therefore,?)\s){one}"
            r"(?=[)\]]|(?!\s+(?!or\b|and\b)\w))",
            rf"[)\]}}*]*\s*(?:,?\s*\b(?:or|and)\b|[,/&+])\s*(?:option\s+)?{one}(?!\s+(?:is|are|was)\b)",
        )
    )

    def read(text: str) -> str | None:
        for pattern in (marked, opening, inside):
            found = list(pattern.finditer(text))
            if found and (pattern is not inside or len({match["choice"].casefold() for match in found}) == 1):
                two = second.match(text, found[-1].end("choice"))
                return None if two else names[found[-1]["choice"].casefold()]
        return None

    def score(example: Example, answer: str) -> Score:
        wanted = read(example.reference)
        if wanted is None:
            raise WorkbenchError(f"A reference must name a choice. Got {example.reference[:60]!r} ({example.id}).")
        return _compared(read(answer), wanted, "no_choice", "wrong_choice")

    return score


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
        return _compared(found, plain_text(example.reference) if wanted is None else wanted, "no_match", "wrong_answer")

    return score


def _compared(found: str | None, wanted: str, none: str, wrong: str) -> Score:
    """1 if what was read from an answer is what is wanted; the failure is `none` if nothing could be read."""
    if found is None:
        return Score(0.0, none, None, f"has nothing to compare with {wanted[:80]!r}")
    return Score(1.0, None, found) if found == wanted else Score(0.0, wrong, found, f"not {wanted[:80]!r}")

"""The verifier for summaries: length, copying, facts, inventions and ROUGE-L."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

from rapidfuzz.distance import LCSseq
from snowballstemmer import stemmer

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction
from dpo_workbench.tasks.numbers_in_text import find_numbers


def words(text: str) -> list[str]:
    """Lower-case ASCII words and numbers, the tokens that ROUGE counts."""
    return re.findall(r"[a-z0-9]+", unicodedata.normalize("NFKC", text).casefold())


def rouge_l(answer: str, references: str | Sequence[str]) -> float:
    """ROUGE-L F1 (Lin 2004, section 3) of an answer, the best over the references, on words without stemming."""
    best, mine = 0.0, words(answer)[:2000]
    for reference in [references] if isinstance(references, str) else references:
        theirs = words(reference)[:2000]
        if mine and theirs:
            best = max(best, 2 * LCSseq.similarity(mine, theirs) / (len(mine) + len(theirs)))
    return best


def summary(
    *, max_words: int | None = None, facts: str | None = None, invented: bool = True, references: str | None = None
) -> ScoreFunction:
    """The share of the facts that a summary covers, or ROUGE-L if there are no facts.

    Failures, in this order: `too_long`, `copied` (more than 60 % of it is one run of 12 words or more from the prompt),
    `invented_fact` (a number or a name that the prompt lacks), `missing_fact`.

    Args:
        max_words: the most words; None for no limit.
        facts: the column of `example.extra` with the facts: a list of texts, or of lists of alternative texts.
        invented: look for numbers and names that the prompt lacks.
        references: the column with more references for ROUGE-L.

    Raises:
        WorkbenchError: a limit below one word.
    """
    if max_words is not None and not max_words >= 1:
        raise WorkbenchError(f"`max_words` must be at least 1. Got {max_words!r}. Leave it out for no limit.")

    def score(example: Example, answer: str) -> Score:
        count = len(answer.split())
        rouge = rouge_l(answer, [example.reference, *(example.extra.get(references or "") or [])])
        wanted = [[fact] if isinstance(fact, str) else list(fact) for fact in example.extra.get(facts or "") or []]
        missing = [texts[0] for texts in wanted if not any(has_fact(answer[:20_000], text) for text in texts)]
        value = 1 - len(missing) / len(wanted) if wanted else rouge
        told = f"ROUGE-L {rouge:.2f}, {count} words"
        if max_words is not None and count > max_words:
            return Score(min(value, 0.99) * max_words / count, "too_long", None, f"{told}; at most {max_words}")
        copied = copied_run(answer, example.prompt)
        if copied >= 12 and copied > 0.6 * len(words(answer)):
            return Score(min(value, 0.99) / 2, "copied", None, f"{told}; {copied} words in a row are the prompt's")
        made_up = invented_in(answer, example.prompt) if invented else None
        if made_up:
            return Score(min(value, 0.99) / 2, "invented_fact", None, f"{told}; {made_up!r} is not in the prompt")
        if missing:
            return Score(min(value, 0.99), "missing_fact", None, f"{told}; {missing[0]!r} is missing")
        return Score(value, None, None, told)

    return score


def has_fact(text: str, fact: str) -> bool:
    """Whether the text has the fact's words next to each other, in order.

    Numbers are compared by value (`two` is 2, up to twenty), units by one name, and longer words by their stem (`leaks`
    is `leaking`; Snowball, English).
    """
    said, run = _fact_words(text), _fact_words(fact)
    return any(said[k : k + len(run)] == run for k in range(len(said) - len(run) + 1))


_SHORT = {"percent": "%", "per cent": "%", "degrees celsius": "°c", "degrees": "°", "minutes": "min", "minute": "min",
          "hours": "h", "hour": "h", "litres": "l", "litre": "l", "liters": "l", "kilograms": "kg", "grams": "g",
          "metres": "m", "kilometres": "km", "millilitres": "ml", "seconds": "s", "euros": "eur", "euro": "eur",
          "€": "eur"}  # fmt: skip
_SHORT_PATTERN = re.compile(
    r"(?<![a-z])(" + "|".join(sorted(map(re.escape, _SHORT), key=len, reverse=True)) + r")(?![a-z])"
)
_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_STEMMER = stemmer("english")


@functools.lru_cache(256)
def _fact_words(text: str) -> list[str]:
    """Words, with each number as `#` and its value."""
    text = _with_spaced_codes(unicodedata.normalize("NFKC", text).casefold())
    text = _SHORT_PATTERN.sub(lambda match: f" {_SHORT[match[1]]} ", text)
    text = re.sub(r"°\s?c\b", " c", text)
    found: list[str] = []
    end = 0
    for number in find_numbers(text):
        found += _plain_words(text[end : number.start])
        shown = text[number.start : number.end]
        found += [f"#{number.value:.12g}"] if number.value is not None else _plain_words(shown)
        end = number.end
    return found + _plain_words(text[end:])


def _with_spaced_codes(text: str) -> str:
    """`P17` as `P 17`, so that its number is found."""
    return re.sub(r"(?<!\d[eE])(?<=[^\W\d_])(?=\d)", " ", text)


def _plain_words(text: str) -> list[str]:
    found = [word for word in re.findall(r"\d+(?:[.:/-]\d+)*|[^\W\d_]+|[%°]", text) if word != "per"]
    stems = [_stem(word) if len(word) > 3 else word for word in found]
    return [f"#{_COUNTED.index(word)}" if word in _COUNTED else stem for word, stem in zip(found, stems, strict=True)]


@functools.lru_cache(10_000)
def _stem(word: str) -> str:
    return _STEMMER.stemWord(word)


def copied_run(answer: str, prompt: str) -> int:
    """Length in words of the longest run that answer and prompt share."""
    mine, theirs = words(answer)[:400], words(prompt)[:4000]
    return SequenceMatcher(None, theirs, mine, autojunk=False).find_longest_match().size


_NAME = re.compile(r"(?<=[^\W\d_A-Z] |[0-9,;] )([^\W\d_a-z][^\W\d_]*)")
_TIME_OR_DATE = re.compile(r"(?<!\d)\d+(?:[:/.-]\d+)+")


def invented_in(answer: str, prompt: str) -> str | None:
    """The first number, or capitalised name inside a sentence, that an answer has and the prompt lacks."""
    answer, prompt = _with_spaced_codes(answer[:5000]), _with_spaced_codes(prompt)
    dates = set(_TIME_OR_DATE.findall(prompt))
    there = {number.value for number in find_numbers(prompt)}
    for number in find_numbers(answer):
        if number.value not in there:
            return answer[number.start : number.end].strip()
    for shown in _TIME_OR_DATE.findall(answer):
        if shown not in dates and not any(number.value is not None for number in find_numbers(shown)):
            return shown
    page = set(re.findall(r"[^\W\d_]+", prompt.casefold()))
    for match in _NAME.finditer(answer):
        name = match[1]
        if name[0].isupper() and any(letter.islower() for letter in name) and name.casefold() not in page:
            return name
    return None

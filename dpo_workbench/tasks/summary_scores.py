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


def summary(*, max_words: int | None = None, facts: str | None = None, references: str | None = None) -> ScoreFunction:
    """The share of the facts that a summary covers, or ROUGE-L if there are no facts.

    Failures, in this order: `too_long`, `copied` (more than 60 % of it is one run of 12 words or more from the prompt),
    `invented_fact` (a number or a name that the prompt lacks), `missing_fact`.

    Args:
        max_words: the most words; None for no limit.
        facts: the column of `example.extra` with the facts: a list of texts, or of lists of alternative texts.
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
        mine, theirs = words(answer)[:400], words(example.prompt_as_text)[:4000]
        copied = SequenceMatcher(None, theirs, mine, autojunk=False).find_longest_match().size  # words in a row
        if copied >= 12 and copied > 0.6 * len(words(answer)):
            return Score(min(value, 0.99) / 2, "copied", None, f"{told}; {copied} words in a row are the prompt's")
        made_up = invented_in(answer, example.prompt_as_text)
        if made_up:
            return Score(min(value, 0.99) / 2, "invented_fact", None, f"{told}; {made_up!r} is not in the prompt")
        if missing:
            return Score(min(value, 0.99), "missing_fact", None, f"{told}; {missing[0]!r} is missing")
        return Score(value, None, None, told)

    return score


_SHORT = {  # one name for each unit
    "%": ("percent", "per cent"), "c": ("degrees celsius", "°c", "° c"), "°": ("degrees",),
    "min": ("minutes", "minute"), "h": ("hours", "hour"), "l": ("litres", "litre", "liters"), "kg": ("kilograms",),
    "g": ("grams",), "m": ("metres",), "km": ("kilometres",), "ml": ("millilitres",), "s": ("seconds",),
    "eur": ("euros", "euro", "€"),
}  # fmt: skip
_UNITS = [(re.compile(rf"(?<![a-z])(?:{'|'.join(names)})(?![a-z])"), f" {short} ") for short, names in _SHORT.items()]
_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_STEMMER = stemmer("english")


def has_fact(text: str, fact: str) -> bool:
    """Whether the text has the fact's words next to each other, in order.

    Numbers are compared by value (`two` is 2, up to twenty), units by one name, and longer words by their stem (`leaks`
    is `leaking`; Snowball, English).
    """
    said, run = (
        [f"#{_COUNTED.index(word)}" if word in _COUNTED else word for word in _tokens(given)] for given in (text, fact)
    )
    return any(said[k : k + len(run)] == run for k in range(len(said) - len(run) + 1))


@functools.lru_cache(256)
def _tokens(text: str) -> list[str]:
    """The stems of words, numbers as `#` and their value, and dates and times as they are."""
    text = re.sub(r"(?<!\d[eE])(?<=[^\W\d_])(?=\d)", " ", unicodedata.normalize("NFKC", text).casefold())  # P17
    for unit, short in _UNITS:
        text = unit.sub(short, text)
    found: list[str] = []
    end = 0
    for number in find_numbers(text):
        if number.value is not None:
            found += [*_words_in(text[end : number.start]), f"#{number.value:.12g}"]
            end = number.end
    return found + _words_in(text[end:])


def _words_in(text: str) -> list[str]:
    words = (word for word in re.findall(r"\d+(?:[.:/-]\d+)*|[^\W\d_]+|[%°]", text) if word != "per")
    return [_STEMMER.stemWord(word) if len(word) > 3 else word for word in words]


_NAME = re.compile(r"(?<=[^\W\d_A-Z] |[0-9,;] )([^\W\d_a-z][^\W\d_]*)")


def invented_in(answer: str, prompt: str) -> str | None:
    """The first number, or capitalised name inside a sentence, that an answer has and the prompt lacks."""
    answer, there = answer[:5000], set(_tokens(prompt))
    for token in _tokens(answer):
        if re.match(r"[#\d]", token) and token not in there:
            return token.removeprefix("#")
    page = set(re.findall(r"[^\W\d_]+", prompt.casefold()))
    for name in _NAME.findall(answer):
        if name[0].isupper() and any(letter.islower() for letter in name) and name.casefold() not in page:
            return str(name)
    return None

"""Constraints that a program can check in an answer, as plain data: `{"kind": "words", "at_most": 60}`.

A kind in `COUNTS` counts something and takes limits: `at_least`, `at_most`, `exactly`, `around` (within a tenth). A
kind in `CHECKS` holds or not. The keyword arguments of a kind's function are the constraint's other parameters. For
any answer the time grows in proportion to its length. docs/tasks.md has all kinds in a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from dpo_workbench.tasks.languages import language_of

Constraint = Mapping[str, Any]
LIMITS = ("at_least", "at_most", "exactly", "around")
PATTERNS = {  # kinds that count the matches of a pattern
    "words": r"\w+(?:['’]\w+)*",  # "don't" is one word and "well-known" two
    "lines": r"^[^\S\n]*\S",  # lines with text
    "bullets": r"^[ \t]*[-*+•][ \t]+\S",  # lines that start with such a sign and a space
    "numbered": r"^[ \t*]*\d{1,3}[.)][ \t*]+\S",  # lines that start with `1.` or `1)`
    "headings": r"^#{1,6}[ \t]+\S",  # Markdown headings
    "placeholders": r"\[[^\S\n]*[^\s\[\]][^\[\]\n]*\]",  # [name]
    "highlights": r"(?<!\*)(\*{1,3})(?=[^\s*])[^\n*]+(?<=\S)\1",  # *so* and **so**
    "commas": "[,，、،]",
    "exclamations": "[!！]",
    "questions": r"[?？؟]+",
    "digits": r"\d",
}
# Before a full stop that ends no sentence: an initial, an abbreviation, the number of a list item.
_ABBREVIATIONS = [rf"\b(?i:{text})" for text in r"mr mrs ms dr prof st vs etc e\.g i\.e jr sr inc approx".split()]
_ITEMS = [
    rf"^{indent}{digits}" for indent in ("", " ", "  ", "   ", "    ", r"\*\*", "### ") for digits in (r"\d", r"\d\d")
]
_NO_END = "".join(rf"(?<!{before}\.)" for before in (r"\b[A-HJ-Z]", *_ABBREVIATIONS, *_ITEMS))
_AFTER = r"""["'”’)\]*_]*(?=\s|$)"""
_SENTENCE_END = re.compile(rf"[!?]{_AFTER}|\.(?={_AFTER}){_NO_END}{_AFTER}|[。！？।]", re.MULTILINE)


def _matches(pattern: re.Pattern[str], answer: str) -> int:
    return len(pattern.findall(answer))


def sentences(answer: str) -> int:
    """Stretches of text up to `.`, `!` or `?`, and a rest without one. "Dr." and the number of a list item end none."""
    return len(_sentences(answer))


def longest_sentence(answer: str) -> int:
    """The number of words in the longest sentence."""
    return max((len(re.findall(PATTERNS["words"], part)) for part in _sentences(answer)), default=0)


def paragraphs(answer: str, *, mark: str = "") -> int:
    """Texts that are separated by empty lines, or by a mark such as `***`."""
    return sum(bool(part.strip()) for part in answer.split(mark)) if mark else len(_paragraphs(answer))


def sections(answer: str, *, heading: str) -> int:
    """Lines that start with the heading word and a number: `Part 1`, `**PART 2:**`."""
    return len(re.findall(rf"^[ \t#*_>]*{_literal(heading)}[ \t]*\d", answer, re.MULTILINE | re.IGNORECASE))


def capital_words(answer: str) -> int:
    """Words in capitals only, single letters such as "I" included; a hyphenated word is one."""
    return sum(word.isupper() for word in re.findall(r"\w[\w'’-]*", answer))


def letter(answer: str, *, letter: str) -> int:
    """How often a letter or other character occurs, in either case."""
    return answer.lower().count(letter.lower())


def keyword(answer: str, *, word: str) -> int:
    """How often a word or phrase occurs, in either case. Longer words that begin with it count: "cat" in "cats"."""
    return len(re.findall(rf"(?<!\w){_literal(word)}", answer, re.IGNORECASE))


def keywords(answer: str, *, words: Sequence[str]) -> bool:
    """Each word or phrase occurs (as in `keyword`)."""
    return all(keyword(answer, word=word) for word in words)


def forbidden(answer: str, *, words: Sequence[str]) -> bool:
    """None of the words or phrases occurs as a whole word, in either case."""
    return not any(re.search(rf"(?<!\w){_literal(word)}(?!\w)", answer, re.IGNORECASE) for word in words)


def quoted(answer: str) -> bool:
    """The whole answer is in double quotation marks."""
    text = answer.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def title(answer: str) -> bool:
    """A line has a title in double angle brackets: `<<title>>`."""
    rests = (line.partition("<<")[2] for line in answer.split("\n") if "<<" in line)
    return any(rest.rpartition(">>")[0].strip("<> \t") for rest in rests)


def starts_with(answer: str, *, phrase: str) -> bool:
    """The answer starts with the phrase, in either case; quotation marks and asterisks before it are skipped."""
    return _flat(answer).lstrip("\"'“‘* ").startswith(_flat(phrase).lstrip("\"'“‘* "))


def ends_with(answer: str, *, phrase: str) -> bool:
    """The answer ends with the phrase, in either case; quotation marks and asterisks after it are skipped."""
    return _flat(answer).rstrip("\"'”’* ").endswith(_flat(phrase).rstrip("\"'”’* "))


def paragraph_start(answer: str, *, paragraph: int, word: str, paragraphs: int = 0) -> bool:
    """That paragraph (1 is the first) starts with the word. With `paragraphs`, there are that many in all."""
    parts = _paragraphs(answer)
    if len(parts) < paragraph or paragraphs not in (0, len(parts)):
        return False
    return bool(re.match(rf"\W*{_literal(word)}(?![\w-])", parts[paragraph - 1], re.IGNORECASE))


def postscript(answer: str, *, marker: str = "P.S.") -> bool:
    """The marker stands at the start of a line or after a space, and text follows. "P. S." is the same as "P.S."."""
    spaced = r"\s?".join(map(re.escape, re.findall(r"\w+\W*", marker.strip())))
    return bool(re.search(rf"(?<![^\s*\"(]){spaced}[^\w\n]*\w", answer, re.IGNORECASE))


def json_only(answer: str, *, keys: Sequence[str] = ()) -> bool:
    """The answer is one JSON object or list and nothing else, or such in a code block. `keys`: an object has these."""
    text = re.sub(r"^```\w*\s|```$", "", answer.strip()).strip()
    if not text.startswith(("{", "[")):
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(found, dict) and set(keys) <= set(found))


def versions(answer: str, *, mark: str, number: int = 2) -> bool:
    """The mark separates that many different texts."""
    parts = [part.strip() for part in answer.strip().removeprefix(mark).removesuffix(mark).split(mark)]
    return len(parts) == number == len(set(parts)) and all(parts)


def repeats_request(answer: str, *, request: str) -> bool:
    """The answer starts with the request, word for word."""
    return _flat(answer).startswith(_flat(request))


def one_of(answer: str, *, answers: Sequence[str]) -> bool:
    """Exactly one of the fixed answers occurs, in either case."""
    text = _flat(answer)
    return sum(_flat(one) in text for one in answers) == 1


def language(answer: str, *, language: str) -> bool:
    """Most of the answer is in this language, as far as `language_of` can tell."""
    return language_of(answer) == language


COUNTS: dict[str, Callable[..., int]] = {
    **{kind: partial(_matches, re.compile(pattern, re.MULTILINE)) for kind, pattern in PATTERNS.items()},
    **{f.__name__: f for f in (sentences, longest_sentence, paragraphs, sections, capital_words, letter, keyword)},
}
CHECKS: dict[str, Callable[..., bool]] = {
    "lower_case": str.islower,  # there are letters, and none is a capital
    "upper_case": str.isupper,
    **{
        f.__name__: f for f in (keywords, forbidden, quoted, title, starts_with, ends_with, paragraph_start, postscript)
    },
    **{f.__name__: f for f in (json_only, versions, repeats_request, one_of, language)},
}


def met(constraint: Constraint, answer: str) -> bool:
    """Whether an answer meets a constraint that has no `problem`: strict checking."""
    given = {key: value for key, value in constraint.items() if key not in ("kind", *LIMITS)}
    if constraint["kind"] in CHECKS:
        return CHECKS[constraint["kind"]](answer, **given)
    count = COUNTS[constraint["kind"]](answer, **given)
    around = constraint.get("around", count)
    enough = constraint.get("at_least", 0) <= count <= constraint.get("at_most", count)
    return bool(enough and count == constraint.get("exactly", count) and abs(count - around) <= max(1, around / 10))


def met_loosely(constraint: Constraint, answer: str) -> bool:
    """The same for the answer or its parts without first line, last line or both, each with and without asterisks.

    This is the loose checking of IFEval (arXiv 2311.07911): a polite first line does not count against an answer.
    """
    rows = answer.split("\n")
    parts = [answer, *("\n".join(part).strip() for part in (rows[1:], rows[:-1], rows[1:-1]))]
    texts = dict.fromkeys([*parts, *(part.replace("*", "") for part in parts)])
    return any(text.strip() and met(constraint, text) for text in texts)


def _literal(text: str) -> str:
    """A pattern for the text, with any spaces between its words."""
    return r"\s+".join(map(re.escape, text.split()))


def _flat(text: str) -> str:
    return " ".join(text.lower().split())


def _paragraphs(answer: str) -> list[str]:
    return [part for part in re.split(r"\n[^\S\n]*\n", answer) if part.strip()]


def _sentences(answer: str) -> list[str]:
    ends = [0, *(end.end() for end in _SENTENCE_END.finditer(answer)), len(answer)]
    return [part for a, b in pairwise(ends) if re.search(r"\w", part := answer[a:b])]

"""Constraints that a program can check in an answer, as plain data: `{"kind": "words", "at_most": 60}`.

A kind in `COUNTS` counts something and takes the limits `at_least`, `at_most`, `exactly` and `around` (within a tenth).
A kind in `CHECKS` holds or not. Each is one function, and its keyword arguments are the constraint's parameters. All
take time that grows in proportion to the answer. docs/tasks.md has them in a table.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.examples import Example, Score
from dpo_workbench.tasks.languages import LANGUAGES, language_of

Constraint = Mapping[str, Any]
_SENTENCE_END = re.compile(r"""[.!?]["'”’)\]*_]*(?=\s|$)|[。！？।]""")
# Before a full stop that ends no sentence: an abbreviation, an initial, the number of a list item.
_NOT_AN_END = re.compile(
    r"(?:(?<!\w)(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|jr|sr|inc|approx|(?-i:[A-HJ-Z]))|^[ \t*>]*\d{1,3})$",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(answer: str) -> int:
    """Runs of letters and digits; "don't" is one word and "well-known" two."""
    return len(_WORD.findall(answer))


def sentences(answer: str) -> int:
    """Stretches of text up to `.`, `!` or `?`, and a rest without one. "Dr." and the number of a list item end none."""
    return len(_sentences(answer))


def longest_sentence(answer: str) -> int:
    """The number of words in the longest sentence."""
    return max(map(words, _sentences(answer)), default=0)


def paragraphs(answer: str, *, mark: str = "") -> int:
    """Paragraphs, separated by empty lines or by a mark such as `***`. An empty one between two marks counts."""
    if not mark:
        return len(_paragraphs(answer))
    parts = [part.strip() for part in answer.split(mark)]
    return len(parts) - (not parts[0]) - (len(parts) > 1 and not parts[-1])


def lines(answer: str) -> int:
    """Lines with text."""
    return sum(bool(line.strip()) for line in answer.splitlines())


def bullets(answer: str) -> int:
    """Lines that start with `-`, `*`, `+` or `•` and a space."""
    return len(re.findall(r"^[ \t]*[-*+•][ \t]+\S", answer, re.MULTILINE))


def numbered(answer: str) -> int:
    """Lines that start with a number and a full stop or bracket."""
    return len(re.findall(r"^[ \t*]*\d{1,3}[.)][ \t*]+\S", answer, re.MULTILINE))


def headings(answer: str) -> int:
    """Markdown headings: lines that start with one to six `#` and a space."""
    return len(re.findall(r"^#{1,6}[ \t]+\S", answer, re.MULTILINE))


def sections(answer: str, *, heading: str) -> int:
    """Lines that start with the heading word and a number: `Part 1`, `**PART 2:**`."""
    return len(re.findall(rf"^[ \t#*_>]*{_loose(heading)}[ \t]*\d", answer, re.MULTILINE | re.IGNORECASE))


def capital_words(answer: str) -> int:
    """Words in capitals only, single letters such as "I" included; a hyphenated word is one."""
    return sum(word.isupper() for word in re.findall(r"\w[\w'’-]*", answer))


def commas(answer: str) -> int:
    """Commas, also those of other scripts."""
    return len(re.findall("[,，、،]", answer))


def exclamations(answer: str) -> int:
    """Exclamation marks."""
    return len(re.findall("[!！]", answer))


def questions(answer: str) -> int:
    """Sentences that end in a question mark."""
    return len(re.findall("[?？؟]+", answer))


def digits(answer: str) -> int:
    """Digits."""
    return sum(map(str.isdigit, answer))


def letter(answer: str, *, letter: str) -> int:
    """How often a letter or other character occurs, in either case."""
    return answer.lower().count(letter.lower())


def keyword(answer: str, *, word: str) -> int:
    """How often a word or phrase occurs, in either case. Longer words that begin with it count: "cat" in "cats"."""
    return len(re.findall(rf"(?<!\w){_loose(word)}", answer, re.IGNORECASE))


def placeholders(answer: str) -> int:
    """Texts in square brackets: `[name]`."""
    return sum(bool(text.strip()) for text in re.findall(r"\[([^\[\]\n]+)\]", answer))


def highlights(answer: str) -> int:
    """Parts between single or double asterisks: `*so*`, `**so**`."""
    return len(re.findall(r"\*\*(?=[^\s*])[^\n*]+\*\*|\*(?=[^\s*])[^\n*]+\*", answer))


def keywords(answer: str, *, words: Sequence[str]) -> bool:
    """Each word or phrase occurs (as in `keyword`)."""
    return all(keyword(answer, word=word) for word in words)


def forbidden(answer: str, *, words: Sequence[str]) -> bool:
    """None of the words or phrases occurs as a whole word, in either case."""
    return not any(re.search(rf"(?<!\w){_loose(word)}(?!\w)", answer, re.IGNORECASE) for word in words)


def lower_case(answer: str) -> bool:
    """There are letters, and none is a capital."""
    return answer.islower()


def upper_case(answer: str) -> bool:
    """There are letters, and all are capitals."""
    return answer.isupper()


def quoted(answer: str) -> bool:
    """The whole answer is in double quotation marks."""
    text = answer.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def title(answer: str) -> bool:
    """One line has a title in double angle brackets: `<<title>>`."""
    for line in answer.splitlines():
        _, _, rest = line.partition("<<")
        if rest.rpartition(">>")[0].strip("<> "):
            return True
    return False


def starts_with(answer: str, *, phrase: str) -> bool:
    """The answer starts with the phrase, in either case; quotation marks and asterisks before it are skipped."""
    return _flat(answer).lstrip("\"“* '").startswith(_flat(phrase))


def ends_with(answer: str, *, phrase: str) -> bool:
    """Nothing follows the phrase, in either case, but quotation marks and asterisks."""
    return _flat(answer).rstrip("\"”* '").endswith(_flat(phrase).rstrip("\"”* '"))


def paragraph_start(answer: str, *, paragraph: int, word: str, paragraphs: int = 0) -> bool:
    """That paragraph (1 is the first) starts with the word. With `paragraphs`, there are that many in all."""
    parts = _paragraphs(answer)
    if len(parts) < paragraph or paragraphs not in (0, len(parts)):
        return False
    return bool(re.match(rf"\W*{_loose(word)}(?!\w)", parts[paragraph - 1].lstrip(), re.IGNORECASE))


def postscript(answer: str, *, marker: str = "P.S.") -> bool:
    """The marker stands at the start of a line or after a space, and text follows."""
    return bool(re.search(rf"(?<![^\s*\"(]){_loose(marker)}[^\w\n]*\w", answer, re.IGNORECASE))


def json_only(answer: str, *, keys: Sequence[str] = ()) -> bool:
    """The answer is one JSON object or list and nothing else, or such in a code block. `keys`: an object has these."""
    text = re.sub(r"^```\w*\s|```$", "", answer.strip())
    if not text.strip().startswith(("{", "[")):
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
    return sum(_flat(one) in _flat(answer) for one in answers) == 1


def language(answer: str, *, language: str) -> bool:
    """Most of the answer is in this language, by `dpo_workbench.tasks.languages`."""
    return language_of(answer) == language


COUNTS: dict[str, Callable[..., int]] = {
    f.__name__: f
    for f in (words, sentences, longest_sentence, paragraphs, lines, bullets, numbered, headings, sections,
              capital_words, commas, exclamations, questions, digits, letter, keyword, placeholders, highlights)
}  # fmt: skip
CHECKS: dict[str, Callable[..., bool]] = {
    f.__name__: f
    for f in (keywords, forbidden, lower_case, upper_case, quoted, title, starts_with, ends_with, paragraph_start,
              postscript, json_only, versions, repeats_request, one_of, language)
}  # fmt: skip
_LIMITS = ("at_least", "at_most", "exactly", "around")
_NUMBERS = (*_LIMITS, "paragraph", "paragraphs", "number")
_LISTS = ("words", "keys", "answers")


def met(constraint: Constraint, answer: str) -> bool:
    """Whether an answer meets a constraint (strict checking). The constraint has no `problem`."""
    given = {key: value for key, value in constraint.items() if key not in ("kind", *_LIMITS)}
    if constraint["kind"] in CHECKS:
        return CHECKS[constraint["kind"]](answer, **given)
    count = COUNTS[constraint["kind"]](answer, **given)
    around = constraint.get("around", count)
    return (
        constraint.get("at_least", 0) <= count <= constraint.get("at_most", count)
        and count == constraint.get("exactly", count)
        and abs(count - around) <= max(1, around / 10)
    )


def met_loosely(constraint: Constraint, answer: str) -> bool:
    """The same for the answer or its parts without first line, last line or both, each with and without asterisks.

    This is the loose checking of IFEval (arXiv 2311.07911): a polite first line does not count against an answer.
    """
    rows = answer.split("\n")
    parts = [answer, *("\n".join(part).strip() for part in (rows[1:], rows[:-1], rows[1:-1]))]
    texts = dict.fromkeys([*parts, *(part.replace("*", "") for part in parts)])
    return any(text.strip() and met(constraint, text) for text in texts)


def problem(constraint: Any) -> str | None:
    """What is wrong with a constraint, or None."""
    kind = constraint.get("kind") if isinstance(constraint, Mapping) else None
    check = COUNTS.get(str(kind)) or CHECKS.get(str(kind))
    if check is None:
        return f"the kind must be one of {', '.join([*COUNTS, *CHECKS])}"
    parameters = list(inspect.signature(check).parameters.values())[1:]
    limits = _LIMITS if kind in COUNTS else ()
    known = {*limits, *(p.name for p in parameters)}
    if unknown := set(constraint) - known - {"kind"}:
        return f"{kind} has no {', '.join(sorted(map(str, unknown)))}; it has {', '.join(sorted(known)) or 'nothing'}"
    if missing := [p.name for p in parameters if p.default is p.empty and p.name not in constraint]:
        return f"{kind} needs {', '.join(missing)}"
    if limits and not set(limits) & set(constraint):
        return f"{kind} needs one of {', '.join(limits)}"
    return next((why for name, value in constraint.items() if (why := _bad_value(name, value))), None)


def _bad_value(name: str, value: Any) -> str | None:
    if name in _NUMBERS:
        good = type(value) is int and value >= (0 if name in _LIMITS or name == "paragraphs" else 1)
        return None if good else f"{name} must be a whole number, not {value!r}"
    if name in _LISTS:
        texts = isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)
        return None if texts and value else f"{name} must be a list of texts, not {value!r}"
    if not isinstance(value, str) or (not value.strip() and name != "mark"):
        return f"{name} must be a text, not {value!r}"
    if name == "letter" and len(value) != 1:
        return f"letter must be one character, not {value!r}"
    if name == "language" and value not in LANGUAGES:
        return f"language must be one of {', '.join(LANGUAGES)}, not {value!r}"
    return None


class Constraints:
    """The verifier `constraints`: the share of the constraints in the row's column `constraints` that are met.

    The failure class is the kind of the first constraint that is not met. Generic failures come first (see `Task`).

    Args:
        loose: accept what `met_loosely` accepts.
        column: where in `Example.extra` the list of constraints is (or its JSON text).
        about: where the words of the prompt's subject are. An answer without any of them scores 0 (`off_subject`), so
            that a text about nothing cannot win by being short. A row without such words is not checked for them.
    """

    def __init__(self, loose: bool = False, column: str = "constraints", about: str = "about"):
        self.met = met_loosely if loose else met
        self.column = column
        self.about = about

    def __call__(self, example: Example, answer: str) -> Score:
        about = example.extra.get(self.about)
        if isinstance(about, list) and not any(keyword(answer, word=word) for word in about):
            return Score(0.0, "off_subject", None, f"says nothing of {', '.join(about)}")
        given = self._read(example) or []
        results = [self.met(constraint, answer) for constraint in given]
        unmet = [constraint for constraint, ok in zip(given, results, strict=True) if not ok]
        why = "; ".join(json.dumps(constraint, ensure_ascii=False) for constraint in unmet)
        return Score(sum(results) / len(given), unmet[0]["kind"] if unmet else None, results, why and f"not met: {why}")

    def check(self, examples: Iterable[Example]) -> None:
        """Raise if a row has no constraints, or one that cannot be checked. All bad ones are counted."""
        bad = []
        for example in examples:
            if not (given := self._read(example)):
                bad.append(f"{example.id}: no list in column {self.column!r}")
            bad += [f"{example.id}: {why}. Got {str(one)[:200]}" for one in given or () if (why := problem(one))]
        if bad:
            shown = "".join(f"\n- {line}" for line in bad[:10])
            raise WorkbenchError(
                f"Each row must have constraints that can be checked (docs/tasks.md). Got {len(bad)} that can't:{shown}"
            )

    def _read(self, example: Example) -> list[Any] | None:
        given = example.extra.get(self.column)
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                return None
        if not isinstance(given, list):
            return None
        return [  # tables fill parameters that a kind lacks with nulls
            {k: v for k, v in one.items() if v is not None} if isinstance(one, Mapping) else one for one in given
        ]


def _sentences(answer: str) -> list[str]:
    found, start = [], 0
    for end in _SENTENCE_END.finditer(answer):
        if end[0][0] == "." and _NOT_AN_END.search(answer, max(start, end.start() - 12), end.start()):
            continue
        found.append(answer[start : end.end()])
        start = end.end()
    return [part for part in (*found, answer[start:]) if _WORD.search(part)]


def _loose(text: str) -> str:
    """A pattern for the text, with any spaces between its words."""
    return r"\s+".join(map(re.escape, text.split()))


def _flat(text: str) -> str:
    return " ".join(text.lower().split())


def _paragraphs(answer: str) -> list[str]:
    return [part for part in re.split(r"\n[^\S\n]*\n", answer) if part.strip()]

"""The checks of preference data: a code for each rule, `Finding` for each violation, and the checks themselves."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from dpo_workbench.pairs.preference import Pair, normal


class Code(NamedTuple):
    """stop: nothing can be read. error: the row is refused. skipped: the row is fine but makes no pair.
    warning: the row is kept."""

    severity: str
    rule: str
    advice: str


_TABLE = """
P001 | stop | The source must be a file that can be read. | Check the path and its permissions.
P002 | stop | A file must have rows. | The file is empty: write it again.
P003 | stop | Text must be UTF-8. | Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW.
P004 | warning | A UTF-8 file needs no byte order mark. | It was skipped; --save writes a file without it.
P005 | warning | Lines should end in LF. | They were read; --save writes LF.
P006 | warning | The name of a file should match its content. | The content decides how it is read; rename the file.
P007 | stop | The columns must match a known layout. | Name the columns with mapping=, or the layout with layout=.
P008 | stop | A file must be complete. | Download or write it again.
P101 | error | A row must be JSON. | Fix the row: double quotes, no comma before a closing bracket.
P102 | error | The last row must be complete. | The file was cut off while it was written: write it again.
P103 | error | A row must be UTF-8. | Write these bytes again as UTF-8.
P104 | error | JSON has no NaN and no Infinity. | Leave the key out or write null.
P105 | error | A key must occur once. | Keep the one that you mean.
P106 | error | A row must be an object. | Write {...} with the keys of the layout.
P107 | error | A row must have every field of its layout. | Add the field or drop the row.
P108 | error | A field must have the type that its layout asks for. | Write text as text and numbers as numbers.
P109 | error | All rows of a file must have one layout. | Move rows of another layout to a file of their own.
P110 | warning | Keys that no layout knows are ignored. | Rename the key if it matters.
P111 | error | A CSV row must have as many cells as the header. | Quote cells with delimiters or line breaks.
P201 | error | A conversation must have messages. | Add them or drop the row.
P202 | error | A role must be system, developer, user, assistant or tool. | Rename the role.
P203 | error | A prompt must not end with a message of the assistant. | Remove that message or add the user's next one.
P204 | error | Messages of user and assistant must alternate. | Join the two messages or add the missing one.
P205 | error | The content of a message must be text. | Write text; images and tool calls can't be trained on here.
P206 | warning | An answer should not repeat its prompt. | Repeated messages were removed; repeated text stays: cut it.
P207 | error | An answer must be one message of the assistant. | Move the other messages to `prompt`.
P208 | error | Both answers must continue the same conversation. | Cut both after the first answer in which they differ.
P209 | warning | A pair has one prompt text. | Several messages were written below each other, with their roles.
P210 | warning | Messages should be lists, not text that spells out a list. | They were decoded; write lists of objects.
P211 | warning | A row may hold several rejected answers. | Each made a pair with the chosen one, in the given order.
P212 | warning | A list of answers should have scores or ranks. | It was read as sorted, best answer first.
P301 | error | Texts must not be empty. | Write the text or drop the row.
P302 | error | `rejected` must differ from `chosen`. | Drop the row or edit one of the two.
P303 | warning | Answers should differ in more than case and spaces. | Drop the row unless form is the point.
P304 | error | Text must not contain half of a surrogate pair. | Write the character again.
P305 | warning | Text should not contain control characters. | They were kept; remove them unless you mean them.
P306 | warning | Text should not contain tokens of a chat template. | Remove them: a tokenizer ends the message there.
P307 | warning | A text should have at most 100,000 characters. | It was kept; check whether two rows ran together.
P308 | error | A prompt must leave room for an answer. | Shorten the prompt or raise max_tokens.
P309 | error | Prompt and answer together must fit into max_tokens. | Shorten the answer or raise max_tokens.
P310 | error | It must be clear where the prompt ends. | Move the prompt from both answers to a column `prompt`.
P401 | warning | A row should occur once. | Copies were merged into the first occurrence; --save writes it once.
P402 | error | Ids must differ. | Rename one of them.
P403 | warning | Labels should not contradict each other. | Decide, drop both, or use a loss for noisy labels.
P404 | warning | The preferences for a prompt should not form a circle. | Judge these pairs again.
P405 | warning | Length alone should not tell chosen from rejected. | Balance the set: pairs.even(), or add pairs.
P406 | warning | The better answer should not always be on the same side. | Shuffle the sides when people judge.
P407 | warning | One person should not give nearly all labels. | Ask others too, or report whose taste it is.
P408 | warning | The chosen answer should not have the lower score. | Check the label and the score.
P409 | warning | Small sets show only large effects. | Label more pairs or claim little: 50 pairs are a start.
P410 | warning | A prompt should be in one split only. | Move its rows to one split, or the test measures memory.
P411 | skipped | An answer needs another one to its prompt with a different label. | Add one to use the row.
P412 | skipped | A comparison needs a winner. | Ties and unlabelled rows make no pair; break the tie to use the row.
P413 | warning | Scores of a pair should be between 0 and 1. | Other scores order the answers but are not stored.
P414 | warning | Rows should not differ only in their Unicode form. | Write all text in NFC and drop the copy.
P415 | warning | Ids should not begin or end with spaces. | They were trimmed.
"""
CODES = {line[:4]: Code(*line.split(" | ")[1:]) for line in _TABLE.strip().splitlines()}
FEW = 50  # pairs
MANY = 20  # smaller counts are not tested for one-sidedness
ONE_SIDED = 0.9  # share above which a side, a person or a length is reported
LONG = 100_000  # characters
EXCERPT = 60  # characters

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TEMPLATE_TOKEN = re.compile(r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+|[^\w\s]")
Note = tuple[str, str, str]  # code, field, excerpt


class Refusal(Exception):
    """A row that makes no pair: the code, the field, what was found there, and advice if the code's is too general."""

    def __init__(self, code: str, field: str = "", got: object = "", fix: str = ""):
        super().__init__(code)
        self.code, self.field, self.got, self.fix = code, field, got, fix


@dataclass(frozen=True)
class Finding:
    """One place where data breaks a rule."""

    code: str
    severity: str
    source: str
    line: int  # physical line of a text file, else number of the row, from 1; 0: the set as a whole
    field: str
    excerpt: str
    fix: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        got = f" Got {self.excerpt}" if self.excerpt else ""
        return (
            f"{where}: {self.code} {f'`{self.field}`: ' if self.field else ''}{CODES[self.code].rule}{got}. {self.fix}"
        )


@dataclass
class Findings:
    """Collects findings: all are counted, and the first thousand of each code are stored."""

    source: str
    stored: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, code: str, line: int = 0, field: str = "", got: object = "", fix: str = "") -> None:
        """Add one; `got` is shortened. Without `fix` the advice of the code is used."""
        self.counts[code] += 1
        if self.counts[code] <= 1000:
            severity, _, advice = CODES[code]
            self.stored.append(Finding(code, severity, self.source, line, excerpt(field), excerpt(got), fix or advice))


def excerpt(got: object, limit: int = EXCERPT) -> str:
    """At most `limit` characters of a value; unprintable text is escaped."""
    if isinstance(got, bytes):
        got = got[: 2 * limit].decode("utf-8", "backslashreplace")
    text = str(got)[: limit + 1]
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def has_surrogate(text: str) -> bool:
    """Whether the text contains half of a surrogate pair, which UTF-8 and tokenizers can't encode."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def text_problems(name: str, text: str) -> Iterator[Note]:
    """What is wrong with one text."""

    def around(match: re.Match[str]) -> str:
        return text[max(0, match.start() - 20) : match.end() + 20]

    if not text.strip():
        yield "P301", name, repr(text[:9])
    if has_surrogate(text) and (half := _SURROGATE.search(text)):
        yield "P304", name, around(half)
    if control := _CONTROL.search(text):
        yield "P305", name, around(control)
    if token := _TEMPLATE_TOKEN.search(text):
        yield "P306", name, around(token)
    if len(text) > LONG:
        yield "P307", name, f"{len(text):,} characters: {text[:20]}"


def pair_problems(pair: Pair) -> Iterator[Note]:
    """What is wrong between the texts of a pair."""
    if pair.chosen.strip() == pair.rejected.strip():
        if pair.rejected_finished:
            yield "P302", "rejected", pair.rejected
    elif abs(len(pair.chosen) - len(pair.rejected)) < 50 and normal(pair.chosen) == normal(pair.rejected):
        yield "P303", "rejected", pair.rejected
    if len(pair.prompt) > 20:
        for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            if text.startswith(pair.prompt):
                yield "P206", name, text


def room_problems(
    texts: Sequence[tuple[str, str]], max_tokens: int, count_tokens: Callable[[str], int] | None
) -> Iterator[Note]:
    """Which of the (name, text) of a prompt and its answers don't fit; counts words without `count_tokens`."""
    count = count_tokens or (lambda text: len(_WORD.findall(text)))
    (name, prompt), *answers = texts
    n_prompt = count(prompt)
    if n_prompt >= max_tokens:
        yield "P308", name, f"{n_prompt} tokens of {max_tokens}"
        return
    for name, answer in answers:
        n_answer = count(answer)
        if n_prompt + n_answer > max_tokens:
            yield "P309", name, f"{n_prompt} + {n_answer} tokens of {max_tokens}"


def length_auc(pairs: Sequence[Pair]) -> float:
    """How well length alone tells a chosen from a rejected answer: area under the ROC curve; 0.5 is chance."""
    lengths = sorted(len(p.rejected) for p in pairs)
    below = sum(bisect.bisect_left(lengths, len(p.chosen)) + bisect.bisect_right(lengths, len(p.chosen)) for p in pairs)
    return below / (2 * len(pairs) ** 2)


def set_problems(pairs: Sequence[Pair], lines: Sequence[int]) -> Iterator[tuple[str, int, str, str]]:
    """Code, line, field and excerpt of what is wrong with the pairs as a set; `lines` has the line of each pair."""
    first: dict[tuple[str, str, str], int] = {}
    forms: dict[tuple[str, ...], int] = {}
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for k, (pair, line) in enumerate(zip(pairs, lines, strict=True)):
        texts = (pair.prompt, pair.chosen, pair.rejected)
        if (other := first.get((pair.prompt, pair.rejected, pair.chosen))) is not None:
            yield "P403", line, "chosen", f"the opposite of line {other}: {pair.chosen}"
        first.setdefault(texts, line)
        by_prompt[pair.prompt].append(k)
        if not all(map(str.isascii, texts)):
            form = tuple(unicodedata.normalize("NFC", text) for text in texts)
            if form in forms and first[texts] == line:
                yield "P414", line, "", f"line {forms[form]} in another Unicode form: {pair.prompt}"
            forms.setdefault(form, line)
    for members in by_prompt.values():
        if len(members) > 2 and (circle := _circle([pairs[k] for k in members])):
            yield "P404", lines[members[0]], "chosen", " < ".join(text[:15] for text in circle)
    auc, longer = length_auc(pairs), sum(len(p.chosen) > len(p.rejected) for p in pairs) / len(pairs)
    if len(pairs) >= MANY and (not 0.2 <= auc <= 0.8 or not 1 - ONE_SIDED < longer < ONE_SIDED):
        yield "P405", 0, "chosen", f"AUC of length {auc:.2f}; the chosen answer is longer in {longer:.0%}"
    if len(pairs) < FEW:
        yield "P409", 0, "", f"{len(pairs)} pairs"


def _circle(pairs: Sequence[Pair]) -> list[str] | None:
    """Answers to one prompt, each preferred to the one before, where the last is the first again; None without one."""
    graph: dict[str, set[str]] = defaultdict(set)
    opposite = {(p.rejected, p.chosen) for p in pairs}
    for p in pairs:
        if (p.chosen, p.rejected) not in opposite:  # P403 reports two labels that contradict each other
            graph[p.chosen].add(p.rejected)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def one_sided(counts: Counter[Any]) -> tuple[Any, float] | None:
    """The value that makes up at least nine in ten of at least twenty, and its share; None if there is none."""
    total = counts.total()
    if total < MANY:
        return None
    value, n = counts.most_common(1)[0]
    return (value, n / total) if n / total >= ONE_SIDED else None

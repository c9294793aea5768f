"""The checks of preference data: a code for each rule, `Finding` for each violation, and shortcuts in a set."""

from __future__ import annotations

import bisect
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dpo_workbench.pairs.preference import Pair


class Code(NamedTuple):
    """stop: nothing is read. error: the row is refused. skipped: it is fine but makes no pair. warning: it is kept."""

    severity: str
    rule: str
    advice: str


_TABLE = """
P001 | stop | The source must be a file that can be read. | Check the path and its permissions.
P002 | stop | A file must have rows. | The file is empty: write it again.
P003 | stop | Text must be UTF-8. | Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW.
P007 | stop | The columns must match a known layout. | Name yours: mapping={'prompt': ..., ...}, or --map prompt=...
P008 | stop | A file must be complete. | Download or write it again.
P101 | error | A row must be JSON. | Fix the row: double quotes, no comma before a closing bracket.
P102 | error | The last row must be complete. | The file was cut off while it was written: write it again.
P103 | error | A row must be UTF-8. | Write these bytes again as UTF-8.
P104 | error | JSON has no NaN and no Infinity. | Leave the key out or write null.
P105 | error | A key must occur once. | Keep the one that you mean.
P106 | error | A row must be an object. | Write {...} with the keys of the layout.
P107 | error | A row must have every field of its layout. | Add the field or drop the row.
P108 | error | A field must have the type that its layout asks for. | Write text as text and numbers as numbers.
P110 | warning | Names of fields should be spelt right. | Rename the key; it was ignored.
P111 | error | A CSV row must have as many cells as the header. | Quote cells with delimiters or line breaks.
P201 | error | A conversation must have messages. | Add them or drop the row.
P202 | error | A role must be system, developer, user, assistant or tool. | Rename the role.
P203 | error | A prompt must not end with a message of the assistant. | Remove that message or add the user's next one.
P204 | error | Messages of user and assistant must alternate. | Join the two messages or add the missing one.
P205 | error | The content of a message must be text. | Write text; images and tool calls can't be trained on here.
P206 | warning | An answer should not repeat its prompt. | Repeated messages were removed; repeated text stays: cut it.
P207 | error | An answer must be one message of the assistant. | Move earlier messages to `prompt`; cut later ones.
P208 | error | Both conversations must begin with the same messages. | Start both with the prompt, or drop the row.
P209 | warning | A pair has one prompt text. | Several messages were written below each other, with their roles.
P210 | warning | Messages should be lists, not text that spells out a list. | They were decoded; write lists of objects.
P212 | warning | A list of answers should have scores or ranks. | It was read as sorted, best answer first.
P301 | error | Texts must not be empty. | Write the text or drop the row.
P302 | error | `rejected` must differ from `chosen`. | Drop the row or edit one of the two.
P304 | error | Text must not contain half of a surrogate pair. | Write the character again.
P306 | warning | Text should not contain tokens of a chat template. | Remove them: a tokenizer ends the message there.
P310 | error | It must be clear where the prompt ends. | Move the prompt from both answers to a column `prompt`.
P401 | warning | A row should occur once. | Copies were merged into the first occurrence; --save writes it once.
P402 | error | Ids must differ. | Rename one of them.
P403 | warning | Labels should not contradict each other. | Decide, drop both, or use a loss for noisy labels.
P405 | warning | Length alone should not tell chosen from rejected. | Drop or add pairs until both kinds occur.
P409 | warning | Small sets show only large effects. | Label more pairs or claim little: 50 pairs are a start.
P411 | skipped | An answer needs another one to its prompt with a different label. | Add one to use the row.
P412 | skipped | A comparison needs a winner. | Ties and unlabelled rows make no pair; break the tie to use the row.
"""
CODES = {line[:4]: Code(*line.split(" | ")[1:]) for line in _TABLE.strip().splitlines()}
FEW = 50  # pairs
MANY = 20  # fewer pairs are not tested for one-sidedness
ONE_SIDED = 0.9  # share of pairs above which a length is reported

_TEMPLATE_TOKEN = re.compile(r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which UTF-8 and tokenizers can't encode
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
        name = f"`{self.field}`: " if self.field else ""
        got = f" Got {self.excerpt}" if self.excerpt else ""
        return f"{where}: {self.code} {name}{CODES[self.code].rule}{got}. {self.fix}"


def excerpt(got: object, limit: int = 60) -> str:
    """At most `limit` characters of a value; unprintable text is escaped."""
    if isinstance(got, bytes):
        got = got[: 2 * limit].decode("utf-8", "backslashreplace")
    text = str(got)[: limit + 1]
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def text_problems(name: str, text: str) -> Iterator[Note]:
    """What is wrong with one text."""
    if not text.strip():
        yield "P301", name, repr(text[:9])
    half = None if text.isascii() else _SURROGATE.search(text)
    for code, match in (("P304", half), ("P306", _TEMPLATE_TOKEN.search(text))):
        if match:
            yield code, name, text[max(0, match.start() - 20) : match.end() + 20]


def pair_problems(pair: Pair) -> Iterator[Note]:
    """What is wrong between the texts of a pair."""
    if pair.chosen.strip() == pair.rejected.strip() and pair.rejected_finished:
        yield "P302", "rejected", pair.rejected
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if len(pair.prompt) > 20 and text.startswith(pair.prompt):
            yield "P206", name, text


def set_problems(pairs: Sequence[Pair], lines: Sequence[int]) -> Iterator[tuple[int, str, str, str]]:
    """Line, code, field and excerpt of what is wrong with the pairs as a set; `lines` has the line of each pair."""
    first: dict[tuple[str, str, str], int] = {}
    for pair, line in zip(pairs, lines, strict=True):
        if (other := first.get((pair.prompt, pair.rejected, pair.chosen))) is not None:
            yield line, "P403", "chosen", f"the opposite of line {other}: {pair.chosen}"
        first.setdefault((pair.prompt, pair.chosen, pair.rejected), line)
    auc, longer = length_auc(pairs), statistics.fmean(_win(len(p.chosen) - len(p.rejected)) for p in pairs)
    if len(pairs) >= MANY and (not 0.2 <= auc <= 0.8 or not 1 - ONE_SIDED < longer < ONE_SIDED):
        yield 0, "P405", "chosen", f"AUC of length {auc:.2f}; the chosen answer is longer in {longer:.0%}"
    if len(pairs) < FEW:
        yield 0, "P409", "", f"{len(pairs)} pairs"


def length_auc(pairs: Sequence[Pair]) -> float:
    """How well length alone tells a chosen from a rejected answer: area under the ROC curve; 0.5 is chance."""
    lengths = sorted(len(p.rejected) for p in pairs)
    below = sum(bisect.bisect_left(lengths, len(p.chosen)) + bisect.bisect_right(lengths, len(p.chosen)) for p in pairs)
    return below / (2 * len(pairs) ** 2)


def fixed_rules(pairs: Sequence[Pair]) -> dict[str, float]:
    """The share of pairs in which each rule picks the chosen answer; a tie counts half."""
    rules: dict[str, Callable[[Pair], float]] = {
        "shorter wins": lambda p: _win(len(p.rejected) - len(p.chosen)),
        "finished wins": lambda p: _win(not p.rejected_finished),
        "reference wins": lambda p: _win((p.chosen_from == "reference") - (p.rejected_from == "reference")),
    }
    return {name: statistics.fmean(map(rule, pairs)) for name, rule in rules.items()}


def learned_rules(pairs: Sequence[Pair]) -> dict[str, float]:
    """The same for rules that pick the answer whose first word, or format, was chosen more often in the other pairs."""
    first_word = _learned(pairs, lambda text: (text.split() or [""])[0].lower())
    return {"first word": first_word, "format": _learned(pairs, _format)}


def _learned(pairs: Sequence[Pair], feature: Callable[[str], object]) -> float:
    features = [(feature(p.chosen), feature(p.rejected)) for p in pairs]
    tally = Counter(chosen for chosen, _ in features)
    tally.subtract(rejected for _, rejected in features)
    # where the two differ, this pair itself added 1 to the one and took 1 from the other
    return statistics.fmean(0.5 if c == r else _win(tally[c] - tally[r] - 2) for c, r in features)


def _format(text: str) -> tuple[str, str, int, bool]:
    """Kinds of the first and last character, number of lines up to 3, whether a line starts like a list item."""
    flat = text.strip()
    first, last = ("letter" if c.isalpha() else "digit" if c.isdigit() else c for c in (flat[:1], flat[-1:]))
    return first, last, min(3, flat.count("\n") + 1), bool(re.search(r"^\s*[-*\u2022]", flat, re.M))


def _win(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)

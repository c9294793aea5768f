"""What is checked in preference data: the codes, one `Finding` a place, and the checks of texts and of whole sets."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from dpo_workbench.pairs.pair import Pair

# Code, severity, what must hold | what to do. An error refuses the row; `stop` ends the reading.
_TABLE = """
P001 stop    A source must be a file that can be read. | Check the path and its permissions.
P002 stop    A file must have rows. | Write it again; it is empty.
P003 stop    Text must be UTF-8. | Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW.
P004 warning A UTF-8 file needs no byte order mark. | It is skipped; --fix takes it away.
P005 warning Lines should end in LF. | They are read; --fix ends CRLF and CR lines in LF.
P006 warning The name should say what the file is. | It is read as what it is; rename it.
P007 stop    The layout must be a known one. | Name it with layout=, or the columns with mapping=.
P008 stop    A file must be whole. | Download or write it again.
P101 error   A row must be JSON. | Mend the row: double quotes, no comma before a closing bracket.
P102 error   The last row must be whole. | The file was cut while it was written: write it again.
P103 error   A row must be UTF-8. | Write these bytes again as UTF-8.
P104 error   JSON has no NaN and no Infinity. | Leave the key out or write null.
P105 error   A key must occur once. | Keep the one that is meant.
P106 error   A row must be an object. | Write {...} with the keys of the layout.
P107 error   A row must have every field of its layout. | Add the field or drop the row.
P108 error   A field must have the type of its layout. | Write text where text is due, and numbers as numbers.
P109 error   All rows of a file must have one layout. | Put rows of another layout into a file of their own.
P110 warning Keys that no layout reads are left out. | Rename the key if it was meant; see the nearest one.
P111 error   A CSV row must have as many cells as the header. | Quote cells that hold the delimiter or a line end.
P201 error   A conversation must have messages. | Add them or drop the row.
P202 error   A role must be system, developer, user, assistant or tool. | Rename the role.
P203 error   A prompt must not end with the assistant's turn. | Move it to the answers, or add the user's turn.
P204 error   Turns of user and assistant must alternate. | Join the two messages or add the one between.
P205 error   The content of a message must be text. | Write text; images and tool calls cannot be trained here.
P206 warning An answer should not repeat its prompt. | Messages are taken off; text stays: cut it.
P207 error   An answer must be one message of the assistant. | Move other messages to the prompt.
P208 error   Both answers must continue one conversation. | Cut both after the last message that they share.
P209 warning A pair holds one prompt text. | Several messages are written out one under another, with roles.
P301 error   Texts must not be empty. | Write the text or drop the row.
P302 error   `rejected` must differ from `chosen`. | Drop the row or edit it: it teaches nothing.
P303 warning Answers should differ in more than form (case, spaces). | Drop the row unless form is the point.
P304 error   Text must not hold half of a surrogate pair. | Write the character again.
P305 warning Text should have no control characters. | They stay; remove them unless they are meant.
P306 warning Text should not hold a chat template's marks. | Remove them: a tokenizer ends the turn there.
P307 warning A text should have at most 100,000 characters. | It is kept; did two rows run together?
P308 error   A prompt must leave room for an answer. | Shorten the prompt or raise max_tokens.
P309 error   An answer must fit behind its prompt. | Shorten it or raise max_tokens: it would be cut.
P310 error   Without `prompt`, both answers must begin with it. | Add the field prompt.
P401 warning A row should occur once. | Merged into its first occurrence; --fix drops the copies.
P402 error   Ids must differ. | Rename one.
P403 warning Labels must not contradict each other. | Decide, drop both, or take a loss for noisy labels.
P404 warning Preferences of a prompt must not run in a circle. | Judge these pairs again.
P405 warning Length alone should not tell chosen from rejected. | Even it out: pairs.even(), or more of the other kind.
P406 warning The better answer should not always stand on one side. | Shuffle the sides when people judge.
P407 warning One person should not give nearly all labels. | Ask others, or say in the report whose taste it is.
P408 warning The chosen answer should not have the lower score. | Check the label and the score.
P409 warning Small sets show large effects only. | Label more, or claim little: 50 pairs are a start.
P410 warning A prompt should be in one split only. | Move its rows to one side, or the test measures memory.
P411 error   An answer needs another of its prompt, judged differently. | Add one, or keep the row for later.
P412 error   A comparison must have a winner. | Ties and skipped tasks make no pair; keep them apart.
P413 warning Scores of a pair lie between 0 and 1. | Others only order the answers and are not kept.
P414 warning Rows should not differ in Unicode form alone. | Write all text in NFC and drop the copy.
P415 warning Ids should not begin or end with spaces. | They are trimmed; --fix trims them in the file.
P416 warning A person's better answers should not stand on one side. | Shuffle the sides; look at what they judged.
P417 warning A person should not judge by length alone. | Ask for their reasons; compare with what others say.
P418 warning A person should agree with the others. | Talk about the guideline, or leave these labels out.
"""
CODES: dict[str, tuple[str, str, str]] = {
    line[:4]: (line[5:12].strip(), *line[13:].split(" | "))  # type: ignore[misc]
    for line in _TABLE.strip().splitlines()
}
FEW = 50  # pairs
ONE_SIDED = 0.9  # share from which a side, a person or a length is called out, where there are at least MANY
MANY = 20
LONG = 100_000  # characters
EXCERPT = 60

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MARKS = re.compile(r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+|[^\w\s]")


class Refusal(Exception):
    """A row that cannot be used: code, field, what was found there, and a fix if the code's is too general."""

    def __init__(self, code: str, field: str = "", got: object = "", fix: str = ""):
        super().__init__(code)
        self.code, self.field, self.got, self.fix = code, field, got, fix


@dataclass(frozen=True)
class Finding:
    """One place where data is not as it must be (error: the row is refused) or should be (warning: it is kept)."""

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
        return f"{where}: {self.code} {f'`{self.field}`: ' if self.field else ''}{CODES[self.code][1]}{got}. {self.fix}"


@dataclass
class Findings:
    """Findings as they come; of each code the first thousand are kept and all are counted."""

    source: str
    kept: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, code: str, line: int = 0, field: str = "", got: object = "", fix: str = "") -> None:
        """Note one; `got` is shown shortened, as Python would write it."""
        self.counts[code] += 1
        if self.counts[code] <= 1000:
            severity, _, usual = CODES[code]
            self.kept.append(Finding(code, severity, self.source, line, excerpt(field), excerpt(got), fix or usual))


def excerpt(got: object) -> str:
    """At most 60 characters of a value; text with its odd characters visible."""
    if isinstance(got, bytes):
        got = got[: 2 * EXCERPT].decode("utf-8", "backslashreplace")
    text = str(got)[: EXCERPT + 1]
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= EXCERPT else text[: EXCERPT - 3] + "..."


def text_problems(name: str, text: str) -> Iterator[tuple[str, str, str]]:
    """Code, field and excerpt of what is wrong with one text."""
    if not text.strip():
        yield "P301", name, repr(text[:9])
    if not text.isascii() and (half := _SURROGATE.search(text)):
        yield "P304", name, _around(text, half)
    if control := _CONTROL.search(text):
        yield "P305", name, _around(text, control)
    if mark := _MARKS.search(text):
        yield "P306", name, _around(text, mark)
    if len(text) > LONG:
        yield "P307", name, f"{len(text):,} characters: {text[:20]}"


def _around(text: str, match: re.Match[str]) -> str:
    return text[max(0, match.start() - 20) : match.end() + 20]


def pair_problems(pair: Pair) -> Iterator[tuple[str, str, str]]:
    """Code, field and excerpt of what is wrong between the texts of a pair."""
    if pair.chosen.strip() == pair.rejected.strip():
        if pair.rejected_finished:
            yield "P302", "rejected", pair.rejected
    elif abs(len(pair.chosen) - len(pair.rejected)) < 50 and normal(pair.chosen) == normal(pair.rejected):
        yield "P303", "rejected", pair.rejected
    if len(pair.prompt) > 20:
        for name in ("chosen", "rejected"):
            if getattr(pair, name).startswith(pair.prompt):
                yield "P206", name, getattr(pair, name)


def room_problems(
    texts: Sequence[tuple[str, str]], most: int, count: Callable[[str], int] | None
) -> Iterator[tuple[str, str, str]]:
    """What does not fit into `most` tokens, of a prompt and its answers; words are counted without `count`."""
    count = count or (lambda text: len(_WORD.findall(text)))
    (name, prompt), *answers = texts
    if (asked := count(prompt)) >= most:
        yield "P308", name, f"{asked} tokens of {most}"
        return
    for name, answer in answers:
        if asked + (said := count(answer)) > most:
            yield "P309", name, f"{asked} + {said} tokens of {most}"


def normal(text: str) -> str:
    """Text without its form: Unicode NFKC, one case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def length_auc(pairs: Sequence[Pair]) -> float:
    """How well length alone tells a chosen from a rejected answer: area under the ROC curve, 0.5 is chance."""
    lengths = sorted(len(p.rejected) for p in pairs)
    below = sum(bisect.bisect_left(lengths, len(p.chosen)) + bisect.bisect_right(lengths, len(p.chosen)) for p in pairs)
    return below / (2 * len(pairs) ** 2)


def set_problems(pairs: Sequence[Pair], lines: Sequence[int]) -> Iterator[tuple[str, int, str, str]]:
    """Code, line, field and excerpt of what is wrong with pairs as a set."""
    first: dict[tuple[int, int, int], int] = {}
    forms: dict[int, int] = {}
    by_prompt: dict[int, list[int]] = defaultdict(list)
    for k, (pair, line) in enumerate(zip(pairs, lines, strict=True)):
        texts = (pair.prompt, pair.chosen, pair.rejected)
        key = (hash(pair.prompt), hash(pair.chosen), hash(pair.rejected))
        if (other := first.get((key[0], key[2], key[1]))) is not None:
            yield "P403", line, "chosen", f"the opposite of line {other}: {pair.chosen}"
        first.setdefault(key, line)
        by_prompt[key[0]].append(k)
        if not all(map(str.isascii, texts)):
            form = hash(tuple(unicodedata.normalize("NFC", text) for text in texts))
            if form in forms and first[key] == line:
                yield "P414", line, "", f"line {forms[form]} in another Unicode form: {pair.prompt}"
            forms.setdefault(form, line)
    for members in by_prompt.values():
        if len(members) > 2 and (circle := _circle([pairs[k] for k in members])):
            yield "P404", lines[members[0]], "chosen", " < ".join(text[:15] for text in circle)
    auc, shortcut = length_auc(pairs), sum(len(p.chosen) > len(p.rejected) for p in pairs) / len(pairs)
    if len(pairs) >= MANY and (not 0.2 <= auc <= 0.8 or not 1 - ONE_SIDED < shortcut < ONE_SIDED):
        yield "P405", 0, "chosen", f"AUC of length {auc:.2f}; the chosen answer is longer in {shortcut:.0%}"
    if len(pairs) < FEW:
        yield "P409", 0, "", f"{len(pairs)} pairs"


def _circle(pairs: Sequence[Pair]) -> list[str] | None:
    """Answers of one prompt, each better than the one before, of which the last is the first; None without such."""
    graph: dict[str, set[str]] = defaultdict(set)
    opposite = {(p.rejected, p.chosen) for p in pairs}
    for p in pairs:
        if (p.chosen, p.rejected) not in opposite:  # two labels that contradict each other have a code of their own
            graph[p.chosen].add(p.rejected)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


@dataclass
class Annotator:
    """How one person judged: where there were two answers, on which side the better one stood, how often it was the
    longer one, and how often others who judged the same two agreed."""

    name: str
    labels: int = 0
    sides: Counter[str] = field(default_factory=Counter)
    longer: Counter[bool] = field(default_factory=Counter)
    others: Counter[bool] = field(default_factory=Counter)  # labels of others on the same two answers, by agreement

    def to_dict(self) -> dict[str, Any]:
        """Plain values; shares are None where nothing was counted."""

        def share(counts: Counter, value: Any) -> float | None:
            return counts[value] / counts.total() if counts.total() else None

        side = max(sorted(self.sides), key=lambda s: self.sides[s], default=None)
        return {
            "annotator": self.name,
            "labels": self.labels,
            "side": side,
            "side_share": share(self.sides, side),
            "longer_share": share(self.longer, True),
            "compared": self.others.total(),
            "agreement": share(self.others, True),
        }


def person_problems(people: Sequence[Annotator], said: Container[str]) -> Iterator[tuple[str, str]]:
    """Code and excerpt of what is odd about one person; not what is so for the whole set (codes in `said`)."""
    for person in people:
        if "P406" not in said and (found := one_sided(person.sides)):
            yield "P416", f"{person.name}: {found[0]} in {found[1]:.0%} of {person.sides.total()}"
        if "P405" not in said and len(people) > 1 and (found := one_sided(person.longer)):
            which = "the longer" if found[0] else "the shorter"
            yield "P417", f"{person.name}: {which} in {found[1]:.0%} of {person.longer.total()}"
        if (n := person.others.total()) >= MANY and person.others[True] <= n / 2:
            yield "P418", f"{person.name}: with {person.others[True]} of {n} labels of others"


def one_sided(counts: Counter[Any]) -> tuple[Any, float] | None:
    """The value that has at least nine of ten of at least twenty, with its share."""
    total = counts.total()
    if total < MANY:
        return None
    value, n = counts.most_common(1)[0]
    return (value, n / total) if n / total >= ONE_SIDED else None

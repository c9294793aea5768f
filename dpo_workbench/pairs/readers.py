"""`read_pairs`: preference data of any known layout, checked in one pass; read = kept + refused + merged."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.checks import (
    CODES,
    Annotator,
    Refusal,
    one_sided,
    pair_problems,
    person_problems,
    room_problems,
    set_problems,
    text_problems,
)
from dpo_workbench.pairs.conversations import Judged
from dpo_workbench.pairs.dialects import BESIDE, DIALECTS, NAMELESS, SYNONYMS, Dialect, nearest, read_row, recognise
from dpo_workbench.pairs.pair import Pair
from dpo_workbench.pairs.presets import preset_of
from dpo_workbench.pairs.result import Read
from dpo_workbench.pairs.sources import Row, Source, open_source, stop

_LOOK = 100  # rows that decide the layout
_ALL_AGAINST_ALL = 8  # answers of one prompt; of more, each is paired once


def read_pairs(
    source: Any,
    *,
    layout: str | None = None,
    mapping: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Read:
    """Read preference data and check every row; bad rows are refused and kept apart, good ones become pairs.

    Args:
        source: path of a JSONL, JSON, CSV, TSV or Parquet file (also .gz), `hub:owner/name` or `hub:owner/name@split`
            (well-known sets have presets, `docs/data.md`), a pandas DataFrame, a `datasets` object, or a list of dicts.
        layout: a name of `docs/data.md`; found by looking at the rows if None.
        mapping: names of columns by ours, as `{"prompt": "question"}`.
        max_tokens: a prompt with an answer must fit into so many.
        count_tokens: a tokenizer's count; words and signs are counted if None, which are fewer.

    Raises:
        WorkbenchError: nothing could be read, or the layout is unknown.
    """
    source, preset = preset_of(source)
    if preset:
        layout, mapping = layout or preset.layout, preset.mapping if mapping is None else mapping
    opened = open_source(source)
    rows = _renamed(opened.rows, dict(mapping or {}))
    head = list(itertools.islice(rows, _LOOK))
    if not head:
        raise stop("P002", "no row", opened.name)
    dialect = _dialect(layout, head, opened)
    reader = _Reader(opened, dialect, max_tokens, count_tokens)
    for row in itertools.chain(head, rows):
        reader.take(row)
    read = reader.done()
    return replace(read, licence=f"{preset.licence}; {preset.note}") if preset else read


def _renamed(rows: Iterator[Row], mapping: dict[str, str]) -> Iterator[Row]:
    for row in rows:
        if mapping and isinstance(row.value, dict):
            ours = {theirs: name for name, theirs in mapping.items()}
            row.value = {ours.get(key, key): value for key, value in row.value.items()}
        yield row


def _dialect(layout: str | None, head: list[Row], source: Source) -> Dialect:
    layout = SYNONYMS.get(layout or "", layout)
    if layout is not None and layout not in DIALECTS:
        close = nearest(layout, DIALECTS)
        raise WorkbenchError(
            f"`layout` must be one of {', '.join([*DIALECTS, *SYNONYMS])}. Got {layout!r}. "
            f"{f'Did you mean {close}?' if close else 'Leave it out to have it found.'}"
        )
    objects = [row.value for row in head if isinstance(row.value, dict)]
    found = DIALECTS[layout] if layout else recognise(objects)
    if found is None and objects:
        raise stop("P007", f"columns {', '.join(objects[0])}", f"{source.name}:{head[0].line}")
    return found or DIALECTS["trl"]


class _Reader:
    """Takes rows one by one, and counts each as kept, refused or merged."""

    def __init__(self, source: Source, dialect: Dialect, most: int | None, count: Callable[[str], int] | None):
        self.source, self.dialect, self.most, self.count = source, dialect, most, count
        self.findings = source.findings
        self.rows = self.kept = 0
        self.pairs: list[Pair] = []
        self.lines: list[int] = []  # of each pair
        self.refused: list[Row] = []
        self.merged: set[int] = set()
        self.keys: set[str] = set()
        self.ids: set[str] = set()
        self.first: dict[int, int] = {}  # hash of a pair without its id: its place in `pairs`
        self.groups: dict[str, list[tuple[Judged, Row]]] = defaultdict(list)
        self.sides: Counter[str] = Counter()
        self.people: dict[str, Annotator] = {}
        self.splits: dict[int, str] = {}

    def take(self, row: Row) -> None:
        self.rows = row.number = self.rows + 1
        try:
            if row.problem:
                raise row.problem
            judged = read_row(self.dialect, row.value)
        except Refusal as refusal:
            return self._refuse(row, refusal.code, refusal.field, refusal.got, refusal.fix)
        self._look_at_keys(row)
        if judged.scored and not all(0 <= rank <= 1 for rank in judged.ranks):
            judged.scored = False
            judged.notes.append(("P413", "score", ", ".join(f"{rank:g}" for rank in judged.ranks)))
        names = ("chosen", "rejected") if len(judged.answers) == 2 else ("answer",) * len(judged.answers)
        texts = [("prompt", judged.prompt), *zip(names, judged.answers, strict=True)]
        for name, text in texts:
            judged.notes += text_problems(name, text)
        if self.most:
            judged.notes += room_problems(texts, self.most, self.count)
        if self.dialect.grouped and not self._errors(judged):
            self.groups[judged.prompt].append((judged, row))
        else:
            self._add(judged, row)

    def _look_at_keys(self, row: Row) -> None:
        for key in row.value.keys() - self.keys:
            self.keys.add(key)
            if not self.dialect.known(key):
                wanted = {names[0] for names in self.dialect.needs} | {*self.dialect.keys, *BESIDE}
                close = nearest(key, wanted - row.value.keys())
                self.findings.add("P110", row.line, key, row.value[key], f"Did you mean `{close}`?" if close else "")

    def _refuse(self, row: Row, code: str, name: str = "", got: object = "", fix: str = "") -> None:
        self.findings.add(code, row.line, name, got if got != "" else row.original(), fix)
        if not self.refused or self.refused[-1] is not row:
            row.value = None if row.raw is not None else row.value
            self.refused.append(row)

    @staticmethod
    def _errors(judged: Judged) -> list[tuple[str, str, str]]:
        return [note for note in judged.notes if CODES[note[0]][0] == "error"]

    def _add(self, judged: Judged, row: Row) -> None:
        """Keep, merge or refuse a row that is complete in itself."""
        base = self._id(judged, row)
        if len(judged.answers) > 2:
            judged.beside.setdefault("group", base)
        order = [(b, w) for b, w in _comparisons(judged.ranks) if _agreement(judged.grades, b, w) > 0]
        if not order:
            return self._refuse(row, "P412", "grades", "no two answers that people order by a majority")
        names = [f"{base}.{k}" for k in range(1, len(order) + 1)] if len(order) > 1 else [base]
        made = [self._pair(judged, b, w, name) for (b, w), name in zip(order, names, strict=False)]
        different = [pair for pair in made if pair.chosen.strip() != pair.rejected.strip()]
        if different and len(different) < len(made):  # one of many answers is there twice
            judged.notes.append(("P303", "answer", f"{len(made) - len(different)} pairs of one text left out"))
            made = different
        for pair in made:
            judged.notes += pair_problems(pair)
        if errors := self._errors(judged):
            for error in errors:
                self._refuse(row, *error)
            return
        new = [pair for pair in made if not self._copy(pair)]
        if not new:
            self.merged.add(row.number)
            return self.findings.add("P401", row.line, "", judged.prompt)
        if any(pair.id in self.ids for pair in new):
            return self._refuse(row, "P402", "id", base)
        self.kept += 1
        self._note(judged, row)
        for pair in new:
            self._keep(pair, row.line)

    def _id(self, judged: Judged, row: Row) -> str:
        given = judged.id or ""
        if given != given.strip():
            judged.notes.append(("P415", "id", repr(given)))
        return given.strip() or f"row-{row.number}"

    def _pair(self, judged: Judged, better: int, worse: int, name: str) -> Pair:
        scores = {"chosen_score": judged.ranks[better], "rejected_score": judged.ranks[worse]} if judged.scored else {}
        beside = judged.beside | scores
        if judged.grades:
            beside["weight"] = beside.get("weight", 1.0) * _agreement(judged.grades, better, worse)
        return Pair(name, judged.prompt, judged.answers[better], judged.answers[worse], **beside)

    def _key(self, pair: Pair) -> int:
        return hash(tuple(v for k, v in pair.__dict__.items() if k != "id"))

    def _copy(self, pair: Pair) -> bool:
        at = self.first.get(self._key(pair))
        return at is not None and self.pairs[at].__dict__ | {"id": ""} == pair.__dict__ | {"id": ""}

    def _keep(self, pair: Pair, line: int) -> None:
        self.first.setdefault(self._key(pair), len(self.pairs))
        self.ids.add(pair.id)
        self.pairs.append(pair)
        self.lines.append(line)

    def _note(self, judged: Judged, row: Row) -> None:
        """Warnings of a row that is kept, and what the set will be asked."""
        for code, name, got in judged.notes:
            self.findings.add(code, row.line, name, got)
        self._note_people(judged)
        if judged.split and self.splits.setdefault(hash(judged.prompt), judged.split) != judged.split:
            self.findings.add("P410", row.line, "prompt", judged.prompt)

    def _note_people(self, judged: Judged) -> None:
        """Who judged, and how: on which side, the longer answer or not, with the others or not."""
        best = judged.ranks.index(max(judged.ranks))
        if judged.sides:
            self.sides[judged.sides[best]] += 1
        for places, votes in _ballots(judged, best):
            lengths = [len(judged.answers[place]) for place in places]
            for k, (name, vote) in enumerate(votes):
                person = self.people.setdefault(name, Annotator(name))
                person.labels += 1
                if judged.sides:
                    person.sides[judged.sides[vote]] += 1
                if len(lengths) == 2 and lengths[0] != lengths[1]:
                    person.longer[lengths[vote] > lengths[1 - vote]] += 1
                person.others.update(vote == other for j, (_, other) in enumerate(votes) if j != k)

    def _add_groups(self) -> None:
        """Pairs among the answers of each prompt; an answer without another that was judged differently is refused."""
        for prompt, members in self.groups.items():
            once: dict[tuple[str, float], tuple[Judged, Row]] = {}
            for judged, row in members:
                if (judged.answers[0], judged.ranks[0]) in once:
                    self.merged.add(row.number)
                    self.findings.add("P401", row.line, "", judged.answers[0])
                once.setdefault((judged.answers[0], judged.ranks[0]), (judged, row))
            items = list(once.values())
            rows = [row for _, row in items]
            joined = Judged(prompt, [answer for answer, _ in once], [rank for _, rank in once])
            joined.scored = all(judged.scored for judged, _ in items)
            joined.beside = {"group": items[0][0].beside.get("group", f"row-{rows[0].number}")}
            used: set[int] = set()
            for better, worse in _comparisons(joined.ranks):
                pair = self._pair(joined, better, worse, f"row-{rows[better].number}-{rows[worse].number}")
                if pair.chosen.strip() != pair.rejected.strip():
                    used |= {better, worse}
                    if not self._copy(pair):
                        self._keep(pair, rows[better].line)
            for k, (judged, row) in enumerate(items):
                if k in used:
                    self.kept += 1
                    self._note(judged, row)
                else:
                    self._refuse(row, "P411", "completion", judged.answers[0])

    def done(self) -> Read:
        self._add_groups()
        self.refused.sort(key=lambda row: row.number)
        if self.pairs:
            for problem in set_problems(self.pairs, self.lines):
                self.findings.add(*problem)
        people = sorted(self.people.values(), key=lambda person: (-person.labels, person.name))
        for code, votes in (("P406", self.sides), ("P407", Counter({p.name: p.labels for p in people}))):
            if found := one_sided(votes):
                self.findings.add(code, got=f"{found[0]}: {found[1]:.0%} of {votes.total()}")
        for code, got in person_problems(people, self.findings.counts):
            self.findings.add(code, got=got)
        refused, merged = len(self.refused), len(self.merged)
        assert self.rows == self.kept + refused + merged, f"{self.rows} != {self.kept} + {refused} + {merged}"
        what = f"{self.dialect.name} ({self.dialect.what}), {self.source.kind}"
        counts, kept = dict(self.findings.counts), self.findings.kept
        return Read(
            self.source.name, what, self.rows, self.kept, refused, merged, kept, counts,
            self.pairs, self.refused, self.merged, self.source.header, people,
        )  # fmt: skip


def _ballots(judged: Judged, best: int) -> Iterator[tuple[Sequence[int], list[tuple[str, int]]]]:
    """Places of two answers, and who found the first (0) or the second (1) of them better; without two, only who."""
    if len(judged.answers) == 2 and (judged.votes or judged.annotator):
        yield (0, 1), judged.votes or [(judged.annotator, best)]
    elif judged.annotator:
        yield (), [(judged.annotator, 0)]
    elif judged.grades and len(judged.answers) <= _ALL_AGAINST_ALL:
        for two in itertools.combinations(range(len(judged.answers)), 2):
            first, second = (judged.grades[place] for place in two)
            signs = {who: second[who] - first[who] for who in first if who in second and not who.startswith(NAMELESS)}
            yield two, [(who, int(sign > 0)) for who, sign in signs.items() if sign]


def _agreement(grades: list[dict[str, float]], better: int, worse: int) -> float:
    """How clearly people order two answers so: the share who do less the share who order them the other way round, of
    those who graded both; 1 where nobody's grades are known."""
    if not grades:
        return 1.0
    both = grades[better].keys() & grades[worse].keys()
    signs = [(g > 0) - (g < 0) for g in (grades[better][who] - grades[worse][who] for who in both)]
    return sum(signs) / len(signs) if signs else 0.0


def _comparisons(ranks: list[float]) -> Iterator[tuple[int, int]]:
    """Places (better, worse): all against all; of many answers each below the best against one of the best."""
    order = sorted(range(len(ranks)), key=lambda k: -ranks[k])
    if len(order) <= _ALL_AGAINST_ALL:
        yield from ((b, w) for b, w in itertools.combinations(order, 2) if ranks[b] > ranks[w])
        return
    best = [k for k in order if ranks[k] == ranks[order[0]]]
    rest = order[len(best) :]
    if rest:
        for k in range(max(len(best), len(rest))):
            yield best[k % len(best)], rest[k % len(rest)]

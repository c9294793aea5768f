"""Reads preference data in one pass: each row is counted once, as kept, refused, merged or skipped."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.checks import (
    CODES,
    Finding,
    Note,
    Refusal,
    excerpt,
    finding,
    pair_problems,
    set_problems,
    text_problems,
)
from dpo_workbench.pairs.conversations import Ranked
from dpo_workbench.pairs.layouts_in import LAYOUTS, Layout, nearest, read_row, recognise
from dpo_workbench.pairs.preference import Pair
from dpo_workbench.pairs.row_readers import OTHERS
from dpo_workbench.pairs.sources import Row, Source, open_source, stop

_LOOK = 100  # rows that decide the layout; columns for which a misspelling is looked for
_ALL_AGAINST_ALL = 8  # up to so many answers to a prompt are all compared; of more, each with the best one


def read_rows(source: Any, mapping: Mapping[str, str] | None = None) -> Reader:
    """Read and check all rows of a source. See `read_pairs` for the arguments."""
    opened = open_source(source)
    head = list(itertools.islice(opened.rows, _LOOK))
    if not head:
        raise stop("P002", "no row", opened.name)
    rows = _renamed(itertools.chain(head, opened.rows), _checked_mapping(mapping or {}, head, opened))
    head = list(itertools.islice(rows, len(head)))
    reader = Reader(opened, _find_layout(head, opened))
    for row in itertools.chain(head, rows):
        reader.take(row)
    reader.finish()
    return reader


def _checked_mapping(mapping: Mapping[str, str], head: Sequence[Row], source: Source) -> dict[str, str]:
    """The mapping from their columns to ours."""
    columns = {key for row in head if isinstance(row.value, dict) for key in row.value}
    if columns and (lost := [theirs for theirs in mapping.values() if theirs not in columns]):
        raise WorkbenchError(
            f"`mapping` must name columns of the file. Got {lost[0]!r} ({source.name}, which has "
            f"{excerpt(', '.join(sorted(columns)), 300)}). Correct the name."
        )
    return {theirs: ours for ours, theirs in mapping.items()}


def _renamed(rows: Iterator[Row], names: Mapping[str, str]) -> Iterator[Row]:
    for row in rows:
        if names and isinstance(row.value, dict):
            others = {key: v for key, v in row.value.items() if key not in names and key not in names.values()}
            row.value = {ours: row.value[theirs] for theirs, ours in names.items() if theirs in row.value} | others
        yield row


def _find_layout(head: Sequence[Row], source: Source) -> Layout:
    objects = [row.value for row in head if isinstance(row.value, dict)]
    found = recognise(objects)
    if found is None and objects:
        columns = list(dict.fromkeys(key for row in objects for key in row))
        got = f"an unknown layout with the columns {', '.join(columns)}"
        raise stop("P007", got, f"{source.name}:{head[0].line}")
    return found or LAYOUTS["trl"]


class Reader:
    """Takes rows one by one. Afterwards `rows == kept + refused + merged + skipped`, each as a number of rows."""

    def __init__(self, source: Source, layout: Layout):
        self.source, self.layout = source, layout
        self.findings: list[Finding] = []
        self.rows = self.kept = self.refused = self.merged = self.skipped = 0
        self.pairs: list[Pair] = []
        self._lines: list[int] = []  # of each pair
        self._seen: set[Pair] = set()  # pairs without their ids
        self._ids: set[str] = set()
        self._keys: set[str] = set()
        self._groups: dict[str, list[tuple[Ranked, Row]]] = defaultdict(list)

    def take(self, row: Row) -> None:
        """Read one row."""
        self.rows += 1
        try:
            if row.problem:
                raise row.problem
            ranked = read_row(self.layout, row.value)
        except Refusal as refusal:
            return self._refuse(row, refusal.code, refusal.field, refusal.got, refusal.fix)
        self._look_at_keys(row)
        if ranked.scored and not all(0 <= rank <= 1 for rank in ranked.ranks):
            ranked.scored = False
            ranked.notes.append(("P413", "score", ", ".join(f"{rank:g}" for rank in ranked.ranks)))
        names = ("chosen", "rejected") if len(ranked.answers) == 2 else ("answer",) * len(ranked.answers)
        for name, text in [("prompt", ranked.prompt), *zip(names, ranked.answers, strict=True)]:
            ranked.notes += text_problems(name, text)
        if self.layout.grouped and not _errors(ranked):
            self._groups[ranked.prompt].append((ranked, row))
        else:
            self._add(ranked, row)

    def _find(self, code: str, line: int = 0, field: str = "", got: object = "", fix: str = "") -> None:
        self.findings.append(finding(self.source.name, code, line, field, got, fix))

    def _look_at_keys(self, row: Row) -> None:
        """Report columns that look like misspelt names of ours, each once."""
        for key in list(row.value.keys() - self._keys)[:_LOOK]:
            self._keys.add(key)
            if not self.layout.reads(key) and (close := nearest(key, sorted(OTHERS - row.value.keys()))):
                self._find("P110", row.line, key, row.value[key], f"Did you mean `{close}`?")

    def _refuse(self, row: Row, code: str, name: str = "", got: object = "", fix: str = "") -> None:
        """Count a row as refused, or as skipped where its code says so."""
        self._find(code, row.line, name, got if got != "" else row.value, fix)
        if CODES[code].severity == "skipped":
            self.skipped += 1
        else:
            self.refused += 1

    def _add(self, ranked: Ranked, row: Row) -> None:
        """Keep, merge or refuse a row that makes its pairs alone."""
        order = [(b, w) for b, w in _comparisons(ranked.ranks) if _agreement(ranked.grades, b, w) > 0]
        if not order:
            return self._refuse(row, "P412", "grades", "no two answers that a majority orders")
        base = ranked.id or f"row-{self.rows}"
        made = [_pair(ranked, better, worse, base) for better, worse in order]
        different = {(p.chosen, p.rejected): p for p in made if p.chosen.strip() != p.rejected.strip()}
        made = list(different.values()) or made  # an answer may occur twice
        for pair in made:
            ranked.notes += pair_problems(pair)
        if errors := _errors(ranked):
            for code, name, got in errors[:-1]:
                self._find(code, row.line, name, got)
            return self._refuse(row, *errors[-1])
        if len(made) > 1:
            made = [replace(pair, id=f"{base}.{k}") for k, pair in enumerate(made, 1)]
        new = [pair for pair in made if replace(pair, id="") not in self._seen]
        if not new:
            self.merged += 1
            return self._find("P401", row.line, "", ranked.prompt)
        if ranked.id and any(pair.id in self._ids for pair in new):
            return self._refuse(row, "P402", "id", base)
        self.kept += 1
        self._note(ranked, row.line)
        for pair in new:
            self._keep(pair, row.line)

    def _keep(self, pair: Pair, line: int) -> None:
        self._seen.add(replace(pair, id=""))
        name = pair.id
        while name in self._ids:  # only a name that was made here
            name += "-auto"
        self._ids.add(name)
        self.pairs.append(replace(pair, id=name))
        self._lines.append(line)

    def _note(self, ranked: Ranked, line: int) -> None:
        """Report the warnings of a row that is kept."""
        for code, name, got in ranked.notes:
            self._find(code, line, name, got)

    def _add_group(self, prompt: str, members: Sequence[tuple[Ranked, Row]]) -> None:
        """Pairs among the answers to one prompt; skips an answer without another that was judged differently."""
        once: dict[tuple[str, float], tuple[Ranked, Row]] = {}
        for ranked, row in members:
            if once.setdefault((ranked.answers[0], ranked.ranks[0]), (ranked, row))[1] is not row:
                self.merged += 1
                self._find("P401", row.line, "", ranked.answers[0])
        items = list(once.values())
        joined = Ranked(prompt, [answer for answer, _ in once], [rank for _, rank in once])
        joined.fields = {key: value for key, value in items[0][0].fields.items() if key == "group"}
        used: set[int] = set()
        for better, worse in _comparisons(joined.ranks):
            lines = (items[better][1].line, items[worse][1].line)
            pair = _pair(joined, better, worse, f"row-{lines[0]}-{lines[1]}")
            if pair.chosen.strip() != pair.rejected.strip():
                used |= {better, worse}
                if replace(pair, id="") not in self._seen:
                    self._keep(pair, lines[0])
        for k, (ranked, row) in enumerate(items):
            if k in used:
                self.kept += 1
                self._note(ranked, row.line)
            else:
                self._refuse(row, "P411", "completion", ranked.answers[0])

    def finish(self) -> None:
        """Make the pairs of grouped rows, and check the set as a whole."""
        for prompt, members in self._groups.items():
            self._add_group(prompt, members)
        if self.pairs:
            for problem in set_problems(self.pairs, self._lines):
                self._find(*problem)
        counted = (self.kept, self.refused, self.merged, self.skipped)
        assert self.rows == sum(counted), f"{self.rows} != {' + '.join(map(str, counted))}"


def _errors(ranked: Ranked) -> list[Note]:
    return [note for note in ranked.notes if CODES[note[0]].severity == "error"]


def _pair(ranked: Ranked, better: int, worse: int, name: str) -> Pair:
    fields = dict(ranked.fields)
    if ranked.scored:
        fields |= {"chosen_score": ranked.ranks[better], "rejected_score": ranked.ranks[worse]}
    if ranked.grades:
        fields["weight"] = fields.get("weight", 1.0) * _agreement(ranked.grades, better, worse)
    return Pair(name, ranked.prompt, ranked.answers[better], ranked.answers[worse], **fields)


def _agreement(grades: list[dict[str, float]], better: int, worse: int) -> float:
    """The share of people who order two answers like this, minus the share who order them the other way round.

    Only people who graded both count; 1 where there are no grades.
    """
    if not grades:
        return 1.0
    both = grades[better].keys() & grades[worse].keys()
    signs = [(g > 0) - (g < 0) for g in (grades[better][who] - grades[worse][who] for who in both)]
    return sum(signs) / len(signs) if signs else 0.0


def _comparisons(ranks: list[float]) -> list[tuple[int, int]]:
    """Places (better, worse): all against all; of many answers, the best one against each other one."""
    order = sorted(range(len(ranks)), key=lambda k: -ranks[k])
    places = list(itertools.combinations(order, 2))
    if len(order) > _ALL_AGAINST_ALL:
        places = [(order[0], worse) for worse in order[1:]]
    return [(better, worse) for better, worse in places if ranks[better] > ranks[worse]]

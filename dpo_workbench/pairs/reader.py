"""Reads preference data in one pass: each row is counted once, as kept, refused, merged or skipped."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.checks import pair_problems, set_problems, text_problems
from dpo_workbench.pairs.codes import CODES, Finding, Refusal, excerpt, stop
from dpo_workbench.pairs.conversations import Ranked
from dpo_workbench.pairs.layouts_in import OTHERS, Layout, nearest, read_row, recognise
from dpo_workbench.pairs.messages import Turns, prompt_as_text
from dpo_workbench.pairs.preference import Pair
from dpo_workbench.pairs.sources import Row, Source, open_source

_LOOK = 100  # rows that decide the layout; columns for which a misspelling is looked for
_ALL_AGAINST_ALL = 8  # up to so many answers to a prompt are all compared; of more, each with the best one


def read_rows(source: Any, mapping: Mapping[str, str]) -> Reader:
    """Read and check all rows of a source. See `read_pairs` for the arguments."""
    opened = open_source(source)
    head = list(itertools.islice(opened.rows, _LOOK))
    if not head:
        raise stop("P002", "no row", opened.name)
    columns = {key for row in head if isinstance(row.value, dict) for key in row.value}
    if columns and (lost := [theirs for theirs in mapping.values() if theirs not in columns]):
        raise WorkbenchError(
            f"`mapping` must name columns of the file. Got {lost[0]!r} ({opened.name}, which has "
            f"{excerpt(', '.join(sorted(columns)), 300)}). Correct the name."
        )
    head = [_renamed(row, mapping) for row in head]
    objects = [row.value for row in head if isinstance(row.value, dict)]
    reader = Reader(opened, recognise(objects, f"{opened.name}:{head[0].line}"))
    for row in itertools.chain(head, (_renamed(row, mapping) for row in opened.rows)):
        reader.take(row)
    reader.finish()
    return reader


def _renamed(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row with our names of columns; `mapping` gives the file's name of each."""
    if mapping and isinstance(row.value, dict):
        others = {key: v for key, v in row.value.items() if key not in {*mapping, *mapping.values()}}
        row.value = {ours: row.value[theirs] for ours, theirs in mapping.items() if theirs in row.value} | others
    return row


class Reader:
    """Takes rows one by one. Afterwards `rows` is the sum of `ends`: how many rows ended in which way."""

    def __init__(self, source: Source, layout: Layout):
        self.source, self.layout = source, layout
        self.findings: list[Finding] = []
        self.rows = 0
        self.ends = {"kept": 0, "refused": 0, "merged": 0, "skipped": 0}
        self.pairs: list[Pair] = []
        self._lines: list[int] = []  # of each pair
        self._seen: set[Pair] = set()  # pairs without their ids
        self._ids: set[str] = set()
        self._automatic: dict[int, str] = {}  # ids that are not in the file, by the place of the pair
        self._columns: set[str] = set()
        self._groups: dict[str | Turns, list[tuple[Ranked, Row]]] = defaultdict(list)

    def take(self, row: Row) -> None:
        """Read one row."""
        self.rows += 1
        try:
            if row.problem:
                raise row.problem
            ranked = read_row(self.layout, row.value)
            self._look_at_columns(row)
            names = ("chosen", "rejected") if len(ranked.answers) == 2 else ("answer",) * len(ranked.answers)
            labels = [(name, text) for name in ("id", "group") if (text := ranked.fields.get(name, "").strip())]
            texts = [prompt_as_text(ranked.prompt), *ranked.answers]
            for name, text in [*zip(("prompt", *names), texts, strict=True), *labels]:
                ranked.notes += text_problems(name, text)
            self._raise_errors(ranked, row)
            if self.layout.grouped:
                self._groups[ranked.prompt].append((ranked, row))
            else:
                self._add(ranked, row)
        except Refusal as refusal:
            self._refuse(row, refusal)

    def _find(self, line: int, code: str, field: str = "", got: object = "", fix: str = "") -> None:
        severity, _, advice = CODES[code]
        found = Finding(code, severity, self.source.name, line, excerpt(field), excerpt(got), fix or advice)
        self.findings.append(found)

    def _look_at_columns(self, row: Row) -> None:
        """Report columns that look like misspelt names of ours, each once."""
        for key in [key for key in row.value if key not in self._columns][:_LOOK]:
            self._columns.add(key)
            if not self.layout.reads(key) and (close := nearest(key, sorted(set(OTHERS) - row.value.keys()))):
                self._find(row.line, "P110", key, row.value[key], f"Did you mean `{close}`?")

    def _refuse(self, row: Row, refusal: Refusal) -> None:
        """Count a row as refused, or as skipped where its code says so."""
        got = refusal.got if refusal.got != "" else row.value
        self._find(row.line, refusal.code, refusal.field, got, refusal.fix)
        self.ends["skipped" if CODES[refusal.code].severity == "skipped" else "refused"] += 1

    def _add(self, ranked: Ranked, row: Row) -> None:
        """Keep or merge a row that makes its pairs alone. Raises Refusal."""
        made = [_pair(ranked, better, worse) for better, worse in _comparisons(ranked.ranks)]
        if not made:
            raise Refusal("P412", "", f"equal scores: {', '.join(f'{rank:g}' for rank in ranked.ranks)}")
        different = {(p.chosen, p.rejected): p for p in made if p.chosen.strip() != p.rejected.strip()}
        made = list(different.values()) or made  # an answer may occur twice
        for pair in made:
            ranked.notes += pair_problems(pair)
        self._raise_errors(ranked, row)
        given = ranked.fields.get("id", "").strip()
        base = given or f"row-{self.rows}"
        names = [base] if len(made) == 1 else [f"{base}.{k}" for k in range(1, len(made) + 1)]
        new = {name: pair for name, pair in zip(names, made, strict=True) if pair not in self._seen}
        if not new:
            return self._end(row, "merged", [("P401", "", prompt_as_text(ranked.prompt))])
        if given and self._ids & new.keys():
            raise Refusal("P402", "id", given)
        self._end(row, "kept", ranked.notes)
        for name, pair in new.items():
            self._keep(pair, name, row.line, automatic=not given)

    def _raise_errors(self, ranked: Ranked, row: Row) -> None:
        """Report all errors that were noted; the last one is raised."""
        errors = [note for note in ranked.notes if CODES[note[0]].severity == "error"]
        for note in errors[:-1]:
            self._find(row.line, *note)
        if errors:
            raise Refusal(*errors[-1])

    def _end(self, row: Row, how: str, notes: Sequence[tuple[str, str, str]]) -> None:
        self.ends[how] += 1
        for note in notes:
            self._find(row.line, *note)

    def _keep(self, pair: Pair, name: str, line: int, automatic: bool) -> None:
        self._seen.add(pair)
        if automatic:
            self._automatic[len(self.pairs)] = name
        else:
            self._ids.add(name)
        self.pairs.append(replace(pair, id=name))
        self._lines.append(line)

    def _add_group(self, prompt: str | Turns, members: Sequence[tuple[Ranked, Row]]) -> None:
        """Pairs among the answers to one prompt; skips an answer without another that was judged differently."""
        once: dict[tuple[str, float], tuple[Ranked, Row]] = {}
        for ranked, row in members:
            if once.setdefault((ranked.answers[0], ranked.ranks[0]), (ranked, row))[1] is not row:
                self._end(row, "merged", [("P401", "", ranked.answers[0])])
        items = list(once.values())
        joined = Ranked(prompt, [answer for answer, _ in once], [rank for _, rank in once])
        joined.fields = {key: value for key, value in items[0][0].fields.items() if key == "group"}
        used: set[int] = set()
        for better, worse in _comparisons(joined.ranks):
            pair, lines = _pair(joined, better, worse), (items[better][1].line, items[worse][1].line)
            if pair.chosen.strip() != pair.rejected.strip():
                used |= {better, worse}
                if pair not in self._seen:
                    self._keep(pair, f"row-{lines[0]}-{lines[1]}", lines[0], automatic=True)
        for k, (ranked, row) in enumerate(items):
            if k in used:
                self._end(row, "kept", ranked.notes)
            else:
                self._refuse(row, Refusal("P411", "completion", ranked.answers[0]))

    def finish(self) -> None:
        """Make the pairs of grouped rows, and check the set as a whole."""
        for prompt, members in self._groups.items():
            self._add_group(prompt, members)
        for place, name in self._automatic.items():
            while name in self._ids:
                name += "-auto"
            self._ids.add(name)
            self.pairs[place] = replace(self.pairs[place], id=name)
        for problem in set_problems(self.pairs, self._lines) if self.pairs else ():
            self._find(*problem)
        assert self.rows == sum(self.ends.values()), f"{self.rows} != {' + '.join(map(str, self.ends.values()))}"


def _pair(ranked: Ranked, better: int, worse: int) -> Pair:
    """The pair of two answers, without its id."""
    fields = {**ranked.fields, "id": ""}
    if ranked.scored:
        fields |= {"chosen_score": ranked.ranks[better], "rejected_score": ranked.ranks[worse]}
    return Pair(prompt=ranked.prompt, chosen=ranked.answers[better], rejected=ranked.answers[worse], **fields)


def _comparisons(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """Places (better, worse): all against all; of many answers, the best one against each other one."""
    order = sorted(range(len(ranks)), key=lambda k: -ranks[k])
    many = len(order) > _ALL_AGAINST_ALL
    places = itertools.product(order[:1], order[1:]) if many else itertools.combinations(order, 2)
    return [(better, worse) for better, worse in places if ranks[better] > ranks[worse]]

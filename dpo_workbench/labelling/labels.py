"""`read_labels`: what raters said, their agreement with each other and with others, and the pairs that follow."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.labelling import agreement as stats
from dpo_workbench.labelling.agreement import Estimate
from dpo_workbench.labelling.events import Event, Store, answer_key, item_key
from dpo_workbench.labelling.study import AGAIN, Plan
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.training.config import TrainConfig

WAYS = ("majority", "weighted", "bradley-terry")
STRENGTHS = {1: 0.5, 2: 1.0, 3: 1.5}  # weight of a vote that said slightly, clearly, far better


@dataclass(frozen=True)
class Vote:
    """A standing label. `value` is +1 where the pair's chosen answer won, -1 where its rejected did, 0 for a tie."""

    event: Event
    pair: Pair
    item: str  # key without the mark of a second showing
    again: bool

    @property
    def value(self) -> int | None:
        """None for both bad and skip: these say nothing about which is better."""
        if self.event.choice == "tie":
            return 0
        return self._sign(self.event.winner)

    def _sign(self, key: str | None) -> int | None:
        if key is None:
            return None
        return 1 if key == answer_key(self.pair.chosen) else -1

    def on(self, criterion: str) -> int | None:
        """The same for a criterion."""
        choice = self.event.criteria.get(criterion)
        if choice == "tie":
            return 0
        return self._sign({"a": self.event.left, "b": self.event.right}.get(choice or ""))


def read_labels(
    store: str | Path | Sequence[str | Path], pairs: Sequence[Pair], plan: Plan | str | Path | None = None
) -> Labels:
    """Read one or several label files, and match them with the pairs that were judged.

    Args:
        store: the file, or several (copies of one another count once).
        pairs: what was judged; labels of other pairs are counted as `strangers`.
        plan: where there was one: it knows the gold items.

    Raises:
        WorkbenchError: a file does not exist, or holds no label of these pairs.
    """
    files = [store] if isinstance(store, (str, Path)) else list(store)
    if not files or not all(Path(f).is_file() for f in files):
        missing = next((f for f in files if not Path(f).is_file()), "none")
        raise WorkbenchError(f"A label file must exist. Got {missing}. `dw.label(...)` makes it with the first label.")
    read = Store(*files)
    by_key = {item_key(p): p for p in reversed(list(pairs))}
    votes, strangers = [], 0
    for event in read.state.labels.values():
        key = event.item.removesuffix(AGAIN)
        if key in by_key:
            votes.append(Vote(event, by_key[key], key, event.item.endswith(AGAIN)))
        else:
            strangers += 1
    if not votes:
        raise WorkbenchError(
            f"Labels must belong to the pairs. Got {strangers} labels of other pairs in {files[0]}. Pass the pairs "
            "that were judged."
        )
    known = plan if isinstance(plan, Plan) or plan is None else Plan.load(plan)
    return Labels(votes, strangers, read.damaged, known)


class Labels:
    """Votes with their pairs. `strangers`: labels of other pairs; `damaged`: lines that could not be read."""

    def __init__(self, votes: Sequence[Vote], strangers: int = 0, damaged: int = 0, plan: Plan | None = None):
        self.votes, self.strangers, self.damaged, self.plan = list(votes), strangers, damaged, plan

    @cached_property
    def first(self) -> list[Vote]:
        """Votes without second showings and skips: one a rater and item."""
        return [v for v in self.votes if not v.again and v.event.choice != "skip"]

    @cached_property
    def by_item(self) -> dict[str, list[Vote]]:
        found: dict[str, list[Vote]] = defaultdict(list)
        for vote in self.first:
            found[vote.item].append(vote)
        return dict(found)

    @property
    def raters(self) -> list[str]:
        return sorted({v.event.rater for v in self.votes})

    def table(self, criterion: str | None = None) -> dict[str, dict[Any, float]]:
        """Rater -> {item: 1 one answer won, -1 the other, 0 a tie}; both bad is a gap.

        Which answer is "one" is drawn by content: were it the chosen one, raters who all prefer it would use a single
        value, and kappa could not tell that from chance. Overall, or by a criterion of the rubric.
        """
        found: dict[str, dict[Any, float]] = {rater: {} for rater in self.raters}
        for vote in self.first:
            value = vote.value if criterion is None else vote.on(criterion)
            if value is not None:
                found[vote.event.rater][vote.item] = float(value * orientation(vote.pair))
        return found

    def majority(self) -> dict[str, int]:
        """By item: 1 the pair's chosen answer won, -1 its rejected, 0 neither."""
        return {item: _sign(sum(v.value or 0 for v in votes)) for item, votes in self.by_item.items()}

    def flip_rate(self) -> Estimate:
        """Share of votes that are wrong, from how often two raters name different winners (see `agreement.flip_rate`).

        Only pairs of votes that both name a winner count; where no item has two raters, a rater's own repeats do.
        """
        both = disagree = 0
        for votes in self.by_item.values():
            values = [v.value for v in votes if v.value]
            for k, one in enumerate(values):
                for other in values[:k]:
                    both, disagree = both + 1, disagree + (one != other)
        if both == 0:
            own = [(a.value, b.value) for a, b in self.repeats() if a.value and b.value]
            both, disagree = len(own), sum(a != b for a, b in own)
        return stats.flip_rate(disagree, both)

    def repeats(self) -> list[tuple[Vote, Vote]]:
        """First and second vote of a rater on what was shown twice."""
        again = {(v.event.rater, v.item): v for v in self.votes if v.again and v.event.choice != "skip"}
        return [(v, again[key]) for v in self.first if (key := (v.event.rater, v.item)) in again]

    def config(self, config: TrainConfig | None = None) -> TrainConfig:
        """`config` with the robust loss and the measured flip rate as its label smoothing.

        Source: rDPO (Chowdhury et al. 2024, arXiv 2403.00409), whose epsilon is the share of flipped labels.

        Raises:
            WorkbenchError: nothing was judged twice, or the raters agree no better than by chance.
        """
        rate = self.flip_rate()
        if not rate.n:
            raise WorkbenchError("The flip rate must be measured. No pair was judged twice. Plan an `overlap`.")
        if rate.value > 0.45:
            raise WorkbenchError(
                f"Raters must agree better than by chance. Got a flip rate of {rate}. Discuss the rubric, label again."
            )
        return replace(config or TrainConfig(), loss="robust", label_smoothing=round(rate.value, 4))

    def pairs(self, how: str = "majority") -> Pairs:
        """Pairs in which the better answer is `chosen`. Ties, both bad and even votes never become one.

        Args:
            how: `majority`: the answer that more raters preferred, each pair with weight 1. `weighted`: the same, with
                the margin of the votes as weight, ties counted as votes for neither, and each vote scaled by its
                strength (0.5 slightly, 1 clearly, 1.5 far). `bradley-terry`: strengths of all answers to a prompt
                from all votes on it; each two answers become a pair with weight 2 P(better) - 1, also two that
                nobody compared.

        Raises:
            WorkbenchError: an unknown way, or no pair is left.
        """
        if how not in WAYS:
            raise WorkbenchError(f"`how` must be one of {', '.join(WAYS)}. Got {how!r}.")
        rows = self._by_strength() if how == "bradley-terry" else self._by_vote(how)
        if not rows:
            raise WorkbenchError(
                f"Labels must name winners. Got none that stands: {stats.counts_of([*self.left_out().elements()])}. "
                "Label more, or discuss where raters disagree."
            )
        return Pairs(rows)

    def _by_vote(self, how: str) -> list[Pair]:
        found = []
        for votes in self.by_item.values():
            if _kind(votes) != "pair":
                continue
            total = sum(v.value or 0 for v in votes)
            pair, weight = votes[0].pair, 1.0
            if how == "weighted":
                scaled = sum((v.value or 0) * STRENGTHS[v.event.strength or 2] for v in votes)
                weight = scaled / len(votes) * _sign(total)
                if weight <= 0:  # few strong votes against many slight ones
                    continue
            found.append(_turned(pair, total < 0, weight))
        return found

    def _by_strength(self) -> list[Pair]:
        texts: dict[str, dict[str, Pair]] = defaultdict(dict)
        games: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
        for votes in self.by_item.values():
            if _kind(votes) == "both bad":
                continue
            for vote in votes:
                if vote.value is None:
                    continue
                pair = vote.pair
                keys = answer_key(pair.chosen), answer_key(pair.rejected)
                texts[pair.prompt].update(zip(keys, (pair, replace(pair, chosen=pair.rejected)), strict=True))
                games[pair.prompt].append((*keys, (vote.value + 1) / 2))
        found = []
        for prompt, played in games.items():
            strength = stats.bradley_terry(played, alpha=0.1)
            ordered = sorted(strength, key=lambda key: -strength[key])
            for k, better in enumerate(ordered):
                for worse in ordered[k + 1 :]:
                    gap = strength[better] - strength[worse]
                    if gap > 1e-3:  # level: nobody knows
                        pair = texts[prompt][better]
                        row = replace(pair, rejected=texts[prompt][worse].chosen, weight=stats.preference_weight(gap))
                        found.append(replace(row, id=f"{pair.id}:{better[:6]}>{worse[:6]}"))
        return found

    def left_out(self) -> Counter[str]:
        """Items that become no pair, by the reason."""
        kinds = Counter(_kind(votes) for votes in self.by_item.values())
        return Counter({kind: n for kind, n in kinds.items() if kind != "pair"})

    def __repr__(self) -> str:
        kinds = Counter(_kind(votes) for votes in self.by_item.values())
        lines = [
            f"Labels: {len(self.votes)} by {len(self.raters)} raters on {len(self.by_item)} pairs",
            f"  become pairs: {kinds['pair']}; left out: {stats.counts_of([*self.left_out().elements()]) or 'none'}",
        ]
        if self.strangers or self.damaged:
            lines.append(f"  of other pairs: {self.strangers}; lines that could not be read: {self.damaged}")
        rate = self.flip_rate()
        if rate.n:
            lines.append(f"  flip rate: {rate}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def orientation(pair: Pair) -> int:
    """1 or -1, by the answers' contents."""
    return 1 if answer_key(pair.chosen) < answer_key(pair.rejected) else -1


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _kind(votes: Sequence[Vote]) -> str:
    """What the votes on one item make: a pair, or why not."""
    values = [v.value for v in votes]
    if sum(v is None for v in values) * 2 >= len(values):
        return "both bad"
    named = [v for v in values if v]
    if sum(v == 0 for v in values) > len(named) or not named:
        return "tie"
    return "pair" if sum(named) else "even votes"


def _turned(pair: Pair, turn: bool, weight: float) -> Pair:
    """The pair as people judged it."""
    if not turn:
        return replace(pair, weight=weight)
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_from=pair.rejected_from,
        rejected_from=pair.chosen_from,
        chosen_score=pair.rejected_score,
        rejected_score=pair.chosen_score,
        failure=None,
        rejected_finished=True,
        weight=weight,
    )

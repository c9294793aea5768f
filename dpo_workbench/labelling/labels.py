"""`plan_labelling`: who judges what. `read_labels`: the labels of all raters, and the training pairs that follow."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.statistics import Interval, wilson
from dpo_workbench.labelling.events import Event, Store, answer_key, item_key
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.training.config import TrainConfig

STRENGTH_WEIGHTS = {1: 0.5, 2: 1.0, 3: 1.5}  # of a vote for slightly, clearly, far better


@dataclass(frozen=True)
class Vote:
    """The current label of a rater on an item, with the pair that was judged."""

    event: Event
    pair: Pair

    @property
    def value(self) -> int | None:
        """1: the pair's chosen answer won; -1: the rejected answer won; 0: a tie; None: both bad, or skipped."""
        if self.event.winner is None:
            return 0 if self.event.choice == "tie" else None
        return 1 if self.event.winner == answer_key(self.pair.chosen) else -1


def plan_labelling(
    pairs: Sequence[Pair], raters: Sequence[str], *, overlap: float = 0.2, seed: int = 0
) -> dict[str, Pairs]:
    """The pairs that each rater judges, in random order. The lists differ by at most one pair.

    Pairs with the same prompt and answers are judged as one.

    Args:
        overlap: share of the pairs that two raters judge, so that agreement can be measured.
    """
    names = list(raters)
    distinct = list({item_key(pair): pair for pair in reversed(list(pairs))}.values())
    if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise WorkbenchError(f"`raters` must be different names. Got {raters!r}.")
    if not 0 <= overlap <= 1 or (overlap and len(names) == 1):
        raise WorkbenchError(
            f"`overlap` must be a share in [0, 1], and 0 for one rater. Got {overlap} for {len(names)} raters."
        )
    if len(distinct) < len(names):
        raise WorkbenchError(f"Each rater needs a pair. Got {len(distinct)} pairs for {len(names)} raters.")
    rng = random.Random(seed)
    rng.shuffle(distinct)
    plan: dict[str, list[Pair]] = {name: [] for name in names}
    for number, pair in enumerate(distinct):
        shortest_first = sorted(names, key=lambda name: (len(plan[name]), rng.random()))
        for name in shortest_first[: 2 if number < round(overlap * len(distinct)) else 1]:
            plan[name].append(pair)
    return {name: Pairs(rng.sample(own, len(own))) for name, own in plan.items()}


def read_labels(store: str | Path | Sequence[str | Path], pairs: Sequence[Pair]) -> Labels:
    """Read one or several label files and match the labels with the pairs that were judged.

    Args:
        store: the file, or several. Labels that are in more than one file count once.
    """
    files = [Path(file) for file in ([store] if isinstance(store, (str, Path)) else store)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise WorkbenchError(
            f"A label file must exist. Got {', '.join(missing) or 'none'}. `dw.label(...)` creates it with the first "
            "label."
        )
    events = Store(*files)
    by_key = {item_key(pair): pair for pair in reversed(list(pairs))}
    votes = [Vote(event, by_key[event.item]) for event in events.labels.values() if event.item in by_key]
    if not votes:
        raise WorkbenchError(
            f"Labels must belong to the pairs. All {len(events.labels)} labels in {files[0]} are of other pairs. "
            "Pass the pairs that were judged."
        )
    return Labels(votes, len(events.labels) - len(votes), events.damaged)


@dataclass(repr=False, eq=False)
class Labels:
    """The votes of a study."""

    votes: list[Vote]  # the current label of each rater on each item, skips included
    unmatched: int = 0  # labels of other pairs
    damaged: int = 0  # lines that could not be read

    @cached_property
    def by_item(self) -> dict[str, list[Vote]]:
        """The votes on each item, without skips."""
        found: dict[str, list[Vote]] = defaultdict(list)
        for vote in self.votes:
            if vote.event.choice != "skip":
                found[vote.event.item].append(vote)
        return dict(found)

    @property
    def raters(self) -> list[str]:
        """Names, sorted."""
        return sorted({vote.event.rater for vote in self.votes})

    def table(self) -> dict[str, dict[str, float]]:
        """Rater -> {item: 1, -1, or 0 for a tie}. An item judged "both bad" is left out.

        1 means the answer with the smaller content hash. If it meant the pair's chosen answer, raters who always
        prefer that one would use a single value, and kappa could not tell their agreement from chance.
        """
        found: dict[str, dict[str, float]] = {rater: {} for rater in self.raters}
        for vote in self.votes:
            if vote.value is not None:
                found[vote.event.rater][vote.event.item] = float(content_sign(vote.pair) * vote.value)
        return found

    def winners(self) -> dict[str, int]:
        """The items that become pairs: 1 if most raters prefer the pair's chosen answer, -1 if the rejected one."""
        sums = {item: sum(v.value or 0 for v in votes) for item, votes in self.by_item.items() if not _reason(votes)}
        return {item: 1 if total > 0 else -1 for item, total in sums.items()}

    def left_out(self) -> Counter[str]:
        """How many items become no pair, by reason."""
        return Counter(reason for votes in self.by_item.values() if (reason := _reason(votes)))

    def flip_rate(self) -> Interval:
        """Share of wrong votes, from how often two raters name different winners (see `flip_rate` below)."""
        couples = [two for votes in self.by_item.values() for two in combinations(votes, 2)]
        differ = [a.value != b.value for a, b in couples if a.value and b.value]
        return flip_rate(sum(differ), len(differ))

    def config(self, config: TrainConfig | None = None) -> TrainConfig:
        """`config` with the robust loss, and the measured flip rate as its label smoothing.

        Source: rDPO (Chowdhury et al. 2024, arXiv 2403.00409), whose epsilon is the share of flipped labels.
        """
        rate = self.flip_rate()
        if not rate.n:
            raise WorkbenchError("No two raters judged the same pair, so there is no flip rate. Plan an `overlap`.")
        if rate.estimate > 0.45:
            raise WorkbenchError(
                f"Raters must agree better than by chance. Got a flip rate of {rate}. Discuss the rubric and label "
                "again."
            )
        return replace(config or TrainConfig(), loss="robust", label_smoothing=round(rate.estimate, 4))

    def pairs(self, how: str = "majority") -> Pairs:
        """Pairs whose `chosen` answer is the one that most raters preferred. Ties never become a pair.

        Args:
            how: `majority`: each pair has weight 1. `weighted`: the weight is the mean vote, each vote scaled by its
                strength (0.5 slightly, 1 clearly or not set, 1.5 far better), a tie counting 0.
        """
        if how not in ("majority", "weighted"):
            raise WorkbenchError(f"`how` must be 'majority' or 'weighted'. Got {how!r}.")
        rows = []
        for item, winner in self.winners().items():
            votes, weight = self.by_item[item], 1.0
            if how == "weighted":
                scaled = [(v.value or 0) * STRENGTH_WEIGHTS[v.event.strength or 2] for v in votes]
                weight = winner * sum(scaled) / len(votes)
            if weight > 0:  # not if one strong vote outweighs two slight ones
                rows.append(_relabelled(votes[0].pair, winner, weight))
        if not rows:
            raise WorkbenchError(f"Labels must name winners. Got none. Label more, or discuss disagreements. {self!r}")
        return Pairs(rows)

    def __repr__(self) -> str:
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.left_out().most_common()) or "none"
        lines = [
            f"Labels: {len(self.votes)} by {len(self.raters)} raters on {len(self.by_item)} pairs",
            f"  become pairs: {len(self.winners())}; left out: {reasons}",
        ]
        if self.unmatched or self.damaged:
            lines.append(f"  labels of other pairs: {self.unmatched}; damaged lines: {self.damaged}")
        return "\n".join(lines)


def share(hits: int, n: int) -> Interval:
    """A share with Wilson's interval (1927); NaN without observations."""
    return wilson(hits, n) if n else Interval(math.nan, math.nan, math.nan, "", 0, 0)


def flip_rate(disagree: int, n: int) -> Interval:
    """The share e of wrong votes, if two independent and equally careful raters name different winners this often.

    They differ when exactly one of them is wrong: d = 2 e (1 - e), so e = (1 - sqrt(1 - 2 d)) / 2. The interval is
    Wilson's for d, converted in the same way. It is 0.5 where d is one half or more.
    """

    def rate(d: float) -> float:
        return (1 - math.sqrt(max(0.0, 1 - 2 * d))) / 2

    d = share(disagree, n)
    return replace(d, estimate=rate(d.estimate), low=rate(d.low), high=rate(d.high)) if n else d


def content_sign(pair: Pair) -> int:
    """1 if the chosen answer has the smaller content hash, else -1."""
    return 1 if answer_key(pair.chosen) < answer_key(pair.rejected) else -1


def _reason(votes: Sequence[Vote]) -> str:
    """Why the votes on one item make no pair; empty if they do."""
    count = Counter(vote.value for vote in votes)
    if count[None] * 2 >= len(votes):
        return "both bad"
    if count[0] > count[1] + count[-1]:
        return "tie"
    return "even votes" if count[1] == count[-1] else ""


def _relabelled(pair: Pair, winner: int, weight: float) -> Pair:
    """The pair as people judged it. `winner` is -1 if they preferred the rejected answer."""
    if winner > 0:
        return replace(pair, weight=weight)
    swapped = replace(pair, chosen=pair.rejected, rejected=pair.chosen, failure=None, rejected_finished=True)
    swapped = replace(swapped, chosen_from=pair.rejected_from, rejected_from=pair.chosen_from, weight=weight)
    return replace(swapped, chosen_score=pair.rejected_score, rejected_score=pair.chosen_score)

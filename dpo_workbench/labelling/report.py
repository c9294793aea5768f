"""`agreement`: one page about a labelling study: how far raters agree, their biases, and what to do next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from dpo_workbench.common.html import visible
from dpo_workbench.evaluation.statistics import Interval
from dpo_workbench.labelling.labels import Labels, share
from dpo_workbench.pairs.pair import Pair

HIGH_FLIP_RATE = 0.2  # above this (a kappa below 0.36), discuss the rubric before training on the labels
BIAS_P = 0.01  # p value below which a preference for one side, or for length, is reported


def cohen_kappa(one: Mapping[Any, float], other: Mapping[Any, float]) -> Interval:
    """Cohen's kappa (1960) of two raters on the items that both judged, with its large-sample interval."""
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    both = [(one[item], other[item]) for item in one if item in other]
    if len({value for values in both for value in values}) < 2:  # agreement cannot be told from chance
        return replace(share(0, 0), n=len(both))
    with np.errstate(all="ignore"):  # for full agreement it divides by zero, and rounding makes the variance negative
        found = cohens_kappa(to_table(np.array(both))[0])
    kappa, half_width = float(found.kappa), 1.96 * math.sqrt(max(0.0, found.var_kappa))
    low, high = max(-1.0, kappa - half_width), min(1.0, kappa + half_width)
    return Interval(kappa, low, high, "large sample", len(both), len(both))


class Lean(NamedTuple):
    """How often one of two things was preferred, and the p value of an exact binomial test against one half."""

    share: Interval
    p: float

    @property
    def clear(self) -> bool:
        """The preference is reported."""
        return self.p < BIAS_P


def lean(hits: Sequence[bool]) -> Lean:
    """From one entry for each vote."""
    return Lean(share(sum(hits), len(hits)), float(binomtest(sum(hits), len(hits)).pvalue) if hits else 1.0)


def lean_to_longer(votes: Iterable[tuple[Pair, float]]) -> Lean:
    """How often the longer answer won, in characters. A vote is above 0 for the pair's chosen answer, 0 for a tie."""
    lengths = [(len(pair.chosen) - len(pair.rejected)) * vote for pair, vote in votes]
    return lean([length > 0 for length in lengths if length])


class Rater:
    """What one person did."""

    def __init__(self, labels: Labels, name: str):
        own = [vote for vote in labels.votes if vote.event.rater == name]
        self.name, self.choices = name, Counter(vote.event.choice or "" for vote in own)
        self.side_a = lean([vote.event.choice == "a" for vote in own if vote.value])
        self.longer = lean_to_longer((vote.pair, vote.value or 0) for vote in own)

    def __str__(self) -> str:
        choices = ", ".join(f"{choice} {n}" for choice, n in self.choices.most_common())
        return (
            f"  {self.name}: {self.choices.total()} labels ({choices})\n"
            f"    for side A: {self.side_a.share}, p = {self.side_a.p:.3f}\n"
            f"    for the longer answer: {self.longer.share}, p = {self.longer.p:.3f}"
        )

    def advice(self) -> Iterator[str]:
        """What to discuss with this person."""
        if self.side_a.clear:
            side = "A" if self.side_a.share.estimate > 0.5 else "B"
            yield f"{self.name} prefers side {side}, whichever answer is there ({self.side_a.share} of votes for A)."
        if self.longer.clear:
            which = "longer" if self.longer.share.estimate > 0.5 else "shorter"
            yield f"{self.name} mostly prefers the {which} answer. That may be right; check ten of these votes."


class Agreement:
    """How far raters agree, their biases, and what to do next. The most important advice comes first."""

    def __init__(self, labels: Labels):
        table, by_item = labels.table(), labels.by_item
        kappas = {f"{one} / {other}": cohen_kappa(table[one], table[other]) for one, other in combinations(table, 2)}
        self.n_labels, self.n_items, self.left_out = sum(map(len, by_item.values())), len(by_item), labels.left_out()
        self.kappa = {two: kappa for two, kappa in kappas.items() if kappa.n}  # "one / other" -> Cohen's kappa
        self.flip_rate = labels.flip_rate()
        self.raters = [Rater(labels, name) for name in labels.raters]
        self.verifier = _verifier_agrees(labels)
        # ids of pairs on which raters name different winners
        self.discuss = [votes[0].pair.id for votes in by_item.values() if {1, -1} <= {vote.value for vote in votes}]
        no_problems = "No problems found. Train on the majority, and use the flip rate for the robust loss."
        self.advice = list(self._advice()) or [no_problems]

    def __repr__(self) -> str:
        lines = [
            f"Agreement: {self.n_labels} labels on {self.n_items} pairs",
            *(f"  Cohen's kappa, {two}: {value}" for two, value in self.kappa.items()),
            f"  flip rate of a vote: {self.flip_rate}",
            f"  verifier and majority name the same winner: {self.verifier}",
            *map(str, self.raters),
            "\nWhat to do:",
            *(f"  - {line}" for line in self.advice),
        ]
        return visible("\n".join(lines))

    def _advice(self) -> Iterator[str]:
        rate = self.flip_rate
        if rate.n == 0:
            yield "No two raters judged the same pair, so the quality of the labels is unknown. Plan an overlap."
        elif rate.estimate > HIGH_FLIP_RATE:
            yield f"Agreement is low (flip rate {rate}). Discuss disputed pairs, improve the rubric, label again."
        elif rate.high > HIGH_FLIP_RATE:
            yield f"Agreement may be low: the flip rate is up to {rate.high:.2f}. Have more pairs judged twice."
        if self.discuss:
            more = f" and {len(self.discuss) - 10} more" if len(self.discuss) > 10 else ""
            yield f"Discuss the pairs with different winners: {', '.join(self.discuss[:10])}{more}."
        for rater in self.raters:
            yield from rater.advice()
        if self.verifier.high < 0.7:
            yield (
                f"The verifier and the raters often name different winners (the same on {self.verifier}). Find out "
                "which of them is wrong before you collect more labels."
            )
        for reason, limit, action in (("both bad", 0.3, "Sample from a better model"), ("tie", 0.4, "Use other pairs")):
            if self.left_out[reason] > limit * self.n_items:
                yield f"{self.left_out[reason]} of {self.n_items} pairs are judged {reason!r}. {action}."


def agreement(labels: Labels) -> Agreement:
    """Measure a labelling study. The verifier's opinion is read from the scores of the pairs, where they have any."""
    return Agreement(labels)


def _verifier_agrees(labels: Labels) -> Interval:
    """How often the verifier's scores and the raters' majority name the same winner, where both name one."""
    same = []
    for item, winner in labels.winners().items():
        pair = labels.by_item[item][0].pair
        chosen, rejected = pair.chosen_score, pair.rejected_score
        if chosen is not None and rejected is not None and chosen != rejected:
            same.append((chosen > rejected) == (winner > 0))
    return share(sum(same), len(same))

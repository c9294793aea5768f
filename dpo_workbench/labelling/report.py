"""`agreement`: one page about a labelling study: how far raters agree, their biases, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import binomtest

from dpo_workbench.common.html import visible
from dpo_workbench.labelling.agreement import Estimate, alpha, cohen_kappa, share
from dpo_workbench.labelling.labels import Labels, orientation

LOW_ALPHA = 0.4  # below this, discuss the rubric before training on the labels
BIAS_P = 0.01  # p value below which a preference for one side, or for length, is reported


@dataclass(frozen=True)
class Rater:
    """What one person did. `side_a` and `longer` are shares of the votes that name a winner."""

    name: str
    choices: Counter[str]
    side_a: Estimate  # share of votes for side A
    side_a_p: float  # exact binomial test against one half
    longer: Estimate  # share of votes for the longer answer
    longer_p: float
    repeats: Estimate  # share of items with the same vote at the second showing
    gold: Estimate  # share of gold items judged correctly

    def __str__(self) -> str:
        choices = ", ".join(f"{choice} {n}" for choice, n in self.choices.most_common())
        return (
            f"  {self.name}: {self.choices.total()} labels ({choices})\n"
            f"    for side A: {self.side_a}, p = {self.side_a_p:.3f}\n"
            f"    for the longer answer: {self.longer}, p = {self.longer_p:.3f}\n"
            f"    same vote when asked again: {self.repeats}; gold items correct: {self.gold}"
        )

    def advice(self) -> Iterator[str]:
        """What to discuss with this person."""
        name = self.name
        if self.side_a_p < BIAS_P:
            side = "A" if self.side_a.value > 0.5 else "B"
            yield f"{name} prefers side {side}, whichever answer is shown there ({self.side_a} of votes for A)."
        if self.longer_p < BIAS_P:
            which = "longer" if self.longer.value > 0.5 else "shorter"
            yield f"{name} mostly prefers the {which} answer. That may be right; check ten of these votes."
        if self.gold.high < 0.9:
            yield f"{name} misjudges gold items ({self.gold} correct). Discuss them before you use the labels."
        if self.repeats.high < 0.8:
            yield f"{name} often votes differently when asked again ({self.repeats} the same)."


@dataclass(frozen=True)
class Agreement:
    """The report. The most important advice comes first."""

    labels: int
    items: int
    alpha: Estimate  # a tie lies between A and B
    kappa: dict[str, Estimate]  # "one / other" -> Cohen's kappa
    flip_rate: Estimate
    raters: tuple[Rater, ...]
    verifier: Estimate  # share of pairs where the verifier's scores and the raters' majority name the same winner
    verifier_kappa: Estimate
    discuss: tuple[str, ...]  # ids of pairs on which raters name different winners
    advice: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [
            f"Agreement: {self.labels} labels on {self.items} pairs",
            f"  Krippendorff's alpha: {self.alpha}",
            *(f"  Cohen's kappa, {two}: {value}" for two, value in self.kappa.items()),
            f"  flip rate of a vote: {self.flip_rate}",
        ]
        if self.verifier.n:
            lines.append(f"  verifier and majority name the same winner: {self.verifier}, kappa {self.verifier_kappa}")
        lines += [*map(str, self.raters), "", "What to do:", *(f"  - {line}" for line in self.advice)]
        return visible("\n".join(lines))


def agreement(labels: Labels, *, resamples: int = 1000) -> Agreement:
    """Measure a labelling study. The verifier's opinion is read from the scores of the pairs, where they have any.

    Args:
        labels: from `read_labels`.
        resamples: of the bootstrap interval of alpha.
    """
    table = labels.table()
    kappas = {f"{one} / {other}": cohen_kappa(table[one], table[other]) for one, other in combinations(table, 2)}
    verifier, verifier_kappa = _against_verifier(labels)
    page = Agreement(
        labels=len(labels.first),
        items=len(labels.by_item),
        alpha=alpha(table, resamples=resamples),
        kappa={two: kappa for two, kappa in kappas.items() if kappa.n},
        flip_rate=labels.flip_rate(),
        raters=tuple(_rater(labels, name) for name in labels.raters),
        verifier=verifier,
        verifier_kappa=verifier_kappa,
        discuss=tuple(v[0].pair.id for v in labels.by_item.values() if {1, -1} <= {vote.value for vote in v}),
    )
    no_problems = "No problems found. Train on the majority, and use the flip rate for the robust loss."
    return replace(page, advice=tuple(_advice(page, labels.left_out())) or (no_problems,))


def _rater(labels: Labels, name: str) -> Rater:
    own = [vote for vote in labels.first if vote.event.rater == name]
    for_a = [vote.event.choice == "a" for vote in own if vote.value]
    lengths = [(len(v.pair.chosen) - len(v.pair.rejected)) * v.value for v in own if v.value]
    for_longer = [length > 0 for length in lengths if length]
    repeats = [a.value == b.value for a, b in labels.repeats() if a.event.rater == name]
    winners = labels.plan.gold if labels.plan else {}
    gold = [vote.event.winner == winners[vote.item] for vote in own if vote.item in winners]
    return Rater(
        name=name,
        choices=Counter(vote.event.choice or "" for vote in labels.votes if vote.event.rater == name),
        side_a=share(sum(for_a), len(for_a)),
        side_a_p=_coin_p(for_a),
        longer=share(sum(for_longer), len(for_longer)),
        longer_p=_coin_p(for_longer),
        repeats=share(sum(repeats), len(repeats)),
        gold=share(sum(gold), len(gold)),
    )


def _coin_p(votes: list[bool]) -> float:
    return float(binomtest(sum(votes), len(votes)).pvalue) if votes else 1.0


def _against_verifier(labels: Labels) -> tuple[Estimate, Estimate]:
    """Share of the same winner, and kappa, on the items where the verifier and the raters' majority name a winner."""
    people: dict[Hashable, float] = {}
    verifier: dict[Hashable, float] = {}
    for item, winner in labels.winners().items():
        pair = labels.by_item[item][0].pair
        if None not in (pair.chosen_score, pair.rejected_score) and pair.chosen_score != pair.rejected_score:
            people[item] = float(winner * orientation(pair))  # as in `Labels.table`
            verifier[item] = float(np.sign(pair.chosen_score - pair.rejected_score) * orientation(pair))
    return share(sum(people[item] == verifier[item] for item in people), len(people)), cohen_kappa(people, verifier)


def _advice(page: Agreement, left_out: Counter[str]) -> Iterator[str]:
    if page.alpha.n == 0:
        yield "No pair was judged by two raters, so the quality of the labels is unknown. Plan an overlap."
    elif not page.alpha.value >= LOW_ALPHA:
        yield f"Agreement is low (alpha {page.alpha}). Discuss disputed pairs, improve the rubric, label again."
    elif page.alpha.low < LOW_ALPHA:
        yield f"Agreement may be low: the interval reaches {page.alpha.low:.2f}. Have more pairs judged twice."
    if page.discuss:
        more = f" and {len(page.discuss) - 10} more" if len(page.discuss) > 10 else ""
        yield f"Discuss the pairs with different winners: {', '.join(page.discuss[:10])}{more}."
    for rater in page.raters:
        yield from rater.advice()
    if page.verifier.high < 0.7:
        yield (
            f"The verifier and the raters often name different winners (the same on {page.verifier}). Find out which "
            "of them is wrong before you collect more labels."
        )
    for reason, limit, action in (("both bad", 0.3, "Sample from a better model"), ("tie", 0.4, "Choose other pairs")):
        if left_out[reason] > limit * page.items:
            yield f"{left_out[reason]} of {page.items} pairs are judged {reason!r}. {action}."

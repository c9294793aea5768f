"""`agreement`: one page about a labelling study: how far raters agree, their biases, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from scipy.stats import binomtest

from dpo_workbench.common.html import visible
from dpo_workbench.labelling.agreement import Estimate, alpha, cohen_kappa, share
from dpo_workbench.labelling.labels import Labels

LOW_ALPHA = 0.4  # below this, discuss the rubric before training on the labels
BIAS_P = 0.01  # p value below which a preference for one side, or for length, is reported


def agreement(labels: Labels, *, resamples: int = 1000) -> Agreement:
    """Measure a labelling study. The verifier's opinion is read from the scores of the pairs, where they have any.

    Args:
        labels: from `read_labels`.
        resamples: of the bootstrap interval of alpha.
    """
    return Agreement(labels, resamples)


class Rater:
    """What one person did."""

    def __init__(self, labels: Labels, name: str):
        own = [vote for vote in labels.first if vote.event.rater == name]
        for_a = [vote.event.choice == "a" for vote in own if vote.value]
        lengths = [(len(v.pair.chosen) - len(v.pair.rejected)) * v.value for v in own if v.value]
        for_longer = [length > 0 for length in lengths if length]
        winners = labels.plan.gold if labels.plan else {}
        self.name = name
        self.choices = Counter(vote.event.choice or "" for vote in labels.votes if vote.event.rater == name)
        # shares of the votes that name a winner, and p values of exact binomial tests against one half
        self.side_a, self.side_a_p = _share(for_a), _coin_p(for_a)
        self.longer, self.longer_p = _share(for_longer), _coin_p(for_longer)
        # shares of items with the same vote at the second showing, and of gold items that were judged correctly
        self.repeats = _share([a.value == b.value for a, b in labels.repeats() if a.event.rater == name])
        self.gold = _share([vote.event.winner == winners[vote.item] for vote in own if vote.item in winners])

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


class Agreement:
    """The report. The most important advice comes first."""

    def __init__(self, labels: Labels, resamples: int):
        table, by_item = labels.table(), labels.by_item
        kappas = {f"{one} / {other}": cohen_kappa(table[one], table[other]) for one, other in combinations(table, 2)}
        self.n_labels, self.n_items, self.left_out = len(labels.first), len(by_item), labels.left_out()
        self.alpha = alpha(table, resamples=resamples)  # a tie lies between A and B
        self.kappa = {two: kappa for two, kappa in kappas.items() if kappa.n}  # "one / other" -> Cohen's kappa
        self.flip_rate = labels.flip_rate()
        self.raters = [Rater(labels, name) for name in labels.raters]
        self.verifier = _share(_verifier_agrees(labels))
        # ids of pairs on which raters name different winners
        self.discuss = [votes[0].pair.id for votes in by_item.values() if {1, -1} <= {vote.value for vote in votes}]
        no_problems = "No problems found. Train on the majority, and use the flip rate for the robust loss."
        self.advice = list(self._advice()) or [no_problems]

    def __repr__(self) -> str:
        lines = [
            f"Agreement: {self.n_labels} labels on {self.n_items} pairs",
            f"  Krippendorff's alpha: {self.alpha}",
            *(f"  Cohen's kappa, {two}: {value}" for two, value in self.kappa.items()),
            f"  flip rate of a vote: {self.flip_rate}",
        ]
        if self.verifier.n:
            lines.append(f"  verifier and majority name the same winner: {self.verifier}")
        lines += [*map(str, self.raters), "", "What to do:", *(f"  - {line}" for line in self.advice)]
        return visible("\n".join(lines))

    def _advice(self) -> Iterator[str]:
        if self.alpha.n == 0:
            yield "No pair was judged by two raters, so the quality of the labels is unknown. Plan an overlap."
        elif not self.alpha.value >= LOW_ALPHA:
            yield f"Agreement is low (alpha {self.alpha}). Discuss disputed pairs, improve the rubric, label again."
        elif self.alpha.low < LOW_ALPHA:
            yield f"Agreement may be low: the interval reaches {self.alpha.low:.2f}. Have more pairs judged twice."
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


def _share(hits: list[bool]) -> Estimate:
    return share(sum(hits), len(hits))


def _coin_p(hits: list[bool]) -> float:
    return float(binomtest(sum(hits), len(hits)).pvalue) if hits else 1.0


def _verifier_agrees(labels: Labels) -> list[bool]:
    """For each pair on which the verifier's scores and the raters' majority name a winner: whether it is the same."""
    same = []
    for item, winner in labels.winners().items():
        pair = labels.by_item[item][0].pair
        if (
            pair.chosen_score is not None
            and pair.rejected_score is not None
            and pair.chosen_score != pair.rejected_score
        ):
            same.append((pair.chosen_score > pair.rejected_score) == (winner > 0))
    return same

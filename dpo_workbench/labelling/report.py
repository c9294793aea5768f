"""`agreement`: one page about a labelling study: how far raters agree, their biases, and what to do next."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import visible
from dpo_workbench.labelling.agreement import Estimate, alpha, cohen_kappa, share
from dpo_workbench.labelling.labels import Labels, orientation

LOW_ALPHA = 0.4  # below this, discuss the rubric before training on the labels
BIAS_P = 0.01  # p value below which a preference for one side, or for length, is reported
HASTY_SECONDS = 2.0  # votes faster than this were hardly read


@dataclass(frozen=True)
class Rater:
    """What one person did. `side_a` and `longer` are shares of the votes that name a winner."""

    name: str
    choices: Counter[str]
    side_a: Estimate  # share of votes for side A
    side_a_p: float  # exact binomial test against one half
    longer: Estimate  # share of votes for the longer answer
    longer_p: float
    seconds: float | None  # median time of a vote
    hasty: int  # votes faster than HASTY_SECONDS
    repeats: Estimate  # share of items with the same vote at the second showing
    gold: Estimate  # share of gold items judged correctly

    def __str__(self) -> str:
        choices = ", ".join(f"{choice} {n}" for choice, n in self.choices.most_common())
        seconds = "no times" if self.seconds is None else f"{self.seconds:.1f} s for a vote"
        return (
            f"  {self.name}: {self.choices.total()} labels ({choices}); {seconds}\n"
            f"    for side A: {self.side_a}, p = {self.side_a_p:.3f}\n"
            f"    for the longer answer: {self.longer}, p = {self.longer_p:.3f}\n"
            f"    same vote when asked again: {self.repeats}; gold items correct: {self.gold}"
        )


@dataclass(frozen=True)
class Agreement:
    """The report. The most important advice comes first."""

    labels: int
    items: int
    alpha: dict[str, Estimate]  # nominal: A, B or tie; ordinal: a tie lies between A and B
    kappa: dict[str, Estimate]  # "one / other" -> Cohen's kappa
    flip_rate: Estimate
    raters: tuple[Rater, ...]
    against: dict[str, dict[str, Estimate]]  # verifier, judge -> `share` with the raters' winner, and `kappa`
    discuss: tuple[str, ...]  # ids of pairs on which raters name different winners
    advice: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [f"Agreement: {self.labels} labels on {self.items} pairs"]
        lines += [f"  Krippendorff's alpha, {level}: {value}" for level, value in self.alpha.items()]
        lines += [f"  Cohen's kappa, {two}: {value}" for two, value in self.kappa.items()]
        lines.append(f"  flip rate of a vote: {self.flip_rate}")
        for name, values in self.against.items():
            lines.append(f"  {name} and the raters' majority: same winner {values['share']}, kappa {values['kappa']}")
        lines += map(str, self.raters)
        lines += ["", "What to do:", *(f"  - {line}" for line in self.advice)]
        return visible("\n".join(lines))


def agreement(
    labels: Labels, *, judge: Mapping[str, str] | None = None, resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Measure a labelling study. The verifier's opinion is read from the scores of the pairs, where they have any.

    Args:
        labels: from `read_labels`.
        judge: another opinion by pair id, for example a judge model's: `chosen`, `rejected` or `tie`.
        resamples, seed: of the bootstrap intervals of alpha.

    Raises:
        WorkbenchError: the judge's word for a pair is none of the three.
    """
    table = labels.table()
    kappas = {(one, other): cohen_kappa(table[one], table[other]) for one, other in combinations(table, 2)}
    against = {name: _against(labels, opinion) for name, opinion in _opinions(labels, judge or {}).items()}
    page = Agreement(
        labels=len(labels.first),
        items=len(labels.by_item),
        alpha={level: alpha(table, level, resamples=resamples, seed=seed) for level in ("nominal", "ordinal")},
        kappa={f"{one} / {other}": kappa for (one, other), kappa in kappas.items() if kappa.n},
        flip_rate=labels.flip_rate(),
        raters=tuple(_rater(labels, name) for name in labels.raters),
        against={name: values for name, values in against.items() if values["share"].n},
        discuss=tuple(v[0].pair.id for v in labels.by_item.values() if {1, -1} <= {vote.value for vote in v}),
    )
    return replace(page, advice=tuple(_advice(page, labels)))


def _rater(labels: Labels, name: str) -> Rater:
    own = [vote for vote in labels.first if vote.event.rater == name]
    decided = [vote for vote in own if vote.value]
    n_a = sum(vote.event.choice == "a" for vote in decided)
    lengths = [(len(v.pair.chosen) - len(v.pair.rejected)) * (v.value or 0) for v in decided]
    n_longer, n_unequal = sum(d > 0 for d in lengths), sum(d != 0 for d in lengths)
    seconds = [vote.event.seconds for vote in own if vote.event.seconds]
    repeats = [a.value == b.value for a, b in labels.repeats() if a.event.rater == name]
    winners = labels.plan.gold if labels.plan else {}
    gold = [vote.event.winner == winners[vote.item] for vote in own if vote.item in winners]
    return Rater(
        name=name,
        choices=Counter(vote.event.choice or "" for vote in labels.votes if vote.event.rater == name),
        side_a=share(n_a, len(decided)),
        side_a_p=_coin_p(n_a, len(decided)),
        longer=share(n_longer, n_unequal),
        longer_p=_coin_p(n_longer, n_unequal),
        seconds=statistics.median(seconds) if seconds else None,
        hasty=sum(s < HASTY_SECONDS for s in seconds),
        repeats=share(sum(repeats), len(repeats)),
        gold=share(sum(gold), len(gold)),
    )


def _coin_p(hits: int, n: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(hits, n).pvalue) if n else 1.0


def _opinions(labels: Labels, judge: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Of the verifier and the judge, by item: 1 for the chosen answer, -1 for the rejected one, 0 for a tie."""
    words = {"chosen": 1.0, "rejected": -1.0, "tie": 0.0}
    if unknown := [pair_id for pair_id, word in judge.items() if word not in words]:
        raise WorkbenchError(
            f"`judge` must say 'chosen', 'rejected' or 'tie'. Got {judge[unknown[0]]!r} for {unknown[0]!r}."
        )
    verifier, judged = {}, {}
    for item, votes in labels.by_item.items():
        pair = votes[0].pair
        if pair.chosen_score is not None and pair.rejected_score is not None:
            verifier[item] = float(np.sign(pair.chosen_score - pair.rejected_score))
        if pair.id in judge:
            judged[item] = words[judge[pair.id]]
    return {"verifier": verifier, "judge": judged}


def _against(labels: Labels, opinion: Mapping[str, float]) -> dict[str, Estimate]:
    """Agreement of another opinion with the raters' majority, on the items where both name a winner."""
    majority = labels.majority()
    both = [item for item in majority if majority[item] and opinion.get(item)]
    same = sum(majority[item] == opinion[item] for item in both)
    sign = {item: orientation(labels.by_item[item][0].pair) for item in both}  # as in `Labels.table`
    kappa = cohen_kappa({i: sign[i] * majority[i] for i in both}, {i: sign[i] * opinion[i] for i in both})
    return {"share": share(same, len(both)), "kappa": kappa}


def _advice(page: Agreement, labels: Labels) -> list[str]:
    lines = []
    overall = page.alpha["ordinal"]
    if overall.n == 0:
        lines.append("No pair was judged by two raters, so the quality of the labels is unknown. Plan an overlap.")
    elif not overall.value >= LOW_ALPHA:
        lines.append(f"Agreement is low (alpha {overall}). Discuss disputed pairs, improve the rubric, label again.")
    elif overall.low < LOW_ALPHA:
        lines.append(f"Agreement may be low: the interval reaches {overall.low:.2f}. Have more pairs judged twice.")
    if page.discuss:
        more = f" and {len(page.discuss) - 10} more" if len(page.discuss) > 10 else ""
        lines.append(f"Discuss the pairs with different winners: {', '.join(page.discuss[:10])}{more}.")
    for rater in page.raters:
        lines += _advice_on(rater)
    for name, values in page.against.items():
        if values["share"].high < 0.7:
            lines.append(
                f"The {name} and the raters often name different winners (the same on {values['share']}). Find out "
                "which of them is wrong before you collect more labels."
            )
    for reason, limit, action in (("both bad", 0.3, "Sample from a better model"), ("tie", 0.4, "Choose other pairs")):
        n = labels.left_out()[reason]
        if n > limit * page.items:
            lines.append(f"{n} of {page.items} pairs are judged {reason!r}. {action}.")
    return lines or ["No problems found. Train on the majority, and use the flip rate for the robust loss."]


def _advice_on(rater: Rater) -> list[str]:
    name, lines = rater.name, []
    if rater.side_a_p < BIAS_P:
        side = "A" if rater.side_a.value > 0.5 else "B"
        lines.append(f"{name} prefers side {side}, whichever answer is shown there ({rater.side_a} of votes for A).")
    if rater.longer_p < BIAS_P:
        which = "longer" if rater.longer.value > 0.5 else "shorter"
        lines.append(f"{name} mostly prefers the {which} answer. That may be right; check ten of these votes.")
    if rater.gold.n and rater.gold.high < 0.9:
        lines.append(f"{name} misjudges gold items ({rater.gold} correct). Discuss them before you use the labels.")
    if rater.repeats.n and rater.repeats.high < 0.8:
        lines.append(f"{name} often votes differently when asked again ({rater.repeats} the same).")
    if rater.hasty > max(1, 0.05 * rater.choices.total()):
        lines.append(f"{name} cast {rater.hasty} votes in under {HASTY_SECONDS:.0f} s. Check that they were read.")
    return lines

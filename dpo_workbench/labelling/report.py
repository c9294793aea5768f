"""`agreement`: one page on a labelling study. How far raters agree, with whom, what biases them, and what to do."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.labelling import agreement as stats
from dpo_workbench.labelling.agreement import Estimate
from dpo_workbench.labelling.labels import Labels, Vote, orientation

UNCLEAR = 0.4  # an alpha below this is too low to train on without a talk
BIASED = 0.01  # p value below which a lean to one side, or to length, is named


@dataclass(frozen=True)
class Rater:
    """What one person did. Shares are of the votes that name a winner."""

    name: str
    labels: int
    choices: dict[str, int]
    side_a: Estimate  # of the votes went to side A
    side_a_p: float  # exact binomial test against one half
    longer: Estimate  # of the votes went to the longer answer
    longer_p: float
    seconds: float | None  # median
    quick: int  # votes faster than is usual for the study, or slower
    slow: int
    repeats: Estimate  # same winner when shown again with sides swapped
    gold: Estimate  # right on gold items


@dataclass(frozen=True)
class Agreement:
    """The report. `advice` is in the order in which it matters."""

    labels: int
    items: int
    alpha: dict[str, Estimate]  # nominal: which answer, or tie; ordinal: with ties between
    fleiss: Estimate
    kappa: dict[str, Estimate]  # "one / other" -> Cohen's
    flip_rate: Estimate
    criteria: dict[str, Estimate]  # alpha by criterion of the rubric, ordinal
    raters: tuple[Rater, ...]
    against: dict[str, dict[str, Estimate]]  # verifier, judge -> share that agrees, and kappa
    systems: dict[str, float]  # Bradley-Terry strengths
    discuss: tuple[str, ...]  # pair ids, the most disputed first
    advice: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __repr__(self) -> str:
        lines = [f"Agreement: {self.labels} labels on {self.items} pairs"]
        lines += [f"  Krippendorff's alpha, {level}: {value}" for level, value in self.alpha.items()]
        lines.append(f"  Fleiss' kappa, where all judged: {self.fleiss}")
        lines += [f"  Cohen's kappa, {two}: {value}" for two, value in self.kappa.items()]
        lines.append(f"  flip rate of a vote: {self.flip_rate}")
        lines += [f"  alpha on {name!r}: {value}" for name, value in self.criteria.items()]
        for name, values in self.against.items():
            lines.append(f"  {name} and the raters' majority: same winner {values['share']}, kappa {values['kappa']}")
        lines += [f"  strength of {name}: {value:+.2f}" for name, value in self.systems.items()]
        for r in self.raters:
            lines.append(f"  {r.name}: {r.labels} labels ({', '.join(f'{k} {n}' for k, n in r.choices.items())})")
            lines.append(
                f"    side A: {r.side_a}, p = {r.side_a_p:.3f}; longer answer: {r.longer}, p = {r.longer_p:.3f}"
            )
            seconds = "no times" if r.seconds is None else f"{r.seconds:.1f} s a vote"
            lines.append(f"    {seconds}, {r.quick} unusually quick, {r.slow} unusually slow")
            lines.append(f"    same winner when asked again: {r.repeats}; right on gold: {r.gold}")
        lines += ["", "What to do:", *(f"  - {line}" for line in self.advice)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def agreement(
    labels: Labels,
    *,
    judge: Mapping[str, str] | None = None,
    systems: Mapping[str, tuple[str, str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Measure a study.

    Args:
        labels: of `read_labels`.
        judge: another opinion by pair id, such as an LLM's: `chosen`, `rejected` or `tie`.
        systems: by pair id, which systems wrote the chosen and the rejected answer; gives Bradley-Terry strengths.
        resamples, seed: of the bootstrap intervals.

    The verifier's opinion is read from the pairs' scores, where they have them.

    Raises:
        WorkbenchError: a judge's word that is none of the three.
    """
    table = labels.table()
    named = sorted({name for v in labels.first for name in v.event.criteria})
    alphas = {level: stats.alpha(table, level, resamples=resamples, seed=seed) for level in ("nominal", "ordinal")}
    criteria = {name: stats.alpha(labels.table(name), "ordinal", resamples=resamples, seed=seed) for name in named}
    times = [v.event.seconds for v in labels.first if v.event.seconds]
    low, high = stats.outliers(times) if len(times) >= 10 else (0.0, float("inf"))
    raters = tuple(_rater(labels, name, low, high) for name in labels.raters)
    kappa = {f"{one} / {other}": value for (one, other), value in stats.pairwise_kappa(table).items() if value.n}
    opinions = {"verifier": _verifier(labels)}
    if judge is not None:
        opinions["judge"] = _judge(judge, labels)
    against = {name: found for name, opinion in opinions.items() if (found := _against(labels, opinion))}
    page = Agreement(
        len(labels.first), len(labels.by_item), alphas, stats.fleiss_kappa(table, resamples=resamples, seed=seed),
        kappa, labels.flip_rate(), criteria, raters, against, _systems(labels, systems), _disputed(labels),
    )  # fmt: skip
    return replace(page, advice=tuple(_advice(page, labels)))


def _rater(labels: Labels, name: str, low: float, high: float) -> Rater:
    own = [v for v in labels.votes if v.event.rater == name]
    first = [v for v in labels.first if v.event.rater == name]
    won = [v for v in first if v.value]
    longer = [v for v in won if len(v.pair.chosen) != len(v.pair.rejected)]
    n_longer = sum((v.value == 1) == (len(v.pair.chosen) > len(v.pair.rejected)) for v in longer)
    n_a = sum(v.event.choice == "a" for v in won)
    times = [v.event.seconds for v in first if v.event.seconds]
    repeats = [(a, b) for a, b in labels.repeats() if a.event.rater == name]
    gold = [v for v in first if labels.plan and v.item in labels.plan.gold]
    right = sum(v.event.winner == labels.plan.gold[v.item] for v in gold if labels.plan)
    return Rater(
        name, len(own), dict(Counter(v.event.choice or "" for v in own).most_common()),
        stats.share(n_a, len(won)), stats.coin(n_a, len(won)),
        stats.share(n_longer, len(longer)), stats.coin(n_longer, len(longer)),
        statistics.median(times) if times else None, sum(t < low for t in times), sum(t > high for t in times),
        stats.share(sum(a.value == b.value for a, b in repeats), len(repeats)), stats.share(right, len(gold)),
    )  # fmt: skip


def _verifier(labels: Labels) -> dict[str, float]:
    found = {}
    for item, votes in labels.by_item.items():
        one, other = votes[0].pair.chosen_score, votes[0].pair.rejected_score
        if one is not None and other is not None:
            found[item] = float((one > other) - (one < other))
    return found


def _judge(judge: Mapping[str, str], labels: Labels) -> dict[str, float]:
    values = {"chosen": 1.0, "rejected": -1.0, "tie": 0.0}
    for pair_id, word in judge.items():
        if word not in values:
            raise WorkbenchError(f"`judge` must say 'chosen', 'rejected' or 'tie'. Got {word!r} for {pair_id!r}.")
    return {
        item: values[judge[votes[0].pair.id]] for item, votes in labels.by_item.items() if votes[0].pair.id in judge
    }


def _against(labels: Labels, opinion: Mapping[str, float]) -> dict[str, Estimate] | None:
    """Agreement of another opinion with the majority, where both name a winner."""
    majority = {item: float(v) for item, v in labels.majority().items() if v}
    both = [item for item in majority if opinion.get(item)]
    if not both:
        return None
    same = sum(majority[item] == opinion[item] for item in both)
    turn = {item: orientation(labels.by_item[item][0].pair) for item in both}
    kappa = stats.cohen_kappa({i: turn[i] * majority[i] for i in both}, {i: turn[i] * opinion[i] for i in both})
    return {"share": stats.share(same, len(both)), "kappa": kappa}


def _systems(labels: Labels, systems: Mapping[str, tuple[str, str]] | None) -> dict[str, float]:
    games = [
        (*systems[v.pair.id], (v.value + 1) / 2)
        for v in labels.first
        if systems and v.pair.id in systems and v.value is not None
    ]
    strengths = stats.bradley_terry(games) if games else {}
    return dict(sorted(strengths.items(), key=lambda kv: -kv[1]))


def _disputed(labels: Labels) -> tuple[str, ...]:
    """Pairs on which raters name different winners, the most even first."""

    def split(votes: list[Vote]) -> float:
        values = [v.value for v in votes if v.value]
        return min(values.count(1), values.count(-1)) / max(1, len(values))

    found = [(split(votes), votes[0].pair.id) for votes in labels.by_item.values()]
    return tuple(pair for share, pair in sorted(found, key=lambda x: -x[0]) if share > 0)


def _advice(found: Agreement, labels: Labels) -> list[str]:
    said = []
    overall = found.alpha["ordinal"]
    if overall.n == 0:
        said.append(
            "No pair was judged by two raters, so nobody knows how good the labels are. Plan an overlap of 0.2."
        )
    elif not overall.value >= UNCLEAR:
        said.append(
            f"Agreement is low (alpha {overall}). Talk the disputed pairs through, sharpen the rubric, label again."
        )
    elif overall.low < UNCLEAR:
        said.append(f"Agreement may be low: its interval reaches {overall.low:.2f}. Judge more pairs twice.")
    if found.discuss:
        more = f", and {len(found.discuss) - 10} more" if len(found.discuss) > 10 else ""
        said.append(f"Discuss these pairs, raters name different winners: {', '.join(found.discuss[:10])}{more}.")
    unclear = sorted((a for a in found.criteria.items() if a[1].value < UNCLEAR), key=lambda a: a[1].value)
    if unclear:
        name, value = unclear[0]
        said.append(f"The rubric's line {name!r} is the least clear (alpha {value}). Give it anchors or an example.")
    for r in found.raters:
        if r.side_a_p < BIASED:
            side = "A" if r.side_a.value > 0.5 else "B"
            said.append(f"{r.name} leans to side {side} ({r.side_a} went to A), whichever answer stands there.")
        if r.longer_p < BIASED:
            which = "longer" if r.longer.value > 0.5 else "shorter"
            said.append(
                f"{r.name} mostly prefers the {which} answer ({r.longer} to the longer). It may be right; look at ten."
            )
        if r.gold.n and r.gold.high < 0.9:
            said.append(
                f"{r.name} misses gold items ({r.gold} right). Go through them together before using the labels."
            )
        if r.repeats.n and r.repeats.high < 0.8:
            said.append(f"{r.name} decides otherwise when asked again ({r.repeats} the same).")
        if r.quick > max(1, 0.05 * r.labels):
            said.append(f"{r.name} has {r.quick} votes that are unusually quick. Look whether they were read.")
    for name, values in found.against.items():
        if values["share"].high < 0.7:
            said.append(
                f"The {name} and the raters name the same winner on {values['share']} only. One of them is wrong: find "
                "out which before more labels are bought."
            )
    kinds = labels.left_out()
    if kinds["both bad"] > 0.3 * found.items:
        said.append(
            f"{kinds['both bad']} of {found.items} pairs are bad on both sides. Sample from a better model first."
        )
    if kinds["tie"] > 0.4 * found.items:
        said.append(f"{kinds['tie']} of {found.items} pairs are ties. Choose pairs that differ more.")
    return said or ["Nothing stands out. Train on the majority, and keep the flip rate for the robust loss."]

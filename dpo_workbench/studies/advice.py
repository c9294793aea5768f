"""Advice about a set of pairs from the microscope's numbers, and a trial that tests it on your own pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.statistics import Interval, paired_difference, wilson
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.checks import MANY, length_auc
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.pairs.splits import split_pairs
from dpo_workbench.studies.microscope import Microscope, PairView, microscope
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import train

SIMILAR = 0.25  # below this edit distance DPO lowers much of the chosen answer, too (arXiv 2402.13228)
LENGTH_BIAS = 0.15  # how far the AUC of length may be from 0.5
# DPO's gradient scales with sigmoid(-margin), where margin = beta * (difference of log-ratios in nats). It falls from
# 0.5 at the start to 0.12 at 2 / beta nats. DPO rarely corrects a pair that the reference ranks wrongly by more than
# that (arXiv 2405.19534), and a pair that it ranks correctly by as much has little to teach.
MAX_MARGIN = 2.0
MIN_SHARE = 0.2  # share of the pairs that must be too easy or too hard before we mention it
MAX_LOSS = -1.0  # nats that chosen answers may lose in training, on average


@dataclass(frozen=True)
class Advice:
    """One suggestion: settings to change, or pairs to drop."""

    code: str  # alike, length, noise, hard, easy or sunk
    what: str
    reason: str
    change: dict[str, Any] = field(default_factory=dict)  # settings of TrainConfig
    drop: tuple[str, ...] = ()  # ids of pairs
    aim: str = "ranked"  # what should improve on held-out pairs: `ranked` or `held`, see `Trial`

    def __repr__(self) -> str:
        return f"{self.code}: {self.what} {self.reason}"


def advise_pairs(seen: Microscope, score: Callable[[Pair, str], float] | None = None) -> list[Advice]:
    """What the numbers of a pair set suggest. The list is empty when nothing is unusual.

    Args:
        seen: the pairs under the microscope.
        score: a verifier that maps a pair and one of its answers to a number, higher is better. By default the pairs'
            own scores are used, where they have any.
    """
    views = list(seen)
    found = [_similar(views), _length(seen), _noise(views, score), *_difficulty(views), _less_likely(views)]
    return [advice for advice in found if advice]


def _similar(views: Sequence[PairView]) -> Advice | None:
    median = statistics.median(v.edit_distance for v in views)
    ratios = _chosen_log_ratios(views)
    chosen_held = bool(ratios) and statistics.fmean(ratios) >= 0
    if median >= SIMILAR or chosen_held:
        return None
    return Advice(
        "alike",
        'Use loss="dpop", or a higher nll_weight.',
        f"The answers of a pair are very similar (median edit distance {median:.2f}, n = {len(views)}), so what "
        "makes the rejected one less likely also makes the chosen one less likely.",
        {"loss": "dpop"},
        aim="held",
    )


def _length(seen: Microscope) -> Advice | None:
    auc = length_auc(seen.pairs.rows)
    if len(seen) < MANY or abs(auc - 0.5) <= LENGTH_BIAS:
        return None
    tokens = statistics.fmean(len(ids) for v in seen for ids in v.row.answer_ids)
    beta = seen[0].beta * tokens
    return Advice(
        "length",
        f'Use loss="sigmoid_norm" with beta about {beta:.2g}.',
        f"Length alone separates chosen from rejected answers with an AUC of {auc:.2f} (n = {len(seen)}, 0.5 is "
        f"chance). sigmoid_norm compares means per token; an answer has {tokens:.0f} tokens on average, so beta has to "
        "be larger by that factor.",
        {"loss": "sigmoid_norm", "beta": round(beta, 2)},
    )


def _noise(views: Sequence[PairView], score: Callable[[Pair, str], float] | None) -> Advice | None:
    if score:
        gaps = [score(v.pair, v.pair.chosen) - score(v.pair, v.pair.rejected) for v in views]
    else:
        scored = [(v.pair.chosen_score, v.pair.rejected_score) for v in views]
        gaps = [c - r for c, r in scored if c is not None and r is not None]
    gaps = [gap for gap in gaps if gap]  # a tie says nothing about the label
    wrong = sum(gap < 0 for gap in gaps)
    if not gaps or (share := wilson(wrong, len(gaps))).low <= 0.01:
        return None
    rate = min(round(share.estimate, 3), 0.45)
    return Advice(
        "noise",
        f'Use loss="robust" with label_smoothing={rate}.',
        f"The verifier disagrees with {wrong} of {len(gaps)} labels ({100 * share.low:.0f} to {100 * share.high:.0f} "
        "%). Robust DPO assumes that share of wrong labels (arXiv 2403.00409). Judging these pairs again is better.",
        {"loss": "robust", "label_smoothing": rate},
    )


def _difficulty(views: Sequence[PairView]) -> list[Advice]:
    beta, n = views[0].beta, len(views)
    limit = MAX_MARGIN / beta
    hard = tuple(v.id for v in views if v.reference_margin < -limit)
    easy = tuple(v.id for v in views if v.reference_margin > limit)
    found = []
    if MIN_SHARE * n <= len(hard) < n:
        what = f"Drop {len(hard)} of {n} pairs, or lower beta."
        reason = (
            f"The model prefers their rejected answer by more than {limit:.0f} nats. With beta {beta:g} the gradient "
            "vanishes before training can reverse that."
        )
        found.append(Advice("hard", what, reason, drop=hard))
    if MIN_SHARE * n <= len(easy) < n:
        what = f"Drop {len(easy)} of {n} pairs, or mine harder ones."
        reason = (
            f"The model already prefers their chosen answer by more than {limit:.0f} nats, so it would hardly give the "
            "rejected one."
        )
        found.append(Advice("easy", what, reason, drop=easy))
    return found


def _less_likely(views: Sequence[PairView]) -> Advice | None:
    ratios = _chosen_log_ratios(views)
    if not ratios or (mean := statistics.fmean(ratios)) > MAX_LOSS or len(views) < 4:
        return None
    highest = sorted(views, key=lambda v: -v.reference.ches)[: len(views) // 4]
    return Advice(
        "sunk",
        f"Drop the {len(highest)} pairs with the highest CHES, or raise nll_weight.",
        f"Training made the chosen answers e^{-mean:.1f} times less likely (n = {len(ratios)}). Pairs whose answers "
        "have similar hidden states (high CHES, arXiv 2410.08847) cause this.",
        drop=tuple(v.id for v in highest),
        aim="held",
    )


def _chosen_log_ratios(views: Sequence[PairView]) -> list[float]:
    return [v.chosen_logratio for v in views if v.chosen_logratio is not None]


@dataclass(frozen=True)
class Trial:
    """Two runs, without and with an advice, compared on pairs that neither was trained on."""

    advice: Advice
    ranked: tuple[float, float]  # share of held-out pairs whose log-ratio rose more for the chosen answer
    held: tuple[float, float]  # share whose chosen answer did not become less likely
    chosen_logratio: tuple[float, float]  # mean, in nats
    difference: Interval  # paired, of the share that the advice aims at

    @property
    def outcome(self) -> str:
        """`held`, `did not hold` or `cannot tell`."""
        if self.difference.clear_above_zero:
            return "held"
        return "did not hold" if self.difference.clear_below_zero else "cannot tell"

    def __repr__(self) -> str:
        change = self.difference
        aims = {"ranked": "pairs ranked correctly", "held": "chosen answers that did not become less likely"}
        return (
            f"{self.advice.code}: {self.outcome}. On {change.n} held-out pairs, {aims[self.advice.aim]}: "
            f"{100 * change.estimate:+.1f} points with the advice "
            f"(95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}). "
            f"Ranked correctly: {100 * self.ranked[0]:.0f} % without, {100 * self.ranked[1]:.0f} % with; "
            f"chosen log-ratio {self.chosen_logratio[0]:+.2f} and {self.chosen_logratio[1]:+.2f} nats."
        )


def try_advice(
    model: Model,
    pairs: Pairs,
    advice: Advice,
    config: TrainConfig | None = None,
    *,
    held_out: float = 0.25,
    seed: int = 0,
    show: bool = False,
) -> Trial:
    """Train without and with the advice, and compare both runs on the same held-out pairs.

    Args:
        model: where both runs start.
        pairs: some are held out (whole groups); the runs train on the others, and what the advice drops is dropped
            from those only.
        config: settings of the run without the advice; no probes are made.
        held_out: share of the pairs.
        seed: of the split.

    Raises:
        WorkbenchError: there are too few groups, or the advice drops every training pair.
    """
    config = replace(config or TrainConfig(), probes=0, held_out=0.0)
    parts = split_pairs(pairs, {"train": 1 - held_out, "test": held_out}, seed=seed)
    test = Pairs(parts["test"].rows)
    remaining = [p for p in parts["train"] if p.id not in advice.drop]
    if not remaining:
        raise WorkbenchError(
            "An advice must leave pairs to train on. It dropped all of them. Use more pairs, or a smaller `held_out`."
        )
    changed = replace(config, **advice.change)
    without = _after_training(model, parts["train"], config, test, show)
    with_advice = _after_training(model, Pairs(remaining, pairs.task), changed, test, show)
    ranked, held, ratios = (
        (statistics.fmean(without[key]), statistics.fmean(with_advice[key]))
        for key in ("ranked", "held", "chosen_logratio")
    )
    groups = [p.group or p.prompt for p in test]
    difference = paired_difference(without[advice.aim], with_advice[advice.aim], groups, seed)
    return Trial(advice, ranked, held, ratios, difference)


def _after_training(model: Model, pairs: Pairs, config: TrainConfig, test: Pairs, show: bool) -> dict[str, list[float]]:
    """Train, and measure each held-out pair: ranked correctly (0 or 1), held (0 or 1), chosen log-ratio (nats)."""
    views = list(microscope(model, test, train(model, pairs, config, show=show), show=show))
    ratios = _chosen_log_ratios(views)
    return {
        "ranked": [float((v.reward_margin or 0.0) > 0) for v in views],
        "held": [float(ratio >= 0) for ratio in ratios],
        "chosen_logratio": ratios,
    }

"""What the microscope's numbers suggest, each with its reason, and a trial on the user's own pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.statistics import Interval, mcnemar_exact, paired_difference, wilson
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.checks import MANY, length_auc
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.pairs.splits import split_pairs
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import train

if TYPE_CHECKING:
    from dpo_workbench.studies.microscope import Microscope, PairView

ALIKE = 0.25  # below this edit distance DPO pushes much of the chosen answer down, too (arXiv 2402.13228)
ONE_LENGTH = 0.15  # how far the AUC of length may lie from 0.5
# DPO's gradient is sigmoid(-beta x margin): 12 % of its first size at 2 / beta nats. A pair that the reference ranks
# wrong by more than that will not be turned (arXiv 2405.19534); one that it ranks right by as much has little to teach.
SPENT = 2.0
SHARE = 0.2  # of the pairs that must be too easy or too hard before it is worth a word
SUNK = -1.0  # nats that a chosen answer may lose in training


@dataclass(frozen=True)
class Advice:
    """One suggestion: settings to change, or pairs to keep."""

    code: str  # alike, length, noise, hard, easy, sunk
    what: str
    reason: str
    change: dict[str, Any] = field(default_factory=dict)  # of TrainConfig
    drop: tuple[str, ...] = ()  # ids of pairs
    aim: str = "ranked"  # what should get better on held-out pairs: `ranked` or `held`, see `Trial`

    def __repr__(self) -> str:
        return f"{self.code}: {self.what} {self.reason}"


def advise(seen: Microscope, score: Callable[[Pair, str], float] | None = None, beta: float = 0.1) -> list[Advice]:
    """What the set's numbers suggest. An empty list: nothing stands out.

    Args:
        seen: the pairs under the microscope.
        score: a verifier, from a pair and one of its answers to a number, higher is better; without one the pairs' own
            scores are taken, where they have any.
        beta: that training will use.
    """
    views = list(seen)
    found = [_alike(views), _length(seen, beta), _noise(views, score), *_difficulty(views, beta), _sunk(views)]
    return [advice for advice in found if advice]


def _alike(views: Sequence[PairView]) -> Advice | None:
    middle = statistics.median(v.edit_distance for v in views)
    ratios = [sum(v.log_ratios[0]) for v in views if v.log_ratios]
    if middle >= ALIKE or (ratios and statistics.fmean(ratios) >= 0):  # training has shown that they hold
        return None
    return Advice(
        "alike",
        'Take loss="dpop", or a higher nll_weight.',
        f"The answers of a pair are much alike (edit distance {middle:.2f} in the middle, n = {len(views)}): what "
        "lowers the rejected one lowers the chosen one, too.",
        {"loss": "dpop"},
        aim="held",
    )


def _length(seen: Microscope, beta: float) -> Advice | None:
    auc = length_auc(seen.pairs.rows)
    if len(seen) < MANY or abs(auc - 0.5) <= ONE_LENGTH:
        return None
    tokens = statistics.fmean(len(ids) for v in seen for ids in v.row.answer_ids)
    return Advice(
        "length",
        f'Take loss="sigmoid_norm" with beta about {beta * tokens:.2g}.',
        f"Length alone tells chosen from rejected with an AUC of {auc:.2f} (n = {len(seen)}, 0.5 is chance). Its "
        f"margin is a mean over tokens, so beta grows by the {tokens:.0f} tokens of an answer.",
        {"loss": "sigmoid_norm", "beta": round(beta * tokens, 2)},
    )


def _noise(views: Sequence[PairView], score: Callable[[Pair, str], float] | None) -> Advice | None:
    if score:
        gaps = [score(v.pair, v.pair.chosen) - score(v.pair, v.pair.rejected) for v in views]
    else:
        scored = [(v.pair.chosen_score, v.pair.rejected_score) for v in views]
        gaps = [c - r for c, r in scored if c is not None and r is not None]
    gaps = [gap for gap in gaps if gap]  # a tie says nothing of the label
    wrong = sum(gap < 0 for gap in gaps)
    if not gaps or (share := wilson(wrong, len(gaps))).low <= 0.01:
        return None
    rate = min(round(share.estimate, 3), 0.45)
    return Advice(
        "noise",
        f'Take loss="robust" with label_smoothing={rate}.',
        f"The verifier disagrees with {wrong} of {len(gaps)} labels ({100 * share.low:.0f} to {100 * share.high:.0f} "
        "%). Robust DPO assumes that share of wrong labels (arXiv 2403.00409); better still, judge them again.",
        {"loss": "robust", "label_smoothing": rate},
    )


def _difficulty(views: Sequence[PairView], beta: float) -> list[Advice]:
    most, n, found = SPENT / beta, len(views), []
    hard = tuple(v.id for v in views if v.reference_margin < -most)
    easy = tuple(v.id for v in views if v.reference_margin > most)
    if SHARE * n <= len(hard) < n:
        found.append(
            Advice(
                "hard",
                f"Drop {len(hard)} of {n} pairs, or lower beta.",
                f"The model prefers their rejected answer by more than {most:.0f} nats. With beta {beta:g} the "
                "gradient is spent before they are turned.",
                drop=hard,
            )
        )
    if SHARE * n <= len(easy) < n:
        found.append(
            Advice(
                "easy",
                f"Leave out {len(easy)} of {n} pairs, or mine harder ones.",
                f"The model ranks them right by more than {most:.0f} nats already: it would not say what they reject.",
                drop=easy,
            )
        )
    return found


def _sunk(views: Sequence[PairView]) -> Advice | None:
    ratios = [sum(v.log_ratios[0]) for v in views if v.log_ratios]
    if not ratios or (mean := statistics.fmean(ratios)) > SUNK or len(views) < 4:
        return None
    order = sorted(views, key=lambda v: -v.reference.ches)[: len(views) // 4]
    return Advice(
        "sunk",
        f"Drop the {len(order)} pairs of the highest CHES, or raise nll_weight.",
        f"Training made the chosen answers e^{-mean:.1f} times less likely (n = {len(ratios)}). Pairs whose answers "
        "look alike inside the model (CHES, arXiv 2410.08847) drive this.",
        drop=tuple(v.id for v in order),
        aim="held",
    )


@dataclass(frozen=True)
class Trial:
    """Two runs, without and with an advice, on pairs that neither was trained on."""

    advice: Advice
    ranked: tuple[float, float]  # share of held-out pairs whose log-ratio rose more for the chosen answer
    held: tuple[float, float]  # share whose chosen answer did not become less likely
    chosen_logratio: tuple[float, float]  # mean, nats
    difference: Interval  # paired, of the share that the advice aims at
    p: float  # exact McNemar

    @property
    def outcome(self) -> str:
        if self.difference.clear_above_zero:
            return "held"
        return "did not hold" if self.difference.clear_below_zero else "cannot tell"

    def __repr__(self) -> str:
        d, n = self.difference, self.difference.n
        aims = {"ranked": "pairs ranked right", "held": "chosen answers that held their ground"}
        return (
            f"{self.advice.code}: {self.outcome}. On {n} held-out pairs, {aims[self.advice.aim]}: "
            f"{100 * d.estimate:+.1f} points with the advice ({100 * d.low:+.1f} to {100 * d.high:+.1f}; p = "
            f"{self.p:.3f}). Ranked right {100 * self.ranked[0]:.0f} % without, {100 * self.ranked[1]:.0f} % with; "
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
    """Train without and with the advice, and compare on the same held-out pairs (whole groups).

    Args:
        model: where both runs start.
        pairs: some are held out, the rest is trained on; what the advice drops is dropped from the rest only.
        config: of the run without; no probes are made.
        held_out: share of the pairs.
        seed: of the split.

    Raises:
        WorkbenchError: too few groups, or the advice leaves no pair.
    """
    from dpo_workbench.studies.microscope import microscope

    config = replace(config or TrainConfig(), probes=0, held_out=0.0)
    parts = split_pairs(pairs, {"train": 1 - held_out, "test": held_out}, seed=seed)
    kept = [p for p in parts["train"] if p.id not in advice.drop]
    if not kept:
        raise WorkbenchError("An advice must leave pairs to train on. It dropped all of them. Hold out fewer.")
    arms = ((parts["train"], config), (Pairs(kept, pairs.task), replace(config, **advice.change)))
    test = Pairs(parts["test"].rows)
    views = [list(microscope(model, test, train(model, p, c, show=show), show=show)) for p, c in arms]
    values = {
        "ranked": [[float((v.reward_margin or 0) > 0) for v in arm] for arm in views],
        "held": [[float(sum(v.log_ratios[0]) >= 0) for v in arm if v.log_ratios] for arm in views],
    }
    before, after = values[advice.aim]
    lost, won = (sum(a > b for a, b in zip(x, y, strict=True)) for x, y in ((before, after), (after, before)))
    means = {name: tuple(map(statistics.fmean, both)) for name, both in values.items()}
    ratios = tuple(statistics.fmean(sum(v.log_ratios[0]) for v in arm if v.log_ratios) for arm in views)
    groups = [p.group or p.prompt for p in test]
    difference = paired_difference(before, after, groups, seed)
    return Trial(advice, means["ranked"], means["held"], ratios, difference, mcnemar_exact(lost, won))  # type: ignore[arg-type]

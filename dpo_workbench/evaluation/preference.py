"""`preference_accuracy`: on how many held-out pairs does the trained policy prefer the chosen answer?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.statistics import Interval, smallest_detectable, wilson, win_rate
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pair
from dpo_workbench.pairs.splits import split_keys
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import rows_within_memory
from dpo_workbench.training.reference import choose_packing, reference_logps
from dpo_workbench.training.run import Run
from dpo_workbench.training.tokens import pair_texts, tokenize


@dataclass(frozen=True, repr=False)
class PreferenceAccuracy:
    """The result of `preference_accuracy`."""

    accuracy: Interval  # share of pairs with a positive margin; a margin of exactly 0 counts half
    margin: Interval  # mean margin, in units of the reward
    margins: dict[str, float]  # pair id -> beta * (log-ratio of the chosen answer - that of the rejected one)

    @property
    def smallest_detectable(self) -> float:
        """The smallest distance from 0.5 that so many prompts detect with a power of 80 %."""
        return smallest_detectable(self.accuracy.n_groups, 1.0) / 2

    def __repr__(self) -> str:
        a, m, n_wins = self.accuracy, self.margin, sum(margin > 0 for margin in self.margins.values())
        clear = "better than" if a.low > 0.5 else "worse than" if a.high < 0.5 else "not clearly different from"
        ties = sum(margin == 0 for margin in self.margins.values())
        lines = [
            f"The policy prefers the chosen answer on {n_wins} of {a.n} held-out pairs, {a.estimate:.2f} "
            f"({a.low:.2f} to {a.high:.2f}): {clear} chance.",
            f"Mean margin {m.estimate:+.3f} ({m.low:+.3f} to {m.high:+.3f}). These {a.n_groups} prompts can detect an "
            f"accuracy of {0.5 + self.smallest_detectable:.2f} or more (80 % power).",
            "This doesn't show that generated answers got better: read some, and judge them (docs/judge.md).",
        ]
        if ties:
            lines.insert(1, f"{ties} pairs have a margin of exactly 0, as before any training; each counts half.")
        return "\n".join(lines)


def preference_accuracy(
    policy: Run | Model, reference: Model, pairs: Sequence[Pair], *, beta: float | None = None
) -> PreferenceAccuracy:
    """How often, and by how much, the policy prefers the chosen answer of pairs that it was not trained on.

    A pair's margin is beta times the difference of two log-ratios, log policy(answer) - log reference(answer): that of
    the chosen answer minus that of the rejected one. It is DPO's implicit reward margin (Rafailov et al. 2023, arXiv
    2305.18290, section 4), the `rewards/margins` of the training log. Before training, all margins are 0.

    Args:
        policy: a run, or a trained model.
        reference: the model that training started from.
        pairs: held-out pairs. Pairs that share a prompt or a group count as one unit in the intervals.
        beta: default: that of the run, or 0.1 for a model. It scales the margins and doesn't change the accuracy.

    Raises:
        WorkbenchError: fewer than two prompts; a pair that `tokenize` refuses; log-probabilities that are not finite.
    """
    given = policy.config if isinstance(policy, Run) else TrainConfig()
    model, beta = policy.model if isinstance(policy, Run) else policy, given.beta if beta is None else beta
    keys = split_keys(pairs) if pairs else []
    if len(set(keys)) < 2:
        raise WorkbenchError(
            f"A preference accuracy needs pairs of two prompts or more. Got {len(keys)} pairs of {len(set(keys))} "
            "prompts. Hold out more, for example with `dw.split_pairs`."
        )
    rows = tokenize(reference, map(pair_texts, pairs), given.max_tokens)
    config = choose_packing(reference, rows, given)

    def both(config: TrainConfig) -> tuple[Any, Any]:
        return reference_logps(model, rows, config, None), reference_logps(reference, rows, config, None)

    (after, before), _ = rows_within_memory(both, rows, config)
    margins = {i: beta * ((c - before[i][0]) - (r - before[i][1])) for i, (c, r) in after.items()}
    return PreferenceAccuracy(*margin_intervals([margins[pair.id] for pair in pairs], keys), margins)


def margin_intervals(margins: Sequence[float], keys: Sequence[str]) -> tuple[Interval, Interval]:
    """The share of margins above 0 (0 counts half) and the mean over prompts; equal `keys` belong to one prompt.

    The share has Wilson's interval if each prompt has one pair and no margin is 0, else that of `win_rate`. The mean
    has Student's t interval.
    """
    from scipy.stats import sem, t

    wins, losses = [margin > 0 for margin in margins], [margin < 0 for margin in margins]
    simple = len(set(keys)) == len(keys) == sum(wins) + sum(losses)
    accuracy = wilson(sum(wins), len(wins)) if simple else win_rate(losses, wins, keys)
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for key, margin in zip(keys, margins, strict=True):
        by_prompt[key].append(margin)
    means = [fmean(some) for some in by_prompt.values()]
    mean, half = fmean(means), float(t.ppf(0.975, len(means) - 1) * sem(means))
    return accuracy, Interval(mean, mean - half, mean + half, "t over prompts", len(margins), len(means))

"""How much data? Train on nested subsets of the pairs, and look at what the last doubling of the data brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation, evaluate
from dpo_workbench.evaluation.statistics import Interval, over_seeds, paired_difference
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.plots.evaluation import BLUE, axes, label
from dpo_workbench.tasks.task import Split
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import train

Rows = Sequence[Sequence[float]]  # one value in [0, 1] for each seed and prompt; larger is better


@dataclass(frozen=True)
class DataAdvice:
    """What the last doubling of the data brought, and what follows from it."""

    decision: str  # label more, stop, or cannot tell
    gain: Interval
    sizes: tuple[int, int]  # numbers of pairs before and after

    def __str__(self) -> str:
        gain, low, high = (100 * value for value in (self.gain.estimate, self.gain.low, self.gain.high))
        change = f"{gain:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
        return f"{self.decision}: from {self.sizes[0]} to {self.sizes[1]} pairs {change}"

    __repr__ = __str__


@dataclass(frozen=True)
class LearningCurve:
    """Values of the same prompts after training on rising numbers of pairs, from `learning_curve` or your own runs."""

    values: Mapping[int, Rows]  # number of pairs -> one row per seed; 0 pairs, the model before training, has one row
    groups: Sequence[str]  # of each prompt
    metric: str = "score"

    @property
    def sizes(self) -> list[int]:
        """Numbers of pairs, rising."""
        return sorted(self.values)

    def means(self) -> list[Interval]:
        """The mean at each size, with a 95 % interval over prompts and, where there are several, seeds."""
        found = [_difference([[0.0] * len(self.groups)], self.values[size], self.groups) for size in self.sizes]
        return [replace(mean, low=max(0.0, mean.low)) for mean in found]

    def advice(self, worth: float = 0.02) -> DataAdvice:
        """Should you label more pairs? Looks at the gain of the last doubling of the data.

        - `label more`: the interval of the gain is above zero, and the gain is at least `worth`. Curves flatten, so
          expect less from the next doubling.
        - `stop`: the whole interval is below `worth`.
        - `cannot tell`: anything else. More seeds or more prompts make the interval narrower.

        Args:
            worth: the smallest gain that is worth the labelling, as a share (0.02 is two points).
        """
        last = max(self.sizes)
        half = max((size for size in self.sizes if 0 < 2 * size <= last), default=None)
        if half is None:
            raise WorkbenchError(
                f"Advice needs a size of at most half of the largest one. Got {self.sizes}. Run {last // 2} pairs too."
            )
        gain = _difference(self.values[half], self.values[last], self.groups)
        decision = "label more" if gain.low > 0 and gain.estimate >= worth else "cannot tell"
        return DataAdvice("stop" if gain.high < worth else decision, gain, (half, last))

    @property
    def title(self) -> str:
        """The finding."""
        told = [f"{mean.estimate:.3f} with {n}" for n, mean in zip(self.sizes, self.means(), strict=True)]
        return f"{self.metric}: {told[0]} pairs, {told[-1]}"

    def plot(self) -> Any:
        """Draw the means with their intervals; returns matplotlib's axes."""
        (_, ax), means = axes((7.0, 4.0)), self.means()
        spread = [[m.estimate - m.low for m in means], [m.high - m.estimate for m in means]]
        ax.errorbar(self.sizes, [m.estimate for m in means], yerr=spread, fmt="o-", color=BLUE, capsize=4)
        label(ax, self.title, f"pairs; bars: 95 % intervals, n = {len(self.groups)} prompts", self.metric)
        return ax

    def __str__(self) -> str:
        rows = zip(self.sizes, self.means(), strict=True)
        body = [f"  {n:>5} pairs  {m.estimate:.3f}  ({m.low:.3f} to {m.high:.3f})" for n, m in rows]
        return "\n".join([self.title, *body])

    __repr__ = __str__


def _difference(before: Rows, after: Rows, groups: Sequence[str]) -> Interval:
    """Mean of after - before. One seed says nothing about other seeds, so its interval covers the prompts alone."""
    return over_seeds(before, after, groups) if len(after) > 1 else paired_difference(before[0], after[0], groups)


def learning_curve(
    start: Model,
    pairs: Pairs,
    test: Split,
    config: TrainConfig,
    *,
    sizes: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    folder: str | Path,
    target: Sequence[str] = (),
    probe: Split | None = None,
    show: bool = True,
) -> LearningCurve:
    """Train on nested subsets of the pairs, each size with each seed, and answer the same prompts each time.

    Each seed shuffles the pairs once, and a smaller subset is the beginning of a larger one, so that sizes differ only
    by the pairs that were added. A run that is already in `folder` is read from there.

    Args:
        start: the model before DPO.
        test: prompts to answer; use dev prompts while you decide about data.
        config: of each run; its seed is replaced.
        sizes: numbers of pairs, rising. For `advice`, let each be twice the one before.
        seeds: of subset, order and adapter.
        folder: for the answers of each run.
        target: measure the share of answers without these failure classes. By default the score is measured.
        probe: as in `train`.
    """
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > len(pairs) or not seeds:
        raise WorkbenchError(
            f"Sizes must rise from at least 1 to at most the {len(pairs)} pairs there are, with one seed or more. Got "
            f"{list(sizes)} and {list(seeds)}. Choose smaller sizes, or mine more pairs."
        )
    runs: dict[int, list[Evaluation]] = {}
    for size, seed in [(0, 0), *product(sizes, seeds)]:
        file = Path(folder) / f"{size}-{seed}.json"
        if not file.is_file():
            settings = replace(config, seed=seed, held_out=0.0)
            model = train(start, nested(pairs, size, seed), settings, probe=probe, show=False).model if size else start
            evaluate(model, test, name=f"{size} pairs, seed {seed}", show=False).save(file)
        done = Evaluation.load(file)
        runs.setdefault(size, []).append(done)
        if show:
            print(f"{done.name}: {done.n_failed} of {done.n} failed, score {done.mean_score:.3f}")
    scored = set.intersection(*({row.id for row in run.scored} for of_size in runs.values() for run in of_size))
    groups = [row.group for row in runs[0][0].rows if row.id in scored]
    metric = f"share without {', '.join(target)}" if target else "score"
    return LearningCurve(
        {n: [_values(run, scored, target) for run in of_n] for n, of_n in runs.items()}, groups, metric
    )


def _values(run: Evaluation, scored: set[str], target: Sequence[str]) -> list[float]:
    """The measure of each prompt that all runs could score."""
    rows = [row for row in run.rows if row.id in scored]
    return [float(row.failure not in target) if target else row.value or 0.0 for row in rows]


def nested(pairs: Pairs, size: int, seed: int) -> Pairs:
    """The first `size` pairs in the seed's order of prompts. Smaller subsets are beginnings of larger ones."""
    prompts = sorted({p.prompt_as_text for p in pairs})
    order = {prompts[k]: place for place, k in enumerate(np.random.default_rng(seed).permutation(len(prompts)))}
    return Pairs(sorted(pairs, key=lambda p: (order[p.prompt_as_text], p.id))[:size], pairs.task)

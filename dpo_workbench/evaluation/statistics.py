"""Statistics for small test sets: paired by prompt, clustered by group, exact where few prompts change.

scipy does the mathematics; this module chooses the method. All intervals are two-sided 95 % intervals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, stats

from dpo_workbench.common.errors import WorkbenchError

FEW_GROUPS = 10  # the bootstrap's intervals are too narrow where fewer groups than this change
POWER, ALPHA = 0.8, 0.05  # of the exact McNemar test in `smallest_detectable` and `prompts_needed`
_ZERO = 1e-12  # a smaller difference is rounding error


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval. NaN where the data do not determine it."""

    estimate: float
    low: float
    high: float
    method: str
    n: int  # prompts, or other observations
    n_groups: int

    def __str__(self) -> str:
        if math.isnan(self.estimate):
            return f"cannot be computed (n = {self.n})"
        return f"{self.estimate:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def wilson(successes: int, n: int) -> Interval:
    """A share with Wilson's score interval, which stays valid for shares near 0 and 1."""
    if n < 1 or not 0 <= successes <= n:
        raise WorkbenchError(
            f"A share needs at least one case, and no more successes than cases. Got {successes} of {n}. "
            "Evaluate on a split with examples."
        )
    bounds = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), "Wilson", n, n)


def mcnemar_exact(only_before: int, only_after: int) -> float:
    """p-value of the exact McNemar test, from the numbers of prompts that failed only before and only after."""
    changed = only_before + only_after
    return float(stats.binomtest(only_before, changed, 0.5).pvalue) if changed else 1.0


def paired_difference(
    before: Sequence[float], after: Sequence[float], groups: Sequence[str], seed: int = 0, resamples: int = 5000
) -> Interval:
    """Mean of after - before over the same prompts, with an interval that treats each group as one unit.

    - At least 10 groups change: BCa bootstrap over groups (Efron 1987).
    - Fewer change: the bootstrap would be too narrow. The interval is the wider one of two. The first inverts the
      exact sign-flip test over groups, which for yes/no values in groups of one is the exact McNemar test. The second
      uses Clopper-Pearson bounds on the share of groups that change, so the interval always has a width.
    - Fewer than 10 groups of several prompts, at least three of which change: Student's t over groups.

    Args:
        before, after: values in [0, 1], in the same order of prompts.
        groups: the group of each prompt. Prompts of one group may resemble each other.
    """
    change = _changes(before, after, groups)
    sums, counts = _by_group(change, groups), _by_group(np.ones(len(change)), groups)
    n_groups, estimate = len(sums), float(change.mean())
    if n_groups == 1:
        low, high, method = -1.0, 1.0, "one group: nothing can be excluded"
    elif (np.abs(sums) > _ZERO).sum() < FEW_GROUPS:
        low, high, method = _few_groups_change(sums, counts)
    elif np.ptp(sums / counts) < _ZERO:
        unseen = _clopper_pearson_high(0, n_groups)
        low, high = estimate * (1 - unseen) - unseen, estimate * (1 - unseen) + unseen
        method = "exact (every group changes by the same amount)"
    else:
        low, high, method = _bca((sums, counts), _ratio, seed, resamples)
    low, high = np.clip((low, high), -1, 1).tolist()
    return Interval(estimate, low, high, method, len(change), n_groups)


def mean_change(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Mean of after - before for measured values without bounds (nats): BCa bootstrap over the items."""
    change = _changes(before, after, range(len(before)))
    if len(change) < 2 or not np.isfinite(change).all():
        raise WorkbenchError(
            f"A mean change needs two items or more with finite values. Got {len(change)}, "
            f"{int((~np.isfinite(change)).sum())} of them not finite. Measure on more items."
        )
    low, high, method = float(change[0]), float(change[0]), "all items change by the same amount"
    if np.ptp(change) > _ZERO:
        low, high, method = _bca((change, np.ones_like(change)), _ratio, 0, 2000)
    return Interval(float(change.mean()), low, high, method, len(change), len(change))


def paired_p(before: Sequence[float], after: Sequence[float], groups: Sequence[str]) -> float:
    """p-value of a paired comparison; arguments as in `paired_difference`.

    For yes/no values in groups of one it is the exact McNemar test. Otherwise it is the paired permutation test, which
    flips the signs of whole groups' differences: exact up to 13 groups that change, from 9,999 draws for more.
    """
    change = _changes(before, after, groups)
    if len(set(groups)) == len(groups) and np.isin(change, (-1.0, 0.0, 1.0)).all():
        return mcnemar_exact(int((change < 0).sum()), int((change > 0).sum()))
    sums = _by_group(change, groups)
    changed = sums[np.abs(sums) > _ZERO]
    if len(changed) < 2:
        return 1.0
    settings = {"permutation_type": "samples", "n_resamples": 9999, "rng": np.random.default_rng(0)}
    return float(stats.permutation_test((changed,), np.sum, vectorized=True, **settings).pvalue)


def over_seeds(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], groups: Sequence[str]) -> Interval:
    """Mean of after - before over seeds and prompts, with an interval that covers another seed and other prompts.

    Each seed is one training run, evaluated on the same prompts. Seeds and groups are crossed random factors, and each
    adds its own variance: Var(mean) = (MS_seeds + MS_groups - MS_rest) / (seeds x groups), with Satterthwaite's degrees
    of freedom and Student's t (Searle, Casella and McCulloch 1992, chapters 4 and 5). With few seeds it is wide.

    Args:
        before, after: one row of values in [0, 1] for each seed, prompts in the same order. If `before` has one row,
            it is used for all seeds.
        groups: the group of each prompt.
    """
    starts = list(before) * len(after) if len(before) == 1 else list(before)
    if len(after) < 2 or len(starts) != len(after) or len(set(groups)) < 2:
        raise WorkbenchError(
            f"An interval over seeds needs two seeds or more, and two groups of prompts. Got {len(after)} seeds after "
            f"training, {len(before)} before, and {len(set(groups))} groups. Run more seeds."
        )
    changes = [_by_group(_changes(b, a, groups), groups) for b, a in zip(starts, after, strict=True)]
    values = np.array(changes) * len(changes[0]) / len(groups)  # (seeds, groups); their mean is the mean over prompts
    n_seeds, n_groups = values.shape
    estimate, by_seed, by_group = float(values.mean()), values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_group + estimate
    df_seeds, df_groups, df_rest = n_seeds - 1, n_groups - 1, (n_seeds - 1) * (n_groups - 1)
    ms_seeds, ms_groups = n_groups * by_seed.var(ddof=1), n_seeds * by_group.var(ddof=1)
    ms_rest = float((rest**2).sum()) / df_rest
    # a negative variance component counts as zero: the other factor's mean square is then the variance
    if ms_seeds <= ms_rest:
        variance, degrees = ms_groups, df_groups
    elif ms_groups <= ms_rest:
        variance, degrees = ms_seeds, df_seeds
    else:
        variance = ms_seeds + ms_groups - ms_rest
        degrees = variance**2 / (ms_seeds**2 / df_seeds + ms_groups**2 / df_groups + ms_rest**2 / df_rest)
    half = float(stats.t.ppf(0.975, degrees)) * math.sqrt(variance / (n_seeds * n_groups))
    low, high = np.clip((estimate - half, estimate + half), -1, 1).tolist()
    return Interval(estimate, low, high, f"crossed random effects, {n_seeds} seeds", n_seeds * len(groups), n_groups)


def paired_change(before: Any, after: Any, groups: Sequence[str], top: float = 1.0) -> tuple[Interval, float]:
    """Interval and p-value of the mean of after - before, for one training run or for one run per seed.

    For one seed: `paired_difference` and `paired_p`. With several, each prompt has its mean over the seeds, and the
    interval is the wider of `paired_difference` (other prompts) and `over_seeds` (other prompts and other seeds).

    Args:
        before, after: values in [0, top] of shape (seeds, prompts).
        groups: the group of each prompt.
    """
    runs = [np.asarray(side, dtype=float) / top for side in (before, after)]
    old, new = (side.mean(axis=0).tolist() for side in runs)
    found = paired_difference(old, new, groups)
    if len(runs[1]) > 1 and found.n_groups > 1:
        wide = over_seeds(runs[0].tolist(), runs[1].tolist(), groups)
        method = f"the wider of {found.method} and {wide.method}"
        found = replace(found, low=min(found.low, wide.low), high=max(found.high, wide.high), method=method)
    scaled = replace(found, estimate=found.estimate * top, low=found.low * top, high=found.high * top)
    return scaled, paired_p(old, new, groups)


def win_rate(before: Sequence[float], after: Sequence[float], groups: Sequence[str]) -> Interval:
    """Share of prompts where `after` scores higher; a tie counts as half a win, so 0.5 means no difference.

    Leaving ties out would make a change on few prompts look like a change on all. The interval is the one of
    `paired_difference` between wins and losses.
    """
    change = _changes(before, after, groups)
    found = paired_difference((change < 0).tolist(), (change > 0).tolist(), groups)
    return replace(found, estimate=0.5 + found.estimate / 2, low=0.5 + found.low / 2, high=0.5 + found.high / 2)


def smallest_detectable(n: int, discordant_share: float) -> float:
    """The smallest difference of two shares (0.1 = 10 points) that n paired prompts detect with a power of 80 %.

    Uses the exact power of the exact McNemar test. Returns 1.0 where no difference can be detected.

    `discordant_share` is the share of prompts that fail in one arm and pass in the other; 0.2 is usual. Where the
    difference itself is larger, all changes are assumed to go the same way.
    """
    if n < 1:
        raise WorkbenchError(f"A test set must have at least one prompt. Got {n}. Choose a split with examples.")

    def missing_power(difference: float) -> float:
        return POWER - _power(n, difference, max(discordant_share, difference))

    return float(optimize.brentq(missing_power, 1e-6, 1.0, xtol=1e-4)) if missing_power(1.0) < 0 else 1.0


def prompts_needed(difference: float, discordant_share: float) -> int | None:
    """About how many paired prompts detect a difference of that size; None if even 20,000 do not."""
    if difference == 0:
        return None
    size, low, high = abs(difference), 5, 20_000
    share = max(discordant_share, size)
    if _power(high, size, share) < POWER:
        return None
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, size, share) >= POWER else (middle, high)
    return high


def detectable_points(n: int, discordant_share: float) -> int:
    """`smallest_detectable` in whole percentage points, rounded up."""
    return math.ceil(100 * smallest_detectable(n, discordant_share) - 1e-9)


def holm(pvalues: Sequence[float]) -> list[float]:
    """p-values adjusted for several comparisons by Holm's method (Holm 1979), in the order given."""
    order = np.argsort(pvalues, kind="stable")  # the smallest is multiplied by n, the next one by n - 1, and so on
    adjusted = np.maximum.accumulate(np.asarray(pvalues, dtype=float)[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1.0)[np.argsort(order)].tolist()


def _power(n: int, difference: float, share: float) -> float:
    """Power of the exact McNemar test if a `share` of n prompts changes, by `difference` more one way than the other.

    Sums over the number of prompts that change, which is binomial.
    """
    changed = np.arange(n + 1)
    # reject if at most `most` of the changed prompts go one way: P(X <= most) <= ALPHA / 2 under the null hypothesis
    most = stats.binom.ppf(ALPHA / 2, changed, 0.5)
    most = np.where(stats.binom.cdf(most, changed, 0.5) <= ALPHA / 2, most, most - 1)
    other_way = 1 - (1 + difference / share) / 2
    rejected = stats.binom.cdf(most, changed, other_way) + stats.binom.sf(changed - most - 1, changed, other_way)
    chance = stats.binom.pmf(changed, n, min(share, 1.0))
    return float((chance * np.where(most < 0, 0.0, rejected)).sum())


def _changes(before: Sequence[float], after: Sequence[float], groups: Sequence[Any]) -> np.ndarray:
    if not len(after) or not len(before) == len(after) == len(groups):
        raise WorkbenchError(
            f"A paired comparison needs the same prompts, at least one, on both sides. Got {len(before)} before, "
            f"{len(after)} after and {len(groups)} groups. Evaluate both on one split."
        )
    return np.asarray(after, dtype=float) - np.asarray(before, dtype=float)


def _by_group(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Sum of the values of each group, sorted by name so that the order of the prompts does not matter."""
    names, places = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.bincount(places, weights=values, minlength=len(names))


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    total = counts.sum(axis=axis)
    return np.where(total > 0, sums.sum(axis=axis) / np.where(total > 0, total, 1), 0.0)


def _bca(data: tuple[np.ndarray, np.ndarray], statistic: Any, seed: int, resamples: int) -> tuple[float, float, str]:
    batch = max(1, 2_000_000 // len(data[0]))  # limits memory
    settings: Any = {"paired": True, "vectorized": True, "n_resamples": resamples, "batch": batch}
    for method in ("BCa", "percentile"):
        rng = np.random.default_rng(seed)
        found = stats.bootstrap(data, statistic, method=method, random_state=rng, **settings).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break  # BCa is not defined for some data
    return float(found.low), float(found.high), f"{method} bootstrap by group"


def _few_groups_change(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float, str]:
    """The interval of `paired_difference` where fewer than `FEW_GROUPS` groups change."""
    changed, n_groups, n = sums[np.abs(sums) > _ZERO], len(sums), int(counts.sum())
    size = float(np.abs(changed).mean()) if len(changed) else n / n_groups
    more, fewer = int((changed > 0).sum()), int((changed < 0).sum())
    up = (_clopper_pearson_high(more, n_groups) * n_groups - more) * size
    down = (_clopper_pearson_high(fewer, n_groups) * n_groups - fewer) * size
    total, width = float(sums.sum()), _sign_flip_width(changed)
    low, high = (total - max(width, down)) / n, (total + max(width, up)) / n
    method = f"exact (only {len(changed)} groups change)" if len(changed) else "exact (no group changes)"
    if n_groups < min(FEW_GROUPS, n):
        t_low, t_high = _student(sums, counts)
        if len(changed) >= 3 and t_high - t_low > 1e-9:
            return t_low, t_high, f"Student's t over {n_groups} groups"
        low, high = min(low, t_low), max(high, t_high)
    return low, high, method


def _student(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Student's t interval of a mean over groups of different sizes, with the linearized variance of a ratio."""
    n_groups, n = len(sums), counts.sum()
    mean = sums.sum() / n
    squares = ((sums - mean * counts) ** 2).sum()
    half = stats.t.ppf(0.975, n_groups - 1) * np.sqrt(n_groups / (n_groups - 1) * squares) / n
    return float(mean - half), float(mean + half)


def _sign_flip_width(changed: np.ndarray) -> float:
    """The largest |sum| that random signs reach or exceed with a probability above 0.05."""
    if not len(changed):
        return 0.0
    signs = np.array(list(itertools.product((-1, 1), repeat=len(changed))))
    reached = np.sort(np.abs(signs @ changed))[::-1]
    at_least = np.searchsorted(-reached, -reached + 1e-9, side="right") / len(reached)
    return float(reached[at_least > 0.05].max())


def _clopper_pearson_high(k: int, n: int) -> float:
    return float(stats.binomtest(k, n).proportion_ci(method="exact").high)

"""Statistics that are right for small test sets: paired, exact where few prompts differ, clustered by group.

scipy and statsmodels do the mathematics; the choices, and why, are here. All intervals are 95 % and two-sided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpo_workbench.common.errors import WorkbenchError

FEW_GROUPS = 10  # fewer groups that differ than this: the bootstrap is too sure of itself, and exact rules take over


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, and how it was made."""

    estimate: float
    low: float
    high: float
    method: str
    n: int
    n_groups: int

    @property
    def clear_below_zero(self) -> bool:
        return self.high < 0

    @property
    def clear_above_zero(self) -> bool:
        return self.low > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a share; sound at shares near 0 and 1, where the usual formula is not.

    Raises:
        WorkbenchError: n is 0, or `successes` is not between 0 and n.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise WorkbenchError(
            f"A share needs at least one case, and no more successes than cases. Got {successes} of {n}. "
            "Evaluate on a split with examples."
        )
    bounds = binomtest(successes, n).proportion_ci(method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), "Wilson", n, n)


def mcnemar_exact(only_before: int, only_after: int) -> float:
    """p of the exact McNemar test: are the prompts that changed as likely to have changed one way as the other?

    Args:
        only_before: prompts that failed before and not after.
        only_after: prompts that failed after and not before.
    """
    from scipy.stats import binomtest

    changed = only_before + only_after
    return float(binomtest(only_before, changed, 0.5).pvalue) if changed else 1.0


def paired_difference(
    before: Sequence[float], after: Sequence[float], groups: Sequence[str], seed: int = 0, resamples: int = 5000
) -> Interval:
    """Mean of after - before over the same prompts, with an interval that resamples whole groups.

    Where at least 10 groups differ: BCa bootstrap over groups, with the jackknife over groups for the acceleration
    (Efron 1987). Where fewer do, the bootstrap is too narrow, and the interval is the wider of two: by flipping the
    signs of the groups' differences (it excludes zero only where the exact sign-flip test says p <= 0.05, which is
    the exact McNemar test for yes/no values in groups of one), and by Clopper-Pearson bounds on the share of groups
    that differ. Where none differs, the second alone: never an interval of no width. Of fewer than 10 groups of several
    prompts, three of which differ, there are too few for either: Student's t over groups, with one degree of freedom
    fewer than groups.

    Args:
        before, after: values in [0, 1], in the same order.
        groups: the group of each prompt; prompts of one group may resemble each other.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap samples.

    Raises:
        WorkbenchError: no values, or lengths that differ.
    """
    differences = _checked(after, before, groups) - np.asarray(before, dtype=float)
    sums, counts = _by_group(differences, groups), _by_group(np.ones(len(differences)), groups)
    n, n_groups, estimate = len(differences), len(sums), float(differences.mean())
    differing = int((np.abs(sums) > 1e-12).sum())
    if n_groups == 1:
        low, high, method = -1.0, 1.0, "one group: nothing can be excluded"
    elif differing < FEW_GROUPS:
        low, high, method = _few(sums, n)
        if n_groups < min(FEW_GROUPS, n):
            t_low, t_high = _student(sums, counts)
            if differing >= 3 and t_high - t_low > 1e-9:
                low, high, method = t_low, t_high, f"Student's t over {n_groups} groups"
            else:
                low, high = min(low, t_low), max(high, t_high)
    elif np.ptp(sums / counts) < 1e-12:
        unseen = _clopper_pearson(0, n_groups)[1]
        low, high = estimate * (1 - unseen) - unseen, estimate * (1 - unseen) + unseen
        method = "exact (every group differs by the same amount)"
    else:
        low, high, method = _bca((sums, counts), _ratio, seed, resamples)
    return Interval(estimate, float(np.clip(low, -1, 1)), float(np.clip(high, -1, 1)), method, n, n_groups)


def mean_change(before: Sequence[float], after: Sequence[float], seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of after - before of values without bounds (nats, tokens), one item a group: BCa bootstrap over the items.

    Where all items change by the same, the interval has no width, which for measured values says just that.

    Raises:
        WorkbenchError: fewer than two items, lengths that differ, or a value that is not finite.
    """
    groups = [str(k) for k in range(len(before))]
    change = _checked(after, before, groups) - np.asarray(before, dtype=float)
    if len(change) < 2 or not np.isfinite(change).all():
        raise WorkbenchError(
            f"A mean change needs two items or more with finite values. Got {len(change)}, "
            f"{int((~np.isfinite(change)).sum())} of them not finite. Measure on more items."
        )
    estimate, low, high, method = float(change.mean()), float(change[0]), float(change[0]), "all items change alike"
    if np.ptp(change) > 1e-12:
        low, high, method = _bca((change, np.ones_like(change)), _ratio, seed, resamples)
    return Interval(estimate, low, high, method, len(change), len(change))


def sign_flip(before: Sequence[float], after: Sequence[float], groups: Sequence[str], seed: int = 0) -> float:
    """p of the paired permutation test: would the groups' differences look alike if their signs were drawn by chance?

    For yes/no values in groups of one this is McNemar's test. Exact up to 13 groups that differ, else from 9,999 draws
    (scipy.stats.permutation_test).

    Args:
        before, after: values in the same order.
        groups: the group of each prompt; the prompts of one group change together.
        seed: of the draws.
    """
    from scipy.stats import permutation_test

    sums = _by_group(_checked(after, before, groups) - np.asarray(before, dtype=float), groups)
    differing = sums[np.abs(sums) > 1e-12]
    if len(differing) < 2:
        return 1.0
    draws = {"permutation_type": "samples", "n_resamples": 9999, "rng": np.random.default_rng(seed)}
    return float(permutation_test((differing,), np.sum, vectorized=True, **draws).pvalue)


def paired_p(before: Sequence[float], after: Sequence[float], groups: Sequence[str], seed: int = 0) -> float:
    """p of a paired comparison, for `holm`: exact McNemar for yes/no values in groups of one, else `sign_flip`."""
    values = _checked(after, before, groups) - np.asarray(before, dtype=float)
    if len(set(groups)) == len(groups) and np.isin(values, (-1.0, 0.0, 1.0)).all():
        return mcnemar_exact(int((values < 0).sum()), int((values > 0).sum()))
    return sign_flip(before, after, groups, seed)


def relative_cut(
    before_failed: Sequence[bool],
    after_failed: Sequence[bool],
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = 5000,
) -> Interval | None:
    """1 - after/before in counts of failures: 0.6 means 60 % fewer. None where nothing failed before.

    BCa bootstrap over groups where at least 10 groups failed before and at least 10 changed. Where no failure is
    left, the exact conditional interval of a ratio of counts, by groups. Otherwise the interval of
    `paired_difference` over the share that failed before.
    """
    after, before = _checked(after_failed, before_failed, groups), np.asarray(before_failed, dtype=float)
    n_before, n_after = before.sum(), after.sum()
    if n_before == 0:
        return None
    estimate, n = float(1 - n_after / n_before), len(before)
    was, still = _by_group(before, groups), _by_group(after, groups)
    changed = int((np.abs(was - still) > 1e-12).sum())
    failing = int((was > 0).sum())
    if n_after == 0:
        share = _clopper_pearson(0, failing)[1]
        low, high = 1 - share / (1 - share), 1.0
        method = "exact (no failure left)"
    elif failing < FEW_GROUPS or changed < FEW_GROUPS or np.ptp(still[was > 0] / was[was > 0]) < 1e-12:
        difference = paired_difference(before.tolist(), after.tolist(), groups, seed, resamples)
        scale = n / n_before
        low, high = -difference.high * scale, min(1.0, -difference.low * scale)
        method = f"from the paired difference ({difference.method})"
    else:
        low, high, method = _bca((still, was), lambda a, b, axis=-1: 1 - _ratio(a, b, axis), seed, resamples)
    return Interval(estimate, float(low), float(high), method, n, len(was))


def over_seeds(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], groups: Sequence[str]) -> Interval:
    """Mean of after - before over seeds and prompts, with an interval for another seed *and* other prompts.

    Each seed is a training run of its own on the same test prompts: two crossed random factors, seeds and groups, of
    which each adds its own variance. Var(mean) = (MS_seeds + MS_groups - MS_rest) / (seeds x groups), with
    Satterthwaite's degrees of freedom and Student's t (Searle, Casella and McCulloch 1992, chapters 4 and 5): pooling
    all answers as if they were independent would be too sure. With few seeds the interval is wide, as it should be.

    Args:
        before, after: one row of values in [0, 1] for each seed, the prompts in one order. A `before` of one row
            stands for all seeds.
        groups: the group of each prompt.

    Raises:
        WorkbenchError: fewer than two seeds, fewer than two groups, or lengths that differ.
    """
    from scipy.stats import t

    starts = list(before) * len(after) if len(before) == 1 else list(before)
    if len(after) < 2 or len(starts) != len(after) or len(set(groups)) < 2:
        raise WorkbenchError(
            f"An interval over seeds needs two seeds or more, and two groups of prompts. Got {len(after)} seeds, "
            f"{len(before)} before them, {len(set(groups))} groups. Run more seeds, or use `paired_difference`."
        )
    rows = [_checked(a, b, groups) - np.asarray(b, dtype=float) for b, a in zip(starts, after, strict=True)]
    by_group = np.array([_by_group(row, groups) for row in rows])  # seeds x groups
    shares = by_group * by_group.shape[1] / len(groups)  # their mean is the mean over prompts
    n_seeds, n_groups = shares.shape
    estimate, of_seed, of_group = float(shares.mean()), shares.mean(axis=1), shares.mean(axis=0)
    free = (n_seeds - 1, n_groups - 1, (n_seeds - 1) * (n_groups - 1))
    rest = shares - of_seed[:, None] - of_group + estimate
    squares = (n_groups * of_seed.var(ddof=1), n_seeds * of_group.var(ddof=1), float((rest**2).sum()) / free[2])
    seeds, prompts, both = squares
    # a negative variance component is none, and then the other factor's mean square alone is the variance
    parts = [(prompts, free[1])] if seeds <= both else [(seeds, free[0])] if prompts <= both else []
    if parts:
        variance, degrees = parts[0]
    else:
        variance = seeds + prompts - both
        degrees = variance**2 / sum(ms**2 / df for ms, df in zip(squares, free, strict=True))
    half = float(t.ppf(0.975, degrees)) * math.sqrt(variance / (n_seeds * n_groups))
    method = f"crossed random effects, {n_seeds} seeds"
    low, high = float(np.clip(estimate - half, -1, 1)), float(np.clip(estimate + half, -1, 1))
    return Interval(estimate, low, high, method, n_seeds * len(groups), n_groups)


def win_rate(before: Sequence[float], after: Sequence[float], groups: Sequence[str], seed: int = 0) -> Interval:
    """Share of the prompts where `after` scores higher, a tie as half a win: 0.5 means neither is better.

    Ties are kept, as dropping them makes a difference on few prompts look like one on all. The interval is that of
    `paired_difference` between wins and losses, by groups.
    """
    change = _checked(after, before, groups) - np.asarray(before, dtype=float)
    wins, losses = (change > 0).astype(float), (change < 0).astype(float)
    found = paired_difference(losses.tolist(), wins.tolist(), groups, seed)
    low, high = (0.5 + value / 2 for value in (found.low, found.high))
    return Interval(0.5 + found.estimate / 2, low, high, found.method, found.n, found.n_groups)


def smallest_detectable(n: int, discordant_share: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of two shares (0.1 = 10 points) that n paired prompts show with the given power.

    By the exact power of the exact McNemar test. Where the difference is larger than `discordant_share`, the share of
    prompts that change is taken to be the difference: all change one way. 1.0 where not even that suffices.

    Args:
        n: prompts.
        discordant_share: share of prompts whose failure comes or goes between the two arms; 0.2 is usual.
    """
    from scipy.optimize import brentq

    if n < 1:
        raise WorkbenchError(f"A test set must have at least one prompt. Got {n}. Choose a split with examples.")

    def lacking(difference: float) -> float:
        return _power(n, difference, max(discordant_share, difference), alpha) - power

    return float(brentq(lacking, 1e-6, 1.0, xtol=1e-4)) if lacking(1.0) > 0 else 1.0


def prompts_needed(difference: float, discordant_share: float, power: float = 0.8, most: int = 20_000) -> int | None:
    """About how many paired prompts show a difference of that size; None where `most` do not."""
    if difference == 0:
        return None
    share, low, high = max(discordant_share, abs(difference)), 5, most
    if _power(high, abs(difference), share, 0.05) < power:
        return None
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, abs(difference), share, 0.05) >= power else (middle, high)
    return high


def holm(pvalues: Sequence[float]) -> list[float]:
    """p values adjusted for several comparisons by Holm's method, in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(pvalues, method="holm")[1]] if len(pvalues) else []


def _power(n: int, difference: float, share: float, alpha: float) -> float:
    from scipy.stats import binom

    changed = np.arange(n + 1)
    most = binom.ppf(alpha / 2, changed, 0.5)  # smallest count with P(X <= count) >= alpha/2; reject strictly below
    most = np.where(binom.cdf(most, changed, 0.5) <= alpha / 2, most, most - 1)
    one_way = (1 + difference / share) / 2
    reject = binom.cdf(most, changed, 1 - one_way) + binom.sf(changed - most - 1, changed, 1 - one_way)
    return float((binom.pmf(changed, n, min(share, 1.0)) * np.where(most < 0, 0.0, reject)).sum())


def _checked(values: Sequence[float], others: Sequence[float], groups: Sequence[str]) -> np.ndarray:
    if not len(values) or not len(values) == len(others) == len(groups):
        raise WorkbenchError(
            f"A paired comparison needs the same prompts, at least one, on both sides. Got {len(others)} before, "
            f"{len(values)} after and {len(groups)} groups. Evaluate both on one split."
        )
    return np.asarray(values, dtype=float)


def _by_group(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Sum of the values of each group, groups in sorted order, so that the order of the prompts does not matter."""
    names, places = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.bincount(places, weights=values, minlength=len(names))


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    total = counts.sum(axis=axis)
    return np.where(total > 0, sums.sum(axis=axis) / np.where(total > 0, total, 1), 0.0)


def _bca(data: tuple[np.ndarray, np.ndarray], statistic: Any, seed: int, resamples: int) -> tuple[float, float, str]:
    from scipy.stats import bootstrap

    def interval(method: str) -> tuple[float, float]:
        found = bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(data[0])),
            method=method,
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    low, high = interval("BCa")
    if math.isfinite(low) and math.isfinite(high):
        return low, high, "BCa bootstrap by group"
    return *interval("percentile"), "percentile bootstrap by group (BCa is not defined here)"


def _few(sums: np.ndarray, n: int) -> tuple[float, float, str]:
    """The interval where fewer than `FEW_GROUPS` groups differ; see `paired_difference`."""
    differing, n_groups = sums[np.abs(sums) > 1e-12], len(sums)
    size = float(np.abs(differing).mean()) if len(differing) else n / n_groups
    more, fewer = int((differing > 0).sum()), int((differing < 0).sum())
    up = (_clopper_pearson(more, n_groups)[1] * n_groups - more) * size
    down = (_clopper_pearson(fewer, n_groups)[1] * n_groups - fewer) * size
    width = _sign_flip_width(differing)
    total = float(sums.sum())
    method = "exact (no group differs)" if not len(differing) else f"exact (only {len(differing)} groups differ)"
    return (total - max(width, down)) / n, (total + max(width, up)) / n, method


def _student(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over groups by Student's t, with the linearised variance of a ratio."""
    from scipy.stats import t

    n_groups, n = len(sums), counts.sum()
    mean = sums.sum() / n
    deviations = sums - mean * counts
    half = t.ppf(0.975, n_groups - 1) * np.sqrt(n_groups / (n_groups - 1) * (deviations**2).sum()) / n
    return float(mean - half), float(mean + half)


def _sign_flip_width(differing: np.ndarray) -> float:
    """The largest |sum| that random signs reach or pass with a probability above 0.05."""
    if not len(differing):
        return 0.0
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differing))))
    reached = np.sort(np.abs(signs @ differing))[::-1]
    at_least = np.searchsorted(-reached, -reached + 1e-9, side="right") / len(reached)
    return float(reached[at_least > 0.05].max())


def _clopper_pearson(k: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    bounds = binomtest(k, n).proportion_ci(method="exact")
    return float(bounds.low), float(bounds.high)

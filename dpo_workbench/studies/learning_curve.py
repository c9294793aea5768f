"""How much data? Train on nested subsets of the pairs, forecast the curve, and say whether to label more.

Four or five sizes say little about the shape of a curve, so the forecast averages five families of saturating curves
with Bayes' rule, weighted by how well they explain the measured points. The interval widens by itself where the points
cannot tell the families apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.run import Evaluation, evaluate
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.plots.learning_curve import CurveDisplay
from dpo_workbench.tasks.task import Split
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import train

WORTH = 0.01  # a gain below one point is not worth the labelling
# Name -> (f, shapes). f(n, scale, shape) is the share of the way from the value at 0 pairs to the limit after n pairs.
FAMILIES: dict[str, tuple[Callable[[np.ndarray, float, float], np.ndarray], tuple[float, ...]]] = {
    "exponential": (lambda n, s, c: 1 - np.exp(-((n / s) ** c)), (0.7, 1.0, 1.5)),
    "power": (lambda n, s, c: 1 - (1 + n / s) ** -c, (0.3, 0.6, 1.0)),
    "hill": (lambda n, s, c: n**c / (n**c + s**c), (1.0, 1.5, 2.5)),
    "logarithmic": (lambda n, s, c: np.log1p(n / s) / np.log1p(1e4 / s), (1.0,)),
    "two stages": (lambda n, s, c: c * (1 - np.exp(-5 * n / s)) + (1 - c) * n**2 / (n**2 + (4 * s) ** 2), (0.4, 0.7)),
}
# Priors: value at 0 pairs ~ N(0.5, 0.5), whole way up or down ~ N(0, 0.35), noise of one run log-normal around 0.02.
START_SD, LIMIT_SD = 0.5, 0.35
NOISES = np.geomspace(0.003, 0.1, 9)
N_SCALES = 13
# No family is exactly right. This error grows with each doubling of the data and with how much the last sizes moved.
MISFIT = 0.2  # chosen on simulated dev curves (benchmarks/how_much_data.py --dev)


@dataclass(frozen=True)
class Curve:
    """A measure in [0, 1], such as a mean score, at rising numbers of pairs, with one value per seed."""

    sizes: tuple[int, ...]  # may start with 0, the model before training
    values: tuple[tuple[float, ...], ...]  # one row per size
    metric: str = "score"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        flat = [v for row in self.values for v in row]
        rising = list(self.sizes) == sorted(set(self.sizes)) and all(n >= 0 for n in self.sizes)
        complete = len(self.sizes) == len(self.values) and all(self.values)
        if not rising or not complete or len(self.sizes) < 3 or not np.isfinite(flat).all():
            raise WorkbenchError(
                f"A learning curve needs three sizes or more, rising, each with finite values. Got sizes "
                f"{list(self.sizes)} with {[len(row) for row in self.values]} values. Run more sizes, or leave failed "
                "runs out."
            )

    @property
    def means(self) -> np.ndarray:
        """Mean over the seeds, shape (sizes,)."""
        return np.array([np.mean(row) for row in self.values])

    def forecast(self, size: int) -> Forecast:
        """The measure at `size` pairs, see `forecast`."""
        return forecast(self, size)

    def flags(self) -> list[str]:
        """Reasons not to trust a forecast: the curve falls again, or the seeds differ a lot."""
        found, means = [], self.means if self.higher_is_better else -self.means
        repeats = sum(len(row) - 1 for row in self.values)
        squares = sum(float(((np.array(row) - np.mean(row)) ** 2).sum()) for row in self.values)
        noise = np.sqrt(squares / repeats) if repeats else 0.02  # standard deviation of one run
        best = int(means.argmax())
        standard_error = max(noise, 0.005) * np.sqrt(1 / len(self.values[best]) + 1 / len(self.values[-1]))
        if means[best] - means[-1] > 3 * standard_error:
            found.append(f"it is better at {self.sizes[best]} pairs than at {self.sizes[-1]}")
        if noise > 0.08:
            found.append(f"seeds differ by {100 * noise:.0f} points (one standard deviation)")
        return found


@dataclass(frozen=True)
class Forecast:
    """The measure at `size` pairs, and its improvement over the largest size that was run, with intervals."""

    size: int
    estimate: float
    low: float
    high: float
    gain: float  # positive when better
    gain_low: float
    gain_high: float
    families: dict[str, float]  # posterior weights
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"at {self.size} pairs {self.estimate:.3f} (80 %: {self.low:.3f} to {self.high:.3f}), "
            f"a gain of {100 * self.gain:+.1f} points ({100 * self.gain_low:+.1f} to {100 * self.gain_high:+.1f})"
        )
        return f"{text}; don't rely on it: {'; '.join(self.flags)}" if self.flags else text

    __repr__ = __str__


def forecast(curve: Curve, size: int, *, runs: int | None = None, only: Sequence[str] = tuple(FAMILIES)) -> Forecast:
    """The measure at `size` pairs with an 80 % interval, by Bayesian averaging over the families.

    For a given family, scale, shape and noise the curve is linear in its start and its limit, with Gaussian priors, so
    the posterior is exact. The others form a grid of about 1,000 points, weighted by marginal likelihood.

    Args:
        curve: what was measured.
        size: number of pairs, at least 1; it may be smaller than the largest size.
        runs: None forecasts the mean over all seeds; a number the mean of that many runs, including their noise.
        only: names of the families to use.
    """
    unknown = [name for name in only if name not in FAMILIES]
    if unknown or not only or size < 1:
        raise WorkbenchError(
            f"A forecast needs a size of at least 1 and some of {', '.join(FAMILIES)}. Got {size} and {list(only)}."
        )
    last, sign = curve.sizes[-1], 1 if curve.higher_is_better else -1
    names, ways = _family_values(np.array([*curve.sizes, size, last], dtype=float), only)
    weights, mean, cov = _posteriors(curve, ways)
    at_size, at_last = ways[:, -2, None], ways[:, -1, None]
    misfit = MISFIT * float(np.ptp(curve.means[-3:])) * max(0.0, np.log2(size / last))
    extra = misfit**2 + (NOISES**2 / runs if runs else 0.0)
    step = at_size - at_last
    value_means = mean[..., 0] + at_size * mean[..., 1]
    value_variances = cov[..., 0] + 2 * at_size * cov[..., 1] + at_size**2 * cov[..., 2] + extra
    gain_means, gain_variances = step * mean[..., 1], step**2 * cov[..., 2] + extra
    low, estimate, high = np.clip(_quantiles(weights, value_means, value_variances), 0, 1).tolist()
    gain_low, gain, gain_high = sorted(sign * q for q in _quantiles(weights, gain_means, gain_variances))
    families = {name: float(weights[names == name].sum()) for name in only}
    return Forecast(size, estimate, low, high, gain, gain_low, gain_high, families, tuple(curve.flags()))


def _family_values(sizes: np.ndarray, only: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Family name and values at `sizes` for each family, scale and shape: (shapes,) and (shapes, sizes)."""
    positive = sizes[:-2][sizes[:-2] > 0]
    scales = np.geomspace(positive[0] / 3, positive[-1] * 10, N_SCALES)
    grid = [(name, s, c) for name in only for s in scales for c in FAMILIES[name][1]]
    return np.array([name for name, _, _ in grid]), np.array([FAMILIES[name][0](sizes, s, c) for name, s, c in grid])


def _posteriors(curve: Curve, ways: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bayesian linear regression of each curve shape, with values `ways` (shapes, sizes), for each noise.

    Returns the posterior weights (shapes, noises), the means of start and whole way (shapes, noises, 2), and their
    variances and covariance (shapes, noises, 3), in the order start, both, way.
    """
    x = np.repeat(ways[:, : len(curve.sizes)], [len(row) for row in curve.values], axis=1)  # (shapes, runs)
    y = np.array([v for row in curve.values for v in row])
    w, p0, p1 = NOISES**-2, START_SD**-2, LIMIT_SD**-2
    sx, sxx, sxy = x.sum(axis=1)[:, None], (x**2).sum(axis=1)[:, None], (x @ y)[:, None]
    a, b, d = p0 + w * len(y), w * sx, p1 + w * sxx  # precision matrix of (start, way)
    det = a * d - b**2
    u, v = 0.5 * p0 + w * y.sum(), w * sxy
    mean = np.stack([(d * u - b * v) / det, (a * v - b * u) / det], axis=-1)
    cov = np.stack([d / det, -b / det, a / det], axis=-1)
    fit = w * (y @ y) + 0.25 * p0 - mean[..., 0] * u - mean[..., 1] * v
    log_weight = -0.5 * (fit + np.log(det)) - len(y) * np.log(NOISES) - 0.5 * np.log(NOISES / 0.02) ** 2
    weights = np.exp(log_weight - log_weight.max())
    return weights / weights.sum(), mean, cov


def _quantiles(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> list[float]:
    """The 10 %, 50 % and 90 % quantiles of a mixture of normal distributions."""
    large = weights > 1e-7
    weights, means = weights[large] / weights[large].sum(), means[large]
    sds = np.maximum(np.sqrt(variances[large]), 1e-9)

    def below(x: float, q: float) -> float:
        return float(weights @ ndtr((x - means) / sds)) - q

    bounds = float((means - 9 * sds).min()), float((means + 9 * sds).max())
    return [brentq(below, *bounds, args=(q,)) for q in (0.1, 0.5, 0.9)]


@dataclass(frozen=True)
class DataAdvice:
    """`label more`, `enough` or `cannot tell`, with the forecast behind it."""

    decision: str
    more: int
    forecast: Forecast

    def __str__(self) -> str:
        seen = self.forecast
        gains = f"{100 * seen.gain_low:+.0f} to {100 * seen.gain_high:+.0f} points (80 %)"
        if self.decision == "label more":
            text = f"label {self.more} more: {gains}"
        else:
            text = f"{self.decision}: {self.more} more would bring {gains}"
        return f"{text}; don't rely on it: {'; '.join(seen.flags)}" if seen.flags else text

    __repr__ = __str__


def advise(curve: Curve, more: int = 200) -> DataAdvice:
    """Should you label `more` pairs?

    `label more` where the median gain is a point (0.01) or more and the low end of its interval is above zero. `enough`
    where even the high end is below a point. Otherwise, or when the curve is flagged, `cannot tell`.

    Args:
        curve: from `learning_curve(...).curve()`, or your own measurements.
        more: pairs to add to the largest size that was run.
    """
    seen = forecast(curve, curve.sizes[-1] + more)
    decision = "cannot tell"
    if not seen.flags and seen.gain_high < WORTH:
        decision = "enough"
    elif not seen.flags and seen.gain >= WORTH and seen.gain_low > 0:
        decision = "label more"
    return DataAdvice(decision, more, seen)


@dataclass(frozen=True)
class LearningCurve:
    """What `learning_curve` measured, for each size and seed."""

    points: tuple[dict[str, Any], ...]  # size, seed, score, failed (share), mined (share)

    def curve(self, metric: str = "score") -> Curve:
        """One measure: `score`, `failed` or `mined`."""
        sizes = sorted({p["size"] for p in self.points})
        values = tuple(tuple(p[metric] for p in self.points if p["size"] == n) for n in sizes)
        return Curve(tuple(sizes), values, metric, metric == "score")

    def advice(self, more: int = 200, metric: str = "score") -> DataAdvice:
        """`advise` for one measure."""
        return advise(self.curve(metric), more)

    def plot(self, metric: str = "score", size: int | None = None) -> Any:
        """The points and the forecast up to `size` pairs (by default twice the largest size)."""
        curve = self.curve(metric)
        return CurveDisplay.from_curve(curve, size or 2 * curve.sizes[-1]).plot()


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
        sizes: numbers of pairs, rising.
        seeds: of subset, order and adapter.
        folder: for the results of each run.
        target: failure classes that count as `mined`.
        probe: as in `train`.
    """
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > len(pairs) or not seeds:
        raise WorkbenchError(
            f"Sizes must rise from at least 1 to at most the {len(pairs)} pairs there are, with one seed or more. Got "
            f"{list(sizes)} and {list(seeds)}. Choose smaller sizes, or mine more pairs."
        )
    folder = Path(folder)
    points = []
    for seed, size in [(0, 0), *product(seeds, sizes)]:
        file = folder / f"{size}-{seed}.json"
        if not file.is_file():
            model = start
            if size:
                settings = replace(config, seed=seed, held_out=0.0)
                model = train(start, nested(pairs, size, seed), settings, probe=probe, show=False).model
            evaluate(model, test, name=f"{size} pairs, seed {seed}", show=False).save(file)
        after = Evaluation.load(file)
        points.append(_point(after, size, seed, target))
        if show:
            print(f"{size} pairs, seed {seed}: {after.n_failed} of {after.n} failed, score {after.mean_score:.3f}")
    points.sort(key=lambda p: (p["size"], p["seed"]))
    write_json(folder / "curve.json", points)
    return LearningCurve(tuple(points))


def nested(pairs: Pairs, size: int, seed: int) -> Pairs:
    """The first `size` pairs in the seed's order of prompts. Smaller subsets are beginnings of larger ones."""
    prompts = sorted({p.prompt for p in pairs})
    order = {prompts[k]: place for place, k in enumerate(np.random.default_rng(seed).permutation(len(prompts)))}
    return Pairs(sorted(pairs, key=lambda p: (order[p.prompt], p.id))[:size], pairs.task)


def _point(found: Evaluation, size: int, seed: int, target: Sequence[str]) -> dict[str, Any]:
    mined = sum(found.share(name) for name in target)
    return {"size": size, "seed": seed, "score": found.mean_score, "failed": found.failed_share, "mined": mined}

"""How much data? Nested subsets of the pairs, a forecast with its interval, and whether to label more.

A forecast from four sizes is mostly a statement about what curves there are, so that is written down: five families of
saturating curves, a wide prior on each, and Bayes' rule. The interval comes from all families together, weighted by how
well they explain the points seen, and widens by itself where the points cannot tell the families apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.run import Evaluation, evaluate
from dpo_workbench.evaluation.statistics import wilson
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.tasks.task import Split
from dpo_workbench.training.config import TrainConfig

LEVEL = 0.8
WORTH = 0.01  # a gain below one point is not worth labelling for
# share of the way from the value at 0 pairs to the limit, after n pairs; s is a scale in pairs, c a shape
FAMILIES: dict[str, tuple[Callable[[np.ndarray, float, float], np.ndarray], tuple[float, ...]]] = {
    "exponential": (lambda n, s, c: 1 - np.exp(-((n / s) ** c)), (0.7, 1.0, 1.5)),
    "power": (lambda n, s, c: 1 - (1 + n / s) ** -c, (0.3, 0.6, 1.0)),
    "hill": (lambda n, s, c: n**c / (n**c + s**c), (1.0, 1.5, 2.5)),
    "logarithmic": (lambda n, s, c: np.log1p(n / s) / np.log1p(1e4 / s), (1.0,)),
    "two stages": (lambda n, s, c: c * (1 - np.exp(-5 * n / s)) + (1 - c) * n**2 / (n**2 + (4 * s) ** 2), (0.4, 0.7)),
}
_START_SD, _LIMIT_SD = 0.5, 0.35  # of the value at 0 pairs around 0.5, and of the whole way up or down
_NOISES = np.geomspace(0.003, 0.1, 9)  # standard deviation of one run's value
_SCALES = 13
MISFIT = 0.2  # chosen on simulated dev curves (benchmarks/how_much_data.py --dev)


@dataclass(frozen=True)
class Curve:
    """A measure (a share or a score in [0, 1]) at rising numbers of pairs, each with a value a seed."""

    sizes: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]  # one row a size
    metric: str = "score"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        flat = [v for row in self.values for v in row]
        rising = list(self.sizes) == sorted(set(self.sizes)) and all(n >= 0 for n in self.sizes)
        whole = len(self.sizes) == len(self.values) and all(self.values)
        if not rising or not whole or len(self.sizes) < 3 or not np.isfinite(flat).all():
            raise WorkbenchError(
                f"A learning curve needs three sizes or more, rising, each with finite values. Got sizes "
                f"{list(self.sizes)} with {[len(row) for row in self.values]} values. Run more sizes, or drop the "
                "failed runs."
            )

    @property
    def means(self) -> np.ndarray:
        return np.array([np.mean(row) for row in self.values])

    @cached_property
    def noise(self) -> float | None:
        """Standard deviation of one run around the mean of its size, pooled; None without repeated seeds."""
        free = sum(len(row) - 1 for row in self.values)
        squares = sum(float(((np.array(row) - np.mean(row)) ** 2).sum()) for row in self.values)
        return float(np.sqrt(squares / free)) if free else None

    def forecast(self, size: int) -> Forecast:
        """`forecast` of this curve at `size` pairs."""
        return forecast(self, size)

    def flags(self) -> list[str]:
        """Why this curve is none that the families know; empty for a well-behaved one."""
        found, means = [], self.means if self.higher_is_better else -self.means
        spread = max(self.noise or 0.02, 0.005)
        counts = [len(row) for row in self.values]
        best = int(means.argmax())
        fall = means[best] - means[-1]
        if fall > 3 * spread * np.sqrt(1 / counts[best] + 1 / counts[-1]):
            found.append(f"it is better at {self.sizes[best]} pairs than at {self.sizes[-1]}")
        if self.noise is not None and self.noise > 0.08:
            found.append(f"seeds differ by {100 * self.noise:.0f} points (one standard deviation)")
        return found


@dataclass(frozen=True)
class Forecast:
    """What the curve promises at `size` pairs: the measure, and its change from the largest size seen."""

    size: int
    estimate: float
    low: float
    high: float
    gain: float  # in the direction that is better
    gain_low: float
    gain_high: float
    families: dict[str, float]  # posterior weight
    flags: tuple[str, ...] = ()
    level: float = LEVEL

    def __str__(self) -> str:
        text = (
            f"at {self.size} pairs {self.estimate:.3f} ({100 * self.level:.0f} %: {self.low:.3f} to {self.high:.3f}), "
            f"a gain of {100 * self.gain:+.1f} points ({100 * self.gain_low:+.1f} to {100 * self.gain_high:+.1f})"
        )
        return f"{text}; ill-behaved: {'; '.join(self.flags)}" if self.flags else text

    __repr__ = __str__


def forecast(
    curve: Curve, size: int, *, level: float = LEVEL, runs: int | None = None, only: Sequence[str] = tuple(FAMILIES)
) -> Forecast:
    """The measure at `size` pairs with an interval of that level, by Bayesian averaging over the families.

    Given family, scale, shape and noise the curve is linear in its start and its limit, with Gaussian priors, so the
    posterior is exact; the rest is a grid (about 1,000 points), weighted by the marginal likelihood.

    Args:
        curve: what was measured; the sizes may include 0 (the model before training).
        size: number of pairs to look at; beyond the largest size seen, or within.
        level: of the interval.
        runs: None forecasts the mean over all seeds; a number the mean of so many runs, with their noise.
        only: families to use; one name gives that family's own forecast.
    """
    unknown = [name for name in only if name not in FAMILIES]
    if unknown or not only or size < 1 or not 0 < level < 1:
        raise WorkbenchError(
            f"A forecast needs a size of at least 1, a level between 0 and 1 and some of {', '.join(FAMILIES)}. Got "
            f"size {size}, level {level}, {list(only)}."
        )
    last, sign = curve.sizes[-1], 1 if curve.higher_is_better else -1
    sizes = np.array([*curve.sizes, size, last], dtype=float)
    names, ways = zip(*((name, FAMILIES[name][0](sizes, s, c)) for name, s, c in _shapes(curve, only)), strict=True)
    shares, means, cov, noises = _posteriors(curve, np.array(ways))
    at, now = (np.repeat(np.array(ways)[:, k, None], len(_NOISES), axis=1) for k in (-2, -1))
    extra = noises**2 / runs if runs else 0.0
    # no family is right: room for what they all miss, which grows with the distance and with what was seen to move
    unknown_sd = MISFIT * float(np.ptp(curve.means[-3:])) * max(0.0, np.log2(size / last))
    both = []
    for one, x in ((1.0, at), (0.0, at - now)):  # the value, and its change from the largest size seen
        mean = one * means[..., 0] + x * means[..., 1]
        variance = one * cov[..., 0] + 2 * one * x * cov[..., 1] + x**2 * cov[..., 2] + extra + unknown_sd**2
        both.append((mean.ravel(), np.sqrt(variance).ravel()))
    shares = shares.ravel()
    tail = (1 - level) / 2
    values, gains = (_quantiles(shares, *one, (tail, 0.5, 1 - tail)) for one in both)
    low, middle, high = np.clip(values, 0, 1)
    gain = sorted(sign * gains)
    families = np.repeat(np.array(names), len(_NOISES))
    mass = {name: float(shares[families == name].sum()) for name in only}
    return Forecast(
        size,
        float(middle),
        float(low),
        float(high),
        float(gain[1]),
        float(gain[0]),
        float(gain[2]),
        mass,
        tuple(curve.flags()),
        level,
    )


def _shapes(curve: Curve, only: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    positive = [n for n in curve.sizes if n > 0]
    scales = np.geomspace(positive[0] / 3, positive[-1] * 10, _SCALES)
    for name in only:
        yield from ((name, float(s), c) for s, c in product(scales, FAMILIES[name][1]))


def _posteriors(curve: Curve, ways: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights (shapes x noises), means of (start, whole way), their covariances (3 numbers), and the noises.

    Bayesian linear regression of each shape for each noise, in closed form: two unknowns, Gaussian priors.
    """
    counts = np.array([len(row) for row in curve.values])
    x = np.repeat(ways[:, : len(curve.sizes)], counts, axis=1)  # shapes x runs
    y = np.array([v for row in curve.values for v in row])
    noise = _NOISES[None, :]
    w = noise**-2
    p0, p1 = _START_SD**-2, _LIMIT_SD**-2
    sx, sxx, sxy = x.sum(axis=1)[:, None], (x**2).sum(axis=1)[:, None], (x @ y)[:, None]
    a, b, d = p0 + w * len(y), w * sx, p1 + w * sxx  # precision of (start, way)
    det = a * d - b**2
    u, v = 0.5 * p0 + w * y.sum(), w * sxy
    mean = np.stack([(d * u - b * v) / det, (a * v - b * u) / det], axis=-1)
    cov = np.stack([d / det, -b / det, a / det], axis=-1)
    fit = w * (y @ y) + 0.25 * p0 - mean[..., 0] * u - mean[..., 1] * v
    # a log-normal prior favours middling noise
    log_weight = -0.5 * (fit + np.log(det)) - len(y) * np.log(noise) - 0.5 * np.log(noise / 0.02) ** 2
    shares = np.exp(log_weight - log_weight.max())
    return shares / shares.sum(), mean, cov, np.broadcast_to(noise, log_weight.shape)


def _quantiles(weights: np.ndarray, means: np.ndarray, sds: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """Quantiles of a mixture of normal distributions, by bisection."""
    from scipy.special import ndtr

    kept = weights > 1e-7
    weights, means, sds = weights[kept] / weights[kept].sum(), means[kept], np.maximum(sds[kept], 1e-9)
    found = []
    for q in at:
        low, high = float((means - 9 * sds).min()), float((means + 9 * sds).max())
        for _ in range(50):
            middle = (low + high) / 2
            below = float(weights @ ndtr((middle - means) / sds))
            low, high = (middle, high) if below < q else (low, middle)
        found.append((low + high) / 2)
    return np.array(found)


@dataclass(frozen=True)
class DataAdvice:
    """`label more`, `enough` or `cannot tell`, with the forecast that it rests on."""

    decision: str
    more: int
    forecast: Forecast
    slice_next: str = ""

    def __str__(self) -> str:
        seen = self.forecast
        gains = f"{100 * seen.gain_low:+.0f} to {100 * seen.gain_high:+.0f} points ({100 * seen.level:.0f} %)"
        text = {
            "label more": f"label {self.more} more: {gains}",
            "enough": f"enough: {self.more} more would bring {gains}",
            "cannot tell": f"cannot tell: {self.more} more would bring {gains}",
        }[self.decision]
        why = f"; ill-behaved: {'; '.join(seen.flags)}" if seen.flags else ""
        return f"{text}{why}{f'. Next: {self.slice_next}' if self.slice_next else ''}"

    __repr__ = __str__


def advise(curve: Curve, more: int = 200, *, worth: float = WORTH, slice_next: str = "") -> DataAdvice:
    """Should `more` pairs be labelled?

    `label more` where at least that gain is likely: the median is `worth` or more, and the interval's low end is not
    below zero. `enough` where even its high end is below `worth`. Else, or with a flagged curve, `cannot tell`.

    Args:
        curve: from `learning_curve`, or your own measurements.
        more: pairs to add to the largest size seen.
        worth: the smallest gain that is worth it (0.01 = one point).
        slice_next: from `next_slice`; printed behind the advice.
    """
    seen = forecast(curve, curve.sizes[-1] + more)
    decision = "cannot tell"
    if not seen.flags and seen.gain_high < worth:
        decision = "enough"
    elif not seen.flags and seen.gain >= worth and seen.gain_low > 0:
        decision = "label more"
    return DataAdvice(decision, more, seen, slice_next)


def next_slice(before: Evaluation, after: Evaluation, *, by: str = "failure") -> str:
    """Which failure class, or group of prompts, to label next: what still fails most among what training has mended.

    A class that training did not move is not helped by more of the same pairs, so it is named only where all are such.

    Args:
        before, after: the same prompts before and after training on all pairs.
        by: `failure` or `group`.
    """
    if by not in ("failure", "group"):
        raise WorkbenchError(f"`by` must be failure or group. Got {by!r}.")

    def counted(arm: Evaluation) -> Counter[str]:
        return Counter((row.failure or "") if by == "failure" else row.group for row in arm.scored if row.failed)

    was, now = counted(before), counted(after)
    if not now:
        return "nothing fails any more"
    mended = {name for name in now if was[name] > now[name]}
    name = max(mended or now, key=lambda key: (now[key], key))
    share = wilson(now[name], after.n)
    moved = f"from {was[name]}" if name in mended else f"unmoved ({was[name]} before), so look at the pairs first"
    return f"{by} {name}: {now[name]} of {after.n} left ({100 * share.low:.0f} to {100 * share.high:.0f} %), {moved}"


@dataclass(frozen=True)
class LearningCurve:
    """What `learning_curve` measured: for each size and seed the counts and the mean score."""

    points: tuple[dict[str, Any], ...]  # size, seed, score, failed (share), mined (share), mean_tokens
    target: tuple[str, ...] = ()
    last: Evaluation | None = field(default=None, repr=False)  # the largest size, first seed
    start: Evaluation | None = field(default=None, repr=False)

    def curve(self, metric: str = "score") -> Curve:
        """One measure as a `Curve`: `score`, `failed` or `mined`."""
        sizes = sorted({p["size"] for p in self.points})
        values = tuple(tuple(p[metric] for p in self.points if p["size"] == n) for n in sizes)
        return Curve(tuple(sizes), values, metric, metric == "score")

    def advice(self, more: int = 200, metric: str = "score") -> DataAdvice:
        """`advise` with the slice to label next."""
        following = next_slice(self.start, self.last) if self.start and self.last else ""
        return advise(self.curve(metric), more, slice_next=following)

    def plot(self, metric: str = "score", size: int | None = None) -> Any:
        """The points, and the forecast's band up to `size` pairs (twice the largest by default)."""
        from dpo_workbench.plots.learning_curve import CurveDisplay

        curve = self.curve(metric)
        return CurveDisplay.from_curve(curve, size or 2 * curve.sizes[-1]).plot()


def learning_curve(
    start: Any,
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
    """Train on nested subsets of the pairs, each size for each seed, and answer the same prompts each time.

    A seed shuffles the pairs once (whole prompts stay together where they can) and a smaller subset is the beginning
    of a larger one, so sizes differ by what was added alone. The untrained start is evaluated once for all; reference
    log-probabilities are computed once for all pairs. Each run is kept in `folder`.

    Args:
        start: the model before DPO.
        pairs: all of them; the largest size must not exceed their number.
        test: prompts to answer; dev while you decide about data.
        config: of each run; its seed is replaced.
        sizes: numbers of pairs, rising.
        seeds: of subset, order and adapter.
        folder: takes the results of each run.
        target: failure classes that count as `mined`.
        probe: as in `train`.
        show: progress and a line a run.

    Raises:
        WorkbenchError: sizes that do not rise, or more pairs than there are.
    """
    from dpo_workbench.training.run import train

    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > len(pairs) or not seeds:
        raise WorkbenchError(
            f"Sizes must rise from at least 1 to at most the {len(pairs)} pairs there are, with one seed or more. Got "
            f"{list(sizes)} and {list(seeds)}. Choose smaller sizes, or mine more pairs."
        )
    folder, reference = Path(folder), dict[str, tuple[float, float]]()
    first = _kept(folder / "start.json", lambda: evaluate(start, test, name="sft", show=show))
    points = [_point(first, 0, 0, target)]
    last = None
    for seed, size in product(seeds, reversed(sizes)):  # the largest first: its reference serves the smaller ones

        def run(seed: int = seed, size: int = size) -> Evaluation:
            settings = replace(config, seed=seed, held_out=0.0)
            done = train(start, nested(pairs, size, seed), settings, probe=probe, reference=reference, show=False)
            reference.update(done.reference)
            return evaluate(done.model, test, name=f"{size} pairs, seed {seed}", show=False)

        found = _kept(folder / f"{size}-{seed}.json", run)
        last = last or found
        points.append(_point(found, size, seed, target))
        if show:
            print(f"{size} pairs, seed {seed}: {found.n_failed} of {found.n} failed, score {found.mean_score:.3f}")
    points.sort(key=lambda p: (p["size"], p["seed"]))
    write_json(folder / "curve.json", points)
    return LearningCurve(tuple(points), tuple(target), last, first)


def nested(pairs: Pairs, size: int, seed: int) -> Pairs:
    """The first `size` pairs of the seed's order; smaller subsets are beginnings of larger ones."""
    prompts = sorted({p.prompt for p in pairs})
    order = {prompts[k]: place for place, k in enumerate(np.random.default_rng(seed).permutation(len(prompts)))}
    return Pairs(sorted(pairs, key=lambda p: (order[p.prompt], p.id))[:size], pairs.task)


def _kept(file: Path, work: Callable[[], Evaluation]) -> Evaluation:
    if not file.is_file():
        work().save(file)
    return Evaluation.load(file)


def _point(found: Evaluation, size: int, seed: int, target: Sequence[str]) -> dict[str, Any]:
    mined = sum(found.share(name) for name in target)
    facts = {"score": found.mean_score, "failed": found.failed_share, "mined": mined}
    return {"size": size, "seed": seed, **facts, "mean_tokens": found.mean_tokens}

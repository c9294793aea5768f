"""How far people agree: kappa, alpha, biases, Bradley-Terry, and what to do about it.

A table is a mapping from rater to {item: value}; a missing value is a gap. Cohen's and Fleiss' kappa come from
statsmodels, Bradley-Terry from choix, tests from scipy; alpha is computed here (Krippendorff 2011, "Computing
Krippendorff's alpha-reliability"), since its bootstrap needs the coincidences of each item and the best known library
has a licence that this project cannot pass on. It equals that library's values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dpo_workbench.common.errors import WorkbenchError

Table = Mapping[str, Mapping[Hashable, float]]
LEVELS = ("nominal", "ordinal", "interval")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where the data cannot tell. `n` is what it was computed from."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"cannot be computed (n = {self.n})"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"


def alpha(table: Table, level: str = "nominal", *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Krippendorff's alpha with an interval that resamples items (percentiles; 1 is agreement, 0 chance).

    Args:
        table: rater -> {item: number}; gaps are allowed, items with one value say nothing.
        level: `nominal`, `ordinal` or `interval` distance between values.
        resamples: of the bootstrap; 0 for none.
        seed: of the bootstrap.

    Raises:
        WorkbenchError: an unknown level, or a value that is no finite number.
    """
    if level not in LEVELS:
        raise WorkbenchError(f"`level` must be one of {', '.join(LEVELS)}. Got {level!r}.")
    counts, domain = _counts(table)
    n = len(counts)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = _alpha(counts, domain, np.ones((1, n)), level)[0]
    low = high = math.nan
    if resamples and n > 1 and not math.isnan(value):
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        drawn = _alpha(counts, domain, weights.astype(float), level)
        low, high = _percentiles(drawn[~np.isnan(drawn)])
    return Estimate(float(value), low, high, n)


def _counts(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """How many raters gave each value: items with two values or more x distinct values; and the values, rising."""
    by_item: dict[Hashable, list[float]] = {}
    for rater, row in table.items():
        for item, value in row.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise WorkbenchError(f"Values must be finite numbers. Got {value!r} ({rater}, item {item!r}).")
            by_item.setdefault(item, []).append(float(value))
    rows = [values for values in by_item.values() if len(values) > 1]
    domain = sorted({v for values in rows for v in values})
    place = {v: k for k, v in enumerate(domain)}
    counts = np.zeros((len(rows), len(domain)))
    for k, values in enumerate(rows):
        for v in values:
            counts[k, place[v]] += 1
    return counts, np.array(domain)


def _alpha(counts: np.ndarray, domain: np.ndarray, weights: np.ndarray, level: str) -> np.ndarray:
    """Alpha for each row of `weights` (resamples x items): 1 - observed / expected disagreement."""
    share = counts / (counts.sum(axis=1) - 1)[:, None]
    pairs = np.einsum("ic,ik->ick", share, counts)  # coincidences of an item, its diagonal without self-pairs
    diagonal = np.arange(len(domain))
    pairs[:, diagonal, diagonal] -= share
    found = np.empty(len(weights))
    for k, weight in enumerate(weights):
        coincidences = np.tensordot(weight, pairs, axes=1)
        totals = coincidences.sum(axis=1)
        squared = _squared_distance(totals, domain, level)
        observed = (coincidences * squared).sum()
        expected = (np.outer(totals, totals) * squared).sum() / (totals.sum() - 1)
        found[k] = 1 - observed / expected if expected > 0 else math.nan
    return found


def _squared_distance(totals: np.ndarray, domain: np.ndarray, level: str) -> np.ndarray:
    if level == "nominal":
        return 1.0 - np.eye(len(domain))
    if level == "interval":
        return (domain[:, None] - domain[None, :]) ** 2
    middle = np.cumsum(totals) - totals / 2  # ranks: between two values lie half of each and all that is between
    return (middle[:, None] - middle[None, :]) ** 2


def cohen_kappa(
    one: Mapping[Hashable, float], other: Mapping[Hashable, float], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Cohen's kappa (1960) of two raters on the items that both judged, with an interval that resamples items."""
    from statsmodels.stats.inter_rater import cohens_kappa

    both = [item for item in one if item in other]
    values = sorted({*(one[i] for i in both), *(other[i] for i in both)})
    if len(values) < 2:  # no items, or one value for all: chance cannot be told from agreement
        return Estimate(math.nan, math.nan, math.nan, len(both))
    table = np.zeros((len(values), len(values)))
    for item in both:
        table[values.index(one[item]), values.index(other[item])] += 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(both), (table / len(both)).ravel(), size=resamples).reshape(-1, *table.shape) / len(
        both
    )
    seen, chance = np.einsum("kii->k", drawn), (drawn.sum(1) * drawn.sum(2)).sum(1)
    low, high = _percentiles((seen - chance)[chance < 1] / (1 - chance)[chance < 1])
    return Estimate(float(cohens_kappa(table, return_results=False)), low, high, len(both))


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    if not len(drawn):
        return math.nan, math.nan
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def fleiss_kappa(table: Table, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Fleiss' kappa (1971) on the items that every rater judged, with an interval that resamples items."""
    from statsmodels.stats import inter_rater

    raters = list(table)
    items = [item for item in table[raters[0]] if all(item in table[r] for r in raters)] if len(raters) > 1 else []
    values = sorted({table[r][i] for r in raters for i in items})
    if len(values) < 2:
        return Estimate(math.nan, math.nan, math.nan, len(items))
    counts = np.array([[sum(table[r][i] == v for r in raters) for v in values] for i in items])
    n, k = len(items), len(raters)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    seen = weights @ (((counts**2).sum(axis=1) - k) / (k * (k - 1)))
    chance = ((weights @ (counts / k)) ** 2).sum(axis=1)
    low, high = _percentiles((seen - chance)[chance < 1] / (1 - chance)[chance < 1])
    return Estimate(float(inter_rater.fleiss_kappa(counts)), low, high, n)


def share(hits: int, n: int) -> Estimate:
    """A share with its Wilson interval (1927)."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = proportion_confint(hits, n, method="wilson")
    return Estimate(hits / n, float(low), float(high), n)


def coin(hits: int, n: int) -> float:
    """Two-sided p value of the exact binomial test against one half."""
    from scipy.stats import binomtest

    return float(binomtest(hits, n).pvalue) if n else 1.0


def bradley_terry(games: Sequence[tuple[str, str, float]], *, alpha: float = 0.01) -> dict[str, float]:
    """Strengths of what was compared, on a log scale with mean 0: P(i beats j) = sigmoid(s_i - s_j).

    Maximum likelihood by `choix.opt_pairwise` (Bradley and Terry 1952), a tie as half a win for each.

    Args:
        games: (one, other, result): 1.0 the first won, 0.0 the second did, 0.5 a tie.
        alpha: strength of a Gaussian prior; it keeps a winner of all games finite.

    Raises:
        WorkbenchError: choix is not installed, or a result is none of the three.
    """
    try:
        import choix
    except ImportError as error:
        raise WorkbenchError("Bradley-Terry needs choix. Install it: pip install 'dpo-workbench[labels]'.") from error

    names = sorted({name for one, other, _ in games for name in (one, other)})
    place = {name: k for k, name in enumerate(names)}
    data = []
    for one, other, result in games:
        if result not in (0.0, 0.5, 1.0):
            raise WorkbenchError(f"A result must be 0.0, 0.5 or 1.0. Got {result!r} ({one} against {other}).")
        a, b = place[one], place[other]
        data += {1.0: [(a, b)] * 2, 0.0: [(b, a)] * 2, 0.5: [(a, b), (b, a)]}[result]  # each game counts two halves
    if not data:
        return {}
    found = choix.opt_pairwise(len(names), data, alpha=alpha)
    return {name: float(found[k] - found.mean()) for name, k in place.items()}


def preference_weight(gap: float) -> float:
    """How much a pair is worth whose strengths differ by `gap`: 2 sigmoid(gap) - 1, in (0, 1)."""
    return math.tanh(gap / 2)


def flip_rate(disagree: int, n: int) -> Estimate:
    """Share of wrong votes that would make two independent raters of equal care disagree this often.

    d = 2 e (1 - e), so e = (1 - sqrt(1 - 2 d)) / 2, the interval from Wilson's for d; d of one half or more gives 0.5.
    """

    def rate(d: float) -> float:
        return (1 - math.sqrt(max(0.0, 1 - 2 * d))) / 2

    d = share(disagree, n)
    if n == 0:
        return d
    return Estimate(rate(d.value), rate(max(0.0, d.low)), rate(min(0.5, d.high)), n)


def pairwise_kappa(table: Table) -> dict[tuple[str, str], Estimate]:
    """Cohen's kappa of each two raters."""
    return {(one, other): cohen_kappa(table[one], table[other]) for one, other in combinations(table, 2)}


def graded_table(rows: Sequence[Mapping[str, Any]], answers: str = "candidates", grades: str = "grades") -> Table:
    """The table of graded answers: each row has a list of answers, each answer its grades by person."""
    table: dict[str, dict[Hashable, float]] = {}
    for number, row in enumerate(rows):
        for k, answer in enumerate(row[answers]):
            for who, grade in answer[grades].items():
                table.setdefault(who, {})[number, k] = float(grade)
    return table


def summary_of(table: Table, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Alpha at each level of measurement."""
    return {level: alpha(table, level, resamples=resamples, seed=seed) for level in LEVELS}


def outliers(seconds: Sequence[float]) -> tuple[float, float]:
    """Times below the first or above the second are unusual: 3 scaled median deviations of the logarithm."""
    from scipy.stats import median_abs_deviation

    logs = np.log(np.maximum(np.asarray(seconds, dtype=float), 0.05))
    spread = max(float(median_abs_deviation(logs, scale="normal")), 0.25)
    middle = float(np.median(logs))
    return math.exp(middle - 3 * spread), math.exp(middle + 3 * spread)


def counts_of(values: Sequence[str]) -> str:
    """Words such as `a 12, tie 3`."""
    return ", ".join(f"{key} {n}" for key, n in Counter(values).most_common())

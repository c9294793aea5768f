"""How far raters agree: Cohen's kappa, Krippendorff's alpha and the flip rate, each with a 95 % interval.

A table maps each rater to {item: value}; an item that a rater did not judge is left out. Alpha is computed here
(Krippendorff 2011, "Computing Krippendorff's alpha-reliability"): its bootstrap needs the coincidences of each item,
and the best known library is under the GPL. A test compares the two.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dpo_workbench.evaluation.statistics import Interval, wilson

Table = Mapping[str, Mapping[Any, float]]


def alpha(table: Table, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Krippendorff's ordinal alpha: 1 is full agreement, 0 is chance. With two different values it is also nominal.

    The interval is a percentile bootstrap over the items.

    Args:
        table: rater -> {item: finite number}. Items with one value do not count.
    """
    by_item: dict[Any, list[float]] = defaultdict(list)
    for row in table.values():
        for item, value in row.items():
            by_item[item].append(value)
    judged = [values for values in by_item.values() if len(values) > 1]
    n = len(judged)
    if n == 0:
        return share(0, 0)
    domain = np.unique(np.concatenate(judged))
    counts = np.array([[values.count(v) for v in domain] for values in judged], dtype=float)  # (items, values)
    shares = counts / (counts.sum(axis=1, keepdims=True) - 1)
    # ordered pairs of values within an item, without pairing a value with itself; (items, values, values)
    coincidences = shares[:, :, None] * (counts[:, None, :] - np.eye(len(domain)))
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)  # (resamples, items)
    drawn = [value for table in np.tensordot(weights, coincidences, axes=1) if not math.isnan(value := _alpha(table))]
    low, high = np.percentile(drawn, [2.5, 97.5]) if n > 1 and drawn else (math.nan, math.nan)
    return Interval(_alpha(coincidences.sum(axis=0)), float(low), float(high), "bootstrap over items", n, n)


def _alpha(coincidences: np.ndarray) -> float:
    """1 - observed / expected disagreement. NaN if only one value occurs."""
    totals = coincidences.sum(axis=1)
    place = np.cumsum(totals) - totals / 2  # the distance of two values: the values in between plus half of each
    squared_distance = (place[:, None] - place[None, :]) ** 2
    observed = (coincidences * squared_distance).sum()
    expected = (np.outer(totals, totals) * squared_distance).sum() / (totals.sum() - 1)
    return float(1 - observed / expected) if expected > 0 else math.nan


def cohen_kappa(one: Mapping[Any, float], other: Mapping[Any, float]) -> Interval:
    """Cohen's kappa (1960) of two raters on the items that both judged, with its large-sample interval."""
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    both = [(one[item], other[item]) for item in one if item in other]
    if len({value for values in both for value in values}) < 2:  # agreement cannot be told from chance
        return replace(share(0, 0), n=len(both))
    with np.errstate(all="ignore"):  # for full agreement it divides by zero, and rounding makes the variance negative
        found = cohens_kappa(to_table(np.array(both))[0])
    kappa, half_width = float(found.kappa), 1.96 * math.sqrt(max(0.0, found.var_kappa))
    low, high = max(-1.0, kappa - half_width), min(1.0, kappa + half_width)
    return Interval(kappa, low, high, "large sample", len(both), len(both))


def share(hits: int, n: int) -> Interval:
    """A share with Wilson's interval (1927); NaN without observations."""
    return wilson(hits, n) if n else Interval(math.nan, math.nan, math.nan, "", 0, 0)


def flip_rate(disagree: int, n: int) -> Interval:
    """The share e of wrong votes, if two independent and equally careful raters name different winners this often.

    They differ when exactly one of them is wrong: d = 2 e (1 - e), so e = (1 - sqrt(1 - 2 d)) / 2. The interval is
    Wilson's for d, converted in the same way. It is 0.5 where d is one half or more.
    """

    def rate(d: float) -> float:
        return (1 - math.sqrt(max(0.0, 1 - 2 * d))) / 2

    d = share(disagree, n)
    return replace(d, estimate=rate(d.estimate), low=rate(d.low), high=rate(d.high)) if n else d

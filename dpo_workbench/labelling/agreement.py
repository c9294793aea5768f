"""How far raters agree: Cohen's kappa and the flip rate, each with a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dpo_workbench.evaluation.statistics import Interval, wilson


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

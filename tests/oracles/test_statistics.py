"""Statistics against scipy, statsmodels and brute force."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

import dpo_workbench as dw
from dpo_workbench.evaluation import statistics as s


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (1, 30), (8, 496), (25, 50), (50, 50)])
def test_wilson(k: int, n: int) -> None:
    got = s.wilson(k, n)
    assert (got.low, got.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)
    assert got.estimate == k / n


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 0), (6, 0), (1, 7), (9, 2), (40, 17)])
def test_exact_mcnemar(fixed: int, broken: int) -> None:
    n = fixed + broken
    got = s.mcnemar_exact(fixed, broken)
    assert got == pytest.approx(mcnemar([[3, fixed], [broken, 4]], exact=True).pvalue if n else 1.0)
    ways = [math.comb(n, k) / 2**n for k in range(n + 1)]
    assert got == pytest.approx(sum(way for way in ways if way <= ways[fixed] * (1 + 1e-9)))


def test_paired_bootstrap_is_scipys_bca_for_groups_of_one() -> None:
    before, after = np.random.default_rng(3).random((2, 80))
    got = s.paired_difference(before, after, [f"{k:03d}" for k in range(80)], seed=5, resamples=4000)
    drawn = stats.bootstrap((after - before,), np.mean, n_resamples=4000, random_state=np.random.default_rng(5))
    want = drawn.confidence_interval
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-9)
    assert got.estimate == pytest.approx((after - before).mean())


def test_paired_bootstrap_draws_whole_groups() -> None:
    """Against a plain bootstrap over groups, by percentiles; with 200 groups the two kinds of interval nearly agree."""
    rng = np.random.default_rng(0)
    change = np.repeat(rng.normal(0.1, 0.3, 200), 4) + rng.normal(0, 0.05, 800)
    groups = [f"g{k // 4:03d}" for k in range(800)]
    got = s.paired_difference(np.zeros(800), change, groups, seed=1)
    means = change.reshape(200, 4).mean(axis=1)
    drawn = rng.choice(means, (20_000, 200)).mean(axis=1)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.004)
    single = s.paired_difference(np.zeros(800), change, [str(k) for k in range(800)], seed=1)
    assert single.high - single.low < 0.7 * (got.high - got.low)  # negative control: the groups matter
    turned = s.paired_difference(np.zeros(800), change[::-1], groups[::-1], seed=1)
    assert (turned.low, turned.high) == pytest.approx((got.low, got.high))


@pytest.mark.parametrize("fixed", range(1, 9))
def test_few_changes_exclude_zero_just_where_exact_mcnemar_does(fixed: int) -> None:
    before, after = [1] * fixed + [0] * (300 - fixed), [0] * 300
    found = s.paired_difference(before, after, [str(k) for k in range(300)])
    assert (found.high < 0) == (s.mcnemar_exact(fixed, 0) <= 0.05)


@pytest.mark.parametrize("pvalues", [[0.01, 0.04, 0.03], [0.5], [0.001, 0.2, 0.2, 0.9, 0.012], []])
def test_holm(pvalues: list[float]) -> None:
    want, most = [0.0] * len(pvalues), 0.0
    for rank, k in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        most = want[k] = max(most, min(1.0, (len(pvalues) - rank) * pvalues[k]))
    assert s.holm(pvalues) == pytest.approx(want)
    if pvalues:
        assert s.holm(pvalues) == pytest.approx(multipletests(pvalues, method="holm")[1])


def test_over_seeds_is_students_t_where_only_seeds_differ() -> None:
    groups = [str(k) for k in range(100)]
    flat = dw.over_seeds([[0.0] * 100], [[0.1] * 100, [0.2] * 100, [0.3] * 100], groups)
    assert flat.estimate == pytest.approx(0.2)
    assert flat.high - flat.estimate == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3), rel=1e-5)


def test_a_tie_is_half_a_win() -> None:
    before, after = [0.5] * 40, [0.6] * 20 + [0.5] * 16 + [0.4] * 4
    won = dw.win_rate(before, after, [str(k) for k in range(40)])
    assert won.estimate == pytest.approx((20 + 8) / 40) and won.low > 0.5


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(dw.WorkbenchError):
        s.wilson(0, 0)
    for before, after in (([], []), ([1, 0], [1])):
        with pytest.raises(dw.WorkbenchError):
            s.paired_difference(before, after, ["a", "b"][: len(before)])

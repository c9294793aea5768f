"""Statistics against scipy, statsmodels, brute force, the measured anchors, and a small simulation of coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation import statistics as s


def arms(fixed: int, broken: int, both: int = 0, n: int = 300) -> tuple[list[int], list[int], list[str]]:
    """Failures before and after with that many prompts of each kind, every prompt in its own group."""
    rest = n - fixed - broken - both
    before = [1] * fixed + [0] * broken + [1] * both + [0] * rest
    after = [0] * fixed + [1] * broken + [1] * both + [0] * rest
    return before, after, [f"g{i}" for i in range(n)]


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (1, 30), (8, 496), (25, 50), (50, 50)])
def test_wilson_equals_statsmodels(k, n):
    got = s.wilson(k, n)
    assert (got.low, got.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)
    assert got.estimate == k / n


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_raises(k, n):
    with pytest.raises(WorkbenchError, match=f"Got {k} of {n}"):
        s.wilson(k, n)


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 0), (6, 0), (7, 1), (9, 2), (40, 17)])
def test_mcnemar_equals_statsmodels_and_brute_force(fixed, broken):
    got = s.mcnemar_exact(fixed, broken)
    if fixed + broken:
        assert got == pytest.approx(mcnemar([[3, fixed], [broken, 4]], exact=True).pvalue)
        ways = [math.comb(fixed + broken, k) / 2 ** (fixed + broken) for k in range(fixed + broken + 1)]
        assert got == pytest.approx(sum(w for w in ways if w <= ways[fixed] * (1 + 1e-9)))
    assert got == pytest.approx(s.mcnemar_exact(broken, fixed))


def test_paired_difference_is_scipys_bca_for_groups_of_one():
    rng = np.random.default_rng(3)
    before, after = rng.random(80), rng.random(80)
    groups = [f"{i:03d}" for i in range(80)]
    got = s.paired_difference(before, after, groups, seed=5, resamples=4000)
    seeded = np.random.default_rng(5)
    want = stats.bootstrap((after - before,), np.mean, n_resamples=4000, random_state=seeded).confidence_interval
    assert got.estimate == pytest.approx((after - before).mean())
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-9)
    assert got.method.startswith("BCa")


def test_paired_difference_depends_on_the_seed_only_and_not_on_the_order_of_prompts():
    before, after, groups = arms(30, 10, 20, n=200)
    one, same, other = (s.paired_difference(before, after, groups, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert (one.low, one.high) != (other.low, other.high) or one.low == pytest.approx(other.low, abs=0.01)
    reverse = s.paired_difference(before[::-1], after[::-1], groups[::-1], seed=1)
    assert (reverse.low, reverse.high) == (one.low, one.high)


def test_swapping_the_arms_mirrors_an_exact_interval():
    before, after, groups = arms(7, 1)
    there, back = s.paired_difference(before, after, groups), s.paired_difference(after, before, groups)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


FEW = [(k, j) for k, j in itertools.product(range(10), range(10)) if k + j < 10]


@pytest.mark.parametrize(("fixed", "broken"), FEW)
def test_few_changes_exclude_zero_exactly_where_mcnemar_does(fixed, broken):
    interval = s.paired_difference(*arms(fixed, broken))
    significant = s.mcnemar_exact(fixed, broken) <= 0.05
    assert (interval.high < 0 or interval.low > 0) == significant
    assert "exact" in interval.method and interval.low < interval.high


def test_no_difference_at_all_has_width_and_says_why():
    interval = s.paired_difference(*arms(0, 0, 20))
    clopper_pearson = 1 - 0.025 ** (1 / 300)
    assert (interval.low, interval.high) == pytest.approx((-clopper_pearson, clopper_pearson))
    assert interval.method == "exact (no group changes)"


def test_the_same_difference_everywhere_has_width():
    interval = s.paired_difference([1.0] * 50, [0.0] * 50, [str(i) for i in range(50)])
    assert interval.estimate == -1 and interval.low == -1 and -1 < interval.high < -0.8


def test_one_group_excludes_nothing():
    interval = s.paired_difference([1, 1, 1], [0, 0, 0], ["a"] * 3)
    assert (interval.low, interval.high, interval.n, interval.n_groups) == (-1, 1, 3, 1)


def test_empty_or_unequal_input_raises():
    with pytest.raises(WorkbenchError, match="at least one"):
        s.paired_difference([], [], [])
    with pytest.raises(WorkbenchError, match="Got 2 before, 1 after and 2 groups"):
        s.paired_p([1, 0], [1], ["a", "b"])


@pytest.mark.parametrize(
    ("share", "n", "points"),
    [(0.2, 50, 18), (0.2, 100, 13), (0.2, 200, 10), (0.2, 400, 7), (0.3, 50, 22), (0.3, 100, 16), (0.3, 200, 12)]
    + [(0.3, 400, 8)],
)
def test_smallest_detectable_difference_is_the_measured_one(share, n, points):
    assert abs(100 * s.smallest_detectable(n, share) - points) <= 1.5


def test_power_agrees_with_brute_force_over_all_tables():
    n, difference, share = 25, 0.3, 0.4
    up, down = (share + difference) / 2, (share - difference) / 2
    power = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            if s.mcnemar_exact(i, j) <= 0.05:
                power += stats.multinomial.pmf([i, j, n - i - j], n, [up, down, 1 - share])
    assert s._power(n, difference, share) == pytest.approx(power, abs=1e-9)


def test_five_prompts_can_show_nothing_and_more_prompts_show_more():
    assert s.smallest_detectable(5, 0.2) == 1.0
    seen = [s.smallest_detectable(n, 0.1) for n in (10, 50, 200, 800)]
    assert seen == sorted(seen, reverse=True)
    with pytest.raises(WorkbenchError, match="at least one prompt"):
        s.smallest_detectable(0, 0.2)


def test_prompts_needed_is_the_inverse():
    n = s.prompts_needed(0.1, 0.2)
    assert s.smallest_detectable(n, 0.2) <= 0.1 + 2e-3
    assert s.smallest_detectable(int(0.9 * n), 0.2) > 0.1
    assert s.prompts_needed(0.0, 0.2) is None


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert s.holm([]) == []


def coverage(grouped: bool, tries: int = 120) -> float:
    """Share of intervals that contain the true difference where each group is fixed as a whole or not at all."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(tries):
        fixed = np.repeat(rng.random(40) < 0.3, 5)
        before, after = np.ones(200), np.where(fixed, 0.0, 1.0)
        groups = [str(i // 5 if grouped else i) for i in range(200)]
        interval = s.paired_difference(before, after, groups, resamples=500)
        hits += interval.low <= -0.3 <= interval.high
    return hits / tries


@pytest.mark.slow
def test_intervals_by_group_cover_and_intervals_that_ignore_groups_do_not():
    assert coverage(grouped=True) >= 0.9
    assert coverage(grouped=False) < 0.8  # the negative control: what ignoring groups would claim


def test_paired_p_is_mcnemar_for_yes_and_no_and_a_permutation_test_for_other_values_and_groups() -> None:
    before, after = [1.0] * 9 + [0.0] * 2 + [1.0] * 20, [0.0] * 9 + [1.0] * 2 + [1.0] * 20
    alone = [str(k) for k in range(31)]
    assert s.paired_p(before, after, alone) == s.mcnemar_exact(9, 2)
    halves = s.paired_p([v / 2 for v in before], [v / 2 for v in after], alone)
    assert halves == pytest.approx(s.mcnemar_exact(9, 2))  # the permutation test of the same signs
    assert s.paired_p(before, after, ["one"] * 31) == 1.0  # one group that changed has one sign
    assert s.paired_p(before, before, alone) == 1.0
    assert s.paired_p([0.0] * 40, [0.1] * 40, [str(k) for k in range(40)]) < 0.001
    assert s.paired_p(before, after, [str(k // 3) for k in range(31)]) > s.mcnemar_exact(9, 2)


def test_over_seeds_is_wider_than_prompts_alone_where_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    groups = [str(k) for k in range(100)]
    before = [0.5] * 100
    alike = [(0.6 + 0.1 * rng.standard_normal(100)).tolist() for _ in range(3)]
    apart = [[v + shift for v in row] for row, shift in zip(alike, (-0.2, 0.0, 0.2), strict=True)]
    same, differ = (s.over_seeds([before], rows, groups) for rows in (alike, apart))
    assert same.estimate == pytest.approx(differ.estimate)
    assert same.low > 0 and not differ.low > 0
    # three seeds whose means are all that differs: Student's t with two degrees of freedom, by hand
    flat = s.over_seeds([[0.0] * 100], [[0.1] * 100, [0.2] * 100, [0.3] * 100], groups)
    assert flat.high - flat.estimate == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    # no seed differs: the prompts alone, 99 degrees of freedom
    one = rng.random(100)
    level = s.over_seeds([[0.0] * 100], [one.tolist()] * 3, groups)
    assert level.high - level.estimate == pytest.approx(1.984217 * one.std(ddof=1) / 10, rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [([[0.0] * 4], [[1.0] * 4], "abcd"), ([[0.0] * 4], [[1.0] * 4] * 2, "aaaa"), ([[0.0]] * 3, [[1.0]] * 2, "a")],
)
def test_over_seeds_needs_seeds_and_groups(before, after, groups) -> None:
    with pytest.raises(WorkbenchError, match="two seeds or more"):
        s.over_seeds(before, after, list(groups))


def test_win_rate_counts_a_tie_as_half() -> None:
    groups = [str(k) for k in range(40)]
    before, after = [0.5] * 40, [0.6] * 20 + [0.5] * 16 + [0.4] * 4
    won = s.win_rate(before, after, groups)
    assert won.estimate == pytest.approx((20 + 8) / 40) and won.low > 0.5
    assert s.win_rate(after, before, groups).estimate == pytest.approx(1 - won.estimate)
    tied = s.win_rate(before, before, groups)
    assert tied.estimate == 0.5 and tied.low < 0.5 < tied.high


def test_mean_change_has_no_bounds_and_refuses_what_is_not_finite() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(-90, 2, 50), rng.normal(-80, 2, 50)
    found = s.mean_change(before.tolist(), after.tolist())
    assert found.low < 10 < found.high and found.estimate == pytest.approx((after - before).mean())
    assert s.mean_change([1.0, 1.0], [3.0, 3.0]).low == 2.0
    for broken in ([1.0], [1.0, math.nan]):
        with pytest.raises(WorkbenchError, match="two items or more"):
            s.mean_change(broken, broken)


def _coverage():
    """benchmarks/interval_coverage.py, which is no part of the package."""
    import importlib.util
    import sys
    from pathlib import Path

    file = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_small_version_of_the_coverage_benchmark() -> None:
    bench = _coverage()
    drawn = bench.World(400).failures(np.random.default_rng(0), [0.3, 0.1])
    assert drawn.mean(axis=1) == pytest.approx([0.3, 0.1], abs=0.05)
    for clustered in (False, True):  # 150 studies: 0.95 +- 0.05 at three standard errors
        cell = bench.paired_cell(bench.World(100, clustered), 0.7, 0.15, 150, seed=5)
        assert cell["coverage"] >= 0.9
    assert bench.paired_cell(bench.World(200), 0.65, 0.15, 100, seed=6)["found"] >= 0.8
    assert bench.arms_cell(bench.World(50), 0.7, 10, 60, seed=7)["false_wins"] <= 0.1
    assert bench.share_cell(100, 0.9, 0, 0)["coverage"] == pytest.approx(0.9364, abs=1e-3)
    # the negative control: prompts of a group taken for independent ones
    world, rng, held = bench.World(100, clustered=True), np.random.default_rng(8), 0
    for study in range(150):
        place = np.arange(100) // 20
        was = np.full(100, 0.5)
        now = was + 0.2 * rng.standard_normal(5)[place]
        found = s.paired_difference(was.tolist(), now.clip(0, 1).tolist(), [str(k) for k in range(100)], seed=study)
        held += found.low <= 0 <= found.high
    assert held / 150 < 0.6 and len(set(world.groups)) == 25


def test_few_groups_of_several_prompts_get_students_t() -> None:
    """Five groups of four: with equal sizes it is the one-sample t interval of the groups' means."""
    from scipy.stats import ttest_1samp

    means = [0.0, 0.25, 0.5, 0.25, 0.25]
    after = [float(k < 4 * mean) for mean in means for k in range(4)]
    groups = [f"g{i}" for i in range(5) for _ in range(4)]
    found = s.paired_difference([0.0] * 20, after, groups)
    wanted = ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert "Student" in found.method


def test_few_groups_that_all_change_alike_get_an_interval_with_width() -> None:
    groups = [f"g{i}" for i in range(4) for _ in range(4)]
    found = s.paired_difference([0.0] * 16, [1.0, 0.0, 0.0, 0.0] * 4, groups)
    assert found.low < 0.25 < found.high and found.high - found.low > 0.1

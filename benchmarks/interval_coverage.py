"""Simulated coverage, false wins and power of the package's statistics. Writes results/coverage.json.

    python benchmarks/interval_coverage.py                # 2,000 studies per cell; 90 minutes on one core
    python benchmarks/interval_coverage.py --studies 200

A study is a test set answered by two arms with known failure rates. Answers come from a latent Gaussian variable. One
part of it belongs to the prompt (both arms find the same prompts hard). In clustered worlds, one part belongs to the
group and one to the group and the arm. Each finished cell is saved, so a stopped run continues where it was. A "floor"
is not simulated: it is the least coverage that any reasonable rule can have when few prompts change.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation import statistics as s

RESULTS = Path(__file__).parent / "results" / "coverage.json"
SIZES, PASSING = (20, 50, 100, 400), (0.5, 0.7, 0.9, 0.98)
GROUP = 4  # prompts per group in clustered worlds
GOAL = {"coverage": [0.93, 0.97], "false_wins": 0.055, "found": 0.8}


@dataclass(frozen=True)
class World:
    """The distribution of studies."""

    n: int
    clustered: bool = False

    @property
    def groups(self) -> list[str]:
        return [str(i // (GROUP if self.clustered else 1)) for i in range(self.n)]

    def failures(self, rng: np.random.Generator, rates: list[float], seed_sd: float = 0.0) -> np.ndarray:
        """0 or 1 of shape (arms, n), with the arms' true failure rates; `seed_sd` shifts whole arms at random."""
        return (self.hardness(rng, len(rates), seed_sd) < norm.ppf(rates)[:, None]).astype(float)

    def hardness(self, rng: np.random.Generator, arms: int, seed_sd: float = 0.0) -> np.ndarray:
        """Standard normal values of shape (arms, n): an arm fails where they are below the quantile of its rate."""
        place = np.arange(self.n) // GROUP
        shares = (0.2, 0.15, 0.25, 0.4) if self.clustered else (0.0, 0.0, 0.5, 0.5)
        group, group_arm, prompt, rest = np.sqrt(shares)
        latent = group * rng.standard_normal(self.n)[place] + prompt * rng.standard_normal(self.n)
        latent = latent + group_arm * rng.standard_normal((arms, self.n))[:, place]
        latent = latent + rest * rng.standard_normal((arms, self.n))
        shift = seed_sd * rng.standard_normal((arms, 1))
        wide = np.sqrt(1 + seed_sd**2)  # keeps the marginal rate
        return (latent + shift) / wide


def share_cell(n: int, passing: float, studies: int, seed: int) -> dict[str, float]:
    """Coverage of Wilson's interval of one share: an exact sum over all counts."""
    from scipy.stats import binom

    held = [(s.wilson(k, n).low <= passing <= s.wilson(k, n).high) * binom.pmf(k, n, passing) for k in range(n + 1)]
    return {"coverage": float(sum(held))}


def paired_cell(world: World, passing: float, gain: float, studies: int, seed: int) -> dict[str, float]:
    """Coverage of the paired interval, and how often a change is called clear."""
    rng = np.random.default_rng(seed)
    held = clear = width = 0.0
    for study in range(studies):
        was, now = world.failures(rng, [1 - passing + gain, 1 - passing])
        found = s.paired_difference(was.tolist(), now.tolist(), world.groups, seed=study)
        held += found.low <= -gain <= found.high
        width += found.high - found.low
        excludes = found.high < 0 or found.low > 0
        fixed, broken = int((was > now).sum()), int((now > was).sum())
        exact = excludes and s.mcnemar_exact(fixed, broken) < 0.05
        clear += exact and s.paired_p(was.tolist(), now.tolist(), world.groups) < 0.05
    seen = {"coverage": held / studies, "mean_width": width / studies}
    return seen | {("found" if gain else "false_wins"): clear / studies}


def floor_cell(n: int, passing: float, seconds: float) -> dict[str, float]:
    """The least coverage of "no difference" by any rule that only sees how many prompts changed each way.

    A rule decides for each pair of counts whether zero is excluded. It treats both directions alike, and if it excludes
    zero for some counts, it also does so for more extreme ones. (A randomized rule could cover less, but nobody would
    report its intervals.) Its false wins must stay within the goal for every share of prompts that change. The best
    such rule is the solution of an integer program. The return value is the solver's bound, so a search that is cut
    short gives a lower floor, not a wrong one.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix
    from scipy.stats import binom, multivariate_normal

    cells = [(changed, less) for changed in range(n + 1) for less in range(changed // 2 + 1)]
    place = {cell: i for i, cell in enumerate(cells)}
    changed, less = np.array(cells).T
    either_way = np.where(2 * less == changed, 1, 2) * binom.pmf(less, changed, 0.5)

    def chances(share: float) -> np.ndarray:
        return binom.pmf(changed, n, share) * either_way

    weaker = [(i, place[c]) for (m, k), i in place.items() for c in ((m + 1, k), (m, k - 1)) if c in place]
    order = lil_matrix((len(weaker), len(cells)))
    for row, (one, stronger) in enumerate(weaker):
        order[row, one], order[row, stronger] = 1, -1
    threshold = norm.ppf(1 - passing)
    both = multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([threshold, threshold])  # as in `World.failures`
    found = milp(
        -chances(2 * (1 - passing - both)),
        constraints=[
            LinearConstraint(np.array([chances(d) for d in np.linspace(0.004, 0.5, 60)]), -np.inf, GOAL["false_wins"]),
            LinearConstraint(order.tocsr(), -np.inf, 0),
        ],
        integrality=np.ones(len(cells)),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds},
    )
    return {"floor": 1 + found.mip_dual_bound}


def arms_cell(world: World, passing: float, arms: int, studies: int, seed: int) -> dict[str, float]:
    """How often at least one of several arms, all equal to the baseline, has a Holm p-value below 0.05."""
    rng, groups, wrong = np.random.default_rng(seed), world.groups, 0
    for _ in range(studies):
        base, *others = world.failures(rng, [1 - passing] * (arms + 1))
        wrong += min(s.holm([s.paired_p(base.tolist(), arm.tolist(), groups) for arm in others])) < 0.05
    return {"false_wins": wrong / studies}


def seeds_cell(world: World, seeds: int, gain: float, studies: int, seed: int) -> dict[str, float]:
    """Coverage of `over_seeds` with seeds that differ by about five points, and coverage if all answers are pooled."""
    rng, groups = np.random.default_rng(seed), world.groups
    held = pooled = 0
    for study in range(studies):
        base = world.failures(rng, [0.4])[0].tolist()
        runs = [[b] for b in world.failures(rng, [0.4 - gain] * seeds, seed_sd=0.15).tolist()]
        found = s.over_seeds([base], [run[0] for run in runs], groups)
        held += found.low <= -gain <= found.high
        one = s.paired_difference(base * seeds, sum((run[0] for run in runs), []), groups * seeds, seed=study)
        pooled += one.low <= -gain <= one.high
    return {"coverage": held / studies, "coverage_if_pooled": pooled / studies}


def harm_cell(world: World, before: list[float], after: list[float], studies: int, seed: int) -> dict[str, float]:
    """Coverage of the interval of the mean harm; the true shares of answers with a harm of at least 1, 2 and 3."""
    rng, groups, held, clear = np.random.default_rng(seed), world.groups, 0, 0
    for _ in range(studies):
        hard = world.hardness(rng, 2)
        harms = [sum(h < norm.ppf(share) for share in shares) for h, shares in zip(hard, (before, after), strict=True)]
        found, p = s.paired_change(harms[0][None], harms[1][None], groups, 3.0)
        held += found.low <= sum(after) - sum(before) <= found.high
        clear += p < 0.05 and not found.low <= 0 <= found.high
    changed = "found" if before != after else "false_wins"
    return {"coverage": held / studies, changed: clear / studies, "studies": studies}


def classes_cell(world: World, classes: int, studies: int, seed: int) -> dict[str, float]:
    """How often at least one of several classes seems to rise clearly where nothing changes.

    Half of the answers fail. A prompt fails in a class of its own in seven of ten answers, else in a random one.
    """
    rng, groups, wrong = np.random.default_rng(seed), world.groups, 0
    for _ in range(studies):
        failed, own = world.failures(rng, [0.5, 0.5]), rng.integers(classes, size=world.n)
        other = rng.integers(classes, size=(2, world.n))
        name = np.where(rng.random((2, world.n)) < 0.7, own, other)  # (arms, n)
        found = [s.paired_change(*((failed * (name == c))[:, None]), groups) for c in range(classes)]
        adjusted = s.holm([p for _, p in found])
        wrong += any(p < 0.05 and change.low > 0 for p, (change, _) in zip(adjusted, found, strict=True))
    return {"false_rises": wrong / studies, "studies": studies}


def both_seeds_cell(world: World, seeds: int, gain: float, studies: int, seed: int) -> dict[str, float]:
    """Coverage where each seed has a start of its own, so that both sides differ from seed to seed."""
    rng, groups, held = np.random.default_rng(seed), world.groups, 0
    for _ in range(studies):
        answers = world.failures(rng, [0.4] * seeds + [0.4 - gain] * seeds, seed_sd=0.15)
        found, _ = s.paired_change(answers[:seeds], answers[seeds:], groups)
        held += found.low <= -gain <= found.high
    return {"coverage": held / studies, "studies": studies}


def cells() -> dict[str, Callable[[int, int], dict[str, float]]]:
    """Name of each cell -> function of (studies, seed) that computes it."""
    made: dict[str, Callable[[int, int], dict[str, float]]] = {}
    for n, passing in product(SIZES, PASSING):
        made[f"share, n {n}, {passing}"] = lambda k, seed, a=(n, passing): share_cell(*a, k, seed)
    for clustered, n, passing in product((False, True), SIZES, PASSING):
        for gain in (0.0, 0.15) if passing >= 0.65 else (0.0,):
            kind = "clustered" if clustered else "paired"
            a = (World(n, clustered), passing, gain)
            made[f"{kind}, n {n}, {passing}, gain {gain}"] = lambda k, seed, a=a: paired_cell(*a, k, seed)
    for clustered in (False, True):
        a = (World(200, clustered), 0.65, 0.15)
        made[f"planted 15 points, n 200{', clustered' * clustered}"] = lambda k, seed, a=a: paired_cell(*a, k, seed)
    for n, clustered in ((50, False), (100, False), (400, False), (100, True)):
        b = (World(n, clustered), 0.7, 10)
        made[f"ten equal arms, n {n}{', clustered' * clustered}"] = lambda k, seed, b=b: arms_cell(*b, k, seed)
    for seeds in (3, 5):
        c = (World(100, True), seeds, 0.15)
        made[f"{seeds} seeds, n 100, clustered"] = lambda k, seed, c=c: seeds_cell(*c, k, seed)
    for n, passing in product((20, 50, 100), PASSING):
        made[f"floor, n {n}, {passing}"] = lambda k, seed, a=(n, passing): floor_cell(*a, k / 20)
    shares, inventions = [0.5, 0.3, 0.15], [0.5, 0.4, 0.3]  # harm of at least 1, 2, 3; failures stay, harm rises
    for clustered, n, after in product((False, True), (50, 200), (shares, inventions)):
        d = (World(n, clustered), shares, after)
        name = f"harm, n {n}{', clustered' * clustered}{', inventions' * (after is inventions)}"
        made[name] = lambda k, seed, d=d: harm_cell(*d, k // 4, seed)
    for clustered in (False, True):
        e = (World(200, clustered), 8)
        made[f"eight classes, n 200{', clustered' * clustered}"] = lambda k, seed, e=e: classes_cell(*e, k // 10, seed)
    for seeds in (3, 5):
        f = (World(100, True), seeds, 0.15)
        made[f"{seeds} seeds with own starts, n 100"] = lambda k, seed, f=f: both_seeds_cell(*f, k // 4, seed)
    return made


def judged(results: dict[str, dict[str, float]]) -> dict[str, Any]:
    """How many cells reach the goal, and which ones do not."""
    low, high = GOAL["coverage"]
    noise = 0.01  # two standard errors of a share near 0.95 over 2,000 studies
    covered = {name: r["coverage"] for name, r in results.items() if "coverage" in r}
    wins = {name: r["false_wins"] for name, r in results.items() if "false_wins" in r}
    return {
        "coverage_cells": len(covered),
        "coverage_inside": sum(low <= c <= high for c in covered.values()),
        "coverage_below": {name: c for name, c in covered.items() if c < low},
        "coverage_below_clearly": {name: c for name, c in covered.items() if c < low - noise},
        "coverage_above": {name: c for name, c in covered.items() if c > high},
        "false_wins_most": max(wins.values(), default=None),
        "found": {name: r["found"] for name, r in results.items() if name.startswith("planted")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results = before.get("results", {}) if before.get("studies") == studies else {}
    for seed, (name, compute) in enumerate(cells().items()):
        if name in results:
            continue
        begun = time.monotonic()
        results[name] = {key: round(value, 4) for key, value in compute(studies, seed).items()}
        print(f"{name}: {results[name]} ({time.monotonic() - begun:.0f} s)", flush=True)
        command = "python benchmarks/interval_coverage.py"
        facts = {"command": command, "date": date.today().isoformat(), "machine": describe()}
        write_json(RESULTS, {**facts, "studies": studies, "goal": GOAL, "seen": judged(results), "results": results})


if __name__ == "__main__":
    main()

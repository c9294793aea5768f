"""Simulated coverage of the intervals of `dw.preference_accuracy`. Writes results/preference_coverage.json.

    python benchmarks/preference_coverage.py              # 500 studies per cell; a few minutes on one core

A study is a set of margins with a normal distribution. In clustered cells four pairs share a prompt, and 40 % of the
variance belongs to the prompt. In cells with ties, a fifth of the margins is exactly 0.
"""

from __future__ import annotations

import argparse
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import norm

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.preference import margin_intervals

RESULTS = Path(__file__).parent / "results" / "preference_coverage.json"
SIZES, SHARES, WORLDS = (40, 80, 200), (0.5, 0.76, 0.95), ("single", "ties", "clustered")


def cell(world: str, n: int, share: float, studies: int, seed: int) -> dict[str, float]:
    """How often the two intervals contain the true share and the true mean margin."""
    rng, mean = np.random.default_rng(seed), norm.ppf(share)
    prompt = np.arange(n) // (4 if world == "clustered" else 1)
    keep = 0.8 if world == "ties" else 1.0  # of the margins that are not set to 0
    truth = keep * share + (1 - keep) / 2, keep * mean
    hits = np.zeros(2)
    for _ in range(studies):
        margins = mean + np.sqrt(0.4) * rng.standard_normal(n)[prompt] + np.sqrt(0.6) * rng.standard_normal(n)
        margins[rng.random(n) >= keep] = 0.0
        found = margin_intervals(margins.tolist(), [str(k) for k in prompt])
        hits += [interval.low <= value <= interval.high for interval, value in zip(found, truth, strict=True)]
    return {"accuracy": round(float(hits[0]) / studies, 4), "margin": round(float(hits[1]) / studies, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    studies = parser.parse_args().studies
    results = {}
    for seed, (world, n, share) in enumerate(product(WORLDS, SIZES, SHARES)):
        results[f"{world}, n {n}, {share}"] = cell(world, n, share, studies, seed)
        print(list(results.items())[-1], flush=True)
        facts = {"command": "python benchmarks/preference_coverage.py", "date": date.today().isoformat()}
        write_json(RESULTS, {**facts, "machine": describe(), "studies": studies, "results": results})


if __name__ == "__main__":
    main()

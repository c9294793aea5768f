"""Do the forecasts of `studies.learning_curve` hold what their intervals promise? Goes to results/how_much_data.json.

    python benchmarks/how_much_data.py              # simulated curves, and own runs (data_curves.json)
    python benchmarks/how_much_data.py --dev        # other simulated curves, to choose priors by

Simulated curves come from five mechanisms, none of which is a family of the forecast with its parameters on the grid:
a logistic curve in log n, a Weibull curve, two skills learned one after the other, a power law with an offset, and a
straight rise that stops. Each is seen at 8, 16, 32, 64 (some also at 128) pairs with three seeds of noise, and asked
for at twice and four times the largest size.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.statistics import wilson
from dpo_workbench.studies.learning_curve import FAMILIES, Curve, advise, forecast

RESULTS = Path(__file__).parent / "results" / "how_much_data.json"
OWN = RESULTS.with_name("data_curves.json")
N_TEST, N_DEV = 400, 200
GOAL = {"interval": 0.8, "holds_truth": [0.75, 0.85], "curves": 200}


def mechanism(name: str, rng: np.random.Generator) -> Any:
    """A function of n (pairs) in [0, 1], drawn at random."""
    start, way = rng.uniform(0.1, 0.7), rng.uniform(-0.05, 0.4)
    middle = float(np.exp(rng.uniform(np.log(5), np.log(200))))
    steep = rng.uniform(0.8, 2.5)
    early = float(np.exp(rng.uniform(np.log(3), np.log(20))))
    late = float(np.exp(rng.uniform(np.log(40), np.log(400))))
    share, offset = rng.uniform(0.3, 0.8), rng.uniform(2, 30)
    ways = {
        "logistic": lambda n: 1 / (1 + (middle / np.maximum(n, 1e-9)) ** steep),
        "weibull": lambda n: 1 - np.exp(-((n / middle) ** (0.5 * steep))),
        "two skills": lambda n: (
            share * (1 - np.exp(-n / early)) + (1 - share) / (1 + (late / np.maximum(n, 1e-9)) ** 3)
        ),
        "power": lambda n: 1 - ((n + offset) / offset) ** (-0.4 * steep),
        "straight": lambda n: np.minimum(1.0, n / (2 * middle)),
    }
    return lambda n: float(np.clip(start + way * ways[name](float(n)), 0, 1))


MECHANISMS = ("logistic", "weibull", "two skills", "power", "straight")


def simulated(count: int, seed: int) -> list[dict[str, Any]]:
    """Forecasts of `count` curves beside their truth."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(count):
        name = MECHANISMS[k % len(MECHANISMS)]
        truth, noise = mechanism(name, rng), float(np.exp(rng.uniform(np.log(0.006), np.log(0.04))))
        sizes = (0, 8, 16, 32, 64, 128)[: 5 + k % 2]
        values = [(truth(0),)] + [tuple(truth(n) + noise * rng.standard_normal(3)) for n in sizes[1:]]
        curve = Curve(sizes, tuple(tuple(float(np.clip(v, 0, 1)) for v in row) for row in values))
        for times in (2, 4):
            size = times * sizes[-1]
            rows.append(judged(f"{name}, x{times}", curve, size, truth(size), {"kind": "simulated"}))
    return rows


def judged(name: str, curve: Curve, size: int, truth: float, facts: dict[str, Any], runs: int | None = None) -> dict:
    """One forecast and whether it held, pooled and for each family alone."""
    row: dict[str, Any] = {"name": name, **facts}
    for label, only in ({"pooled": tuple(FAMILIES)} | {f: (f,) for f in FAMILIES}).items():
        seen = forecast(curve, size, runs=runs, only=only)
        row[label] = {
            "held": seen.low <= truth <= seen.high,
            "width": seen.high - seen.low,
            "error": abs(seen.estimate - truth),
        }
    told = advise(curve, size - curve.sizes[-1])
    sign = 1 if curve.higher_is_better else -1
    gain = sign * (truth - float(curve.means[-1]))
    row |= {"advice": told.decision, "gain": gain, "flagged": bool(told.forecast.flags)}
    return row


def own_runs() -> list[dict[str, Any]]:
    """Curves that were really trained: the largest size is hidden and forecast from the smaller ones."""
    rows = []
    for curve in json.loads(OWN.read_text(encoding="utf-8"))["curves"] if OWN.is_file() else []:
        for metric in ("score", "failed", "mined"):
            by_size: dict[int, list[float]] = defaultdict(list)
            for point in curve["points"]:
                by_size[point["size"]].append(point[metric])
            sizes = sorted(by_size)
            for last in range(4, len(sizes)):  # four sizes seen or more, the next ones asked for
                seen = Curve(
                    tuple(sizes[:last]), tuple(tuple(by_size[n]) for n in sizes[:last]), metric, metric == "score"
                )
                size, runs = sizes[last], by_size[sizes[last]]
                name = f"{curve['task']}, {metric}, {size}"
                rows.append(judged(name, seen, size, fmean(runs), {"kind": "own run"}, len(runs)))
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage with its own interval, width and error, pooled and by family; and what advice was worth."""
    if not rows:
        return {}
    told = {}
    for label in ("pooled", *FAMILIES):
        held = sum(row[label]["held"] for row in rows)
        share = wilson(held, len(rows))
        told[label] = {
            "holds_truth": round(share.estimate, 4),
            "low": round(share.low, 4),
            "high": round(share.high, 4),
            "mean_width": round(fmean(row[label]["width"] for row in rows), 4),
            "mean_error": round(fmean(row[label]["error"] for row in rows), 4),
        }
    advice = {}
    for decision in ("label more", "enough", "cannot tell"):
        gains = [row["gain"] for row in rows if row["advice"] == decision]
        if gains:
            advice[decision] = {
                "curves": len(gains),
                "mean_gain": round(fmean(gains), 4),
                "gained_a_point": round(fmean(g >= 0.01 for g in gains), 4),
            }
    return {"forecasts": len(rows), "flagged": sum(row["flagged"] for row in rows), **told, "advice": advice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="print the result on other curves; writes nothing")
    if parser.parse_args().dev:
        rows = simulated(N_DEV, seed=1)
        print(json.dumps(summary(rows), indent=1))
        for name in sorted({row["name"] for row in rows}):
            part = [row for row in rows if row["name"] == name]
            print(
                name,
                round(fmean(r["pooled"]["held"] for r in part), 3),
                round(fmean(r["pooled"]["width"] for r in part), 3),
            )
        return
    rows, own = simulated(N_TEST, seed=2), own_runs()
    facts = {"command": "python benchmarks/how_much_data.py", "date": date.today().isoformat(), "machine": describe()}
    named = {name: [r for r in rows if r["name"] == name] for name in sorted({r["name"] for r in rows})}
    parts = {name: round(fmean(r["pooled"]["held"] for r in part), 4) for name, part in named.items()}
    results = {"simulated": summary(rows), "by_mechanism": parts, "own_runs": summary(own), "all": summary(rows + own)}
    write_json(RESULTS, {**facts, "goal": GOAL, "results": results})


if __name__ == "__main__":
    main()

"""Learning curves of `nano`, for notebook 13: benchmarks/results/data_curves.json.

    python research/data_curves.py                   # four tasks, five sizes, three seeds: about half an hour
    python research/data_curves.py --task python

The pairs are those that the demo's recipe mines; the prompts that are answered are dev prompts. Each run is kept in
`work/curves`, so a stopped script goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.mining.sample import Found
from dpo_workbench.studies.learning_curve import learning_curve
from dpo_workbench.studies.recipe import recipe_for

ROOT = Path(__file__).resolve().parent.parent
RESULTS, WORK = ROOT / "benchmarks" / "results" / "data_curves.json", ROOT / "work" / "curves"
TASKS, SIZES, SEEDS, PROMPTS = ("python", "science", "briefs", "receipts"), (4, 8, 16, 32, 64), (0, 1, 2), 120


def curve_of(name: str) -> dict[str, Any]:
    """One task's curve, small enough to commit."""
    task, recipe = dw.load_task(name), recipe_for("nano", name)
    start = dw.load_model("nano", adapter=name)
    file = WORK / name / "mined.json"
    if not file.is_file():
        prompts = task.train[recipe.mine_from :][:200]
        found = dw.mine(start, prompts, recipe.samples, temperature=recipe.temperature)
        dw.branch(start, found, recipe.target, per_prompt=recipe.per_prompt).save(file)
    found = Found.load(file, task)
    pairs = found.pairs(per_prompt=recipe.per_prompt, classes=recipe.target, use_reference=False, most=SIZES[-1])
    config = replace(recipe.dpo, probes=0)
    sizes = [n for n in SIZES if n <= len(pairs)]
    given = {"sizes": sizes, "seeds": SEEDS, "folder": WORK / name}
    curves = {
        "score": learning_curve(start, pairs, task.dev[:PROMPTS], config, **given),
        "mined": learning_curve(start, pairs, task.dev[:PROMPTS], config, target=recipe.target, show=False, **given),
    }
    points = [point(WORK / name, size, seed, recipe.target) for size, seed in [(0, 0), *product(sizes, SEEDS)]]
    advice = {measure: str(curve.advice()) for measure, curve in curves.items()}
    return {"task": name, "model": "nano", "pairs": len(pairs), "points": points, "advice": advice}


def point(folder: Path, size: int, seed: int, target: Sequence[str]) -> dict[str, Any]:
    """Score and failure shares of one run."""
    done = dw.Evaluation.load(folder / f"{size}-{seed}.json")
    mined = sum(done.interval(failure).estimate for failure in target)
    return {"size": size, "seed": seed, "score": done.mean_score, "failed": done.failed_share, "mined": mined}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS)
    args = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["curves"] if RESULTS.is_file() else []
    facts = {"command": "python research/data_curves.py", "date": date.today().isoformat(), "machine": describe()}
    for name in [args.task] if args.task else TASKS:
        known = [c for c in known if c["task"] != name] + [curve_of(name)]
        write_json(RESULTS, {**facts, "seeds": SEEDS, "prompts": PROMPTS, "curves": known})


if __name__ == "__main__":
    main()

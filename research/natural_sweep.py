"""Settings for DPO on a model's own failures, compared on dev prompts: benchmarks/results/natural_sweep.json.

    python research/natural_sweep.py long_answers                    # all cells, for hours; a stopped sweep continues
    python research/natural_sweep.py long_answers --only sft-3e-4 dpo-1e-4 --mine 48 --dev 70

All cells share the mined answers in `work/natural-sweep`. A cell changes one thing of the recipe, trains, and answers
the dev prompts greedily. The test prompts are never read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.studies.recipe import NATURAL, recipe_for
from dpo_workbench.studies.study import Study, open_study

ROOT = Path(__file__).resolve().parent.parent
RESULTS, WORK = ROOT / "benchmarks" / "results" / "natural_sweep.json", ROOT / "work" / "natural-sweep"
# cell -> what differs from the recipe: settings of training ("sft": fine-tune on the chosen answers), or of the pairs
CELLS: dict[str, dict[str, Any]] = {
    "sft-1e-4": {"sft": True, "lr": 1e-4},
    "dpo-1e-4": {},
    "sft-3e-4": {"sft": True, "lr": 3e-4},
    "dpo-2e-4": {"lr": 2e-4},
    "sft-1e-3": {"sft": True, "lr": 1e-3},
    "dpo-5e-5": {"lr": 5e-5},
    "nll-0": {"nll_weight": 0.0},
    "nll-1": {"nll_weight": 1.0},
    "beta-0.05": {"beta": 0.05},
    "beta-0.3": {"beta": 0.3},
    "ipo": {"loss": "ipo"},
    "length-normalized": {"loss": "sigmoid_norm", "beta": 2.0},
    "two-epochs": {"epochs": 2},
    "sft-two-epochs": {"sft": True, "lr": 3e-4, "epochs": 2},
    "half-the-pairs": {"share": 0.5},
    "one-pair-per-prompt": {"per_prompt": 1},
    "gap-0.4": {"gap": 0.4},
    "only-passing-chosen": {"gap": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=NATURAL)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--mine", type=int, help="prompts to mine (default: the recipe's)")
    parser.add_argument("--dev", type=int, default=70, help="dev prompts that every cell answers")
    args = parser.parse_args()
    task = dw.load_task(args.task)
    recipe = recipe_for("smol", task)
    recipe = replace(recipe, mine_prompts=args.mine or recipe.mine_prompts, test_prompts=args.dev)
    study = open_study("smol", task, WORK / args.task, split="dev", recipe=recipe)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    cells = results.setdefault(args.task, {})
    for name in ("start", *args.only):
        if name not in cells:
            cells[name] = run_cell(study, name, dict(CELLS.get(name, {})))
            write_json(RESULTS, results)
        print(name, cells[name]["failures"], f"score {cells[name]['mean_score']:.3f}", flush=True)


def run_cell(study: Study, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Train with the changed settings and answer the dev prompts."""
    facts: dict[str, Any] = {"command": f"python {' '.join(['research/natural_sweep.py', *sys.argv[1:]])}"}
    facts |= {"date": date.today().isoformat(), "machine": describe()}
    if name == "start":
        facts |= {"mined": dict(study.found.failures), "greedy_mined": dict(study.found.greedy_failures)}
        return dw.evaluate(study.base, study.test, name=name).summary() | facts
    pairs, changes = cell_pairs(study, changes)
    train = dw.sft if changes.pop("sft", False) else dw.train
    config = replace(study.recipe.dpo, probes=0, **changes)
    if train is dw.sft:
        config = replace(config, nll_weight=0.0)
    run = train(study.base, pairs, config)
    done = dw.evaluate(run.model, study.test, name=name)
    facts |= {"changes": changes, "pairs": len(pairs), "steps": len(run.history), "last": run.history[-1]}
    return done.summary() | facts | {"train_seconds": round(run.seconds)}


def cell_pairs(study: Study, changes: dict[str, Any]) -> tuple[dw.Pairs, dict[str, Any]]:
    """The pairs of a cell, and what is left of its changes."""
    recipe, share = study.recipe, changes.pop("share", 1.0)
    how = {key: changes.pop(key, getattr(recipe, key)) for key in ("per_prompt", "gap")}
    pairs = study.found.pairs(use_reference=False, most=recipe.max_pairs, **how)
    return pairs[: max(1, int(share * len(pairs)))], changes


if __name__ == "__main__":
    main()

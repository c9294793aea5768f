"""DPO next to its control on failures nobody planted, with `smol` as downloaded: benchmarks/results/natural.json.

    python research/natural.py long_answers                          # three seeds, for hours
    python research/natural.py long_answers --seeds 0 --mine 64 --test 80
    python research/natural.py instructions --ifeval FOLDER/ifeval.jsonl

Every step is kept in `work/natural`, so a stopped run continues where it was. Learning rates and decoding rules are
chosen on dev; the test prompts are answered once by each arm.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.models.loading import load_adapter
from dpo_workbench.studies.compare import Comparison, compare
from dpo_workbench.studies.recipe import NATURAL, recipe_for
from dpo_workbench.tasks.instructions import ifeval

ROOT = Path(__file__).resolve().parent.parent
RESULTS, WORK = ROOT / "benchmarks" / "results" / "natural.json", ROOT / "work" / "natural"
ARMS = ("start", "control", "DPO+NLL", "DPO", "repetition penalty", "no repeated n-grams", "finished of 4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=NATURAL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mine", type=int, help="prompts to mine (default: the recipe's)")
    parser.add_argument("--test", type=int, help="test prompts (default: the recipe's)")
    parser.add_argument("--probe", type=int, help="dev prompts that choose adapters (default: the recipe's)")
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--ifeval", type=Path, help="a file of IFEval's rows, which the trained arms answer as well")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    args = parser.parse_args()
    sizes = {"mine_prompts": args.mine, "test_prompts": args.test, "probe_prompts": args.probe}
    task = dw.load_task(args.task)
    recipe = replace(recipe_for("smol", task), **{key: n for key, n in sizes.items() if n})
    name = "-".join([args.task, args.split, *(f"{key}={n}" for key, n in sizes.items() if n)])
    done = compare(task, args.arms, model="smol", recipe=recipe, split=args.split, folder=WORK / name, seeds=args.seeds)
    print(done, done.verdict(), sep="\n\n")
    record(name, done, recipe)
    if args.ifeval:
        elsewhere = on_ifeval(args.ifeval, [WORK / name, *(WORK / name / f"seed-{seed}" for seed in args.seeds[1:])])
        print(elsewhere, elsewhere.verdict(), sep="\n\n")
        record(f"{name} on IFEval", elsewhere, recipe)


def on_ifeval(path: Path, folders: list[Path]) -> Comparison:
    """The arms that were trained on another task, on IFEval's prompts: one folder for each seed."""
    split, base, runs = ifeval(path).test, dw.load_model("smol"), []
    for folder in folders:
        arms: dict[str, dw.Evaluation] = {}
        for name, stage in {"start": "", "control": "control", "DPO+NLL": "dpo+nll", "DPO": "dpo"}.items():
            adapter, file = folder / stage / "adapter", folder / "ifeval" / f"{name}.json"
            if name == "start":
                file = folders[0] / "ifeval" / "start.json"  # greedy, so the same for all seeds
            elif not adapter.is_dir():
                continue
            if not file.is_file():
                model = load_adapter(base, adapter) if stage else base
                dw.evaluate(model, split, name=name).save(file)
            arms[name] = dw.Evaluation.load(file)
        runs.append(arms)
    return Comparison(tuple(runs), {}, {})


def record(name: str, done: Comparison, recipe: Any) -> None:
    """Add a run to the results file."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    decided = done.verdict()
    results[name] = {
        "arms": [{arm: run.summary() for arm, run in runs.items()} for runs in done.runs],
        "comparison": done.rows(),
        "holes": done.holes,
        "verdict": {"outcome": decided.outcome, "text": str(decided), "numbers": decided.numbers},
        "costs": {arm: asdict(cost) for arm, cost in done.costs.items()},
        "recipe": asdict(recipe),
        "command": f"python {' '.join(['research/natural.py', *sys.argv[1:]])}",
        "machine": describe(),
        "date": date.today().isoformat(),
    }
    write_json(RESULTS, results)


if __name__ == "__main__":
    main()

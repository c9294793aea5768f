"""Try DPO settings on dev prompts, from the shipped fine-tuned adapter: results/sweep-MODEL.json.

    python benchmarks/sweep.py nano

Each setting trains on the same mined samples and answers the same dev prompts. A finished setting is read, not run
again. The test split is not touched.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import dpo_workbench as dw
from dpo_workbench.evaluation.demo import RECIPES
from dpo_workbench.mining.sample import Found
from dpo_workbench.runtime.run_folder import write_json

RESULTS = Path(__file__).parent / "results"


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and changes of each setting; pairs of the recipe's classes (`target`), or of all (`all`)."""
    yield "the recipe", {"pairs": "target"}
    for lr in (2e-4, 1e-3):
        yield f"lr {lr:g}", {"pairs": "target", "lr": lr}
    yield "nll_weight 0", {"pairs": "target", "nll_weight": 0.0}
    yield "pairs of all classes", {"pairs": "all"}
    yield "pairs of all classes, even in length", {"pairs": "even"}
    yield "control: SFT on the chosen", {"pairs": "target", "control": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--work", type=Path, default=Path("work/sweep"))
    args = parser.parse_args()
    recipe, task = RECIPES[args.model], dw.load_task("receipts")
    target = RESULTS / f"sweep-{args.model}.json"
    done = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    model = dw.load_model(args.model, adapter="receipts")
    mined = args.work / f"mined-{args.model}.json"
    if not mined.is_file():
        prompts = task.train[recipe.mine_from :][: recipe.mine_prompts]
        dw.mine(model, prompts, recipe.samples, temperature=recipe.temperature).save(mined)
    found = Found.load(mined, task)
    every = found.pairs(per_prompt=recipe.per_prompt)
    sets = {
        "target": found.pairs(per_prompt=recipe.per_prompt, classes=recipe.classes, most=recipe.max_pairs),
        "all": found.pairs(per_prompt=recipe.per_prompt, most=recipe.max_pairs),
        "even": every.even(recipe.max_pairs),
    }
    before = dw.evaluate(model, task.dev, name="sft")
    done["start"] = before.summary() | {"machine": dw.describe(), "date": date.today().isoformat(), "seed": 0}
    for name, change in settings():
        if name in done:
            continue
        change = dict(change)
        chosen, control = sets[change.pop("pairs")], change.pop("control", False)
        config = replace(recipe.dpo, probes=0, **change)
        run = (dw.sft if control else dw.train)(model, chosen, config, probe=None)
        after = dw.evaluate(run.model, task.dev, name=name)
        done[name] = after.summary() | {
            "pairs": chosen.summary(),
            "last_step": run.history[-1],
            "target_failures": dw.verdict(before, after, mined=recipe.target).numbers["mined"],
        }
        write_json(target, done)
        print(name, "->", dict(after.failures), f"score {after.mean_score:.3f}", flush=True)


if __name__ == "__main__":
    main()

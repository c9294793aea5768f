"""Try DPO settings on dev prompts, from the shipped fine-tuned adapter: results/sweep-MODEL.json.

    python benchmarks/sweep.py nano
    python benchmarks/sweep.py nano --rates     # the control's learning rate on the demo's task

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
from dpo_workbench.common.files import write_json
from dpo_workbench.mining.sample import Found
from dpo_workbench.studies.recipe import DEMO_SIZES, DEMO_TASKS, RECIPES, Recipe, recipe_for

RESULTS = Path(__file__).parent / "results"
FACTORS = {"nano": (2 / 3, 5 / 3), "smol": (2, 4)}  # of the recipe's learning rate


def settings(model: str, recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and changes of each setting; pairs with `branched` endings, or of `whole` samples alone."""
    for factor in FACTORS[model]:
        yield f"lr {factor * recipe.dpo.lr:g}", {"lr": factor * recipe.dpo.lr}
    yield "the recipe", {}
    yield "nll_weight 0", {"nll_weight": 0.0}
    yield "pairs of whole samples, references where none passes", {"pairs": "whole"}
    yield "control: SFT on the chosen", {"control": True}


def learning_rates(model: str, work: Path) -> dict[str, Any]:
    """The learning rate of the control that `compare` chooses for the demo's task, on all dev prompts."""
    task = dw.load_task(DEMO_TASKS.get(model, "receipts"))
    sizes = DEMO_SIZES[model] if model in DEMO_TASKS else {}
    recipe = replace(recipe_for(model, task), **sizes | {"control_lr": None, "probe_prompts": len(task.dev)})
    given = {"model": model, "recipe": recipe, "split": "dev", "folder": work / f"rates-{model}"}
    dw.compare(task.name, ["start", "control"], **given)
    results = json.loads((work / f"rates-{model}" / "results.json").read_text(encoding="utf-8"))
    facts = {"task": task.name, "split": "dev", "n": len(task.dev), "seed": 0, "date": date.today().isoformat()}
    command = f"python benchmarks/sweep.py {model} --rates"
    return facts | {"command": command, "machine": dw.describe(), "tuning": results["tuning"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--prompts", type=int, default=200, help="of dev")
    parser.add_argument("--work", type=Path, default=Path("work/sweep"))
    parser.add_argument("--rates", action="store_true", help="only the control's learning rate")
    args = parser.parse_args()
    target = RESULTS / f"sweep-{args.model}.json"
    done = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    if args.rates:
        write_json(target, done | {"learning rates": learning_rates(args.model, args.work)})
        return
    recipe, task = RECIPES[args.model], dw.load_task("receipts")
    model = dw.load_model(args.model, adapter="receipts")
    mined = args.work / f"mined-{args.model}.json"
    if not mined.is_file():
        prompts = task.train[recipe.mine_from :][: recipe.mine_prompts]
        whole = dw.mine(model, prompts, recipe.samples, temperature=recipe.temperature)
        dw.branch(model, whole, recipe.target).save(mined)
    found = Found.load(mined, task)
    plain = tuple((e, tuple(replace(s, better=None) for s in samples)) for e, samples in found.rows)
    chosen = {"per_prompt": recipe.per_prompt, "classes": recipe.target, "most": recipe.max_pairs}
    sets = {
        "branched": found.pairs(**chosen, use_reference=False),
        "whole": replace(found, rows=plain).pairs(**chosen),
    }
    dev = task.dev[: args.prompts]
    before = dw.evaluate(model, dev, name="sft")
    done["start"] = before.summary() | {"machine": dw.describe(), "date": date.today().isoformat(), "seed": 0}
    for name, change in settings(args.model, recipe):
        if name in done:
            continue
        change = dict(change)
        pairs, control = sets[change.pop("pairs", "branched")], change.pop("control", False)
        config = replace(recipe.dpo, probes=0, **change)
        run = (dw.sft if control else dw.train)(model, pairs, config)
        after = dw.evaluate(run.model, dev, name=name)
        done[name] = after.summary() | {
            "pairs": pairs.summary(),
            "last_step": run.history[-1],
            "target_failures": dw.verdict(before, after, mined=recipe.target).numbers["mined"],
        }
        write_json(target, done)
        print(name, "->", dict(after.failures), f"score {after.mean_score:.3f}", flush=True)


if __name__ == "__main__":
    main()

"""Make a shipped adapter by supervised fine-tuning: data/adapters/MODEL-TASK, with the recipe's rows and settings.

    python research/train_adapters.py nano --task briefs --last
    python research/train_adapters.py nano --prompts 1600:2080 --epochs 1 --lr 1e-3 --last --start work/nano-before

The commands of the shipped ones stand in their training.json. So does the dev score on the way, so that anyone can see
whether the curve was flat.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

import dpo_workbench as dw
from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.files import write_json
from dpo_workbench.studies.recipe import RECIPES, recipe_for
from dpo_workbench.training.config import SFT_CONFIG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--task", default="receipts")
    parser.add_argument("--prompts", help="a slice of the training split, such as :240; the recipe's by default")
    parser.add_argument("--lr", type=float, help="the recipe's by default")
    parser.add_argument("--epochs", type=int, help="the recipe's by default")
    parser.add_argument("--last", action="store_true", help="keep the last adapter: labels may teach what dev punishes")
    parser.add_argument("--start", type=Path, help="go on from this adapter")
    parser.add_argument("--out", type=Path, help="data/adapters/MODEL-TASK by default")
    args = parser.parse_args()
    recipe, task = recipe_for(args.model, args.task), dw.load_task(args.task)
    first, _, last = (args.prompts or f":{recipe.sft_prompts}").partition(":")
    rows = task.train[int(first) if first else None : int(last) if last else None]
    config = replace(
        recipe.sft,
        lr=args.lr or recipe.sft.lr,
        epochs=args.epochs or recipe.sft.epochs,
        probes=0 if args.last else SFT_CONFIG.probes,
    )
    out = args.out or data_folder() / "adapters" / f"{args.model}-{args.task}"
    model = dw.load_model(args.model, adapter=args.start)
    run = dw.sft(model, rows, config, probe=task.dev[: recipe.probe_prompts], folder=f"work/{out.name}")
    run.model.save(out, dtype=torch.bfloat16)
    note = {
        "command": " ".join(["python", *sys.argv]),
        "prompts": len(rows),
        "config": config.to_dict(),
        "probes": run.probes,
        "loss": [round(h["loss"], 4) for h in run.history],
        "seconds": round(run.seconds),
        "machine": dw.describe(),
    }
    write_json(out / "training.json", note)
    print(run)


if __name__ == "__main__":
    main()

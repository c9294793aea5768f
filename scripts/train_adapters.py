"""Make the shipped adapters: `python scripts/train_adapters.py nano smol` -> data/adapters/MODEL-receipts.

Supervised fine-tuning on the first prompts of the training split, as the demo does with --from-scratch. The dev score
on the way goes into training.json beside the weights, so that anyone can see whether the curve was flat.
"""

from __future__ import annotations

import argparse
import sys

import torch

import dpo_workbench as dw
from dpo_workbench.evaluation.demo import RECIPES
from dpo_workbench.runtime.environment import data_folder
from dpo_workbench.runtime.run_folder import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(RECIPES))
    parser.add_argument("--task", default="receipts")
    parser.add_argument("--work", default="work/adapters", help="folder for checkpoints; a stopped run goes on there")
    args = parser.parse_args()
    task = dw.load_task(args.task)
    for name in args.models:
        recipe = RECIPES[name]
        run = dw.sft(
            dw.load_model(name),
            task.train[: recipe.sft_prompts],
            recipe.sft,
            probe=task.dev[: recipe.probe_prompts],
            folder=f"{args.work}/{name}-{args.task}",
        )
        folder = run.model.save(data_folder() / "adapters" / f"{name}-{args.task}", dtype=torch.bfloat16)
        note = {
            "command": " ".join(["python", *sys.argv]),
            "prompts": recipe.sft_prompts,
            "config": recipe.sft.to_dict(),
            "probes": run.probes,
            "loss": [round(h["loss"], 4) for h in run.history],
            "seconds": round(run.seconds),
            "machine": dw.describe(),
        }
        write_json(folder / "training.json", note)
        print(run)


if __name__ == "__main__":
    main()

"""Measure what flipped labels cost, and how much the robust loss recovers: benchmarks/results/label_noise.json.

    python research/label_noise.py            # nano on receipts; finished cells are reused from work/label_noise

The pairs are those of the demo. A share of them is flipped at random, as if raters had been careless, and the robust
loss is told that share. Failures of the mined class are counted on dev prompts.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import date
from pathlib import Path

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.studies.recipe import RECIPES

ROOT = Path(__file__).resolve().parent.parent
MINED = 64  # prompts
RESULTS, WORK = ROOT / "benchmarks" / "results" / "label_noise.json", ROOT / "work" / "label_noise"
SHARES, LOSSES, SEEDS, PROMPTS = (0.0, 0.1, 0.2, 0.3, 0.4), ("sigmoid", "robust"), (0, 1, 2), 96


def flipped(pairs: dw.Pairs, share: float, seed: int) -> dw.Pairs:
    """The pairs, each with its answers swapped with this probability."""
    rng = random.Random(f"{share} {seed}")
    return dw.Pairs(
        [
            replace(p, chosen=p.rejected, rejected=p.chosen, rejected_finished=True) if rng.random() < share else p
            for p in pairs
        ],
        pairs.task,
    )


def main() -> None:
    recipe, task = RECIPES["nano"], dw.load_task("receipts")
    start = dw.load_model("nano", adapter="receipts")
    dev = task.dev[:PROMPTS]
    found = dw.mine(start, task.train[recipe.mine_from :][:MINED], recipe.samples, show=False,
                    temperature=recipe.temperature)  # fmt: skip
    found = dw.branch(start, found, recipe.target, per_prompt=recipe.per_prompt, show=False)
    pairs = found.pairs(per_prompt=recipe.per_prompt, classes=recipe.target, use_reference=False, most=recipe.max_pairs)
    before = dw.evaluate(start, dev, show=False)

    def mined(evaluation: dw.Evaluation) -> int:
        return sum(evaluation.summary()["failures"].get(name, 0) for name in recipe.target)

    rows = []
    for share in SHARES:
        for loss in LOSSES if share else LOSSES[:1]:
            after, scores = [], []
            for seed in SEEDS:
                file = WORK / f"{share}-{loss}-{seed}.json"
                if not file.is_file():
                    smoothing = share if loss == "robust" else 0.0
                    config = replace(recipe.dpo, loss=loss, label_smoothing=smoothing, seed=seed, probes=0)
                    run = dw.train(start, flipped(pairs, share, seed), config, show=False)
                    done = dw.evaluate(run.model, dev, show=False)
                    write_json(file, {"mined": mined(done), "score": done.mean_score, "failed": done.n_failed})
                cell = json.loads(file.read_text())
                after.append(cell["mined"])
                scores.append(cell["score"])
            row = {
                "flipped": share, "loss": loss, "pairs": len(pairs), "prompts": PROMPTS, "before": mined(before),
                "after": after, "after_mean": sum(after) / len(after), "score_before": round(before.mean_score, 4),
                "score_after": [round(s, 4) for s in scores],
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    facts = {"command": "python research/label_noise.py", "seeds": list(SEEDS), "date": date.today().isoformat()}
    write_json(RESULTS, {**facts, "machine": describe(), "rows": rows})


if __name__ == "__main__":
    main()

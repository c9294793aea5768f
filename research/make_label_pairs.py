"""Write data/labelling/python_pairs.jsonl: pairs of answers of `smol` to programming tasks, for people to judge.

    python research/make_label_pairs.py ADAPTER    # an adapter of smol for the task python, by research/domain_table.py

The prompts are training prompts that fine-tuning has not seen. The answers are sampled at temperature 1.
"""

from __future__ import annotations

import sys

import dpo_workbench as dw
from dpo_workbench.common.environment import data_folder

PAIRS, PROMPTS = 24, 60


def main() -> None:
    task = dw.load_task("python")
    model = dw.load_model("smol", adapter=sys.argv[1])
    found = dw.mine(model, task.train[800 : 800 + PROMPTS], samples=4, temperature=1.0, seed=0)
    rows = []
    for example, drawn in found.rows:
        texts = {s.text.strip(): s for s in drawn if s.finished and s.text.strip()}
        ordered = sorted(texts.values(), key=lambda s: -s.value)
        if len(ordered) < 2 or len(rows) == PAIRS:
            continue
        best, worst = ordered[0], ordered[-1]
        rows.append(
            dw.Pair(
                f"python-{len(rows)}",
                example.prompt,
                best.text,
                worst.text,
                "own",
                "own",
                best.value,
                worst.value,
                worst.failure,
                example.group,
            )  # fmt: skip
        )
    path = dw.Pairs(rows).save(data_folder() / "labelling" / "python_pairs.jsonl")
    print(f"{len(rows)} pairs: {path}")


if __name__ == "__main__":
    main()

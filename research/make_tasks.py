"""Write data/<task>/{train,dev,test}.jsonl of built-in tasks: `python research/make_tasks.py [python science ...]`.

It prints the table of sizes for the datasheets, with tokens as `smol` counts them.
"""

from __future__ import annotations

import importlib
import sys

from generators.habits import with_labels
from generators.write import write_examples

from dpo_workbench.common.environment import data_folder
from dpo_workbench.models.loading import load_model
from dpo_workbench.tasks.builtin import PLANTED
from dpo_workbench.tasks.task import Example

NAMES = ("python", "science", "briefs", "sql", "long_answers", "instructions")


def table(rows: dict[str, list[Example]]) -> str:
    """Examples, groups, tokens of prompts and references by split, as Markdown."""
    model = load_model("smol")
    lines = [
        "| split | examples | groups | prompt tokens, mean / most | answer tokens, mean / most |",
        "|---|---|---|---|---|",
    ]
    for split, examples in rows.items():
        counts = (
            [len(model.chat.prompt_ids(e.prompt)) for e in examples],
            [len(model.chat.answer_ids(e.prompt, e.reference)) for e in examples],
        )
        cells = " | ".join(f"{sum(c) / len(c):.0f} / {max(c)}" for c in counts)
        lines.append(f"| {split} | {len(examples)} | {len({e.group for e in examples})} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        generator = importlib.import_module(f"generators.{name}_tasks")
        if hasattr(generator, "make_databases"):
            generator.make_databases(data_folder() / name)
        rows = {
            split: generator.make_examples(split, n, generator.SEEDS[split]) for split, n in generator.SIZES.items()
        }
        if name in PLANTED:
            rows["train"] = with_labels(name, rows["train"])
        for split, examples in rows.items():
            write_examples(data_folder() / name / f"{split}.jsonl", examples)
        print(f"{name}\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()

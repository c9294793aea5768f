"""Write data/<task>/{train,dev,test}.jsonl of a built-in task: `python scripts/make_tasks.py python science briefs sql`."""

from __future__ import annotations

import importlib
import sys

from dpo_workbench.runtime.environment import data_folder
from dpo_workbench.tasks.task import write_examples

NAMES = ("python", "science", "briefs", "sql")


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        generator = importlib.import_module(f"generators.{name}_tasks")
        if hasattr(generator, "make_databases"):
            generator.make_databases(data_folder() / name)
        for split, n in generator.SIZES.items():
            examples = generator.make_examples(split, n, generator.SEEDS[split])
            write_examples(data_folder() / name / f"{split}.jsonl", examples)
            print(f"{name} {split}: {len(examples)} examples in {len({e.group for e in examples})} groups")


if __name__ == "__main__":
    main()

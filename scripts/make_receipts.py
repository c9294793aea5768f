"""Write data/receipts/{train,dev,test}.jsonl: `python scripts/make_receipts.py`."""

from dpo_workbench.runtime.environment import data_folder
from dpo_workbench.tasks.receipts_generator import SEEDS, make_examples
from dpo_workbench.tasks.task import write_examples

SIZES = {"train": 2480, "dev": 200, "test": 320}

if __name__ == "__main__":
    for split, n in SIZES.items():
        path = data_folder() / "receipts" / f"{split}.jsonl"
        write_examples(path, make_examples(split, n, seed=SEEDS[split]))
        print(f"{split}: {n} examples")

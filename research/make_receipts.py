"""Write data/receipts/{train,dev,test}.jsonl: `python research/make_receipts.py`."""

from generators.receipts_tasks import SEEDS, make_examples
from generators.write import write_examples

from dpo_workbench.common.environment import data_folder

SIZES = {"train": 2480, "dev": 200, "test": 320}

if __name__ == "__main__":
    for split, n in SIZES.items():
        path = data_folder() / "receipts" / f"{split}.jsonl"
        write_examples(path, make_examples(split, n, seed=SEEDS[split]))
        print(f"{split}: {n} examples")

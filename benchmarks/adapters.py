"""What the shipped fine-tuned adapters get right on dev, before any preference: results/adapters.json.

python benchmarks/adapters.py                   # all; a few minutes, most of them for smol
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import dpo_workbench as dw
from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.files import write_json

RESULTS = Path(__file__).parent / "results" / "adapters.json"
GOAL = [0.3, 0.8]  # share of dev prompts that a fine-tuned `nano` should pass


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    seen = {}
    for folder in sorted((data_folder() / "adapters").glob("*-*")):
        name, _, task = folder.name.partition("-")
        done = dw.evaluate(dw.load_model(name, adapter=folder), dw.load_task(task).dev, name="SFT")
        seen[folder.name] = done.summary()
        print(f"{folder.name}: {100 * (1 - done.failed_share):.1f} % of {done.n} pass, score {done.mean_score:.3f}")
    facts = {"command": "python benchmarks/adapters.py", "date": date.today().isoformat(), "machine": dw.describe()}
    write_json(RESULTS, {**facts, "goal": GOAL, "adapters": seen})


if __name__ == "__main__":
    main()

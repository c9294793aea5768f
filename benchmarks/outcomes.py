"""Outcomes of the verdict on runs recorded with its earlier rules: results/outcomes.json and docs/results.md.

    python benchmarks/outcomes.py
    python benchmarks/outcomes.py --first FOLDER     # also record the answers of a run folder of the first demo

results/domains.json has counts of each arm, not single answers. How many prompts moved into or out of a class is
therefore unknown, and each test is done twice: with the fewest moves that the counts allow, and with the most. If both
give the same outcome, it is the one that the answers would give. Intervals and p-values of failures and score were
recorded, and so were the moves of the class that training aimed at.

The demo of the first edition was run again from its commit (809684f) with seed 0. Its answers have the recorded counts
in every class of every arm. results/first_demo.json has their scores and failure classes, so its verdict is exact.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json, write_text
from dpo_workbench.evaluation.run import Evaluation, Judged
from dpo_workbench.evaluation.statistics import holm, mcnemar_exact
from dpo_workbench.evaluation.verdict import Verdict, decide, verdict
from dpo_workbench.tasks.builtin import load_task

RESULTS = Path(__file__).parent / "results"
OLD_NAMES = {"base": "base", "sft": "start", "sft+sft on chosen": "control", "sft+dpo": "DPO+NLL"}


def record_first(folder: Path) -> None:
    """Write scores and failure classes of a run of the first demo, if its counts are those that were recorded."""
    counts = {arm["name"]: arm["failures"] for arm in recorded_cell("nano", "receipts", 0)["arms"].values()}
    arms = {name: Evaluation.load(folder / "evaluations" / f"{name}.json") for name in OLD_NAMES}
    if any(dict(arms[name].failures) != counts[name] for name in arms):
        raise SystemExit("The counts of this run are not the recorded ones.")
    rows = {
        OLD_NAMES[name]: [[row.id, row.group, row.value, row.failure] for row in arm.rows] for name, arm in arms.items()
    }
    command = "dpo-workbench demo --model nano, at commit 809684f"
    facts = {"command": command, "seed": 0, "date": date.today().isoformat(), "machine": describe()}
    facts |= {"columns": ["id", "group", "score", "failure"], "rows": rows}
    text = json.dumps(facts, indent=1).replace(",\n    ", ", ").replace("[\n    ", "[").replace("\n   ]", "]")
    write_text(RESULTS / "first_demo.json", text + "\n")


def first_demo() -> Verdict:
    """The verdict on the demo of the first edition."""
    rows = json.loads((RESULTS / "first_demo.json").read_text(encoding="utf-8"))["rows"]
    harm = load_task("receipts").harm
    arms = {
        name: Evaluation(
            name, "receipts", "test", "nano", {},
            tuple(Judged(i, group, i, failure or "", 0, True, value, failure, "") for i, group, value, failure in of),
            harm=harm,
        )
        for name, of in rows.items()
    }  # fmt: skip
    mined = ["missing_field"]
    return verdict(arms["start"], arms["DPO+NLL"], control=arms["control"], base=arms["base"], mined=mined)


def recorded_cell(model: str, task: str, seed: int) -> dict[str, Any]:
    cells = json.loads((RESULTS / "domains.json").read_text(encoding="utf-8"))
    return next(c for c in cells if (c["model"], c["task"], c["seed"]) == (model, task, seed))


def clear(change: dict[str, Any], p: float) -> int:
    difference = change["difference"]
    return (int(difference["low"] > 0) - int(difference["high"] < 0)) * int(p < 0.05)


def compared(old: dict[str, Any], new: dict[str, Any], recorded: dict[str, Any], harm: dict[str, float], most: bool):
    """What `verdict` has for two arms, from their counts; `most`: as many prompts moved as the counts allow."""
    n, names = old["n"], sorted(old["failures"].keys() | new["failures"].keys())
    counts = {name: (old["failures"].get(name, 0), new["failures"].get(name, 0)) for name in names}
    moves = {name: (b, a) if most else (max(0, b - a), max(0, a - b)) for name, (b, a) in counts.items()}
    aimed_at = recorded["mined"]
    if len(aimed_at["classes"]) == 1 and aimed_at["classes"][0] in names:  # its moves were recorded
        moves[aimed_at["classes"][0]] = (aimed_at.get("fixed", aimed_at.get("mended")), aimed_at["broken"])
    adjusted = holm([mcnemar_exact(*moves[name]) for name in names])
    classes = {
        name: {"clear": int(np.sign(a - b)) * int(p < 0.05), "harm": harm.get(name, 1.0)}
        for (name, (b, a)), p in zip(counts.items(), adjusted, strict=True)
    }
    weights = {name: harm.get(name, 1.0) for name in names}
    change = sum((a - b) * weights[name] for name, (b, a) in counts.items()) / n
    # the standard error of the mean harm, if each move is a prompt of its own
    spread = np.sqrt(sum(sum(moves[name]) * weights[name] ** 2 for name in names)) / n
    failures, score = recorded["failures"], recorded["score"]
    return {
        "failures": {
            "before": old["n_failed"],
            "clear": clear(failures, max(failures["mcnemar_p"], failures.get("paired_p", 0.0))),
        },
        "score": {"clear": clear(score, score.get("sign_flip_p", 0.0))},
        "harm": {"clear": int(np.sign(change)) * int(abs(change) > 1.96 * spread)},
        "classes": classes,
    }


def outcome(cell: dict[str, Any], most: bool) -> str:
    harm, arms, numbers = load_task(cell["task"]).harm, cell["arms"], cell["numbers"]
    found = compared(arms["sft"], arms["sft+dpo"], numbers, harm, most)
    control = compared(arms["sft+sft on chosen"], arms["sft+dpo"], numbers["control"], harm, most)
    return decide(found | {"control": control, "severities": harm, "unchanged": False, "sees_points": 0})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path)
    args = parser.parse_args()
    if args.first:
        record_first(args.first)
    found = []
    for cell in json.loads((RESULTS / "domains.json").read_text(encoding="utf-8")):
        few, most = (outcome(cell, side) for side in (False, True))
        facts = {key: cell[key] for key in ("model", "task", "seed")}
        found.append(facts | {"recorded": cell["outcome"], "fewest_moves": few, "most_moves": most})
    seen = first_demo()
    now = {"command": "python benchmarks/outcomes.py", "date": date.today().isoformat(), "machine": describe()}
    table = Counter((row["recorded"], row["fewest_moves"], row["most_moves"]) for row in found)
    first = {"line": seen.line, "lines": seen.lines, "table": seen.table, "details": seen.details}
    write_json(RESULTS / "outcomes.json", {**now, "first_demo": first, "runs": found})
    print(seen, *seen.details, "", sep="\n")
    for (old, few, most), count in sorted(table.items()):
        print(f"{count:2}  {old:12} -> {few if few == most else f'{few} or {most}'}")


if __name__ == "__main__":
    main()

"""Pairs from candidates that several people graded, with their disagreement as weight: counts and weights.

python benchmarks/graded_pairs.py FILE      # conala_grades.jsonl: intent, candidates with grades by person

Results hold numbers only. The baseline "no weights" makes a pair of each strict order of the mean grades.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json

RESULTS = Path(__file__).parent / "results" / "graded_pairs.json"


def strict_orders(file: Path) -> int:
    """Pairs of different mean grades."""
    total = 0
    for line in file.read_text(encoding="utf-8").splitlines():
        texts = {c["code"].strip(): statistics.fmean(c["grades"].values()) for c in json.loads(line)["candidates"]}
        means = list(texts.values())
        total += sum(a != b for k, a in enumerate(means) for b in means[:k])
    return total


def main() -> None:
    file = Path(sys.argv[1])
    read = dw.read_pairs(file, mapping={"prompt": "intent"})
    weights = sorted(p.weight for p in read.found)
    bins = Counter(min(int(10 * w), 9) for w in weights)
    results = {
        "rows": read.rows,
        "kept": read.kept,
        "refused": read.refused,
        "merged": read.merged,
        "counts": read.counts,
        "pairs": len(weights),
        "pairs_without_weights": strict_orders(file),
        "weights": {f"{k / 10:.1f} to {(k + 1) / 10:.1f}": bins[k] for k in range(10)},
        "weight_mean": round(statistics.fmean(weights), 4),
        "unanimous": sum(w == 1 for w in weights),
    }
    print(json.dumps(results, indent=1))
    facts = {"command": "python benchmarks/graded_pairs.py FILE", "seed": None, "date": date.today().isoformat()}
    write_json(RESULTS, {**facts, "machine": describe(), **results})


if __name__ == "__main__":
    main()

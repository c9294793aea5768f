"""What a long answer costs each built-in verifier, next to the sandbox; goes to results/verifiers.json.

python benchmarks/verifiers.py
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.tasks.builtin import load_task, task_names

RESULTS = Path(__file__).parent / "results" / "verifiers.json"
GOAL_MS = 50


def long_answers(reference: str) -> dict[str, str]:
    """Texts of about 10,000 characters: the most that a few thousand tokens give."""
    return {
        "words": "the reading rose again and then it fell " * 250,
        "reference again and again": (reference + "\n") * max(1, 10_000 // len(reference)),
        "steps": "v = 12 / 4 = 3 m/s\n" * 500,
        "brackets": "[" * 10_000,
        "digits": "7" * 10_000,
        "numbers": "12.5 kg m/s " * 800,
        "quotes": '{"a": "' * 1400,
        "names": "then Anna met Boris and " * 400,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results: dict[str, dict[str, float]] = {}
    for name in task_names():
        task = load_task(name)
        example = task.dev[0]
        reference = example.reference or "A short text, as if it were an answer."
        task.score(example, reference)  # what is loaded once is not counted
        short = min(_milliseconds(task, example, reference) for _ in range(5))
        results[name] = {"reference_ms": round(short, 2)}
        for kind, text in long_answers(reference).items():
            cost = min(_milliseconds(task, example, text) for _ in range(3))
            # a run in the sandbox is not the verifier's own time: the reference's own run is taken off
            results[name][kind] = round(max(0.0, cost - short) if name in ("python", "sql") else cost, 2)
        print(name, results[name])
    facts = {"machine": describe(), "command": "python benchmarks/verifiers.py", "date": date.today().isoformat()}
    worst = max(value for row in results.values() for kind, value in row.items() if kind != "reference_ms")
    write_json(RESULTS, {**facts, "goal_ms": GOAL_MS, "worst_ms": worst, "results": results})


def _milliseconds(task, example, text: str) -> float:
    begun = time.perf_counter()
    task.score(example, text)
    return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()

"""Run the demo of each model in a process of its own and record the figures in benchmarks/results/demo.json.

python benchmarks/demo.py nano smol            # --twice also shows that a second run gives the same results
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "demo.json"


def run_demo(model: str, folder: Path, extra: list[str]) -> dict:
    """One demo from an empty folder: its results with wall time and peak memory of the process."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "dpo_workbench", "demo", "--model", model, "--out", str(folder), *extra]
    begun = time.monotonic()
    child = subprocess.Popen(command, env={**os.environ, "CI": "1"})
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the demo of {model} ended with status {status}")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["times"] |= {
        "wall_seconds": round(time.monotonic() - begun, 1),
        "process_peak_memory_gib": round(usage.ru_maxrss / 2**20, 2),
        "command": " ".join(["dpo-workbench", "demo", "--model", model, *extra]),
        "date": date.today().isoformat(),
    }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["nano", "smol"])
    parser.add_argument("--twice", action="store_true", help="run again and compare all but the times")
    parser.add_argument("--runs", type=int, default=1, help="record the one of median time, and the times of all")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark"))
    args = parser.parse_args()
    recorded = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for model in args.models:
        runs = [run_demo(model, args.work / model, []) for _ in range(args.runs)]
        runs.sort(key=lambda run: run["times"]["wall_seconds"])
        results = runs[len(runs) // 2]
        if args.runs > 1:
            results["times"]["wall_seconds_of_all"] = [run["times"]["wall_seconds"] for run in runs]
        if args.twice:
            again = run_demo(model, args.work / f"{model}-again", [])
            results["repeatable"] = _without_times(results) == _without_times(again)
            print(f"{model}: the second run {'gave the same results' if results['repeatable'] else 'DIFFERED'}")
        recorded[model] = results
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{model}: {results['times']['wall_seconds']} s, {results['times']['process_peak_memory_gib']} GiB")


def _without_times(results: dict) -> dict:
    return {k: v for k, v in results.items() if k not in ("times", "repeatable")}


if __name__ == "__main__":
    main()

"""Read 100,000 rows of about 1 KB in a process of its own; seconds and peak memory go to results/read_pairs.json.

python benchmarks/read_pairs.py                # --rows 20000 for a quick look, which is not recorded
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json

RESULTS = Path(__file__).parent / "results" / "read_pairs.json"
GOAL = {"rows": 100_000, "seconds": 10, "peak_mib": 300}
CHILD = """
import json, resource, sys, time
from dpo_workbench.pairs.pair import read_pairs
begun = time.perf_counter()
read = read_pairs(sys.argv[1])
seconds = time.perf_counter() - begun
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps({"rows": read.rows, "kept": read.kept, "refused": read.refused, "merged": read.merged,
                  "seconds": round(seconds, 2), "peak_mib": round(peak, 1)}))
"""


def write_rows(path: Path, n: int, layout: str) -> None:
    """Rows of about 1 KB; of 100 rows two are copies and one is broken."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]

    def said(k: int) -> str:
        return " ".join(rng.choices(words, k=k))

    last = ""
    with path.open("w", encoding="utf-8") as file:
        for k in range(n):
            prompt, chosen, rejected = said(50), said(50), said(50)
            row = {"id": f"r{k}", "prompt": prompt, "chosen": chosen, "rejected": rejected}
            if layout == "openai":
                better, worse = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
                asked = {"messages": [{"role": "user", "content": prompt}]}
                row = {"input": asked, "preferred_output": better, "non_preferred_output": worse}
            line = json.dumps(row)
            line = line[:-9] if k % 100 == 50 else last if k % 100 in (70, 71) else line
            file.write(line + "\n")
            last = line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=GOAL["rows"])
    rows = parser.parse_args().rows
    results = {}
    for layout in ("own", "openai"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.jsonl"
            write_rows(path, rows, layout)
            size = path.stat().st_size
            done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
        results[layout] = json.loads(done.stdout) | {"bytes_a_row": round(size / rows)}
        print(layout, results[layout])
    if rows == GOAL["rows"]:
        facts = {"machine": describe(), "command": "python benchmarks/read_pairs.py", "date": date.today().isoformat()}
        write_json(RESULTS, {**facts, "goal": GOAL, "seed": 0, "results": results})


if __name__ == "__main__":
    main()

"""Kill a labelling process at random moments. Is a vote lost that was reported as saved? Does the same pair come back?

    python benchmarks/label_kill.py

Each round starts a session on the same file, lets it vote and undo, and ends it with SIGKILL.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.labelling.events import Store, item_key
from dpo_workbench.labelling.session import Session

RESULTS = Path(__file__).parent / "results" / "label_kill.json"
KILLS, PAIRS = 50, [dw.Pair(f"p{k}", f"question {k}", f"right {k}", f"wrong {k}") for k in range(2000)]


def session(file: Path) -> Session:
    return Session(PAIRS, "ann", file, quick=0)


def child(file: Path, seed: int) -> None:
    """Vote until killed. Each event is reported after it was saved."""
    rng, work = random.Random(seed), session(file)
    print("shown", work.item, flush=True)
    while True:
        before = set(work.store.events)
        work.do(rng.choice(("a", "b", "t", "a", "b", "u", "2")))
        for name in set(work.store.events) - before:
            print("saved", name, flush=True)
        print("shown", work.item, flush=True)


def main() -> None:
    rng, reported, lost, other = random.Random(0), set[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.jsonl"
        for kill in range(KILLS):
            command = [sys.executable, __file__, "child", str(file), str(kill)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            lines = [line.split() for line in process.communicate()[0].splitlines()]
            reported |= {line[1] for line in lines if len(line) == 2 and line[0] == "saved"}
            store = Store(file)
            lost += len(reported - set(store.events))
            expected = next(key for key in map(item_key, PAIRS) if ("ann", key) not in store.labels)
            other += session(file).item != expected
        damaged = Store(file).damaged
    results = {"kills": KILLS, "saved": len(reported), "lost": lost, "other_item": other, "torn_lines": damaged}
    print(json.dumps(results))
    facts = {"command": "python benchmarks/label_kill.py", "seed": 0, "date": date.today().isoformat()}
    write_json(RESULTS, {**facts, "machine": describe(), **results})


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()

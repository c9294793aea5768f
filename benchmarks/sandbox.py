"""Cost of the sandbox over a bare child process, and runs a second; goes to results/sandbox.json.

python benchmarks/sandbox.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.sandbox.process import guards
from dpo_workbench.sandbox.python_runner import Call, run_python

RESULTS = Path(__file__).parent / "results" / "sandbox.json"
CODE = "def f(n):\n    return sum(range(n))\n"


def bare() -> None:
    """What anybody would write: the code in a file, a new interpreter, its output read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.py")
        path.write_text(CODE + "print(f(10))\n")
        done = subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "45\n"


def guarded() -> None:
    (result,) = run_python(CODE, [Call("f", [10])]).results
    assert result.value == 45


def median_ms(work: Callable[[], None], n: int) -> float:
    times = []
    for _ in range(n):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    guarded()
    rounds = [(median_ms(bare, runs // 5), median_ms(guarded, runs // 5)) for _ in range(5)]  # in turn
    plain, locked = (statistics.median(values) for values in zip(*rounds, strict=True))
    workers = os.cpu_count() or 1
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: guarded(), range(runs)))
    rate = runs / (time.perf_counter() - begun)
    results = {
        "bare_ms": round(plain, 1), "sandbox_ms": round(locked, 1), "over_bare_ms": round(locked - plain, 1),
        "runs_a_second": round(rate, 1), "workers": workers, "runs": runs,
    }  # fmt: skip
    print(results)
    facts = {"machine": describe(), "command": "python benchmarks/sandbox.py", "date": date.today().isoformat()}
    goal = {"over_bare_ms": 10, "runs_a_second": 40}
    write_json(RESULTS, {**facts, "holds": guards()[1], "goal": goal, "results": results})


if __name__ == "__main__":
    main()

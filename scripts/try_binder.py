"""Run the course as Binder would: an environment from binder/ alone, one core, a kernel that may use 2 GiB.

    python scripts/try_binder.py                       # all notebooks; half an hour, kept one by one
    python scripts/try_binder.py 03_mine_failures      # one

The environment is `build/binder`, made again with `--fresh`. Binder's base image brings ipykernel, so it is added; all
else comes from environment.yml, and postBuild and start are run as they are. Where PyTorch's own index cannot be
reached, torch comes from the usual one in the same version. A kernel above the limit is killed, as there. Seconds and
peak memory of each notebook go to benchmarks/results/binder.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import nbformat
import psutil
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "binder"
PYTHON = HOME / "venv" / "bin" / "python"
RESULTS = ROOT / "benchmarks" / "results" / "binder.json"
LIMIT = 2 * 2**30


def environment(fresh: bool) -> dict[str, str]:
    """Make the environment where it is not there; the variables that `start` would leave."""
    path = os.pathsep.join([str(PYTHON.parent), os.environ["PATH"]])
    known = {"HOME": str(HOME), "PATH": path, "LANG": "C.UTF-8", "JUPYTER_PATH": str(HOME / "share")}
    if fresh or not (HOME / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME / "venv")], check=True)
        parts = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
        rows = next(part["pip"] for part in parts if isinstance(part, dict))
        pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--retries", "0", "--timeout", "10"]
        index = [word for row in rows if row.startswith("-") for word in row.split()]
        pins = [row for row in rows if not row.startswith("-")]
        if subprocess.run([*pip, *index, *pins, "ipykernel"]).returncode:
            print("PyTorch's index does not answer: torch from the usual one.")
            subprocess.run([*pip, *(pin.replace("+cpu", "") for pin in pins), "ipykernel"], check=True)
        subprocess.run(["bash", str(ROOT / "binder" / "postBuild")], cwd=ROOT, check=True, env={**os.environ, **known})
        (HOME / "ready").touch()
    told = subprocess.run(
        ["bash", str(ROOT / "binder" / "start"), "env", "-0"], check=True, capture_output=True, text=True, env=known
    ).stdout
    return dict(line.split("=", 1) for line in told.split("\0") if "=" in line)


def kernelspec() -> None:
    """The kernel `binder`: the environment's Python on one core."""
    folder = HOME / "share" / "kernels" / "binder"
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["taskset", "-c", "0", str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "binder", "language": "python"}))


def run(path: Path, variables: dict[str, str]) -> dict[str, Any]:
    """One notebook: its seconds, the kernel's peak, and how it ended."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for process in psutil.Process().children():
                try:
                    used = sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
                except psutil.Error:
                    continue
                peak[0] = max(peak[0], used)
                if used > LIMIT:
                    process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begun, ended = time.monotonic(), "ran"
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    try:
        NotebookClient(notebook, kernel_name="binder", timeout=1200, resources=place).execute(env=variables)
    except Exception as error:
        ended = f"{type(error).__name__}: {str(error).strip()[-200:]}"
    done.set()
    watcher.join()
    return {
        "notebook": path.stem,
        "ended": ended,
        "seconds": round(time.monotonic() - begun, 1),
        "peak_gib": round(peak[0] / 2**30, 2),
        "date": date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks; all by default")
    parser.add_argument("--fresh", action="store_true", help="make the environment again")
    args = parser.parse_args()
    from dpo_workbench.common.environment import describe
    from dpo_workbench.common.files import write_json

    variables = environment(args.fresh)
    kernelspec()
    os.environ["JUPYTER_PATH"] = str(HOME / "share")
    known = {row["notebook"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.is_file() else {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if args.names and path.stem not in args.names:
            continue
        known[path.stem] = run(path, variables)
        print(known[path.stem], flush=True)
        facts = {
            "command": "python scripts/try_binder.py",
            "machine": describe(),
            "limit_gib": LIMIT / 2**30,
            "cores": 1,
        }
        write_json(RESULTS, {**facts, "rows": [known[name] for name in sorted(known)]})
    sys.exit(any(row["ended"] != "ran" for row in known.values()))


if __name__ == "__main__":
    main()

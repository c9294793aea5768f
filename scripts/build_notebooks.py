"""Run the notebooks in place: `python scripts/build_notebooks.py` (all), or with paths of some.

The .ipynb files are the source. This executes them with the small budget, puts measured time, memory and versions into
the card of each, and takes out what belongs to one machine: widget state, Colab's ids, paths.

`--full` runs those that know a larger budget with it (`smol`, some ten minutes each), records time and memory in
benchmarks/results/full_notebooks.json and in the cards, and leaves what was run in work/full; stored outputs stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from datetime import date
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
FULL_RUNS = FOLDER.parent / "benchmarks" / "results" / "full_notebooks.json"
ASK = """
import json, sys
from dpo_workbench.common.environment import describe, peak_memory_gib
print(json.dumps(describe() | {"peak": peak_memory_gib(), "prefix": sys.prefix}))
"""


def build(path: Path) -> str:
    """Execute one notebook and write it back; returns its new "last run" row."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    seconds, facts = measure(notebook, path)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        for output in cell.get("outputs", []):
            output.pop("metadata", None) if output.output_type == "stream" else None
            _clean(output, [facts["prefix"], str(FOLDER.parent), str(Path.home())])
    rows = {
        "Time": f"{seconds:.0f} s on {facts['cores']} CPU cores (`tiny`)",
        "Peak memory": f"{facts['peak']:.2f} GiB (`tiny`)",
        "Last run": f"{date.today().isoformat()}, Python {facts['python']}, torch {facts['torch']}, "
        f"transformers {facts['transformers']}",
    }
    if path.parent.name != "solutions":  # these have no card
        write_card(notebook, path, rows)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return f"{path.name}: {rows['Time']}; {rows['Peak memory']}; {path.stat().st_size / 1024:.0f} KB"


def build_full(path: Path) -> str:
    """Run one notebook with the full budget, record what it took, and say so in its card."""
    notebook = nbformat.read(path, as_version=4)
    if not knows_full(notebook):
        return f"{path.name}: `full` is the same"
    kept = FOLDER.parent / "work" / "full" / path.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        seconds, facts = measure(notebook, path)
    finally:
        nbformat.write(notebook, kept)
    facts.pop("prefix")
    known = full_runs()
    known[path.stem] = {
        "seconds": round(seconds),
        "peak_memory_gib": round(facts.pop("peak"), 2),
        "machine": facts,
        "command": f"python scripts/build_notebooks.py --full notebooks/{path.name}",
        "date": date.today().isoformat(),
    }
    FULL_RUNS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    write_card(notebook, path, {})
    nbformat.write(notebook, path)
    return f"{path.name}: {known[path.stem]['seconds']} s, {known[path.stem]['peak_memory_gib']} GiB (`full`)"


def full_runs() -> dict[str, dict]:
    """What the full budget took, by notebook, where it has been measured."""
    return json.loads(FULL_RUNS.read_text(encoding="utf-8")) if FULL_RUNS.is_file() else {}


def knows_full(notebook: nbformat.NotebookNode) -> bool:
    """Whether some cell after the setup does more with the full budget."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return any(re.search(r"\b(FULL|MODEL)\b", source) for source in code[1:])


def write_card(notebook: nbformat.NotebookNode, path: Path, rows: dict[str, str]) -> None:
    """Put rows into the card, by name; what `full` takes follows from its results file, whatever is given."""
    card = notebook.cells[2]
    known = full_runs()
    time_full, memory_full = "; `full` is the same: `nano` is all it needs", ""
    if path.stem in known:
        time_full = f", {known[path.stem]['seconds'] / 60:.0f} minutes (`full`); a T4 has not been measured"
        memory_full = f", {known[path.stem]['peak_memory_gib']:.1f} GiB (`full`)"
    elif knows_full(notebook):
        time_full = "; `full` has not been measured"
    for name in ("Time", "Peak memory", "Last run"):
        old = re.findall(rf"^\| {name} \| (.*) \|$", card.source, flags=re.M)
        assert len(old) == 1, f"{path.name}: the card must have one row '{name}'"
        text = rows.get(name, old[0])
        if name != "Last run":
            text = text.split("(`tiny`)")[0] + "(`tiny`)" + {"Time": time_full, "Peak memory": memory_full}[name]
        card.source = card.source.replace(f"| {name} | {old[0]} |", f"| {name} | {text} |")


def measure(notebook: nbformat.NotebookNode, path: Path) -> tuple[float, dict]:
    """Run all cells; the seconds it took, and what the kernel says of the machine."""
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    begun = time.monotonic()
    execute(notebook, path)
    seconds = time.monotonic() - begun
    return seconds, json.loads(notebook.cells.pop().outputs[0].text)


def execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Run all cells in a new kernel, in the notebook's folder; the first error is raised."""
    seconds = 600 if os.environ["DPO_WORKBENCH_BUDGET"] == "tiny" else 7200  # for one cell
    options = {"timeout": seconds, "record_timing": False, "coalesce_streams": True}
    NotebookClient(
        notebook, resources={"metadata": {"path": str(path.parent)}}, kernel_name="python3", **options
    ).execute()


def run_twice(path: Path) -> str:
    """Run each code cell two times in a row, as learners do: a second time must not fail. Writes nothing."""
    notebook = nbformat.read(path, as_version=4)
    again = {cell.id: nbformat.v4.new_code_cell(cell.source) for cell in notebook.cells if cell.cell_type == "code"}
    notebook.cells = [c for cell in notebook.cells for c in (cell, again.get(cell.id)) if c is not None]
    execute(notebook, path)
    return f"{path.name}: each of {len(again)} cells ran twice"


def _clean(output: nbformat.NotebookNode, folders: list[str]) -> None:
    """Replace this machine's folders in an output's text by `...`."""
    for holder in (output, output.get("data", {})):
        for key, value in holder.items():
            if isinstance(value, str) and not key.startswith("image/"):
                for folder in folders:
                    value = value.replace(folder, "...")
                holder[key] = re.sub(r"/tmp/ipykernel_\d+/\d+\.py:", "cell, line ", value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all by default")
    parser.add_argument("--twice", action="store_true", help="only check that each cell can be run again")
    parser.add_argument("--full", action="store_true", help="measure the full budget; stored outputs stay")
    args = parser.parse_args()
    os.environ["DPO_WORKBENCH_BUDGET"] = "full" if args.full else "tiny"
    os.environ["CI"] = "1"  # plain lines instead of bars, which a file cannot keep
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for path in args.paths or sorted([*FOLDER.glob("*.ipynb"), *FOLDER.glob("solutions/*.ipynb")]):
        if not (args.full and path.parent.name == "solutions"):
            print((build_full if args.full else run_twice if args.twice else build)(path.resolve()), flush=True)


if __name__ == "__main__":
    main()

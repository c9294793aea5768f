"""Run the notebooks in place: `python scripts/build_notebooks.py` (all), or with paths of some.

The .ipynb files are the source. This executes them with the small budget, puts measured time, memory and versions into
the card of each, and takes out what belongs to one machine: widget state, Colab's ids, paths.
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
ASK = """
import json, sys
from dpo_workbench.runtime.environment import describe, peak_memory_gib
print(json.dumps(describe() | {"peak": peak_memory_gib(), "prefix": sys.prefix}))
"""


def build(path: Path) -> str:
    """Execute one notebook and write it back; returns its new "last run" row."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    begun = time.monotonic()
    execute(notebook, path)
    seconds = time.monotonic() - begun
    facts = json.loads(notebook.cells.pop().outputs[0].text)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        for output in cell.get("outputs", []):
            output.pop("metadata", None) if output.output_type == "stream" else None
            _clean(output, [facts["prefix"], str(FOLDER.parent), str(Path.home())])
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    asks = any(re.search(r"\b(FULL|MODEL)\b", source) for source in code[1:])
    full = "on a T4 (`full`): not measured yet" if asks else "`full` is the same: `nano` is all it needs"
    rows = {
        "Time": f"{seconds:.0f} s on {facts['cores']} CPU cores (`tiny`); {full}",
        "Peak memory": f"{facts['peak']:.2f} GiB (`tiny`)",
        "Last run": f"{date.today().isoformat()}, Python {facts['python']}, torch {facts['torch']}, "
        f"transformers {facts['transformers']}",
    }
    card = notebook.cells[2]
    for name, text in rows.items() if path.parent.name != "solutions" else ():  # these have no card
        card.source, n = re.subn(
            rf"^\| {name} \|.*$", lambda _, n=name, t=text: f"| {n} | {t} |", card.source, flags=re.M
        )
        assert n == 1, f"{path.name}: the card must have one row '{name}'"
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return f"{path.name}: {rows['Time']}; {rows['Peak memory']}; {path.stat().st_size / 1024:.0f} KB"


def execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Run all cells in a new kernel, in the notebook's folder; the first error is raised."""
    options = {"timeout": 600, "record_timing": False, "coalesce_streams": True}
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
                holder[key] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all by default")
    parser.add_argument("--twice", action="store_true", help="only check that each cell can be run again")
    args = parser.parse_args()
    os.environ["DPO_WORKBENCH_BUDGET"] = "tiny"
    os.environ["CI"] = "1"  # plain lines instead of bars, which a file cannot keep
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for path in args.paths or sorted([*FOLDER.glob("*.ipynb"), *FOLDER.glob("solutions/*.ipynb")]):
        print((run_twice if args.twice else build)(path.resolve()), flush=True)


if __name__ == "__main__":
    main()

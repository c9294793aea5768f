"""Write notebooks/outline/: the course as bare code, one file a notebook, for redoing it from memory.

    python scripts/make_outline.py            # after a notebook has changed; the tests compare

Each keeps the title, the headings, what the reader is to predict, and the code; explanations and outputs are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTE = "*The bare code of [{name}](../{name}). Cover a cell, write it from memory, compare.*"


def outline(notebook: NotebookNode, name: str) -> NotebookNode:
    """The same notebook without its explanations."""
    cells = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            code = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")
            code = code.replace('"../benchmarks', '"../../benchmarks').replace('Path("..", ', 'Path("../..", ')
            cells.append(new_code_cell(code, id=f"c{number:03}"))
            continue
        kept = [line for line in cell.source.splitlines() if re.match(r"#{1,2} (?:\d|.*\?$)|\*\*Predict:\*\*", line)]
        kept += [NOTE.format(name=name)] if number == 1 else []
        if kept:
            cells.append(new_markdown_cell("\n\n".join(kept), id=f"c{number:03}"))
    return new_notebook(cells=cells, metadata=notebook.metadata)


def texts() -> dict[Path, str]:
    """File -> what it should hold."""
    return {
        FOLDER / "outline" / path.name: nbformat.writes(outline(nbformat.read(path, as_version=4), path.name)) + "\n"
        for path in sorted(FOLDER.glob("*.ipynb"))
    }


def main() -> None:
    (FOLDER / "outline").mkdir(exist_ok=True)
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(texts())} outlines in {FOLDER.name}/outline")


if __name__ == "__main__":
    main()

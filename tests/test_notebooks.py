"""The notebooks as files, without a kernel: what nbval, GitHub, Colab and a reader rely on. Each check can fail."""

from __future__ import annotations

import ast
import json
import re
import runpy
import statistics
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RULES = ROOT / "tests" / "nbval_sanitize.cfg"
CHECK = "# NBVAL_CHECK_OUTPUT"
MARKERS = {"NBVAL_CHECK_OUTPUT", "NBVAL_IGNORE_OUTPUT", "NBVAL_RAISES_EXCEPTION", "NBVAL_SKIP"}
COLAB = "https://colab.research.google.com/github/dpo-workbench/dpo_workbench/blob/main/notebooks/"
BINDER = "https://mybinder.org/v2/gh/dpo-workbench/dpo_workbench/main?urlpath=lab/tree/notebooks/"
END = ["## What you can now claim, and what not", "## Questions", "## Exercises", "## Next"]
CARD = ["You will be able to", "You need", "Time", "Peak memory", "Downloads", "Last run"]
LEVELS = ["Change a number", "Write five lines", "Your own data"]
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|mnt|var|content|Users)/[\w.@+~-]+|\b[A-Za-z]:\\\\?\w+"
)
SECRET = re.compile(r"\b(?:hf_[A-Za-z]{20,}|gh[pousr]_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{12,}|eyJ[\w-]{10,}\.eyJ)")

Notebook = dict[str, Any]


def cells(notebook: Notebook, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def is_check(cell: dict[str, Any]) -> bool:
    return source(cell).split("\n", 1)[0] == CHECK


def code_lines(cell: dict[str, Any]) -> int:
    """Lines of code: neither empty nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source(cell).splitlines())


def plain_python(cell: dict[str, Any]) -> str:
    """The cell without IPython's `%` and `!` lines."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.M)


def asserts_in(cell: dict[str, Any]) -> int:
    return sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(plain_python(cell))))


def output_text(cell: dict[str, Any]) -> str:
    """What a cell printed."""
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def file_problems(notebook: Notebook, name: str, size: int) -> list[str]:
    """Valid, executed from top to bottom, small, and nothing of one machine, account or front end in it."""
    import nbformat

    found = []
    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError as error:
        found.append(f"not a valid notebook: {str(error).splitlines()[0]}")
    counts = [cell["execution_count"] for cell in cells(notebook, "code")]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"execution counts must rise from 1; got {counts}: nbval never compares a cell without one")
    if "widgets" in notebook["metadata"]:
        found.append("metadata.widgets is there: GitHub answers 'Invalid Notebook'")
    marks = {"colab", "outputId", "id", "accelerator"}
    for number, place in enumerate([notebook, *notebook["cells"]]):
        if marks & set(place["metadata"]):
            found.append(f"Colab's {sorted(marks & set(place['metadata']))} in the metadata of place {number}")
    images = re.compile(r'"image/[^"]+": ("[^"]*"|\[[^\]]*\])')
    text = images.sub("", json.dumps(notebook, ensure_ascii=False))
    found += [f"a path of one machine: {path}" for path in sorted(set(MACHINE_PATH.findall(text)))]
    found += [f"looks like a token: {token[:6]}..." for token in SECRET.findall(text)]
    if size > 500_000:
        found.append(f"{size} bytes; at most 500,000")
    found += [f"code cell {n} draws a figure with no text form below it" for n in figures_without_text(notebook)]
    if any(output["output_type"] == "error" for cell in cells(notebook, "code") for output in cell["outputs"]):
        found.append("a cell ended in an error")
    return found


def figures_without_text(notebook: Notebook) -> list[int]:
    """Code cells with a picture where neither they nor the code cell right before them printed anything."""
    found, before, number = [], "", 0
    for cell in notebook["cells"]:
        printed = output_text(cell) if cell["cell_type"] == "code" else ""
        number += cell["cell_type"] == "code"
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) and not printed + before:
            found.append(number)
        before = printed
    return found


def check_problems(notebook: Notebook, name: str, size: int) -> list[str]:
    """Marks that nbval knows, in the form in which it obeys them, on cells that have something to compare."""
    found = []
    code = cells(notebook, "code")
    for number, cell in enumerate(code, 1):
        try:
            ast.parse(plain_python(cell))
        except SyntaxError as error:
            return [f"code cell {number} does not parse: {error}"]
        for line in source(cell).splitlines():
            if "NBVAL" in line and line.strip().lstrip("#").strip() not in MARKERS:
                found.append(f"code cell {number}: {line!r} is no marker that nbval knows")
            if CHECK in line and not is_check(cell):
                found.append(f"code cell {number}: the marker must be the whole first line")
        if is_check(cell) and not cell["outputs"]:
            found.append(f"code cell {number} is compared and has no output")
    if (n := sum(map(is_check, code))) < 3:
        found.append(f"{n} compared cells; at least 3")
    if (n := sum(map(asserts_in, code))) < 3:
        found.append(f"{n} asserts; at least 3")
    return found


def anatomy_problems(notebook: Notebook, name: str, size: int) -> list[str]:
    """Badges, title, card, setup, sections with their predictions, recap, questions, exercises, next."""
    found = []
    first = [source(cell) for cell in notebook["cells"][:4]]
    for link in (COLAB + name, BINDER + name):
        if link not in first[0]:
            found.append(f"the first cell must have the badge that opens {link}")
    if not re.match(r"# .*\?\n", first[1] + "\n"):
        found.append("the second cell must be the title, a question")
    if (rows := re.findall(r"^\| ([A-Z][^|]*?) \|", first[2], flags=re.M)) != CARD:
        found.append(f"the card's rows must be {CARD}; got {rows}")
    if [cell["cell_type"] for cell in notebook["cells"][:4]] != ["markdown"] * 3 + ["code"]:
        found.append("badges, title and card must be markdown cells, followed by the setup cell")
    elif not output_text(notebook["cells"][3]).startswith("budget: tiny"):
        found.append("the setup cell's stored output must start with the budget it ran under, `tiny`")
    whole = "\n".join(map(source, cells(notebook, "markdown")))
    heads = re.findall(r"^## .*$", whole, flags=re.M)
    if [head for head in heads if not re.match(r"## \d", head)] != END:
        found.append(f"after the numbered sections: recap, questions, exercises, next; got {heads}")
    found += section_problems(notebook)
    if not 5 <= (n := whole.count("<details>")) <= 8:
        found.append(f"{n} folded answers; 5 to 8")
    if lost := [level for level in LEVELS if f"**{level}" not in whole]:
        found.append(f"the exercises lack {lost}")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", whole):
        if not (ROOT / "notebooks" / link).exists():
            found.append(f"a link to {link}, which is not there")
    return found


def section_problems(notebook: Notebook) -> list[str]:
    """Each numbered section ends with a prediction by the reader and a cell that asserts."""
    sections: list[tuple[str, list[dict[str, Any]]]] = []
    for cell in notebook["cells"]:
        if source(cell).startswith("## "):
            sections.append((source(cell).split("\n")[0], []))
        if sections:
            sections[-1][1].append(cell)
    found = []
    for head, inside in sections:
        code = [cell for cell in inside if cell["cell_type"] == "code"]
        if sum(len(re.findall(r"^## ", source(c), flags=re.M)) for c in inside if c["cell_type"] == "markdown") > 1:
            found.append(f"a heading inside a cell after {head!r}; each starts its own cell")
        if re.match(r"## \d", head) and not (code and asserts_in(code[-1])):
            found.append(f"{head!r} must end with a cell that asserts")
        elif code and not any("**Predict" in source(cell) for cell in inside[-3:] if cell["cell_type"] == "markdown"):
            found.append(f"{head!r} must ask for a prediction before its last cell")
    return found


def rhythm_problems(notebook: Notebook, name: str, size: int) -> list[str]:
    """Small cells, at most two of code in a row, and enough prose to carry them."""
    found = []
    lengths = [code_lines(cell) for cell in cells(notebook, "code")]
    if max(lengths) > 20 or statistics.median(lengths) > 6:
        found.append(
            f"code cells of at most 20 lines, median at most 6; got {max(lengths)} and {statistics.median(lengths)}"
        )
    runs = [len(list(run)) for kind, run in groupby(notebook["cells"], lambda c: c["cell_type"]) if kind == "code"]
    if max(runs) > 2:
        found.append(f"{max(runs)} code cells in a row; at most 2")
    words = sum(len(re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "]", source(c)))) for c in cells(notebook, "markdown"))
    if not 8 <= words / sum(lengths) <= 20:
        found.append(f"{words / sum(lengths):.1f} words of prose a line of code; 8 to 20")
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_exercises_have_solutions(path):
    """`notebooks/solutions`: the same three levels, executed, each with an assert; nbval runs them too."""
    place = path.parent / "solutions" / path.name
    solutions = read(place)
    assert file_problems(solutions, place.name, place.stat().st_size) == []
    whole = "\n".join(map(source, cells(solutions, "markdown")))
    assert re.findall(r"^## (.*)$", whole, flags=re.M) == LEVELS
    assert sum(map(asserts_in, cells(solutions, "code"))) >= 3
    assert f"(../{path.name})" in whole and f"(solutions/{path.name})" in "\n".join(map(source, read(path)["cells"]))
    assert source(cells(solutions, "code")[0]) == source(cells(read(path), "code")[0])


def test_the_outline_is_that_of_the_notebooks():
    """`python scripts/make_outline.py` writes it."""
    wanted = runpy.run_path(str(ROOT / "scripts" / "make_outline.py"))["texts"]()
    there = {path: path.read_text(encoding="utf-8") for path in (ROOT / "notebooks" / "outline").glob("*.ipynb")}
    assert there.keys() == wanted.keys()
    assert [path.name for path in wanted if there[path] != wanted[path]] == []


CHECKS = (file_problems, check_problems, anatomy_problems, rhythm_problems)


def read(path: Path) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_follows_the_rules(path):
    notebook, size = read(path), path.stat().st_size
    assert [problem for check in CHECKS for problem in check(notebook, path.name, size)] == []


def test_there_are_notebooks_and_their_setup_cell_is_the_same():
    assert PATHS
    assert len({source(cells(read(path), "code")[0]) for path in PATHS}) == 1


def rule_problems(text: str) -> list[str]:
    """Sanitiser rules that nbval would drop without a word: it reads what matches its pattern and nothing else."""
    from nbval.plugin import get_sanitize_patterns

    written = len(re.findall(r"^regex:", text, flags=re.M))
    parsed = get_sanitize_patterns(text)
    found = [] if len(parsed) == written else [f"{written} rules written, {len(parsed)} read by nbval"]
    for pattern, _ in parsed:
        try:
            re.compile(pattern)
        except re.error as error:
            found.append(f"{pattern!r}: {error}")
    return found


def test_all_sanitiser_rules_are_read():
    assert rule_problems(RULES.read_text(encoding="utf-8")) == []
    broken = RULES.read_text(encoding="utf-8").replace("replace: ADDRESS", "replace:", 1)
    assert rule_problems(broken) != []


def _code(notebook: Notebook, want: Callable[[dict[str, Any]], bool] = lambda cell: True) -> dict[str, Any]:
    return next(cell for cell in cells(notebook, "code") if want(cell))


def _insert_code(notebook: Notebook) -> None:
    at = next(i for i, cell in enumerate(notebook["cells"]) if i > 3 and cell["cell_type"] == "code")
    notebook["cells"][at:at] = [notebook["cells"][at]] * 2


def _no_last_assert(notebook: Notebook) -> None:
    last = [cell for cell in cells(notebook, "code") if asserts_in(cell)][-1]
    last["source"] = "print(1)"


def _replace_everywhere(notebook: Notebook, old: str, new: str) -> None:
    for cell in notebook["cells"]:
        cell["source"] = source(cell).replace(old, new)


DAMAGE: dict[str, tuple[Callable, Callable[[Notebook], Any], str]] = {
    "invalid": (file_problems, lambda n: _code(n).update(surprise=1), "valid"),
    "never run": (file_problems, lambda n: _code(n).update(execution_count=None), "counts"),
    "run twice": (file_problems, lambda n: _code(n).update(execution_count=7), "counts"),
    "widgets": (file_problems, lambda n: n["metadata"].update(widgets={}), "widgets"),
    "colab": (file_problems, lambda n: n["cells"][4]["metadata"].update(outputId="x"), "Colab"),
    "path": (file_problems, lambda n: _code(n).update(source="x = '/home/someone/x'"), "path"),
    "windows path": (file_problems, lambda n: _code(n).update(source=r"x = 'C:\Users\x'"), "path"),
    "token": (file_problems, lambda n: _code(n).update(source="hf_" + "aB" * 15), "token"),
    "picture only": (
        file_problems,
        lambda n: [
            c.update(outputs=[o for o in c["outputs"] if o["output_type"] == "display_data"]) for c in cells(n, "code")
        ],
        "text form",
    ),
    "marker with text": (check_problems, lambda n: _code(n, is_check).update(source=CHECK + " now\n1"), "marker"),
    "marker too late": (check_problems, lambda n: _code(n, is_check).update(source="1\n" + CHECK), "first line"),
    "nothing to compare": (check_problems, lambda n: _code(n, is_check).update(outputs=[]), "no output"),
    "no parse": (check_problems, lambda n: _code(n).update(source="def"), "parse"),
    "few checks": (check_problems, lambda n: _replace_everywhere(n, CHECK, "#"), "compared cells"),
    "few asserts": (check_problems, lambda n: _replace_everywhere(n, "assert ", "bool; "), "asserts"),
    "no badge": (anatomy_problems, lambda n: n["cells"].pop(0), "badge"),
    "no question": (anatomy_problems, lambda n: n["cells"][1].update(source="# A title"), "question"),
    "card": (anatomy_problems, lambda n: n["cells"][2].update(source="| Time | x |"), "card"),
    "budget": (anatomy_problems, lambda n: _code(n).update(outputs=[]), "budget"),
    "no recap": (anatomy_problems, lambda n: _replace_everywhere(n, "## What you can", "### "), "recap"),
    "no assert in a section": (anatomy_problems, _no_last_assert, "asserts"),
    "no prediction": (anatomy_problems, lambda n: _replace_everywhere(n, "**Predict", "**Think"), "prediction"),
    "no answers": (anatomy_problems, lambda n: _replace_everywhere(n, "<details>", ""), "folded"),
    "no level": (anatomy_problems, lambda n: _replace_everywhere(n, "**Your own data", ""), "exercises"),
    "heading inside a cell": (
        anatomy_problems,
        lambda n: n["cells"][6].update(source=source(n["cells"][6]) + "\n\n## 9 More"),
        "heading",
    ),
    "dead link": (anatomy_problems, lambda n: _replace_everywhere(n, "## Next", "## Next\n[x](nowhere.ipynb)"), "link"),
    "long cell": (rhythm_problems, lambda n: _code(n).update(source="x = 1\n" * 21), "lines"),
    "code run": (rhythm_problems, _insert_code, "in a row"),
    "no prose": (rhythm_problems, lambda n: [c.update(source="") for c in cells(n, "markdown")], "prose"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_check_can_fail(name, tmp_path):
    check, damage, word = DAMAGE[name]
    notebook = read(PATHS[0])
    damage(notebook)
    copy = tmp_path / PATHS[0].name
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    found = check(read(copy), copy.name, copy.stat().st_size)
    assert any(word in problem for problem in found), found


def test_a_large_file_is_refused():
    assert any("500,000" in problem for problem in file_problems(read(PATHS[0]), PATHS[0].name, 500_001))

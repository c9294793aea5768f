"""The package's shape: rooms in one order, no import cycles, and files and functions that can be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dpo_workbench"
# A room may import from itself and from the rooms before it, in function bodies and under TYPE_CHECKING too.
ROOMS = (
    *"common pairs sandbox tasks models training mining plots evaluation studies labelling export".split(),
    "__init__",  # the public names, which the command line uses
    *("cli_shared", "cli", "__main__"),
)
MAX_FILE, MAX_FUNCTION = 400, 60  # lines

Graph = dict[str, set[str]]  # module -> the modules of the package that it imports


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package. Its own `__init__.py` is `package.__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 2:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of each import statement at any depth: the module named in it, and the names that are taken from that."""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            yield home, tuple(alias.name for alias in node.names)


def import_graph(package: Path) -> Graph:
    """Which module imports which, within the package. `from a import b` is an import of `a.b` where that is a module.

    A name from the top of the package (`from dpo_workbench import train`) is an import of its `__init__`, which comes
    after all rooms; `__version__` is free for all. What that `__init__` imports, it names in strings.
    """
    files = modules_of(package)
    graph: Graph = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found: set[str] = set()
        for home, names in imported_names(tree, module, path.name == "__init__.py"):
            inner = {f"{home}.{name}" for name in names} & files.keys()
            rest = {name for name in names if f"{home}.{name}" not in inner and name != "__version__"}
            if rest or not names:
                inner.add(f"{home}.__init__" if home == package.name else home)
            found |= inner & files.keys()
        graph[module] = found - {module}
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """The groups of modules that import each other in a circle (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def upward_imports(graph: Graph, rooms: Iterable[str]) -> list[str]:
    """Imports of a room from a later one, and modules in a room that is not on the list."""
    place = {room: k for k, room in enumerate(rooms)}
    room = {module: module.split(".")[1] for module in graph}
    found = [f"{module} is in no known room" for module in graph if room[module] not in place]
    for module, others in graph.items():
        for other in sorted(others):
            if place.get(room[module], -1) < place.get(room[other], -1):
                found.append(f"{module} imports {other}")
    return found


def long_parts(package: Path) -> list[str]:
    """Files and functions (decorators and docstring included) with too many lines."""
    found = []
    for path in sorted(package.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(package.parent)
        if (lines := len(text.splitlines())) > MAX_FILE:
            found.append(f"{name} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if (lines := (node.end_lineno or first) - first + 1) > MAX_FUNCTION:
                    found.append(f"{name}:{first} {node.name} has {lines} lines")
    return found


def show(problems: Iterable[object]) -> str:
    """One line each, for pytest's message; empty where there are none."""
    return "\n".join(map(str, problems))


def test_no_import_cycles() -> None:
    found = cycles(import_graph(PACKAGE))
    assert not found, "modules that import each other in a circle:\n" + show(found)


def test_no_room_imports_from_a_later_one() -> None:
    found = upward_imports(import_graph(PACKAGE), ROOMS)
    assert not found, show(found)


def test_files_and_functions_are_short() -> None:
    found = long_parts(PACKAGE)
    assert not found, show(found)


def test_the_graph_sees_the_package() -> None:
    graph = import_graph(PACKAGE)
    assert len(graph) > 50 and "dpo_workbench.common.errors" in graph["dpo_workbench.pairs.pair"]


@pytest.fixture
def house(tmp_path: Path):
    """Writes a made-up package; gives its import graph."""

    def build(files: dict[str, str]) -> Graph:
        for name, text in files.items():
            path = tmp_path / "house" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            (path.parent / "__init__.py").touch()
        return import_graph(tmp_path / "house")

    return build


@pytest.mark.parametrize(
    "back",
    [
        "import house.kitchen.pan",
        "from house.kitchen import pan",
        "from . import pan",
        "def f():\n    from .pan import cook",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.kitchen.pan import Pan",
    ],
)
def test_a_cycle_is_reported(house, back: str) -> None:
    graph = house({"kitchen/pan.py": "from house.kitchen import stove", "kitchen/stove.py": back, "hall/door.py": ""})
    assert cycles(graph) == [["house.kitchen.pan", "house.kitchen.stove"]]


def test_a_cycle_through_a_package_s_init_is_reported(house) -> None:
    graph = house({"kitchen/pan.py": "from house import kitchen", "kitchen/__init__.py": "from .pan import cook"})
    assert cycles(graph) == [["house.kitchen", "house.kitchen.pan"]]


@pytest.mark.parametrize("line", ["from house.roof import tile", "def f():\n    import house.roof.tile"])
def test_an_upward_import_is_reported(house, line: str) -> None:
    graph = house({"cellar/coal.py": line, "roof/tile.py": "from house.cellar.barrel import Barrel",
                   "cellar/barrel.py": "import json"})  # fmt: skip
    assert cycles(graph) == []
    assert upward_imports(graph, ["cellar", "roof"]) == ["house.cellar.coal imports house.roof.tile"]
    assert upward_imports(graph, ["roof", "cellar"]) == ["house.roof.tile imports house.cellar.barrel"]
    assert "house.roof is in no known room" in upward_imports(graph, ["cellar"])


def test_a_public_name_inside_the_package_is_an_upward_import(house) -> None:
    graph = house({"__init__.py": "", "cellar/coal.py": "from house import burn", "cellar/ash.py": "import house",
                   "cellar/fire.py": "from house import __version__"})  # fmt: skip
    found = upward_imports(graph, ["cellar", "__init__"])
    assert found == ["house.cellar.ash imports house.__init__", "house.cellar.coal imports house.__init__"]


def test_long_files_and_functions_are_reported(house, tmp_path) -> None:
    body = "\n".join("    x = 1" for _ in range(MAX_FUNCTION))
    files = {
        "a/fits.py": f"def f():\n{body[: -len('    x = 1') - 1]}\n",
        "a/long.py": f"@staticmethod\ndef f():\n{body}\n",
    }
    house({**files, "a/file.py": "x = 1\n" * (MAX_FILE + 1), "a/full.py": "x = 1\n" * MAX_FILE})
    assert long_parts(tmp_path / "house") == [
        f"house/a/file.py has {MAX_FILE + 1} lines",
        f"house/a/long.py:1 f has {MAX_FUNCTION + 2} lines",
    ]

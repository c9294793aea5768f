"""Every keyword that code and notebooks pass to transformers, peft, datasets and trl exists as installed."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("transformers", "peft", "datasets", "trl")
# calls on objects, whose class no import names: the method, and the classes that it may belong to
METHODS = {
    "apply_chat_template": ("transformers.PreTrainedTokenizerBase",),
    "batch_decode": ("transformers.PreTrainedTokenizerBase",),
    "save_pretrained": ("transformers.PreTrainedModel", "transformers.PreTrainedTokenizerBase", "peft.PeftModel"),
    "merge_and_unload": ("peft.tuners.lora.LoraModel",),
    "set_adapter": ("peft.PeftModel", "peft.tuners.lora.LoraModel"),
    "get_decoder": ("transformers.PreTrainedModel",),
}


def sources() -> Iterator[tuple[str, str]]:
    for folder in ("dpo_workbench", "scripts", "research", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    yield "trl_train.txt", (ROOT / "dpo_workbench" / "export" / "trl_train.txt").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield str(path.relative_to(ROOT)), re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)


def imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> dotted path, for what comes from the libraries."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name: a.name for a in node.names if a.name.split(".")[0] in LIBRARIES}
    return names


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(code: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Of each call into a library: where the callee may be found, and the keywords."""
    tree = ast.parse(code)
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = dotted(node.func).partition(".")
            keywords = [k.arg for k in node.keywords if k.arg]
            if first in names:
                yield (".".join(filter(None, (names[first], rest))),), keywords
            elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield tuple(f"{home}.{node.func.attr}" for home in METHODS[node.func.attr]), keywords


def find(path: str) -> Any:
    """The object at a dotted path; AttributeError or ImportError where there is none."""
    parts = path.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ImportError:
            continue
        for name in parts[size:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


def takes(function: Any, keyword: str) -> bool:
    """The signature names it; of a function that takes any keyword, its source or that of its base classes does."""
    parameters = inspect.signature(function).parameters
    if keyword in parameters:
        return True
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return False
    homes = [inspect.getmodule(function)]
    if "from_pretrained" in getattr(function, "__qualname__", ""):  # the Auto classes hand on to these
        homes += [importlib.import_module(f"transformers.{m}") for m in ("modeling_utils", "tokenization_utils_base")]
    texts = [inspect.getsource(home) for home in homes if home]
    return any(re.search(rf"[\"'`]{keyword}[\"'`]|\b{keyword}\s*[:=]", text) for text in texts)


def drifted(code: str) -> list[str]:
    found = []
    for places, keywords in calls(code):
        functions = []
        for place in places:
            try:
                functions.append(find(place))
            except (ImportError, AttributeError):
                continue
        if not functions:
            found.append(f"{places[0]} is not there")
            continue
        found += [f"{places[0]} takes no {k!r}" for k in keywords if not any(takes(f, k) for f in functions)]
    return found


FILES = {name: code for name, code in sources() if any(lib in code for lib in (*LIBRARIES, *METHODS))}


def test_the_installed_libraries_take_what_is_passed() -> None:
    found = {name: problems for name, code in FILES.items() if (problems := drifted(code))}
    assert found == {}


def test_something_was_looked_at() -> None:
    seen = [place for code in FILES.values() for places, _ in calls(code) for place in places[:1]]
    for part in ("transformers.AutoModelForCausalLM", "peft.LoraConfig", "datasets.load_dataset", "trl.DPOConfig"):
        assert any(place.startswith(part) for place in seen), part


def test_settings_of_an_exported_project_are_fields_of_trl() -> None:
    from trl import DPOConfig

    from dpo_workbench.export.runs import _dpo_config
    from dpo_workbench.training.config import TrainConfig

    known = {field.name for field in fields(DPOConfig)}
    assert set(_dpo_config(TrainConfig(), {"sigmoid": 1.0, "nll": 0.2}, 10)) <= known


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("from peft import LoraConfig\nLoraConfig(r=8, rnk=3)", "'rnk'"),
        ("from transformers import AutoModelForCausalLM as A\nA.from_pretrained('x', torch_dtyp=1)", "'torch_dtyp'"),
        ("from transformers import NoSuchModel\nNoSuchModel()", "not there"),
        ("import datasets\ndatasets.load_dataset('x', spilt='train')", "'spilt'"),
        ("tokenizer.apply_chat_template([], add_generation_promt=True)", "'add_generation_promt'"),
    ],
)
def test_a_keyword_that_is_gone_is_found(code: str, words: str) -> None:
    assert any(words in problem for problem in drifted(code)), drifted(code)

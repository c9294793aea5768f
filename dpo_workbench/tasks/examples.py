"""`Example` and `Score`, and the files that examples are stored in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer.

    Examples of the same `group` always belong to the same split. A `label` is the answer that supervised fine-tuning
    learns from, if that differs from the reference (for example, because an annotator made mistakes). Verifiers never
    see the label.
    """

    id: str
    prompt: str
    reference: str
    group: str
    extra: dict[str, Any] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True)
class Score:
    """What a task's verifier says about one answer."""

    value: float  # in [0, 1]; 1 is a perfect answer
    failure: str | None = None  # None, or the name of a failure class
    answer: Any = None  # what was read from the text
    explanation: str = ""  # for a person

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise WorkbenchError(
                f"A score must be between 0 and 1. Got {self.value!r}. Scale the value in your `score` function."
            )


ScoreFunction = Callable[[Example, str], Score]


def load_splits(name: str) -> dict[str, list[Example]]:
    """The three splits of a built-in task's data."""
    folder = data_folder() / name
    return {split: read_examples(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}


def read_examples(path: Path) -> list[Example]:
    """Read a task's JSONL file (`id, prompt, reference, group`, optionally `extra` and `label`).

    Raises:
        WorkbenchError: the file is missing or empty, or a row is not a complete example; names file and line.
    """
    if not path.is_file():
        raise WorkbenchError(f"A task's data file must exist. Got no file at {path}. Check the path or reinstall.")
    examples = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            example = Example(**json.loads(line.decode("utf-8")))
            if not all(isinstance(x, str) for x in (example.id, example.prompt, example.reference, example.group)):
                raise TypeError("id, prompt, reference and group must be text")
            examples.append(example)
        except (ValueError, TypeError, RecursionError) as error:
            raise WorkbenchError(
                f"Each row must be a JSON object with id, prompt, reference and group. Got {line[:60]!r} "
                f"({path}:{number}: {error}). Fix or drop the row."
            ) from error
    if not examples:
        raise WorkbenchError(f"A task's data file must have rows. Got none in {path}. Write at least one example.")
    return examples

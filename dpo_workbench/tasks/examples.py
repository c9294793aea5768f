"""`Example` and `Score`, and the files that examples are stored in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.messages import Turns, prompt_as_text, read_prompt


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer.

    Examples of the same `group` always belong to the same split. A `label` is the answer that supervised fine-tuning
    learns from, if that differs from the reference (for example, because an annotator made mistakes). Verifiers never
    see the label.
    """

    id: str
    prompt: str | Turns  # as in `Pair`
    reference: str  # "": there is none
    group: str
    extra: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", read_prompt(self.prompt, f"example {self.id!r}"))

    @property
    def prompt_as_text(self) -> str:
        """The prompt for people and for verifiers, as in `Pair`."""
        return prompt_as_text(self.prompt)


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
    """The three splits of a built-in task's data: JSONL with the fields of `Example`."""
    splits = {}
    for split in ("train", "dev", "test"):
        path = data_folder() / name / f"{split}.jsonl"
        if not path.is_file():
            raise WorkbenchError(f"A task's data file must exist. Got no file at {path}. Reinstall the package.")
        lines = path.read_text(encoding="utf-8").split("\n")  # `splitlines` would also split at U+2028 inside a text
        splits[split] = [Example(**json.loads(line)) for line in lines if line.strip()]
    return splits

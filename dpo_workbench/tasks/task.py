"""`Task`, `Example`, `Score`, `Split`: prompts with references, and one function that judges answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, overload

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import failures


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer. Examples of one `group` never fall on two sides of a split.

    A `label` is what somebody wrote for it in haste, where that is not the reference: supervised fine-tuning learns
    from labels as they are found, the verifier never sees them.
    """

    id: str
    prompt: str
    reference: str
    group: str
    extra: dict[str, Any] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True)
class Score:
    """What a task's verifier says of one answer."""

    value: float  # in [0, 1]; 1 is a perfect answer
    failure: str | None = None  # None, or the name of a failure class
    answer: Any = None  # what was read out of the text
    explanation: str = ""  # for a person

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise WorkbenchError(
                f"A score must be between 0 and 1. Got {self.value!r}. Scale the value in your `score` function."
            )


class Split(Sequence[Example]):
    """Examples of one split, with the task that can score them. Slicing gives a smaller `Split`."""

    def __init__(self, task: Task, name: str, examples: Iterable[Example]):
        self.task = task
        self.name = name
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Split: ...
    def __getitem__(self, index: int | slice) -> Example | Split:
        if isinstance(index, slice):
            return Split(self.task, self.name, self.examples[index])
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __repr__(self) -> str:
        groups = len({e.group for e in self.examples})
        return f"Split({self.task.name}/{self.name}: {len(self)} examples in {groups} groups)"


class Task:
    """Prompts with references and one verifier. See `dpo_workbench.tasks.receipts` for a whole one.

    Args:
        name: a short word, used in file names.
        splits: split name -> examples. `train`, `dev` and `test` are the usual ones.
        score: `score(example, answer) -> Score`; it must not raise on any text. A bare number from 0 to 1 (or True,
            False) stands for `Score(number)`. The generic failures (empty, truncated, loop, echo) are looked for
            before it is called.
        description: one line for `dpo-workbench tasks`.
        max_new_tokens: the length at which an answer is cut off and counts as never ending.
        runs_code: `score` runs what the model wrote, in a sandbox.

    Raises:
        WorkbenchError: an id appears twice, or a group falls on two sides of a split.
    """

    built_in = False  # one of the workbench's own, which has recipes and shipped adapters; a name alone does not tell

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Iterable[Example]],
        score: Callable[[Example, str], Score | float],
        description: str = "",
        max_new_tokens: int = 256,
        runs_code: bool = False,
    ):
        self.name = name
        self.runs_code = runs_code
        self.description = description
        self.max_new_tokens = max_new_tokens
        self._score = score
        self.splits = {key: Split(self, key, rows) for key, rows in splits.items()}
        self._check()

    @classmethod
    def from_jsonl(cls, source: Any, **columns: Any) -> Task:
        """A task from a file, a table or rows: `Task.from_jsonl("q.jsonl", prompt="question", reference="answer",
        score="number")`. See `dpo_workbench.tasks.from_files.task_from` for all arguments and errors."""
        from dpo_workbench.tasks.from_files import task_from

        return task_from(source, **columns)

    @classmethod
    def from_hub(cls, name: str, **columns: Any) -> Task:
        """A task from a data set of the Hub: `Task.from_hub("owner/name@config/split", ...)`, as `from_jsonl`."""
        return cls.from_jsonl(f"hub:{name.removeprefix('hub:')}", **columns)

    def _check(self) -> None:
        ids = Counter(e.id for split in self.splits.values() for e in split)
        twice = [i for i, n in ids.items() if n > 1]
        if twice:
            raise WorkbenchError(
                f"Example ids must differ. Got {twice[0]!r} {ids[twice[0]]} times in task {self.name!r}. Rename one."
            )
        home: dict[str, str] = {}
        for key, split in self.splits.items():
            for example in split:
                if home.setdefault(example.group, key) != key:
                    raise WorkbenchError(
                        f"A group must stay on one side of a split. Got group {example.group!r} in both "
                        f"{home[example.group]!r} and {key!r} of task {self.name!r} (example {example.id!r}). "
                        'Move its examples to one split (from files: `on_leak="drop"`).'
                    )

    def with_splits(self, splits: Mapping[str, Iterable[Example]]) -> Task:
        """A task of other rows with the same verifier."""
        return Task(self.name, splits, self._score, self.description, self.max_new_tokens, self.runs_code)

    def split(self, name: str) -> Split:
        """The split of that name; raises `WorkbenchError` when it is missing or empty."""
        if name not in self.splits or not len(self.splits[name]):
            filled = [key for key, rows in self.splits.items() if len(rows)]
            raise WorkbenchError(
                f"Task {self.name!r} must have examples in split {name!r}. It has {', '.join(filled) or 'none'}. "
                "Name one of these, or add examples."
            )
        return self.splits[name]

    @property
    def train(self) -> Split:
        return self.split("train")

    @property
    def dev(self) -> Split:
        return self.split("dev")

    @property
    def test(self) -> Split:
        return self.split("test")

    def score(self, example: Example, answer: str, *, finished: bool = True) -> Score:
        """Judge one answer: generic failures first, then the task's own verifier.

        Args:
            example: the prompt with its reference.
            answer: the model's text.
            finished: False when generation hit the token limit (the answer was cut off).
        """
        generic = failures.detect(answer, prompt=example.prompt, finished=finished)
        if generic is None:
            score = self._judged(example, answer)
            return replace(score, failure="wrong") if score.value == 0 and score.failure is None else score
        name, why = generic
        partial = self._judged(example, answer) if name in ("loop", "truncated") else Score(0.0)
        return Score(min(partial.value, 0.99), name, partial.answer, why)

    def _judged(self, example: Example, answer: str) -> Score:
        given = self._score(example, answer)
        if isinstance(given, Real):
            return Score(float(given))
        if not isinstance(given, Score):
            raise TypeError(f"`score` must return a Score or a number from 0 to 1, got {type(given).__name__}")
        return given

    def try_score(self, example: Example, answer: str, *, finished: bool = True) -> tuple[Score | None, str]:
        """`score`, or None and why where the verifier cannot judge: it raised, or what it gave is no `Score`."""
        try:
            score = self.score(example, answer, finished=finished)
            return score, str(score.explanation)
        except Exception as error:  # a user's function may raise anything; an interrupt is no Exception and passes
            return None, f"not scored: {type(error).__name__}: {error}"[:500]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{key} {len(rows)}" for key, rows in self.splits.items())
        return f"Task({self.name}: {sizes})"


def load_splits(name: str) -> dict[str, list[Example]]:
    """The three splits of a built-in task's data."""
    folder = data_folder() / name
    return {split: read_examples(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}


def read_examples(path: Path) -> list[Example]:
    """Read a task's JSONL file (`id, prompt, reference, group`, optional `extra`).

    Raises:
        WorkbenchError: the file is missing, empty, or a row is not a whole example; names file and line.
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
                f"({path}:{number}: {error}). Mend or drop the row."
            ) from error
    if not examples:
        raise WorkbenchError(f"A task's data file must have rows. Got none in {path}. Write at least one example.")
    return examples


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSONL, the form that `read_examples` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            row = {key: value for key, value in asdict(example).items() if value not in ({}, None)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

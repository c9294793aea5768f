"""`Task` and `Split`: prompts with references, and one function that judges answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, overload

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import failures
from dpo_workbench.tasks.constraint_scores import Constraints
from dpo_workbench.tasks.examples import Example, Score
from dpo_workbench.tasks.from_files import SHARES, Column, examples_from, shuffled, split_by_group, without_leaks
from dpo_workbench.tasks.scores import named

__all__ = ["Example", "Score", "Split", "Task", "with_all_splits"]


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

    def __repr__(self) -> str:
        groups = len({e.group for e in self.examples})
        return f"Split({self.task.name}/{self.name}: {len(self)} examples in {groups} groups)"


class Task:
    """Prompts with references and one verifier. `dpo_workbench.tasks.briefs` is a complete example.

    Args:
        name: a short word, used in file names.
        splits: split name -> examples. `train`, `dev` and `test` are the usual ones.
        score: `score(example, answer) -> Score`; it must not raise for any text. A bare number from 0 to 1 (or True,
            False) means `Score(number)`. The generic failures (empty, truncated, loop, echo) are checked before it is
            called.
        max_new_tokens: the length at which an answer is cut off and counts as unfinished.
        harm: failure class -> how much harm such an answer does, compared with a class of 1. Classes that are not
            listed have 1. The verdict reports the mean harm per answer.
    """

    built_in = False  # True for the package's own tasks, which have recipes and shipped adapters

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Iterable[Example]],
        score: Callable[[Example, str], Score | float],
        description: str = "",
        max_new_tokens: int = 256,
        harm: Mapping[str, float] | None = None,
    ):
        self.name = name
        self.description = description
        self.max_new_tokens = max_new_tokens
        self.harm = dict(harm or {})
        failures.check_harm(self.harm)
        self._score = score
        self.splits = {key: Split(self, key, rows) for key, rows in splits.items()}
        self._check()

    @classmethod
    def from_jsonl(
        cls,
        source: Any,
        *,
        prompt: Column,
        reference: Column | None = None,
        score: str | Callable[[Example, str], Score | float],
        name: str | None = None,
        description: str = "",
        id: Column | None = None,
        group: Column | None = None,
        split: Column | None = None,
        label: Column | None = None,
        shares: Mapping[str, float] | None = None,
        on_leak: str = "raise",
        seed: int = 0,
        max_new_tokens: int = 256,
        harm: Mapping[str, float] | None = None,
    ) -> Task:
        """A task from a file, a table or rows. All columns stay in `Example.extra`, where verifiers find them.

        `Task.from_jsonl("q.jsonl", prompt="question", reference="answer", score="number")`

        Args:
            source: a path (JSONL, JSON, CSV, TSV, Parquet, also gzipped), `hub:owner/name@config/split`, a DataFrame, a
                `datasets` object, a list of mappings; or a mapping from split to any of these.
            prompt: a column of texts or messages, a function of the row, or a template with columns in braces
                (`"{schema}\\n\\nQuestion: {question}"`; double braces that are meant as text).
            reference: the same. Numbers, lists and objects become JSON text; the first of a list of texts is taken.
                None: there are no reference answers (with `constraints`, or a verifier of yours that needs none).
            score: a verifier, or a ready one by name: `"number(tolerance=0.01)"` (see `dpo_workbench.tasks.scores`).
            id: default: the file's name and the row's number. `name`: default: the file's.
            group: what must not be in two splits; default: the prompt.
            split: the column that names each row's split (`validation` and the like mean `dev`); default: drawn.
            label: what fine-tuning should learn if that is not the reference (see `Example`).
            shares: of the rows by split, if splits are drawn; default: 0.6 train, 0.15 dev and 0.25 test.
            on_leak: for groups that given splits share: `raise`, or `drop` their rows from all splits but the last
                (test after dev after train) and print how many.
            seed: for drawing splits, and for the order of the rows in each split.

        Raises:
            WorkbenchError: a row cannot be read, lacks a column, or has an empty prompt or reference; an id appears
                twice; a group is in two given splits; an unknown verifier. No row is dropped silently.
        """
        verifier = named(score) if isinstance(score, str) else score
        if reference is None and isinstance(score, str) and not isinstance(verifier, Constraints):
            raise WorkbenchError(f"The verifier {score!r} must have references. Got none. Name a column (`reference`).")
        own_name, found = examples_from(
            source, {"prompt": prompt, "reference": reference, "id": id, "group": group, "split": split, "label": label}
        )
        if split is None and not isinstance(source, Mapping):
            splits = split_by_group(found[""], shares, seed)
        else:
            splits = shuffled(without_leaks(found) if on_leak == "drop" else found, seed)
        return cls(name or own_name, splits, verifier, description, max_new_tokens, harm)

    def _check(self) -> None:
        """Ids are unique, no group is in two splits, and constraints are known."""
        if isinstance(self._score, Constraints):
            self._score.check(example for split in self.splits.values() for example in split)
        ids: set[str] = set()
        home: dict[str, str] = {}
        for key, split in self.splits.items():
            for example in split:
                if example.id in ids:
                    raise WorkbenchError(f"Example ids must differ. Got {example.id!r} twice in task {self.name!r}.")
                ids.add(example.id)
                if home.setdefault(example.group, key) != key:
                    raise WorkbenchError(
                        f"A group must be in one split only. Got group {example.group!r} in both "
                        f"{home[example.group]!r} and {key!r} of task {self.name!r} (example {example.id!r}). "
                        'Move its examples to one split (from files: `on_leak="drop"`).'
                    )

    def with_splits(self, splits: Mapping[str, Iterable[Example]]) -> Task:
        """A task with other rows and the same verifier."""
        return Task(self.name, splits, self._score, self.description, self.max_new_tokens, self.harm)

    def split(self, name: str) -> Split:
        """The split of that name; raises `WorkbenchError` if it is missing or empty."""
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

        `finished` is False if generation reached the token limit, so that the answer was cut off.
        """
        generic = failures.detect(answer, prompt=example.prompt, finished=finished)
        if generic and generic[0] in ("empty", "echo"):
            return Score(0.0, generic[0], None, generic[1])
        given = self._score(example, answer)
        if isinstance(given, Real):
            given = Score(float(given))
        if not isinstance(given, Score):
            raise TypeError(f"`score` must return a Score or a number from 0 to 1, got {type(given).__name__}")
        if generic:
            return Score(min(given.value, 0.99), generic[0], given.answer, generic[1])
        return replace(given, failure="wrong") if given.value == 0 and given.failure is None else given

    def try_score(self, example: Example, answer: str, *, finished: bool = True) -> tuple[Score | None, str]:
        """`score` and its explanation; None and the reason if the verifier raised or returned no `Score`."""
        try:
            score = self.score(example, answer, finished=finished)
            return score, str(score.explanation)
        except Exception as error:  # a user's function may raise anything; KeyboardInterrupt is no Exception
            return None, f"not scored: {type(error).__name__}: {error}"[:500]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{key} {len(rows)}" for key, rows in self.splits.items())
        return f"Task({self.name}: {sizes})"


def with_all_splits(task: Task) -> Task:
    """The task; if it has no dev or no test rows, some of its training rows become these, by group."""
    missing = {split: share for split, share in SHARES.items() if not len(task.splits.get(split, ()))}
    if not missing:
        return task
    parts = split_by_group(task.train, {"train": 1 - sum(missing.values()), **missing})
    sizes = ", ".join(f"{len(rows)} for {split}" for split, rows in parts.items())
    print(f"{task.name} has no {' and no '.join(missing)} split. Its {len(task.train)} training rows become {sizes}.")
    return task.with_splits({**task.splits, **parts})

"""`evaluate`: a model answers the prompts of a split, the task's verifier judges each answer, failures are counted."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text
from dpo_workbench.common.progress import progress
from dpo_workbench.evaluation.statistics import Interval, smallest_detectable, wilson
from dpo_workbench.tasks.task import Example, Split, Task

if TYPE_CHECKING:
    from dpo_workbench.models.generation import Answer
    from dpo_workbench.models.loading import Model

_USUAL_DISCORDANCE = 0.2  # share of prompts that change between two arms, where none has been seen yet


@dataclass(frozen=True)
class Judged:
    """One prompt, its answer, and what the verifier said. `value` None: it could not be scored."""

    id: str
    group: str
    prompt: str
    answer: str
    n_tokens: int
    finished: bool
    value: float | None
    failure: str | None
    explanation: str

    @property
    def failed(self) -> bool:
        return self.failure is not None


@dataclass(frozen=True)
class Evaluation:
    """The judged answers of one arm on one split. Shares and means are over the scored rows."""

    name: str  # of the arm
    task: str
    split: str
    model: str
    decoding: dict[str, Any]
    rows: tuple[Judged, ...]
    seconds: float = 0.0

    def __post_init__(self) -> None:
        odd = next((row for row in self.rows if row.value is not None and not 0 <= row.value <= 1), None)
        if odd is not None:  # NaN too: it compares false
            raise WorkbenchError(
                f"A score must lie in [0, 1], or be null where there is none. Got {odd.value!r} for {odd.id!r} of "
                f"{self.task}/{self.split}. Evaluate again, or mend the file."
            )
        if not self.scored:
            reason = f" (the first: {self.rows[0].explanation})" if self.rows else ""
            raise WorkbenchError(
                f"An evaluation must have at least one scored answer. Got {len(self.rows)} rows of "
                f"{self.task}/{self.split}, none scored{reason}. Choose a split with examples, and mend the score "
                "function."
            )

    @cached_property
    def scored(self) -> tuple[Judged, ...]:
        """The rows that the verifier could judge."""
        return tuple(row for row in self.rows if row.value is not None)

    @property
    def n(self) -> int:
        """How many answers were scored."""
        return len(self.scored)

    @property
    def n_unscored(self) -> int:
        return len(self.rows) - self.n

    @property
    def mean_score(self) -> float:
        return statistics.fmean(row.value for row in self.scored if row.value is not None)

    @property
    def mean_tokens(self) -> float:
        return statistics.fmean(row.n_tokens for row in self.scored)

    @property
    def n_failed(self) -> int:
        return sum(row.failed for row in self.scored)

    @property
    def failed_share(self) -> float:
        return self.n_failed / self.n

    @property
    def failures(self) -> Counter[str]:
        """Failure class -> count, the most frequent first (ties by name)."""
        counts = Counter(row.failure for row in self.scored if row.failure is not None)
        return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))

    def share(self, failure: str) -> float:
        """Share of the scored answers in that failure class."""
        return self.failures[failure] / self.n

    def interval(self, failure: str | None = None) -> Interval:
        """Wilson's interval of the share of any failure, or of one class."""
        return wilson(self.n_failed if failure is None else self.failures[failure], self.n)

    def summary(self) -> dict[str, Any]:
        """The counts and means as plain values, without times: equal for equal answers."""
        interval = self.interval()
        return {
            "name": self.name,
            "task": self.task,
            "split": self.split,
            "model": self.model,
            "decoding": dict(self.decoding),
            "n": self.n,
            "n_unscored": self.n_unscored,
            "n_failed": self.n_failed,
            "failed_share": self.failed_share,
            "failed_low": interval.low,
            "failed_high": interval.high,
            "failures": dict(self.failures),
            "mean_score": self.mean_score,
            "mean_tokens": self.mean_tokens,
        }

    def save(self, path: str | Path) -> Path:
        """Write a JSON-lines file in one step: one line of facts, then one line a row."""
        facts = {key: value for key, value in vars(self).items() if key in _FACTS}
        lines = [facts | {"n_rows": len(self.rows)}, *map(asdict, self.rows)]
        write_text(Path(path), "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            WorkbenchError: the file is missing, not such a file, or lacks rows.
        """
        try:
            facts, *rows = [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line.strip()]
            n_rows = facts.pop("n_rows")
            if n_rows != len(rows):
                raise ValueError(f"{len(rows)} rows of {n_rows}")
            return cls(**{key: facts[key] for key in _FACTS}, rows=tuple(Judged(**row) for row in rows))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WorkbenchError(
                f"An evaluation must be a whole file that `Evaluation.save` wrote. Got {path} ({error}). Check the "
                "path, or evaluate again."
            ) from error

    def _table(self) -> list[tuple[str, str, str, str]]:
        counts = [("any failure", self.n_failed), *self.failures.items()]
        return [(name, str(k), *_share_cells(wilson(k, self.n))) for name, k in counts]

    def _lines(self) -> tuple[str, str]:
        unscored = f", {self.n_unscored} could not be scored" if self.n_unscored else ""
        title = (
            f"{self.name}: {self.task}/{self.split}, {self.n} answers scored{unscored}, "
            f"mean score {self.mean_score:.3f}, {self.mean_tokens:.0f} tokens on average"
        )
        return title, sees_line(self.n, _USUAL_DISCORDANCE, f", if {100 * _USUAL_DISCORDANCE:.0f} % of them change")

    def __str__(self) -> str:
        title, sees = self._lines()
        width = max(len(row[0]) for row in self._table())
        rows = [f"  {a:<{width}}  {b:>5}  {c:>7}  (95 %: {d})" for a, b, c, d in self._table()]
        return "\n".join([title, *rows, sees])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import paragraph, table

        title, sees = self._lines()
        body = table(("failure", f"of {self.n}", "share", "95 % interval (Wilson)"), self._table())
        return paragraph(title, bold=True) + body + paragraph(sees)


_FACTS = ("name", "task", "split", "model", "decoding", "seconds")


def sees_line(n: int, discordant_share: float, condition: str = "") -> str:
    """The line under each result: the smallest difference that n paired prompts can show."""
    points = math.ceil(100 * smallest_detectable(n, discordant_share) - 1e-9)
    return f"These {n} prompts see differences of about {points} points or more (80 % power{condition})."


def evaluate(
    model: Model | str | None,
    split: Split,
    *,
    name: str | None = None,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    repetition_penalty: float = 1.0,
    engine: str | None = None,
    drafts: Evaluation | None = None,
    show: bool = True,
) -> Evaluation:
    """Let `model` answer each prompt of `split` once, and judge the answers with the split's task.

    Args:
        model: the handle to judge. With an engine: the served name (None where one model is served), or a handle
            that stands for it.
        split: held-out examples, such as `task.test`.
        name: label of the arm; the model's name by default.
        temperature: 0 takes the likeliest token.
        max_new_tokens: where an answer is cut off; the task's own limit by default.
        seed: of the draws, with a temperature above 0.
        repetition_penalty: above 1 makes repeated tokens less likely (an arm of its own; see `generate`).
        engine: None answers here; the address of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`,
            answers there (see `models.server.ask`).
        drafts: another arm's answers to these prompts, where guesses are looked up; without, greedy ones are looked up
            in the references. It saves time and changes no answer, apart from ties that rounding decides.
        show: a progress bar, and a line about unscored answers.

    Raises:
        WorkbenchError: no examples, or not one answer could be scored; the server fails, which keeps the answers that
            are there.
    """
    from dpo_workbench.models.server import draw

    if not isinstance(split, Split) or not len(split):
        raise WorkbenchError(
            f"`evaluate` needs a split with examples. Got {split!r}. Pass one, such as task.test or task.test[:50]."
        )
    decoding: dict[str, Any] = {
        "temperature": temperature,
        "max_new_tokens": split.task.max_new_tokens if max_new_tokens is None else max_new_tokens,
        "seed": seed,
        "repetition_penalty": repetition_penalty,
    }
    begun = time.monotonic()
    with progress(len(split), "answers", show) as advance:
        prompts = [example.prompt for example in split]
        texts = {row.id: row.answer for row in drafts.rows} if drafts else {}
        known = [texts.get(example.id, "") for example in split] if texts else None
        if known is None and temperature == 0:
            known = [example.reference for example in split]
        answers, served = draw(model, prompts, engine=engine, drafts=known, **decoding, on_answers=advance)
    rows = tuple(judge(split, example, one[0]) for example, one in zip(split, answers, strict=True))
    seconds = time.monotonic() - begun
    if served:
        label, decoding["engine"] = served["model"], served["engine"]
    else:
        handle = cast("Model", model)
        label = f"{handle.name}+{handle.adapter}" if handle.adapter else handle.name
    result = Evaluation(name or label, split.task.name, split.name, label, decoding, rows, seconds)
    if result.n_unscored and show:
        print(f"{result.n_unscored} of {len(rows)} answers could not be scored; {_first_unscored(rows)}")
    return result


def evaluate_answers(
    name: str, split: Split, answers: Sequence[Answer], *, model: str, decoding: dict[str, Any], seconds: float = 0.0
) -> Evaluation:
    """Judge answers that are there already, one for each example of `split`, as an arm of their own."""
    rows = tuple(judge(split, example, answer) for example, answer in zip(split, answers, strict=True))
    return Evaluation(name, split.task.name, split.name, model, decoding, rows, seconds)


def judge(split_or_task: Split | Task, example: Example, answer: Answer) -> Judged:
    """One answer judged. A score function that raises leaves the row unscored: neither right nor wrong."""
    task = split_or_task.task if isinstance(split_or_task, Split) else split_or_task
    score, explanation = task.try_score(example, answer.text, finished=answer.finished)
    return Judged(
        example.id,
        example.group,
        example.prompt,
        answer.text,
        answer.n_tokens,
        answer.finished,
        float(score.value) if score else None,
        score.failure if score else None,
        explanation,
    )


def _first_unscored(rows: Iterable[Judged]) -> str:
    row = next(row for row in rows if row.value is None)
    return f"the first is {row.id!r}: {row.explanation}"


def _share_cells(share: Interval) -> tuple[str, str]:
    return f"{100 * share.estimate:.1f} %", f"{100 * share.low:.1f} to {100 * share.high:.1f} %"

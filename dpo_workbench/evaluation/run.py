"""`evaluate`: the model answers the prompts of a split, and the task's verifier scores each answer."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text
from dpo_workbench.common.progress import progress
from dpo_workbench.evaluation.statistics import Interval, detectable_points, wilson
from dpo_workbench.tasks.failures import check_harm
from dpo_workbench.tasks.task import Example, Split, Task

if TYPE_CHECKING:
    from dpo_workbench.models.generation import Answer
    from dpo_workbench.models.loading import Model

NO_SCORE = "no score was given"  # of a row that was read from elsewhere: a person or a model may still judge it
_FACTS = ("name", "task", "split", "model", "decoding", "harm")  # the first line of a saved file


@dataclass(frozen=True)
class Judged:
    """One prompt, its answer and the verifier's score. `value` is None where the answer could not be scored."""

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
    """The scored answers of one arm on one split. Shares and means are taken over the scored rows."""

    name: str  # of the arm
    task: str
    split: str
    model: str
    decoding: dict[str, Any]
    rows: tuple[Judged, ...]
    harm: dict[str, float] = field(default_factory=dict)  # the task's severities, see `Task`

    def __post_init__(self) -> None:
        check_harm(self.harm)
        bad = next((row for row in self.rows if row.value is not None and not 0 <= row.value <= 1), None)
        if bad is not None:  # this includes NaN
            raise WorkbenchError(
                f"A score must be between 0 and 1, or null if there is none. Got {bad.value!r} for {bad.id!r} of "
                f"{self.task}/{self.split}. Evaluate again, or correct the file."
            )
        seen = Counter(row.id for row in self.rows).most_common(1)
        if seen and seen[0][1] > 1:
            raise WorkbenchError(f"Example ids must differ. Got {seen[0][0]!r} twice in {self.task}/{self.split}.")
        if not self.scored and not (self.rows and all(row.explanation == NO_SCORE for row in self.rows)):
            reason = f" (the first: {self.rows[0].explanation})" if self.rows else ""
            raise WorkbenchError(
                f"An evaluation must have at least one scored answer. Got {len(self.rows)} rows of {self.task}/"
                f"{self.split}, none scored{reason}. Choose a split with examples, and fix the score function."
            )

    @classmethod
    def from_jsonl(cls, path: str | Path, *, name: str | None = None) -> Evaluation:
        """Answers of any trainer's model, from a file with one JSON object per line.

        A line has `prompt` and `answer`, and may have `score` (0 to 1, or null), `failure` (a class, or null), `group`
        and `id`. Without ids, two files are matched by prompt. Where no line has `failure` and all scores are 0 or 1,
        a 0 is the failure "wrong". A `failure` without a score counts as 0, and null as 1. Answers with neither can
        still be judged (docs/judge.md).

        Raises:
            WorkbenchError: lines that can't be read or used, with their number.
        """
        try:
            lines = Path(path).read_bytes().split(b"\n")
            rows = [json.loads(line) for line in lines if line.strip()]
        except (OSError, ValueError, RecursionError) as error:
            raise WorkbenchError(f"Answers must be lines of JSON. Got {path} ({error}). Correct the file.") from error
        return cls.from_rows(rows, name=name or Path(path).stem, task="answers", source=str(path))

    @classmethod
    def from_rows(cls, rows: Sequence[Any], *, name: str, task: str, source: str) -> Evaluation:
        """`from_jsonl` for rows in memory. `source` says in messages where they come from."""
        wrong: dict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(rows, 1):
            if problem := _problem(row):
                wrong[problem].append(number)
        if wrong or not rows:
            told = [f"{problem} ({len(found)} rows, the first: {found[0]})" for problem, found in wrong.items()]
            raise WorkbenchError(
                "Each row must have texts as `prompt` and `answer`, and may have a score from 0 to 1. Got "
                f"{'; '.join(told) or 'no rows'} in {source}. Correct these rows."
            )
        binary = {row.get("score") for row in rows} <= {0, 1, None} and not any("failure" in row for row in rows)
        seen: Counter[str] = Counter()
        made = []
        for row in rows:
            key = hashlib.sha256(row["prompt"].encode("utf-8", "surrogatepass")).hexdigest()[:12]
            seen[key] += 1
            value, failure = row.get("score"), row.get("failure")
            if "failure" in row and "score" not in row:
                value = failure is None
            if binary and value == 0:
                failure = "wrong"
            asked = (str(row.get("id", f"{key}-{seen[key]}")), str(row.get("group") or key), row["prompt"])
            why = row.get("explanation") or (NO_SCORE if value is None else "")
            value = None if value is None else float(value)
            made.append(Judged(*asked, row["answer"], int(row.get("n_tokens") or 0), True, value, failure, why))
        return cls(name, task, "", "", {}, tuple(made))

    @cached_property
    def scored(self) -> tuple[Judged, ...]:
        """The rows that have a score."""
        return tuple(row for row in self.rows if row.value is not None)

    @property
    def n(self) -> int:
        """Number of scored answers."""
        return len(self.scored)

    @property
    def n_unscored(self) -> int:
        return len(self.rows) - self.n

    @property
    def mean_score(self) -> float:
        return statistics.fmean(row.value for row in self.scored if row.value is not None)

    @property
    def mean_harm(self) -> float:
        """Mean severity per answer; 0 for one that passed. Without severities, this is the share of failed answers."""
        return sum(self.harm.get(name, 1.0) * count for name, count in self.failures.items()) / self.n

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

    def interval(self, failure: str | None = None) -> Interval:
        """Share of failed answers, or of one failure class, with Wilson's interval."""
        return wilson(self.n_failed if failure is None else self.failures[failure], self.n)

    def summary(self) -> dict[str, Any]:
        """Counts and means as plain values."""
        counts = ("n", "n_unscored", "n_failed", "failed_share", "mean_score", "mean_harm", "mean_tokens")
        facts = {name: getattr(self, name) for name in ("name", "task", "split", "model", *counts, "decoding", "harm")}
        interval = self.interval()
        return facts | {"failed_low": interval.low, "failed_high": interval.high, "failures": dict(self.failures)}

    def save(self, path: str | Path) -> Path:
        """Write a JSON-lines file: one line of facts, then one line per row."""
        facts = {key: getattr(self, key) for key in _FACTS} | {"n_rows": len(self.rows)}
        lines = [facts, *map(asdict, self.rows)]
        write_text(Path(path), "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read a file written by `save`."""
        try:
            facts, *rows = [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line.strip()]
            if facts["n_rows"] != len(rows):
                raise ValueError(f"{len(rows)} rows of {facts['n_rows']}")
            facts = {"harm": {}} | facts  # older files have no severities
            return cls(**{key: facts[key] for key in _FACTS}, rows=tuple(Judged(**row) for row in rows))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WorkbenchError(
                f"An evaluation must be a whole file that `Evaluation.save` wrote. Got {path} ({error}). Check the "
                "path, or evaluate again."
            ) from error

    def __str__(self) -> str:
        if not self.scored:
            return f"{self.name}: {self.task}/{self.split}, {len(self.rows)} answers without scores"
        unscored = f", {self.n_unscored} could not be scored" if self.n_unscored else ""
        lines = [
            f"{self.name}: {self.task}/{self.split}, {self.n} answers scored{unscored}, "
            f"mean score {self.mean_score:.3f}, {self.mean_tokens:.0f} tokens on average"
        ]
        counts = {"any failure": self.n_failed} | self.failures
        width = max(map(len, counts))
        for name, count in counts.items():
            share = wilson(count, self.n)
            interval = f"(95 %: {100 * share.low:.1f} to {100 * share.high:.1f} %)"
            lines.append(f"  {name:<{width}}  {count:>5}  {100 * share.estimate:>5.1f} %  {interval}")
        return "\n".join([*lines, sees_line(self.n, 0.2, ", if 20 % of them change")])

    __repr__ = __str__


def _problem(row: Any) -> str:
    """Why `Evaluation.from_rows` can't use a row, or ""."""
    texts = [row.get(name) for name in ("prompt", "answer")] if isinstance(row, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        return "no text as `prompt` or `answer`"
    score, failure = row.get("score"), row.get("failure")
    if score is not None and not (isinstance(score, (int, float)) and 0 <= score <= 1):  # NaN too
        return f"a `score` of {score!r}"[:60]
    return "" if failure is None or (isinstance(failure, str) and failure) else "a `failure` that is no text"


def sees_line(n: int, discordant_share: float, condition: str = "") -> str:
    """One line on the smallest difference that n paired prompts can detect."""
    points = detectable_points(n, discordant_share)
    return f"These {n} prompts can detect differences of about {points} points or more (80 % power{condition})."


def matched_rows(*runs: Evaluation) -> list[tuple[Judged, ...]]:
    """The rows of all evaluations, matched by id. Raises if they are not of the same prompts."""
    first, by_id = runs[0], [{row.id: row for row in run.rows} for run in runs]
    for run, rows in zip(runs, by_id, strict=True):
        different = sorted(by_id[0].keys() ^ rows.keys()) or [i for i in rows if by_id[0][i].prompt != rows[i].prompt]
        if (run.task, run.split) != (first.task, first.split) or different:
            where = f" ({len(different)} examples differ, such as {different[0]!r})" if different else ""
            one, two = (f"{len(e.rows)} of {e.task}/{e.split} in {e.name!r}" for e in (first, run))
            raise WorkbenchError(
                f"Two arms must have answered the same prompts of one split. Got {one} and {two}{where}. Evaluate both "
                "on one split."
            )
    return [tuple(rows[i] for rows in by_id) for i in by_id[0]]


def shared_rows(*runs: Evaluation) -> list[tuple[Judged, ...]]:
    """The rows that all evaluations could score, matched by id. Raises if there are none."""
    found = [rows for rows in matched_rows(*runs) if all(row.value is not None for row in rows)]
    if not found:
        names = " and ".join(repr(run.name) for run in runs)
        raise WorkbenchError(
            f"Two arms must share scored prompts. Got none that was scored in {names}. "
            "Fix the score function and evaluate again."
        )
    return found


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
    template: dict[str, Any] | None = None,
    show: bool = True,
) -> Evaluation:
    """Let `model` answer each prompt of `split` once, and score the answers with the split's task.

    Args:
        model: a loaded model; with `engine` as in `mine`.
        split: held-out examples, such as `task.test`.
        name: label of the arm; by default the model's name.
        temperature: 0 decodes greedily. `repetition_penalty` is explained at `generate`.
        max_new_tokens, engine, template: as in `mine`.
        show: show a progress bar, and a line about answers that could not be scored.
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
    with progress(len(split), "answers", show) as advance:
        prompts = [e.prompt for e in split]
        drawn, served = draw(model, prompts, engine=engine, template=template, **decoding, on_answers=advance)
    if served:
        label = served.pop("model")
        decoding |= served
    else:
        handle = cast("Model", model)
        label = f"{handle.name}+adapter" if handle.adapter else handle.name
    result = evaluate_answers(name or label, split, [answers[0] for answers in drawn], model=label, decoding=decoding)
    if result.n_unscored and show:
        first = next(row for row in result.rows if row.value is None)
        where = f"the first is {first.id!r}: {first.explanation}"
        print(f"{result.n_unscored} of {len(split)} answers could not be scored; {where}")
    return result


def evaluate_answers(
    name: str, split: Split, answers: Sequence[Answer], *, model: str, decoding: dict[str, Any]
) -> Evaluation:
    """Score answers that exist already, one for each example of `split`, as an arm called `name`."""
    rows = tuple(judge(split.task, example, answer) for example, answer in zip(split, answers, strict=True))
    return Evaluation(name, split.task.name, split.name, model, decoding, rows, harm=dict(split.task.harm))


def judge(task: Task, example: Example, answer: Answer) -> Judged:
    """Score one answer. If the score function raises, the row has no score and counts as neither right nor wrong."""
    score, explanation = task.try_score(example, answer.text, finished=answer.finished)
    value, failure = (float(score.value), score.failure) if score else (None, None)
    asked = (example.id, example.group, example.prompt_as_text)
    return Judged(*asked, answer.text, answer.n_tokens, answer.finished, value, failure, explanation)

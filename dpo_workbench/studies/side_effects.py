"""`side_effects`: what training moved that nobody asked for: other text, other tasks, lengths, variety, distance."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.run import evaluate
from dpo_workbench.evaluation.statistics import Interval, mean_change, paired_difference
from dpo_workbench.evaluation.wording import text_table
from dpo_workbench.models.generation import Answer, generate
from dpo_workbench.models.loading import Model
from dpo_workbench.studies.reward_model import mean_logps, sum_logps
from dpo_workbench.tasks.builtin import load_task, task_names
from dpo_workbench.tasks.task import Task

PROMPTS = 48  # dev prompts of the task, and of each other task
SAMPLES = 4
HEADER = ("what", "unit", "before", "after", "change", "95 % interval", "")


@dataclass(frozen=True)
class Effect:
    """One measure before and after. `least`: smaller changes are no regression, however clear."""

    name: str
    unit: str
    before: float
    after: float
    change: Interval
    worse: int  # the sign of a change for the worse; 0: neither direction is
    least: float

    @property
    def regression(self) -> bool:
        """The whole interval is on the worse side, and the change is large enough to matter."""
        if self.worse == 0 or abs(self.change.estimate) < self.least:
            return False
        return self.change.clear_below_zero if self.worse < 0 else self.change.clear_above_zero

    def __str__(self) -> str:
        return (
            f"{self.name} {self.before:.3f} before, {self.after:.3f} after ({self.change.estimate:+.3f} {self.unit}, "
            f"95 % interval {self.change.low:+.3f} to {self.change.high:+.3f})"
        )


@dataclass(frozen=True)
class SideEffects:
    """All effects of one training, measured on dev prompts and plain text."""

    effects: tuple[Effect, ...]

    @property
    def regressions(self) -> list[Effect]:
        return [effect for effect in self.effects if effect.regression]

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values, for JSON."""
        return [asdict(effect) | {"regression": effect.regression} for effect in self.effects]

    def save(self, path: str | Path) -> Path:
        write_json(Path(path), self.to_dict())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> SideEffects:
        """Read what `save` wrote."""
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        for row in rows:
            row.pop("regression")
            row["change"] = Interval(**row["change"])
        return cls(tuple(Effect(**row) for row in rows))

    def rows(self) -> list[tuple[str, ...]]:
        """Cells for `HEADER`."""
        return [
            (
                e.name,
                e.unit,
                f"{e.before:.3f}",
                f"{e.after:.3f}",
                f"{e.change.estimate:+.3f}",
                f"{e.change.low:+.3f} to {e.change.high:+.3f}",
                "worse" if e.regression else "",
            )
            for e in self.effects
        ]

    def __str__(self) -> str:
        return text_table([HEADER, *self.rows()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import table

        return table(HEADER, self.rows())


def side_effects(
    before: Model,
    after: Model,
    task: Task,
    *,
    others: Sequence[str | Task] | None = None,
    text: Sequence[str] | None = None,
    prompts: int = PROMPTS,
    seed: int = 0,
    show: bool = True,
) -> SideEffects:
    """Measure what a training moved beside its target. Held-out prompts are the task's dev prompts.

    Plain text and references: mean log-probability a token. KL: of the trained model from the start, by the log-ratio
    of its own sampled answers (temperature 1), in nats an answer. Variety: share of distinct answers among 4 samples a
    prompt. Other tasks: mean score of greedy answers, paired by prompt and clustered by group.

    A regression is a clear change for the worse of at least: 0.05 nats a token (5 % perplexity) for text, 0.1 of the
    variety, 0.02 of another task's score.

    Args:
        before, after: two handles on one network, or two models with one tokenizer.
        task: that was trained on.
        others: tasks that were not; by default the other built-in ones.
        text: paragraphs; by default `data/plain_text.txt`.
        prompts: of each task.
        seed: of sampling.
        show: progress bars.

    Raises:
        WorkbenchError: the task has no dev prompts.
    """
    dev = task.dev[:prompts]
    paragraphs = list(text) if text is not None else plain_text()
    asked = [example.prompt for example in dev]
    found = [
        _likelihood("plain text", before, after, [""] * len(paragraphs), paragraphs),
        _likelihood("references", before, after, asked, [e.reference for e in dev]),
        *_sampled(before, after, asked, task.max_new_tokens, seed),
    ]
    for other in task_names() if others is None else others:
        known = load_task(other) if isinstance(other, str) else other
        if known.name != task.name:
            found.append(_other(before, after, known, prompts, show))
    return SideEffects(tuple(found))


def plain_text() -> list[str]:
    """Paragraphs of ordinary prose that no built-in task resembles."""
    text = (data_folder() / "plain_text.txt").read_text(encoding="utf-8")
    return [part.replace("\n", " ").strip() for part in text.split("\n\n") if part.strip()]


def _likelihood(name: str, before: Model, after: Model, prompts: Sequence[str], texts: Sequence[str]) -> Effect:
    answers = [[Answer(text, 0, True)] for text in texts]
    old, new = ([row[0] for row in mean_logps(model, prompts, answers)] for model in (before, after))
    change = mean_change(old, new)
    return Effect(
        f"log-likelihood of {name}", "nats a token", statistics.fmean(old), statistics.fmean(new), change, -1, 0.05
    )


def _sampled(before: Model, after: Model, prompts: Sequence[str], limit: int, seed: int) -> list[Effect]:
    """Distance, length and variety, from samples at temperature 1."""
    settings: dict[str, Any] = {"samples": SAMPLES, "temperature": 1.0, "max_new_tokens": limit, "seed": seed}
    drawn = [generate(handle, prompts, **settings) for handle in (before, after)]

    def paired(name: str, unit: str, of: Callable[[list[Answer]], float], worse: int, least: float) -> Effect:
        old, new = ([of(row) for row in rows] for rows in drawn)
        return Effect(name, unit, statistics.fmean(old), statistics.fmean(new), mean_change(old, new), worse, least)

    start, moved = ([statistics.fmean(row) for row in sum_logps(h, prompts, drawn[1])] for h in (before, after))
    distance = mean_change(start, moved)
    kl = Effect("KL from the start", "nats an answer", 0.0, distance.estimate, distance, 0, 0.0)
    length = paired("answer length", "tokens", lambda row: statistics.fmean(a.n_tokens for a in row), 0, 0.0)
    variety = paired("distinct answers", "share", lambda row: len({a.text for a in row}) / len(row), -1, 0.1)
    return [kl, length, variety]


def _other(before: Model, after: Model, task: Task, prompts: int, show: bool) -> Effect:
    dev = task.dev[:prompts]
    was, now = (evaluate(handle, dev, show=show) for handle in (before, after))
    both = [(a, b) for a, b in zip(was.rows, now.rows, strict=True) if a.value is not None and b.value is not None]
    old, new = [a.value or 0.0 for a, _ in both], [b.value or 0.0 for _, b in both]
    change = paired_difference(old, new, [a.group for a, _ in both])
    return Effect(f"task {task.name}", "score", statistics.fmean(old), statistics.fmean(new), change, -1, 0.02)

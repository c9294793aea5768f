"""`side_effects`: what training changed besides its target: other tasks, plain text, distance from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.evaluation.run import evaluate, shared_rows
from dpo_workbench.evaluation.statistics import Interval, mean_change, paired_difference
from dpo_workbench.evaluation.wording import text_table
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.messages import Prompt
from dpo_workbench.studies.logps import mean_logps, sum_logps
from dpo_workbench.tasks.builtin import PLANTED, load_task
from dpo_workbench.tasks.task import Split, Task

SAMPLES = 4


@dataclass(frozen=True)
class Effect:
    """One measure before and after training."""

    name: str
    unit: str
    before: float
    after: float
    change: Interval
    least: float | None  # a clear fall by at least this is a regression; None: neither direction is worse

    @property
    def regression(self) -> bool:
        """True if the whole interval is below zero and the fall is large enough to matter."""
        return self.least is not None and self.change.high < 0 and self.change.estimate <= -self.least

    def __str__(self) -> str:
        return (
            f"{self.name} {self.before:.3f} before, {self.after:.3f} after ({self.change.estimate:+.3f} {self.unit}, "
            f"95 % interval {self.change.low:+.3f} to {self.change.high:+.3f})"
        )


@dataclass(frozen=True)
class SideEffects:
    """What training changed besides its target."""

    effects: tuple[Effect, ...]

    @property
    def regressions(self) -> list[Effect]:
        """Clear and large enough changes for the worse."""
        return [effect for effect in self.effects if effect.regression]

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values, for JSON."""
        return [asdict(effect) | {"regression": effect.regression} for effect in self.effects]

    def __str__(self) -> str:
        rows: list[Sequence[str]] = [("what", "unit", "before", "after", "change", "95 % interval", "")]
        for e in self.effects:
            interval = f"{e.change.low:+.3f} to {e.change.high:+.3f}"
            numbers = (f"{e.before:.3f}", f"{e.after:.3f}", f"{e.change.estimate:+.3f}", interval)
            rows.append((e.name, e.unit, *numbers, "worse" if e.regression else ""))
        return text_table(rows)

    __repr__ = __str__


def side_effects(
    before: Model,
    after: Model,
    task: Task,
    *,
    others: Sequence[str | Task] | None = None,
    prompts: int = 48,
    show: bool = True,
) -> SideEffects:
    """Measure what training changed besides its target, on dev prompts.

    - Plain text and references: mean log-probability per token. Worse: a clear fall of 0.05 nats (5 % of perplexity).
    - KL from the start: mean log-ratio of answers sampled from the trained model, in nats per answer.
    - Other tasks: mean score of greedy answers. Worse: a clear fall of 0.02.

    Args:
        before, after: two models with one tokenizer; they may share one network.
        task: what was trained on. `others`: what was not, by default the built-in tasks with short answers.
        prompts: per task.
    """
    before = replace(before, chat=after.chat)  # the same template arguments and date
    dev = task.dev[:prompts]
    asked = [example.prompt for example in dev]
    references = {example.prompt: example.reference for example in dev if example.reference}
    paragraphs = plain_text()
    effects = [
        _likelihood("plain text", before, after, [""] * len(paragraphs), paragraphs),
        *([_likelihood("references", before, after, [*references], [*references.values()])] if references else []),
        _kl(before, after, asked, task.max_new_tokens),
    ]
    tasks = [load_task(t) if isinstance(t, str) else t for t in (sorted(PLANTED) if others is None else others)]
    effects += [_other_task(before, after, other.dev[:prompts], show) for other in tasks if other.name != task.name]
    return SideEffects(tuple(effects))


def plain_text() -> list[str]:
    """Paragraphs of ordinary prose that no built-in task resembles."""
    text = (data_folder() / "plain_text.txt").read_text(encoding="utf-8")
    return [part.replace("\n", " ").strip() for part in text.split("\n\n") if part.strip()]


def _likelihood(name: str, before: Model, after: Model, prompts: Sequence[Prompt], texts: Sequence[str]) -> Effect:
    old, new = ([row[0] for row in mean_logps(m, prompts, [[t] for t in texts])] for m in (before, after))
    change = mean_change(old, new)
    return Effect(f"log-likelihood of {name}", "nats a token", fmean(old), fmean(new), change, least=0.05)


def _kl(before: Model, after: Model, prompts: Sequence[Prompt], limit: int) -> Effect:
    answers = generate(after, prompts, samples=SAMPLES, temperature=1.0, max_new_tokens=limit)
    start, moved = ([fmean(row) for row in sum_logps(m, prompts, answers)] for m in (before, after))
    kl = mean_change(start, moved)
    return Effect("KL from the start", "nats an answer", 0.0, kl.estimate, kl, least=None)


def _other_task(before: Model, after: Model, dev: Split, show: bool) -> Effect:
    rows = shared_rows(*(evaluate(model, dev, show=show) for model in (before, after)))
    old, new = ([row.value or 0.0 for row in side] for side in zip(*rows, strict=True))
    change = paired_difference(old, new, [row.group for row, _ in rows])
    return Effect(f"task {dev.task.name}", "score", fmean(old), fmean(new), change, least=0.02)

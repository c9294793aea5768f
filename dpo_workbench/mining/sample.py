"""`mine`: sample answers, score them, class the failures, and say whether preferences can mend them."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.common.progress import progress
from dpo_workbench.mining.build_pairs import build_pairs
from dpo_workbench.mining.headroom import Headroom
from dpo_workbench.models.generation import Answer
from dpo_workbench.models.loading import Model
from dpo_workbench.models.server import draw
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.tasks.task import Example, Split, Task


@dataclass(frozen=True)
class Sample:
    """One sampled answer with its score."""

    text: str
    finished: bool
    value: float
    failure: str | None
    explanation: str
    better: Sample | None = None  # the same answer with a better ending of the model's own, see `branch`
    greedy: bool = field(default=False, repr=False)  # the answer at temperature 0, which evaluation will see

    @classmethod
    def judge(cls, task: Task, example: Example, answer: Answer, greedy: bool = False) -> Sample | None:
        """One answer with the task's score; None where it cannot be scored."""
        score, explanation = task.try_score(example, answer.text, finished=answer.finished)
        if score is None:
            return None
        return cls(answer.text, answer.finished, score.value, score.failure, explanation, greedy=greedy)


@dataclass(frozen=True)
class Found:
    """What mining found: for each prompt, its example and its scored samples."""

    task: Task
    rows: tuple[tuple[Example, tuple[Sample, ...]], ...]
    settings: dict[str, Any]

    @property
    def failures(self) -> Counter[str]:
        """Failed samples by class."""
        return Counter(s.failure for _, samples in self.rows for s in samples if s.failure).copy()

    @property
    def greedy_failures(self) -> Counter[str]:
        """Failed greedy answers by class; empty where mining drew none."""
        return Counter(s.failure for _, samples in self.rows for s in samples if s.failure and s.greedy).copy()

    @property
    def n_samples(self) -> int:
        return sum(len(samples) for _, samples in self.rows)

    def headroom(self, target: Sequence[str] = ()) -> Headroom:
        """Can preferences help here, with all failures or with the classes of `target`? Before any training."""
        mended = [any(s.better and s.failure in target for s in samples) for _, samples in self.rows]
        return Headroom.of([[(s.value, s.failure) for s in samples] for _, samples in self.rows], target, mended)

    def pairs(
        self,
        *,
        per_prompt: int = 1,
        classes: Sequence[str] | None = None,
        use_reference: bool = True,
        most: int | None = None,
    ) -> Pairs:
        """The model's own good answers as chosen, its own failures as rejected; see `build_pairs`."""
        return build_pairs(self.task, self.rows, per_prompt, classes, use_reference, most)

    def save(self, path: str | Path) -> Path:
        """Write all samples and scores as one JSON file."""
        rows = [{"example": e.id, "samples": [asdict(s) for s in samples]} for e, samples in self.rows]
        write_json(Path(path), {"task": self.task.name, "settings": self.settings, "rows": rows})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, task: Task) -> Found:
        """Read what `save` wrote; `task` must be the one that was mined."""
        path = Path(path)
        if not path.is_file():
            raise WorkbenchError(f"A file of mined samples must exist. Got no file at {path}. Check the path.")
        by_id = {e.id: e for split in task.splits.values() for e in split}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            lacking = [r["example"] for r in data["rows"] if r["example"] not in by_id]
            if lacking:
                raise WorkbenchError(
                    f"Samples must belong to the task's examples. Got {lacking[0]!r} in {path}, which was mined from "
                    f"task {data['task']!r} and is not in task {task.name!r}. Load it with the task that was mined."
                )
            rows = tuple((by_id[r["example"]], tuple(map(_sample, r["samples"]))) for r in data["rows"])
        except (ValueError, KeyError, TypeError) as error:
            raise WorkbenchError(
                f"Mined samples must be as `Found.save` wrote them. Got {error} in {path}. Mine again."
            ) from error
        return cls(task, rows, data["settings"])

    def __repr__(self) -> str:
        total, failed = self.n_samples, sum(self.failures.values())
        mean = statistics.fmean(s.value for _, samples in self.rows for s in samples)
        lines = [
            f"Found: {len(self.rows)} prompts, {total} samples, {failed} failed ({100 * failed / total:.0f} %), "
            f"mean score {mean:.3f}"
        ]
        lines += [f"  {name:16s} {n:5d}" for name, n in self.failures.most_common()]
        if self.settings.get("greedy"):
            classes = ", ".join(f"{name} {n}" for name, n in self.greedy_failures.most_common()) or "none"
            lines.append(f"failed among the {len(self.rows)} greedy answers: {classes}")
        if "branch" in self.settings:
            better = sum(s.better is not None for _, samples in self.rows for s in samples)
            lines.append(f"better endings found: {better}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def _sample(values: dict[str, Any]) -> Sample:
    better = values.get("better")
    return Sample(**{**values, "better": better and Sample(**better)})


def mine(
    model: Model | str | None,
    split: Split,
    samples: int = 4,
    *,
    temperature: float = 1.0,
    greedy: bool = False,
    max_new_tokens: int | None = None,
    seed: int = 0,
    engine: str | None = None,
    show: bool = True,
) -> Found:
    """Sample `samples` answers to each prompt and score them with the task.

    Args:
        model: whose failures are looked for. With an engine: the served name (None where one model is served), or
            a handle that stands for it.
        split: prompts of the training split; never those that the result is measured on.
        samples: answers a prompt; 4 to 8 find most prompts that have both a good and a bad answer.
        temperature: 1.0 samples from the model as it is; lower finds fewer failures.
        greedy: put the greedy answer before the samples. A habit of greedy decoding, such as copying a sentence of the
            prompt, is rare among samples, and evaluation sees greedy answers alone.
        max_new_tokens: the token limit; the task's own by default.
        seed: of the draws.
        engine: None samples here; the address of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`,
            samples there (see `models.server.ask`).
        show: a progress bar.

    Raises:
        WorkbenchError: the split is a test split, or empty; no sample can be scored; the server fails, which keeps the
            answers that are there.
    """
    if not len(split):
        raise WorkbenchError("Mining needs prompts. Got an empty split. Choose one with examples.")
    if split.name == "test":
        raise WorkbenchError(
            "Mining must not touch the test split: what learns from it cannot be measured on it. Use `task.train`."
        )
    task = split.task
    limit = max_new_tokens or task.max_new_tokens
    prompts = [e.prompt for e in split]
    with progress(len(split) * (samples + greedy), "mining", show) as advance:
        settings: dict[str, Any] = {"engine": engine, "max_new_tokens": limit, "seed": seed, "on_answers": advance}
        drawn, served = draw(model, prompts, samples=samples, temperature=temperature, **settings)
        if greedy:
            drawn = [one + more for one, more in zip(draw(model, prompts, **settings)[0], drawn, strict=True)]
    judged = [
        (e, [Sample.judge(task, e, a, greedy=greedy and k == 0) for k, a in enumerate(answers)])
        for e, answers in zip(split, drawn, strict=True)
    ]
    unscored = sum(s is None for _, found in judged for s in found)
    if unscored:
        _say_unscored(task, judged, drawn, unscored)
    rows = [(e, tuple(s for s in found if s)) for e, found in judged if any(found)]
    settings = {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": limit,
        "seed": seed,
        "split": split.name,
        **({"greedy": True} if greedy else {}),
        **({"unscored": unscored} if unscored else {}),
        **served,
    }
    return Found(task, tuple(rows), settings)


def _say_unscored(
    task: Task,
    judged: Sequence[tuple[Example, list[Sample | None]]],
    drawn: Sequence[Sequence[Answer]],
    unscored: int,
) -> None:
    """Say how many samples have no score and why the first has none; raise where none has one."""
    place = next(k for k, (_, found) in enumerate(judged) if None in found)
    example, answer = judged[place][0], drawn[place][judged[place][1].index(None)]
    why = task.try_score(example, answer.text, finished=answer.finished)[1]
    total = sum(map(len, drawn))
    told = f"{unscored} of {total} samples could not be scored; the first: {example.id!r}, {why}"
    if unscored == total:
        raise WorkbenchError(f"Mining needs scores. {told}. Mend the task's `score` function or its references.")
    print(f"{told}. They are left out.")

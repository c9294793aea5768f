"""`mine`: sample answers, score them, and pair the model's own good answers with its own failures."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.common.progress import progress
from dpo_workbench.mining.headroom import Headroom
from dpo_workbench.models.generation import Answer
from dpo_workbench.models.loading import Model
from dpo_workbench.models.server import draw
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.failures import DEGENERATE, check_classes
from dpo_workbench.tasks.task import Example, Split, Task

LIKE_BEST = 0.05  # scores this close to the best one count as equal
GAP = 0.02  # a chosen answer that fails must score higher than the rejected one by this much


@dataclass(frozen=True)
class Sample:
    """One sampled answer with its score."""

    text: str
    finished: bool
    value: float
    failure: str | None
    explanation: str
    better: Sample | None = None  # the same answer with a better ending, see `branch`
    greedy: bool = field(default=False, repr=False)  # the answer at temperature 0, as `evaluate` generates it


@dataclass(frozen=True)
class Found:
    """What mining found: each prompt's example with its scored samples."""

    task: Task
    rows: tuple[tuple[Example, tuple[Sample, ...]], ...]
    settings: dict[str, Any]

    @property
    def samples(self) -> list[Sample]:
        """The samples of all prompts."""
        return [sample for _, samples in self.rows for sample in samples]

    @property
    def n_samples(self) -> int:
        return len(self.samples)

    @property
    def failures(self) -> Counter[str]:
        """Failed samples by class."""
        return Counter(s.failure for s in self.samples if s.failure)

    @property
    def greedy_failures(self) -> Counter[str]:
        """Failed greedy answers by class; empty if mining generated none."""
        return Counter(s.failure for s in self.samples if s.failure and s.greedy)

    def headroom(self, target: Sequence[str] = ()) -> Headroom:
        """Whether preferences can help, before any training: with all failures, or with the classes of `target`."""
        fixed = [any(s.better and s.failure in target for s in samples) for _, samples in self.rows]
        return Headroom.of([[(s.value, s.failure) for s in samples] for _, samples in self.rows], target, fixed)

    def pairs(
        self,
        *,
        per_prompt: int = 1,
        classes: Sequence[str] | None = None,
        use_reference: bool = True,
        most: int | None = None,
        gap: float | None = None,
    ) -> Pairs:
        """Preference pairs: the model's own good answers as chosen, its own failures as rejected.

        Rejected are a prompt's failed samples, see `_rejected`. Chosen is the first of these that exists:

        1. the rejected answer with the better ending that `branch` found;
        2. the model's own passing answer with the highest score;
        3. if `classes` are named, its best answer free of these classes that beats the rejected one by `GAP`;
        4. if `use_reference`, the reference answer if it passes. The pair says so in `chosen_from`.

        Args:
            per_prompt: at most this many pairs per prompt.
            classes: failure classes to use as rejected. None uses all except `empty`, which would teach length only.
            use_reference: False leaves out prompts without an own answer to choose.
            most: at most this many pairs in all: better endings first, then other own answers, then references.
            gap: chosen may also be an answer that fails, if it is finished and scores higher than the rejected one by
                this much. Among the best answers, the one whose length is closest to the rejected one's is taken, so
                that length does not tell them apart. None: only passing answers, except for 3.
        """
        check_classes(classes)
        ranked: list[tuple[int, Pair]] = []
        for example, samples in self.rows:
            good = max((s for s in samples if s.failure is None), key=lambda s: s.value, default=None)
            for number, bad in enumerate(_rejected(samples, good, classes)[:per_prompt]):
                if gap is None:
                    own = bad.better or good or (better_than(bad, samples, classes) if classes else None)
                else:
                    own = _closest_better(bad, samples, gap)
                if own or (use_reference and _reference_passes(self.task, example)):
                    rank = 0 if bad.better else 1 if own else 2
                    ranked.append((rank, _pair(f"{example.id}/{number}", example, own, bad)))
        if not ranked:
            check_classes(classes, self.failures)
            why = "every sample passed, so there is nothing to fix: use harder prompts, or check that `score` can fail"
            if self.failures:
                why = (
                    f"none of the {self.failures.total()} failed samples could be paired: check that `score` can pass "
                    "(the reference answers should), allow other classes, or allow reference answers as chosen"
                )
            raise WorkbenchError(
                f"Pairs need a better and a worse answer to one prompt. Of {self.n_samples} samples, {why}."
            )
        if most is not None:
            ranked = sorted(ranked, key=lambda item: item[0])[:most]
        return Pairs([pair for _, pair in ranked], self.task)

    def save(self, path: str | Path) -> Path:
        """Write all samples and scores to one JSON file."""
        rows = [{"example": example.id, "samples": list(map(asdict, samples))} for example, samples in self.rows]
        write_json(Path(path), {"task": self.task.name, "settings": self.settings, "rows": rows})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, task: Task) -> Found:
        """Read a file written by `save`; `task` must be the task that was mined."""
        examples = {e.id: e for split in task.splits.values() for e in split}
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            unknown = [row["example"] for row in data["rows"] if row["example"] not in examples]
            if unknown:
                raise WorkbenchError(
                    f"Samples must belong to the task's examples. Got {unknown[0]!r} in {path}, which was mined from "
                    f"task {data['task']!r} and is not in task {task.name!r}. Load it with the task that was mined."
                )
            rows = tuple((examples[row["example"]], tuple(map(_sample, row["samples"]))) for row in data["rows"])
            return cls(task, rows, data["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkbenchError(
                f"Mined samples must be in a file that `Found.save` wrote. Got {path} ({error}). Check the path, or "
                "mine again."
            ) from error

    def __repr__(self) -> str:
        failed, mean = sum(self.failures.values()), statistics.fmean(s.value for s in self.samples)
        lines = [
            f"Found: {len(self.rows)} prompts, {self.n_samples} samples, {failed} failed "
            f"({100 * failed / self.n_samples:.0f} %), mean score {mean:.3f}",
            *(f"  {name:16s} {n:5d}" for name, n in self.failures.most_common()),
        ]
        if self.settings.get("greedy"):
            classes = ", ".join(f"{name} {n}" for name, n in self.greedy_failures.most_common()) or "none"
            lines.append(f"failed among the {len(self.rows)} greedy answers: {classes}")
        if "branch" in self.settings:
            lines.append(f"better endings found: {sum(s.better is not None for s in self.samples)}")
        return "\n".join(lines)


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
    template: dict[str, Any] | None = None,
    show: bool = True,
) -> Found:
    """Sample `samples` answers to each prompt and score them with the task.

    Args:
        model: the model whose failures you look for. With `engine`: the name of the served model, or None if the
            server has only one.
        split: prompts of the training split, never those that you evaluate on.
        samples: answers per prompt; 4 to 8 find most prompts that have both a good and a bad answer.
        temperature: 1.0 samples from the model's own distribution; a lower one finds fewer failures.
        greedy: also generate the greedy answer, and put it before the samples. `evaluate` sees greedy answers, and
            their habits, such as copying a sentence of the prompt, can be rare among samples.
        max_new_tokens: the token limit; by default the task's.
        engine: address of an OpenAI-compatible server that generates, such as `http://127.0.0.1:8000/v1`; None
            generates here.
        template: with an engine, arguments of the served model's chat template; a handle has its own.
    """
    if not len(split):
        raise WorkbenchError("Mining needs prompts. Got an empty split. Choose one with examples.")
    if split.name == "test":
        raise WorkbenchError(
            "Mining must not touch the test split: you cannot evaluate on prompts that you train on. Use `task.train`."
        )
    task, prompts = split.task, [example.prompt for example in split]
    limit = max_new_tokens or task.max_new_tokens
    with progress(len(split) * (samples + greedy), "mining", show) as advance:
        decoding: dict[str, Any] = {"engine": engine, "template": template, "max_new_tokens": limit, "seed": seed}
        decoding["on_answers"] = advance
        answers, served = draw(model, prompts, samples=samples, temperature=temperature, **decoding)
        if greedy:
            first, _ = draw(model, prompts, **decoding)
            answers = [one + others for one, others in zip(first, answers, strict=True)]
    rows, unscored = _scored(split, answers, greedy)
    settings: dict[str, Any] = {"samples": samples, "temperature": temperature, "max_new_tokens": limit, "seed": seed}
    settings |= {"split": split.name, **served, "greedy": greedy, "unscored": unscored}
    return Found(task, rows, settings)


def _scored(
    split: Split, answers: Sequence[Sequence[Answer]], greedy: bool
) -> tuple[tuple[tuple[Example, tuple[Sample, ...]], ...], int]:
    """The rows of `Found`, and how many samples could not be scored. Prints why, and raises if all could not."""
    rows, reasons = [], []
    for example, drawn in zip(split, answers, strict=True):
        judged = [score_answer(split.task, example, a, greedy and k == 0) for k, a in enumerate(drawn)]
        reasons += [f"{example.id!r}, {why}" for sample, why in judged if sample is None]
        if scored := tuple(sample for sample, _ in judged if sample):
            rows.append((example, scored))
    if reasons:
        text = f"{len(reasons)} of {sum(map(len, answers))} samples could not be scored; the first: {reasons[0]}"
        if not rows:
            raise WorkbenchError(f"Mining needs scores. {text}. Fix the task's `score` function or its references.")
        print(f"{text}. They are left out.")
    return tuple(rows), len(reasons)


def score_answer(task: Task, example: Example, answer: Answer, greedy: bool = False) -> tuple[Sample | None, str]:
    """One answer with its score and the verifier's explanation; None if it cannot be scored."""
    score, explanation = task.try_score(example, answer.text, finished=answer.finished)
    if score is None:
        return None, explanation
    sample = Sample(answer.text, answer.finished, score.value, score.failure, explanation, greedy=greedy)
    return sample, explanation


def _pair(name: str, example: Example, own: Sample | None, bad: Sample) -> Pair:
    return Pair(
        id=name,
        prompt=example.prompt,
        chosen=own.text if own else example.reference,
        rejected=bad.text,
        chosen_from="own" if own else "reference",
        rejected_from="own",
        chosen_score=own.value if own else 1.0,
        rejected_score=bad.value,
        failure=bad.failure,
        group=example.group,
        rejected_finished=bad.finished,
    )


def better_than(rejected: Sample, samples: Iterable[Sample | None], classes: Sequence[str]) -> Sample | None:
    """The best finished sample outside `classes`, if it scores higher than `rejected` by `GAP`."""
    others = [s for s in samples if s and s.finished and s.failure not in classes]
    best = max(others, key=lambda s: s.value, default=None)
    return best if best and best.value >= rejected.value + GAP else None


def _closest_better(rejected: Sample, samples: Iterable[Sample], gap: float) -> Sample | None:
    """Of the best finished answers that are better than `rejected`, the one closest to it in length.

    An answer that loops or never ends is worse than any finished one that does not score lower.
    """
    least = rejected.value + (0 if rejected.failure in DEGENERATE else gap)
    better = [s for s in samples if s.finished and s.value >= least and s.text.strip() != rejected.text.strip()]
    best = max((s.value for s in better), default=0.0)
    best_ones = [s for s in better if s.value >= best - LIKE_BEST and s.value > 0]
    return min(best_ones, key=lambda s: abs(len(s.text) - len(rejected.text)), default=None)


def _rejected(samples: Sequence[Sample], good: Sample | None, classes: Sequence[str] | None) -> list[Sample]:
    """Failed samples, each text once, in the order in which they are used.

    One of each class comes before a second of any class: loops, then cut-off answers, then by frequency.
    """
    seen = {good.text.strip()} if good else set()
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        wanted = sample.failure in classes if classes is not None else sample.failure not in (None, "empty")
        if wanted and sample.text.strip() and sample.text.strip() not in seen:
            seen.add(sample.text.strip())
            by_class.setdefault(str(sample.failure), []).append(sample)
    names = sorted(by_class, key=lambda name: (name != "loop", name != "truncated", -len(by_class[name]), name))
    most = max(map(len, by_class.values()), default=0)
    return [by_class[name][k] for k in range(most) for name in names if k < len(by_class[name])]


def _reference_passes(task: Task, example: Example) -> bool:
    score, _ = task.try_score(example, example.reference)
    return score is not None and score.failure is None

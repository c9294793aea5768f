"""Scored samples -> preference pairs: the model's own better answer against its own failure for the same prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.failures import check_classes
from dpo_workbench.tasks.task import Example, Task

if TYPE_CHECKING:
    from dpo_workbench.mining.sample import Sample

GAP = 0.02  # by how much an own answer that does not pass must beat the rejected one: less than a field of a long list


def build_pairs(
    task: Task,
    rows: Sequence[tuple[Example, Sequence[Sample]]],
    per_prompt: int,
    classes: Sequence[str] | None,
    use_reference: bool,
    most: int | None = None,
) -> Pairs:
    """Pairs from mined samples.

    Chosen is the rejected answer with a better ending, where `branch` found one; else the model's own passing answer
    with the highest score. Where classes are named and no sample passes, it is the own answer with the highest score
    that is free of these classes and beats the rejected one by `GAP`: not perfect, but on-policy and better in what is
    aimed at. Else the reference answer takes its place if `use_reference`, and the pair says so (`chosen_from`).
    Rejected are the prompt's failed samples, each text once, one of each failure class before a second of any, loops
    first, since the rarest harm is the one to mend.

    Args:
        task: whose `score` judged the samples.
        rows: examples with their samples.
        per_prompt: at most so many pairs a prompt.
        classes: failure classes to use as rejected; None takes all but `empty` (an empty answer teaches length only).
        use_reference: False leaves out prompts without an own answer to choose.
        most: at most so many pairs: better endings first, then other own answers, then references.

    Raises:
        WorkbenchError: no pair can be made; says why. Or `classes` is a text.
    """
    check_classes(classes)
    pairs: list[Pair] = []
    ranks: dict[str, int] = {}
    for example, samples in rows:
        good = max((s for s in samples if s.failure is None), key=lambda s: s.value, default=None)
        for number, bad in enumerate(_rejected(samples, good, classes)[:per_prompt]):
            own = bad.better or good or _better(samples, bad, classes)
            if own is None and not (use_reference and _right(task, example)):
                continue
            ranks[f"{example.id}/{number}"] = 0 if bad.better else 1 if own else 2
            pairs.append(
                Pair(
                    id=f"{example.id}/{number}",
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
            )
    if not pairs:
        failed = Counter(s.failure for _, samples in rows for s in samples if s.failure is not None)
        total = sum(len(samples) for _, samples in rows)
        check_classes(classes, failed)
        why = (
            f"none of the {failed.total()} failed samples could be paired: check that `score` can pass "
            "(the reference answers should), allow other classes, or allow reference answers as chosen"
            if failed
            else "every sample passed, so there is nothing to mend: take harder prompts, or check that `score` can fail"
        )
        raise WorkbenchError(f"Pairs need a better and a worse answer to one prompt. Of {total} samples, {why}.")
    if most is not None:
        pairs = sorted(pairs, key=lambda pair: ranks[pair.id])[:most]
    return Pairs(pairs, task)


def _better(samples: Sequence[Sample], bad: Sample, classes: Sequence[str] | None) -> Sample | None:
    """The best own answer outside the named classes, if it beats the rejected one by `GAP`."""
    others = [s for s in samples if classes and s.finished and s.failure not in classes]
    best = max(others, key=lambda s: s.value, default=None)
    return best if best and best.value >= bad.value + GAP else None


def _rejected(samples: Sequence[Sample], good: Sample | None, classes: Sequence[str] | None) -> list[Sample]:
    """Failed samples in the order in which they are used: loops, then cut off, then by class in turn."""
    seen = {good.text.strip()} if good else set()
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        wanted = sample.failure in classes if classes is not None else sample.failure not in (None, "empty")
        if wanted and sample.text.strip() and sample.text.strip() not in seen:
            seen.add(sample.text.strip())
            by_class.setdefault(str(sample.failure), []).append(sample)
    names = sorted(by_class, key=lambda name: (name != "loop", name != "truncated", -len(by_class[name]), name))
    longest = max(map(len, by_class.values()), default=0)
    return [by_class[name][turn] for turn in range(longest) for name in names if turn < len(by_class[name])]


def _right(task: Task, example: Example) -> bool:
    score, _ = task.try_score(example, example.reference)
    return score is not None and score.failure is None

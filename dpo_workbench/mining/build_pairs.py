"""Scored samples -> preference pairs: own pass against own failure for the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.runtime.errors import WorkbenchError
from dpo_workbench.tasks.task import Example, Task

if TYPE_CHECKING:
    from dpo_workbench.mining.sample import Sample


def build_pairs(
    task: Task,
    rows: Sequence[tuple[Example, Sequence[Sample]]],
    per_prompt: int,
    classes: tuple[str, ...] | None,
    use_reference: bool,
    most: int | None = None,
) -> Pairs:
    """Pairs from mined samples.

    Chosen is the model's own passing answer. Where it has none, the reference answer takes its place if
    `use_reference`, and the pair says so (`chosen_from`). Rejected are the prompt's failed samples, each text once,
    one of each failure class before a second of any, loops first, since the rarest harm is the one to mend.

    Args:
        task: whose `score` judged the samples.
        rows: examples with their samples.
        per_prompt: at most so many pairs a prompt.
        classes: failure classes to use as rejected; None takes all but `empty` (an empty answer teaches length only).
        use_reference: False leaves out prompts without a passing sample.
        most: at most so many pairs; those with the model's own good answer come first.

    Raises:
        WorkbenchError: no pair can be made; says why.
    """
    pairs = []
    for example, samples in rows:
        good = next((s for s in samples if s.failure is None), None)
        if good:
            chosen, origin, value = good.text, "own", good.value
        else:
            standard = task.score(example, example.reference)
            if not use_reference or standard.failure:
                continue
            chosen, origin, value = example.reference, "reference", standard.value
        for number, bad in enumerate(_rejected(samples, chosen, classes)[:per_prompt]):
            pairs.append(
                Pair(
                    id=f"{example.id}/{number}",
                    prompt=example.prompt,
                    chosen=chosen,
                    rejected=bad.text,
                    chosen_from=origin,
                    rejected_from="own",
                    chosen_score=value,
                    rejected_score=bad.value,
                    failure=bad.failure,
                    group=example.group,
                    rejected_finished=bad.finished,
                )
            )
    if not pairs:
        failed = sum(s.failure is not None for _, samples in rows for s in samples)
        total = sum(len(samples) for _, samples in rows)
        why = (
            "every sample passed, so there is nothing to mend: take harder prompts, or check that `score` can fail"
            if failed == 0
            else f"none of the {failed} failed samples could be paired: check that `score` can pass "
            "(the reference answers should), allow other classes, or allow reference answers as chosen"
        )
        raise WorkbenchError(f"Pairs need a better and a worse answer to one prompt. Of {total} samples, {why}.")
    if most is not None:
        pairs = sorted(pairs, key=lambda pair: pair.chosen_from != "own")[:most]
    return Pairs(pairs, task)


def _rejected(samples: Sequence[Sample], chosen: str, classes: tuple[str, ...] | None) -> list[Sample]:
    """Failed samples in the order in which they are used: loops, then cut off, then by class in turn."""
    seen = {chosen.strip()}
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        wanted = sample.failure in classes if classes is not None else sample.failure not in (None, "empty")
        if wanted and sample.text.strip() and sample.text.strip() not in seen:
            seen.add(sample.text.strip())
            by_class.setdefault(str(sample.failure), []).append(sample)
    names = sorted(by_class, key=lambda name: (name != "loop", name != "truncated", -len(by_class[name]), name))
    longest = max(map(len, by_class.values()), default=0)
    return [by_class[name][turn] for turn in range(longest) for name in names if turn < len(by_class[name])]

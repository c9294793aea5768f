"""`branch`: cut a failed answer shortly before its end, and let the model write a better ending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.progress import progress
from dpo_workbench.mining.sample import Found, Sample, better_than, judge
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.tasks.failures import check_classes

BACK = (8, 16, 32, 64)  # tokens cut off the end, round by round


def branch(
    model: Model,
    found: Found,
    classes: Sequence[str],
    *,
    samples: int = 4,
    per_prompt: int = 2,
    temperature: float = 1.0,
    seed: int = 0,
    show: bool = True,
) -> Found:
    """For each failed sample of `classes`, look for a better ending by the model itself.

    Cuts the last 8 tokens off the answer and samples new endings. If none is better, it cuts off 16, then 32, then 64.
    Better means finished, free of `classes`, and a clearly higher score. Both answers of such a pair begin alike, so
    the loss sees little besides the decision that went wrong. A model that seldom answers correctly from start to end
    can still learn from such pairs.

    Source: pivotal tokens in Phi-4 (arXiv 2412.08905, section 4.3), which are found there by success rates.

    Args:
        model: the model that was mined.
        found: its samples.
        classes: failure classes to fix.
        samples: endings sampled per cut.
        per_prompt: at most this many failed samples per prompt, each text once.
        temperature: of the endings.
        seed: of the sampling.
        show: show a progress bar.

    Returns:
        The same samples, with `Sample.better` set where a better ending was found.

    Raises:
        WorkbenchError: `classes` is empty, is a text, or names no class that was found.
    """
    check_classes(classes)
    if not classes:
        raise WorkbenchError("`branch` must know what to fix. Got no classes. Name some of `found.failures`.")
    check_classes(classes, found.failures)
    todo = [(i, k) for i, (_, drawn) in enumerate(found.rows) for k in _failed(drawn, classes)[:per_prompt]]
    limit = found.settings["max_new_tokens"]
    tokens = {(i, k): model.answer_ids(found.rows[i][1][k].text)[:-1][: limit - 1] for i, k in todo}
    better: dict[tuple[int, int], Sample] = {}
    with progress(len(todo), "branching", show) as advance:
        for number, back in enumerate(BACK):
            places = [place for place in todo if place not in better and back < len(tokens[place])]
            if not places:
                break
            answers = generate(
                model,
                [found.rows[i][0].prompt for i, _ in places],
                begun=[tokens[place][:-back] for place in places],
                samples=samples,
                temperature=temperature,
                max_new_tokens=limit,
                seed=seed + 1 + number,
            )
            for (i, k), drawn in zip(places, answers, strict=True):
                example, failed = found.rows[i][0], found.rows[i][1][k]
                endings = [judge(found.task, example, answer)[0] for answer in drawn]
                if best := better_than(failed, endings, classes):
                    better[i, k] = best
            advance(sum(place in better for place in places))
        advance(len(todo) - len(better))
    rows = tuple(
        (example, tuple(replace(s, better=better.get((i, k))) for k, s in enumerate(drawn)))
        for i, (example, drawn) in enumerate(found.rows)
    )
    facts = {"classes": list(classes), "samples": samples, "temperature": temperature, "seed": seed}
    return replace(found, rows=rows, settings=found.settings | {"branch": facts})


def _failed(drawn: Sequence[Sample], classes: Sequence[str]) -> list[int]:
    """Places of the samples that failed as one of `classes`; of equal texts the first."""
    first: dict[str, int] = {}
    for place, sample in enumerate(drawn):
        if sample.failure in classes and sample.text.strip():
            first.setdefault(sample.text, place)
    return list(first.values())

"""`branch`: cut a failed answer shortly before its end, and let the model write a better ending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.progress import progress
from dpo_workbench.mining.sample import Found, Sample, better_than, score_answer
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.tasks.failures import check_classes

BACK = (8, 16, 32, 64)  # tokens cut off the end, round by round
SAMPLES = 4  # endings sampled for each cut


def branch(
    model: Model, found: Found, classes: Sequence[str], *, per_prompt: int = 2, seed: int = 0, show: bool = True
) -> Found:
    """For up to `per_prompt` failed samples of `classes` per prompt, look for a better ending by the model itself.

    Cuts the last 8 tokens off the answer and samples new endings. If none is better, it cuts off 16, then 32, then 64.
    Better means finished, free of `classes`, and a clearly higher score. Both answers of such a pair begin alike, so
    the loss sees little besides the decision that went wrong. Source: the pivotal tokens of Phi-4 (arXiv 2412.08905,
    section 4.3).

    Returns:
        The same samples, with `Sample.better` set where a better ending was found.
    """
    if not classes:
        raise WorkbenchError("`branch` must know what to fix. Got no classes. Name some of `found.failures`.")
    check_classes(classes, found.failures)
    limit = found.settings["max_new_tokens"]
    tokens = _failed_answers(model, found, classes, per_prompt)
    better: dict[tuple[int, int], Sample] = {}
    with progress(len(tokens), "branching", show) as advance:
        for number, back in enumerate(BACK):
            cut = {place: ids[:-back] for place, ids in tokens.items() if place not in better and back < len(ids)}
            if not cut:
                break
            prompts = [found.rows[i][0].prompt for i, _ in cut]
            decoding = {"samples": SAMPLES, "temperature": 1.0, "max_new_tokens": limit}
            endings = generate(model, prompts, begun=list(cut.values()), seed=seed + 1 + number, **decoding)
            for (i, k), answers in zip(cut, endings, strict=True):
                example, drawn = found.rows[i]
                judged = [score_answer(found.task, example, answer)[0] for answer in answers]
                if best := better_than(drawn[k], judged, classes):
                    better[i, k] = best
                    advance()
        advance(len(tokens) - len(better))
    rows = tuple(
        (example, tuple(replace(s, better=better.get((i, k))) for k, s in enumerate(drawn)))
        for i, (example, drawn) in enumerate(found.rows)
    )
    settings = found.settings | {"branch": {"classes": list(classes), "seed": seed}}
    return replace(found, rows=rows, settings=settings)


def _failed_answers(
    model: Model, found: Found, classes: Sequence[str], per_prompt: int
) -> dict[tuple[int, int], list[int]]:
    """Token ids, without the end token, of the samples to fix, by their place in `found.rows`."""
    limit, tokens = found.settings["max_new_tokens"] - 1, {}
    for i, (example, drawn) in enumerate(found.rows):
        failed = [(s.text, k) for k, s in enumerate(drawn) if s.failure in classes and s.text.strip()]
        first = dict(reversed(failed))  # text -> place; of equal texts the first
        for k in sorted(first.values())[:per_prompt]:
            ids = model.chat.answer_ids(example.prompt, drawn[k].text, drawn[k].finished)
            tokens[i, k] = ids[: len(ids) - drawn[k].finished][:limit]
    return tokens

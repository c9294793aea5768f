"""`branch`: take a failed answer up again shortly before its end, and let the model itself end it better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.progress import progress
from dpo_workbench.mining.build_pairs import GAP
from dpo_workbench.mining.sample import Found, Sample
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.tasks.failures import check_classes

BACK = (8, 16, 32, 64)  # tokens taken off the end, round by round


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
    """For each failed sample of `classes`, look for a better ending of the model's own.

    The last 8 tokens of the answer are taken off and `samples` new endings are drawn; where none is better, 16 are
    taken off, then 32, then 64. Better means finished, free of `classes`, and a higher score. Such a pair has one
    beginning and two endings, so the loss sees the decision that failed and little else: both answers are the model's
    own, and what they share cancels in the log-ratios. No answer has to be right from end to end, so a model that
    seldom passes can still be told what it does wrong.

    Source: the pivotal tokens of Phi-4 (arXiv 2412.08905, section 4.3), where the branching place is searched by
    success rates; here it is the last one, by doubling, at which the verifier sees the class go.

    Args:
        model: the one that was mined.
        found: its samples.
        classes: failure classes to mend.
        samples: endings drawn at each place.
        per_prompt: failed samples of one prompt that are looked at, each text once.
        temperature: of the endings.
        seed: of the draws.
        show: a progress bar.

    Returns:
        The same samples; where a better ending was found, `Sample.better` holds it.
    Raises:
        WorkbenchError: no classes are named, not in a list, or none that was found.
    """
    check_classes(classes)
    if not classes:
        raise WorkbenchError("`branch` must know what to mend. Got no classes. Name some of `found.failures`.")
    check_classes(classes, found.failures)
    todo = []
    for i, (_, drawn) in enumerate(found.rows):
        texts = {s.text: k for k, s in reversed(list(enumerate(drawn))) if s.failure in classes and s.text.strip()}
        todo += [(i, k) for k in sorted(texts.values())[:per_prompt]]
    better: dict[tuple[int, int], Sample] = {}
    limit = found.settings["max_new_tokens"]
    tokens = {place: model.answer_ids(_sample(found, place).text)[:-1][: limit - 1] for place in todo}
    with progress(len(todo), "branching", show) as advance:
        for number, back in enumerate(BACK):
            places = [place for place in todo if place not in better and back < len(tokens[place])]
            if not places:
                break
            drawn_here = generate(
                model,
                [found.rows[i][0].prompt for i, _ in places],
                begun=[tokens[place][:-back] for place in places],
                samples=samples,
                temperature=temperature,
                max_new_tokens=limit,
                seed=seed + 1 + number,
            )
            for place, answers in zip(places, drawn_here, strict=True):
                judged = [Sample.judge(found.task, found.rows[place[0]][0], answer) for answer in answers]
                good = [s for s in judged if s and s.finished and s.failure not in classes]
                best = max(good, key=lambda s: s.value, default=None)
                if best and best.value >= _sample(found, place).value + GAP:
                    better[place] = best
            advance(sum(place in better for place in places))
        advance(len(todo) - len(better))
    rows = tuple(
        (example, tuple(replace(s, better=better.get((i, k))) for k, s in enumerate(drawn)))
        for i, (example, drawn) in enumerate(found.rows)
    )
    facts = {"classes": list(classes), "samples": samples, "temperature": temperature, "seed": seed}
    return replace(found, rows=rows, settings=found.settings | {"branch": facts})


def _sample(found: Found, place: tuple[int, int]) -> Sample:
    return found.rows[place[0]][1][place[1]]

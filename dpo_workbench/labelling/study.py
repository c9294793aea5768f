"""`plan_labelling`: who judges which pair, and which pairs are judged twice."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.labelling.events import item_key
from dpo_workbench.pairs.pair import Pair, Pairs


def plan_labelling(
    pairs: Sequence[Pair], raters: Sequence[str], *, overlap: float = 0.2, seed: int = 0
) -> dict[str, Pairs]:
    """The pairs that each rater judges, in random order. The lists differ by at most one pair.

    Pairs with the same prompt and answers are judged as one.

    Args:
        overlap: share of the pairs that two raters judge, so that agreement can be measured.
    """
    names = list(raters)
    distinct = list({item_key(pair): pair for pair in reversed(list(pairs))}.values())
    if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise WorkbenchError(f"`raters` must be different names. Got {raters!r}.")
    if not 0 <= overlap <= 1 or (overlap and len(names) == 1):
        raise WorkbenchError(
            f"`overlap` must be a share in [0, 1], and 0 for one rater. Got {overlap} for {len(names)} raters."
        )
    if len(distinct) < len(names):
        raise WorkbenchError(f"Each rater needs a pair. Got {len(distinct)} pairs for {len(names)} raters.")
    rng = random.Random(seed)
    rng.shuffle(distinct)
    plan: dict[str, list[Pair]] = {name: [] for name in names}
    for number, pair in enumerate(distinct):
        shortest_first = sorted(names, key=lambda name: (len(plan[name]), rng.random()))
        for name in shortest_first[: 2 if number < round(overlap * len(distinct)) else 1]:
            plan[name].append(pair)
    return {name: Pairs(rng.sample(own, len(own))) for name, own in plan.items()}

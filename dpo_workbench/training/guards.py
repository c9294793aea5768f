"""What keeps a run from harm: checks for values that are not finite, memory that runs out, answers that sink."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.memory import within_memory
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.packing import Row

T = TypeVar("T")


def check_finite(what: str, value: float, ids: Sequence[str], seen: dict[str, list[float]]) -> None:
    """Raise when a loss, gradient or logps value is NaN or infinite, before anything is updated.

    Args:
        what: name of `value`.
        value: a sum is enough, since one bad term spoils it.
        ids: rows that it was computed from.
        seen: terms by name, one value a row. They are checked too: an infinite log-ratio can hide in a loss of 0.

    Raises:
        WorkbenchError: names the terms that are not finite and their rows; all of `ids` when the terms are finite.
    """
    terms = {key: bad for key, values in seen.items() if (bad := [v for v in values if not math.isfinite(v)])}
    if not terms and math.isfinite(value):
        return
    by_row = [values for values in seen.values() if len(values) == len(ids)]
    bad_rows = {i for values in by_row for i, v in zip(ids, values, strict=True) if not math.isfinite(v)}
    named = [i for i in ids if i in bad_rows or not bad_rows]
    if math.isfinite(value):  # it hides the term
        what, value = next((key, bad[0]) for key, bad in terms.items())
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    listed = f" (terms: {', '.join(terms)})" if terms else ""
    raise WorkbenchError(
        f"The {what} must be finite. Got {value} in {'row' if len(named) == 1 else 'rows'} {', '.join(named[:8])}{more}"
        f"{listed}. The model was not changed by this batch. Look at these rows; if they are sound, lower lr or load "
        "the model with dtype=torch.float32."
    )


def displacement(log_ratio: float, n_pairs: int) -> str:
    """Words for held-out chosen answers that lost more than one nat, or "".

    DPO widens the gap between two answers, also by making both less likely: likelihood displacement (arXiv 2410.08847).
    """
    if log_ratio > -1:
        return ""
    return (
        f"likelihood displacement: the chosen answers of {n_pairs} held-out pairs became e^{-log_ratio:.1f} times less "
        f"likely than at the start (log-ratio {log_ratio:.1f} nats). Raise nll_weight, lower lr, or take loss='dpop'."
    )


def rows_within_memory(
    work: Callable[[TrainConfig], T], rows: Sequence[Row], n_rows: int, config: TrainConfig
) -> tuple[T, TrainConfig]:
    """`work(config)`; each time that memory runs out, again with half the micro_tokens, down to single rows.

    Args:
        work, config: the work, and the settings that it begins with.
        rows: that are worked on, `n_rows` at most at one time.

    Returns:
        What `work` gave, and the settings that it gave it with.
    Raises:
        WorkbenchError: one row alone does not fit; names the longest.
    """
    lengths, longest = sorted(r.n_tokens for r in rows), max(rows, key=lambda r: r.n_tokens)
    largest = min(config.micro_tokens, min(len(rows), n_rows) * longest.n_tokens)  # in use; more is never filled
    single = 2 * lengths[1] - 1 if len(rows) > 1 else largest  # where no two rows go together
    hopeless = f"row {longest.id!r} ({longest.n_tokens} tokens) alone"
    sized = {largest: config}  # the first try is with the settings as they are

    def sized_work(size: int) -> T:
        return work(sized.setdefault(size, replace(config, micro_tokens=size)))

    done, size = within_memory(sized_work, largest, single, "micro_tokens", hopeless)
    return done, sized[size]

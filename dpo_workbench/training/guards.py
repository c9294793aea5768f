"""Checks that stop or warn during a run: values that are not finite, memory that runs out, signs of a harmful run."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.memory import out_of_memory
from dpo_workbench.training.batches import n_tokens
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.packing import Row

T = TypeVar("T")


def check_finite(what: str, value: float, ids: Sequence[str], terms: dict[str, list[float]]) -> None:
    """Raise if a loss, gradient or log-probability is NaN or infinite. Call it before anything is updated.

    Args:
        what: the name of `value`.
        value: a sum is enough, because one bad term spoils it.
        ids: the rows that it was computed from.
        terms: values by name, one for each row. They are checked too, since an infinite log-ratio can hide in a loss
            of 0.

    Raises:
        WorkbenchError: names the terms that are not finite and their rows, or all of `ids` if the terms are finite.
    """
    bad_terms = {key: bad for key, values in terms.items() if (bad := [v for v in values if not math.isfinite(v)])}
    if not bad_terms and math.isfinite(value):
        return
    by_row = [values for values in terms.values() if len(values) == len(ids)]
    bad_rows = {i for values in by_row for i, v in zip(ids, values, strict=True) if not math.isfinite(v)}
    named = [i for i in ids if i in bad_rows] or list(ids)
    if math.isfinite(value):
        what, value = next((key, bad[0]) for key, bad in bad_terms.items())
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    listed = f" (values: {', '.join(bad_terms)})" if bad_terms else ""
    raise WorkbenchError(
        f"The {what} must be finite. Got {value} in {'row' if len(named) == 1 else 'rows'} {', '.join(named[:8])}{more}"
        f"{listed}. The model was not changed by this batch. Look at these rows. If they are correct, lower lr or load "
        "the model with dtype=torch.float32."
    )


def displacement(log_ratio: float, n_pairs: int) -> str:
    """A warning if held-out chosen answers became less likely by more than one nat on average, or "".

    DPO widens the gap between two answers, which also happens when both become less likely: likelihood displacement
    (arXiv 2410.08847).
    """
    if log_ratio > -1:
        return ""
    return (
        f"likelihood displacement: the chosen answers of {n_pairs} held-out pairs became e^{-log_ratio:.1f} times less "
        f"likely than at the start (log-ratio {log_ratio:.1f} nats). Raise nll_weight, lower lr, or use loss='dpop'."
    )


def smaller_micro_batches(
    config: TrainConfig, rows: Sequence[Row], problem: str, *, whole: bool = False
) -> TrainConfig:
    """Settings that need less memory and give the same result: smaller micro-batches, then activation checkpointing.

    Args:
        config: the settings with which memory ran out.
        rows: the rows that were being computed.
        problem: the error's text.
        whole: the rows have to be one micro-batch, so that only checkpointing is left to try.

    Raises:
        WorkbenchError: micro-batches cannot be smaller and checkpointing is on.
    """
    reason = problem.strip().split("\n")[0][:200]
    total = n_tokens(rows, config.packing)
    shortest = sorted(rows, key=lambda row: row.n_tokens)[:2]
    if not whole and len(rows) > 1 and config.micro_tokens >= n_tokens(shortest, config.packing):
        config = replace(config, micro_tokens=min(config.micro_tokens, total) // 2)
        print(f"memory ran out ({reason}): continuing with micro_tokens={config.micro_tokens}", flush=True)
    elif not config.checkpointing:
        config = replace(config, checkpointing=True)
        print(f"memory ran out ({reason}): continuing with checkpointing=True (slower)", flush=True)
    elif whole and len(rows) > 1:
        raise WorkbenchError(
            f"All rows of a batch must fit into memory together, because the loss compares them. {len(rows)} rows "
            f"({total} tokens) do not: {reason}. Lower batch_size, or choose another loss."
        )
    else:
        longest = max(rows, key=lambda row: row.n_tokens)
        raise WorkbenchError(
            f"A single row must fit into memory. Row {longest.id!r} ({longest.n_tokens} tokens) does not: {reason}. "
            "Shorten or drop it, or use a smaller model."
        )
    return config


def rows_within_memory(
    work: Callable[[TrainConfig], T], rows: Sequence[Row], config: TrainConfig
) -> tuple[T, TrainConfig]:
    """Call `work(config)`, and again with settings that need less memory each time it runs out.

    Args:
        work: computes something for `rows` in micro-batches.
        rows: the rows.
        config: the settings to begin with.

    Returns:
        The result of `work`, and the settings that it succeeded with.

    Raises:
        WorkbenchError: a single row does not fit.
    """
    while True:
        try:
            return work(config), config
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            problem = str(error) or "MemoryError"
        # Outside of `except`, where the traceback no longer holds the tensors of the failed attempt.
        gc.collect()
        torch.cuda.empty_cache()
        config = smaller_micro_batches(config, rows, problem)

"""`train` and `sft`: from pairs, or examples, to a trained model."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.progress import progress
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.task import Split
from dpo_workbench.training.config import SFT_CONFIG, TrainConfig
from dpo_workbench.training.guards import rows_within_memory
from dpo_workbench.training.held_out import HeldOut, degenerate_answers, hold_out, large_margin
from dpo_workbench.training.losses import LOSSES, loss_terms
from dpo_workbench.training.objectives import Likelihood, Preference
from dpo_workbench.training.packing import Row
from dpo_workbench.training.reference import choose_packing, reference_logps
from dpo_workbench.training.tokens import pair_texts, tokenize
from dpo_workbench.training.trainer import Run, Trainer

PROBE_PROMPTS = 48


def train(
    model: Model,
    pairs: Pairs,
    config: TrainConfig | None = None,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    show: bool = True,
) -> Run:
    """Train a LoRA adapter with DPO or another preference loss.

    `model` itself stays unchanged and serves as the reference. Ctrl-C, the notebook's stop button and SIGTERM end the
    run cleanly. With a folder, the same call continues where it stopped and ends in the same bits.

    Args:
        model: the starting point. If it has an adapter, a copy of that adapter is trained on.
        pairs: what to learn from. Their weights count relative to the mean weight of the pairs trained on.
        config: see `TrainConfig`.
        probe: dev examples that are answered and scored on the way; the adapter with the best score is kept. By
            default the first 48 dev examples of the pairs' task. Without a task and a probe, the last adapter is kept,
            and a few prompts are answered at the end to look for degenerate answers.
        folder: for checkpoints and the reference's log-probabilities.
        show: print a progress bar and plain lines.

    Returns:
        A `Run`, also after an interrupt, with the best adapter until then.

    Raises:
        WorkbenchError: the loss and its settings do not fit, a value is not finite, a row is too long or does not fit
            into memory alone, or the policy differs from the reference before the first update.
    """
    config = config or TrainConfig()
    loss_terms(config)  # settings that do not fit are refused now, not after the reference has been computed
    probe = _probe_of(pairs.task, probe)
    held_out_pairs, trained_pairs = hold_out(list(pairs), config)
    weights = _relative_weights(trained_pairs, config)
    rows = tokenize(model, map(pair_texts, trained_pairs), config.max_tokens)
    held_out_rows = tokenize(model, map(pair_texts, held_out_pairs), config.max_tokens)
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = choose_packing(model, rows, config)
    cache = Path(folder) / "reference" if folder else None

    with progress(len(rows) + len(held_out_rows), "reference", show) as advance:
        reference, config = rows_within_memory(lambda c: reference_logps(model, rows, c, cache, advance), rows, config)
        held_out = None
        if held_out_rows:
            held_out_reference, config = rows_within_memory(
                lambda c: reference_logps(model, held_out_rows, c, cache, advance), held_out_rows, config
            )
            held_out = HeldOut(held_out_rows, held_out_reference)
    objective = Preference(reference, config, weights)
    run = Trainer(policy, rows, objective, config, probe, held_out, Path(folder) if folder else None, show).run()
    if probe is None and config.probes and run.history:
        _warn_without_probe(model, run, held_out_pairs or trained_pairs, rows)
    return run


def _warn_without_probe(model: Model, run: Run, pairs: Sequence[Pair], rows: Sequence[Row]) -> None:
    """Without a task nothing scores the answers, so look at the margin and at a few answers instead."""
    limit = max(32, 2 * max(len(row.answer_ids[0]) for row in rows))
    texts = [
        large_margin(run.history[-1]["rewards/margins"]),
        degenerate_answers(model, run.model, [p.prompt for p in pairs], min(limit, 256)) if run.finished else "",
    ]
    for text in filter(None, texts):
        warnings.warn(text, stacklevel=3)


def sft(
    model: Model,
    examples: Sequence[Any],
    config: TrainConfig = SFT_CONFIG,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    show: bool = True,
) -> Run:
    """Supervised fine-tuning with LoRA: on the labels (or references) of a split, or on the chosen answers of pairs.

    Args:
        model: the starting point; it stays unchanged.
        examples: a `Split`, or `Pairs` (the chosen answer of each prompt, once): the control for DPO.
        config: see `SFT_CONFIG`. Its loss, beta and nll_weight have no effect here.
        probe, folder, show: as in `train`.
    """
    probe = _probe_of(getattr(examples, "task", None), probe)
    texts = {(e.prompt, e.chosen if isinstance(e, Pair) else e.label or e.reference): e.id for e in examples}
    if not texts:
        raise WorkbenchError("Fine-tuning needs examples. Got none. Choose a split with examples.")
    rows = tokenize(model, [(i, prompt, (answer,)) for (prompt, answer), i in texts.items()], config.max_tokens)
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = choose_packing(model, rows, config)
    return Trainer(policy, rows, Likelihood(), config, probe, None, Path(folder) if folder else None, show).run()


def _probe_of(task: Any, probe: Split | None) -> Split | None:
    """The probe that was asked for, or the first dev examples of the task."""
    if probe is None and task is not None and len(task.splits.get("dev", ())):
        return task.dev[:PROBE_PROMPTS]
    return probe


def _relative_weights(pairs: Iterable[Pair], config: TrainConfig) -> dict[str, float]:
    """Weights by pair id with a mean of 1; empty if all are equal."""
    given = {pair.id: pair.weight for pair in pairs}
    if len(set(given.values())) <= 1:
        return {}
    if sorting := [name for name in loss_terms(config) if LOSSES[name].whole_batch]:
        raise WorkbenchError(
            f"With the loss {sorting[0]} all pairs must have the same weight, because it compares the pairs of a batch "
            f"with each other. Got weights from {min(given.values()):.3g} to {max(given.values()):.3g}. Choose another "
            "loss, or equal weights."
        )
    mean = statistics.fmean(given.values())
    return {pair_id: weight / mean for pair_id, weight in given.items()}

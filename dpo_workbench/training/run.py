"""`train`, `sft`, `unlikelihood`: rows and their reference values, what is watched, and the objective of a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dpo_workbench.common import parallel
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.progress import progress
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.task import Split
from dpo_workbench.training import loop
from dpo_workbench.training.config import SFT_CONFIG, TrainConfig
from dpo_workbench.training.guards import rows_within_memory
from dpo_workbench.training.losses import LOSSES, PairLogps, loss_terms
from dpo_workbench.training.packing import Row
from dpo_workbench.training.reference import prove_packing, prove_start, reference_logps, shortened
from dpo_workbench.training.tokens import Unfinished, tokenise
from dpo_workbench.training.trainer import Run, Start, Trainer

PROBE_PROMPTS = 48


def train(
    model: Model,
    pairs: Pairs,
    config: TrainConfig | None = None,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    start: Start | None = None,
    reference: loop.Reference | None = None,
    show: bool = True,
) -> Run:
    """LoRA DPO, from `model` as it is; `model` itself stays unchanged and serves as the reference.

    Ctrl-C, the notebook's ■ and SIGTERM end a run with a folder so that the same call goes on in the same bits. Under
    `accelerate launch` the processes share each batch; the losses are those of one process.

    Args:
        model: the start of the policy. Its adapter, if any, is copied and trained on.
        pairs: what to learn from. Their weights count relative to the mean weight of the pairs trained on.
        config: see `TrainConfig`.
        probe: dev examples that are answered and scored on the way; the adapter with the best score is kept. By
            default the first 48 dev examples of the pairs' task.
        folder: for checkpoints and the reference cache; the same call with the same folder goes on where it stopped.
        start: `start` of another run. Where model and probe are the same, its first probe is taken over.
        reference: `reference` of another run from the same model; pairs that it has need no reference pass.
        show: progress bar and plain lines.

    Returns:
        A `Run`; after an interrupt too, with the best adapter until then.
    Raises:
        WorkbenchError: the losses and their settings do not fit, a value is not finite, a row is too long or does not
            fit into memory alone, or the reference does not prove itself at step 0.
    """
    config = config or TrainConfig()
    terms = loss_terms(config)
    parallel.join()
    show = show and parallel.rank() == 0
    folder = Path(folder) if folder else None
    if probe is None and pairs.task is not None and len(pairs.task.splits.get("dev", ())):
        probe = pairs.task.dev[:PROBE_PROMPTS]
    held, kept = hold_out(list(pairs), config)
    mean = statistics.fmean(p.weight for p in kept)
    weights = {p.id: p.weight / mean for p in kept} if len({p.weight for p in kept}) > 1 else {}
    if weights and (sorting := [name for name in terms if LOSSES[name].whole_batch]):
        raise WorkbenchError(
            f"With {sorting[0]} all pairs must have one weight: it sorts the values of a batch, which then belong to "
            f"no one pair. Got weights around a mean of {mean:.3g}. Choose another loss, or equal weights."
        )
    rows, watched = (tokenise(model, map(_row, part), config.max_tokens) for part in (kept, held))
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    fitted = prove_packing(model, rows, config)

    def fit(work: Callable[[TrainConfig], Any], part: list[Row]) -> Any:
        nonlocal fitted
        done, fitted = rows_within_memory(work, part, config.batch_size, fitted)
        return done

    # in the first step the policy is the reference; rows that come once need no pass of their own
    once = config.epochs == 1 and not any(LOSSES[name].whole_batch for name in terms)
    own = {row.id for row in loop.batch_rows(rows, fitted, 0)} if once else set()
    shared, cache = reference or {}, folder and folder / "reference"
    to_do = len(rows) - len(own) + len(watched)
    with progress(to_do, "reference", show and to_do > 0) as advance:
        alike = None  # the size of the packs that the values come from
        if all(row.id in shared for row in (*rows, *watched) if row.id not in own):
            reference = dict(shared)
        else:
            reference = fit(lambda c: reference_logps(model, rows, c, cache, advance, own), rows)
            alike = fitted.micro_tokens
            if watched:
                reference |= fit(lambda c: reference_logps(model, watched, c, None, advance), watched)

    def watch(config: TrainConfig) -> dict[str, float]:
        return _held_out_metrics(policy, watched, reference, config)

    def prove(logps: PairLogps, ids: Sequence[str], config: TrainConfig) -> None:
        prove_start(logps, ids, config, policy.dtype if config.micro_tokens != alike else torch.float32)

    if own:  # the first step has no values to be proved by: some tokens of a row get them
        short = [shortened(loop.batch_rows(rows, fitted, 0)[0])]
        fit(lambda c: _prove_rows(policy, short, reference_logps(model, short, c, None), c, prove_start), short)
        if (shared or cache) and len(own) < len(rows):  # values that may be older than this call
            second = loop.batch_rows(rows, fitted, 1)
            fit(lambda c: _prove_rows(policy, second, reference, c, prove), second)

    def objective(batch: Sequence[Row], config: TrainConfig, step: int) -> Callable:
        return loop.preference_objective(reference, config, batch, policy, weights, prove if step == 0 else None)

    done = Trainer(policy, rows, fitted, objective, probe, watched, watch, folder, start, show, weights).run()
    done.reference = reference
    return done


def _prove_rows(
    policy: Model, rows: list[Row], reference: loop.Reference, config: TrainConfig, prove: Callable
) -> None:
    """Prove the values of the first pack of `rows`."""
    with parallel.agreed(), policy.active() as network, torch.no_grad():
        for batch in islice(loop.micro_batches(rows, policy, config), 1):
            prove(loop.pair_logps(network, batch, reference), batch.ids, config)


def sft(
    model: Model,
    examples: Sequence[Any],
    config: TrainConfig = SFT_CONFIG,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    start: Start | None = None,
    show: bool = True,
) -> Run:
    """Supervised fine-tuning with LoRA: on a split's labels (or references), or on the chosen answers of pairs.

    Args:
        model: where to start; stays unchanged.
        examples: a `Split`, or `Pairs` (each prompt's chosen answer once): the control arm of DPO.
        config: see `SFT_CONFIG`; loss, beta and nll_weight do not matter here.
        probe, folder, start, show: as in `train`.
    """
    parallel.join()
    show = show and parallel.rank() == 0
    task = getattr(examples, "task", None)
    if probe is None and task is not None and len(task.splits.get("dev", ())):
        probe = task.dev[:PROBE_PROMPTS]
    texts = {(e.prompt, e.chosen if isinstance(e, Pair) else e.label or e.reference): e.id for e in examples}
    if not texts:
        raise WorkbenchError("Fine-tuning needs examples. Got none. Choose a split with examples.")
    rows = tokenise(model, [(i, prompt, (answer,)) for (prompt, answer), i in texts.items()], config.max_tokens)
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = prove_packing(model, rows, config)

    def objective(batch: Sequence[Row], config: TrainConfig, step: int) -> Callable:
        return loop.sft_objective(sum(len(row.answer_ids[0]) for row in batch))

    folder = Path(folder) if folder else None
    return Trainer(policy, rows, config, objective, probe, [], None, folder, start, show).run()


def unlikelihood(
    model: Model,
    pairs: Pairs,
    config: TrainConfig,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    start: Start | None = None,
    show: bool = True,
) -> Run:
    """Likelihood on the chosen and unlikelihood on the rejected answers: a baseline without a reference model.

    Args:
        model: where to start; stays unchanged.
        pairs: the same that `train` takes; weights are not used.
        config: loss, beta and nll_weight do not matter here.
        probe, folder, start, show: as in `train`.
    """
    rows = tokenise(model, map(_row, pairs), config.max_tokens)
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    fitted = prove_packing(model, rows, config)

    def objective(batch: Sequence[Row], config: TrainConfig, step: int) -> Callable:
        return loop.unlikelihood_objective(batch)

    return Trainer(
        policy, rows, fitted, objective, probe, [], None, Path(folder) if folder else None, start, show
    ).run()


def hold_out(pairs: list[Pair], config: TrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Split pairs by group into (watched, trained): about `held_out` of the pairs, never all, are only watched."""
    groups = sorted({p.group or p.id for p in pairs})
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(config.seed)).tolist()
    held: list[Pair] = []
    for i in order:
        part = [p for p in pairs if (p.group or p.id) == groups[i]]
        if held and len(held) + len(part) > config.held_out * len(pairs) or config.held_out * len(pairs) < 1:
            break
        if len(part) <= 2 * config.held_out * len(pairs) and len(held) + len(part) < len(pairs):
            held += part
    ids = {p.id for p in held}
    return held, [p for p in pairs if p.id not in ids]


def _row(pair: Pair) -> tuple[str, str, tuple[str, ...]]:
    return pair.id, pair.prompt, (pair.chosen, pair.rejected if pair.rejected_finished else Unfinished(pair.rejected))


def _held_out_metrics(
    policy: Model, rows: list[Row], reference: loop.Reference, config: TrainConfig
) -> dict[str, float]:
    """Mean log-ratios (nats) of pairs that are never trained on. A falling chosen one is likelihood displacement.

    In the packs of `reference_logps`, so that they are 0 at the start where products of bf16 round by their size.
    """
    chosen, rejected = [], []
    with parallel.agreed(), policy.active() as network, torch.no_grad():
        for step in range(loop.steps_per_epoch(len(rows), config)):
            for batch in loop.micro_batches(loop.batch_rows(rows, config, step), policy, config):
                logps = loop.pair_logps(network, batch, reference)
                chosen += logps.chosen_logratios.tolist()
                rejected += logps.rejected_logratios.tolist()
    parts = parallel.gathered((chosen, rejected))
    means = [statistics.fmean(v for part in parts for v in part[k]) for k in (0, 1)]
    return {"chosen_logratio": means[0], "rejected_logratio": means[1]}

"""The training loop: for each step, for each micro-batch, log-probabilities, loss, backward; then clip, update, log.

`training_steps` is the loop over steps and `train_step` is one of them. What is minimized is in `objectives.py`, and
probes and checkpoints are in `trainer.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.interrupts import Interrupts
from dpo_workbench.common.memory import out_of_memory
from dpo_workbench.models.loading import Model
from dpo_workbench.training.batches import micro_batches, rows_of_step, steps_per_epoch
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite, smaller_micro_batches
from dpo_workbench.training.objectives import Metrics, Objective
from dpo_workbench.training.packing import Row


@dataclass
class TrainState:
    """Everything that changes while a run goes on, apart from its history."""

    policy: Model
    parameters: list[nn.Parameter]  # of the policy's adapter, fp32
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # does nothing unless the model computes in fp16
    config: TrainConfig  # micro_tokens is halved when memory runs out
    step: int = 0  # updates done


def new_state(policy: Model, config: TrainConfig) -> TrainState:
    """The state before the first step: AdamW without weight decay, and a loss scale for models in fp16."""
    parameters = policy.adapter_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
    # Small gradients become zero in fp16, so the loss is multiplied by a large number and the gradients are divided
    # by it (arXiv 1710.03740, section 3.2). The scale is halved when a gradient overflows and grows again later.
    fp16 = policy.dtype == torch.float16
    scaler = torch.amp.GradScaler(policy.device.type, init_scale=2.0**16, growth_interval=100, enabled=fp16)
    return TrainState(policy, parameters, optimizer, scaler, config)


def training_steps(
    state: TrainState, rows: Sequence[Row], objective: Objective, interrupts: Interrupts
) -> Iterator[dict[str, float]]:
    """Train until the configured number of epochs is done, and yield the metrics of each step after its update.

    Args:
        state: where to start; it is updated in place.
        rows: everything to train on.
        objective: gives the loss of a micro-batch.
        interrupts: asked between micro-batches whether to stop.

    Raises:
        WorkbenchError: a loss or gradient is not finite, or a single row does not fit into memory. Nothing was updated.
    """
    n_steps = steps_per_epoch(len(rows), state.config) * state.config.epochs
    while state.step < n_steps:
        step_rows = rows_of_step(rows, state.config, state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step, n_steps, state.config) * group.get("lr_scale", 1.0)
        metrics = None
        while metrics is None:  # a step is repeated after an fp16 overflow, or with less memory: nothing was updated
            problem = ""
            try:
                metrics = train_step(state, step_rows, objective, interrupts)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                problem = str(error) or "MemoryError"
            if problem:  # outside of `except`, where the traceback no longer holds the tensors of the failed attempt
                gc.collect()
                torch.cuda.empty_cache()
                state.config = smaller_micro_batches(state.config, step_rows, problem, whole=objective.whole_batch)
        state.step += 1
        yield {"step": state.step, **metrics}


def train_step(
    state: TrainState, rows: Sequence[Row], objective: Objective, interrupts: Interrupts
) -> dict[str, float] | None:
    """One optimizer step on `rows`.

    Returns:
        The step's metrics, or None if a gradient overflowed in fp16: then nothing was updated and the loss scale is
        half as large.
    """
    state.optimizer.zero_grad(set_to_none=True)
    done: list[tuple[Sequence[str], Tensor, Metrics]] = []
    with state.policy.active(trainable=True, checkpointing=state.config.checkpointing) as network:
        for batch in micro_batches(rows, state.policy, state.config, whole=objective.whole_batch):
            interrupts.check()
            loss, values = objective.loss(network, batch, rows, state.step)
            state.scaler.scale(loss).backward()
            done.append((batch.ids, loss.detach(), values))
    metrics = _collect(done)
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(state.parameters, state.config.max_grad_norm)
    if not torch.isfinite(grad_norm):
        if state.scaler.get_scale() > 1:
            state.scaler.update()
            print(f"a gradient overflowed in fp16: the loss scale is now {state.scaler.get_scale():g}", flush=True)
            return None
        check_finite("gradient", grad_norm.item(), [row.id for row in rows], {})
    _update(state)
    return {"loss": metrics.pop("loss"), "grad_norm": grad_norm.item(), **metrics}


def _collect(done: Sequence[tuple[Sequence[str], Tensor, Metrics]]) -> dict[str, float]:
    """The sum of the micro-batches' losses and the mean of each metric over all rows.

    All values are fetched together, so that a GPU waits only once in a step.

    Raises:
        WorkbenchError: one of them is not finite.
    """
    tensors = [value.flatten() for _, loss, values in done for value in (loss, *values.values())]
    numbers = iter(torch.cat(tensors).tolist())
    total, metrics = 0.0, {key: [] for key in done[0][2]}  # type: ignore[var-annotated]
    for ids, _, values in done:
        loss = next(numbers)
        terms = {key: list(islice(numbers, value.numel())) for key, value in values.items()}
        check_finite("loss", loss, ids, terms)
        total += loss
        for key, row_values in terms.items():
            metrics[key] += row_values
    return {"loss": total, **{key: sum(values) / len(values) for key, values in metrics.items()}}


def _update(state: TrainState) -> None:
    """The optimizer's step. It cannot be repeated when it fails halfway, so its errors end the run."""
    try:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    except (RuntimeError, MemoryError) as error:
        raise WorkbenchError(
            f"An update must be complete. It failed halfway: {error}. Start the run again: with a folder it continues "
            "from its last checkpoint."
        ) from error


def learning_rate(step: int, n_steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `lr`, then linear decay towards zero. `step` counts from 0; the last step is not zero."""
    warm_up = max(1, round(config.warmup * n_steps))
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    return config.lr * (n_steps - step) / max(1, n_steps - warm_up)


def step_line(step: int, n_steps: int, metrics: dict[str, float]) -> str:
    """The plain line that is printed for a step."""
    line = f"step {step}/{n_steps} loss {metrics['loss']:.3f}"
    if "rewards/margins" in metrics:
        line += f" margin {metrics['rewards/margins']:+.2f} acc {metrics['rewards/accuracies']:.2f}"
    return line

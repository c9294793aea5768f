"""The training loop: for each step, for each micro-batch, log-probabilities, loss, backward; then clip, update, log.

`training_steps` is the loop over steps and `train_step` is one of them. What is minimized is in `losses.py`, and
probes and checkpoints are in `run.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean

import torch
from torch import nn

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.interrupts import Interrupts
from dpo_workbench.models.loading import Model
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite, rows_within_memory
from dpo_workbench.training.losses import Metrics, Objective
from dpo_workbench.training.packing import Row, micro_batches, rows_of_step, steps_per_epoch


class TrainState:
    """Everything that changes while a run goes on, apart from its history. Before the first step, at the start."""

    def __init__(self, policy: Model, config: TrainConfig):
        self.policy = policy
        self.config = config  # micro_tokens is halved when memory runs out
        self.step = 0  # updates done
        self.parameters = policy.adapter_parameters()  # fp32
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
        # Small gradients become zero in fp16, so the loss is multiplied by a large number and the gradients are divided
        # by it (arXiv 1710.03740, section 3.2). The scale is halved when a gradient overflows and grows again later.
        fp16 = policy.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(policy.device.type, 2.0**16, growth_interval=100, enabled=fp16)


def training_steps(
    state: TrainState, rows: Sequence[Row], objective: Objective, interrupts: Interrupts
) -> Iterator[dict[str, float]]:
    """Train on `rows` for all epochs, from the step in `state`, and yield the metrics of each step after its update.

    Raises:
        WorkbenchError: a loss or gradient is not finite, or a single row does not fit into memory. Nothing was updated.
        Stopped: `interrupts`, asked before each micro-batch, has seen a signal.
    """
    n_steps = steps_per_epoch(len(rows), state.config) * state.config.epochs

    def attempt(config: TrainConfig) -> dict[str, float] | None:
        state.config = config
        return train_step(state, rows_of_step(rows, config, state.step), objective, interrupts)

    while state.step < n_steps:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step, n_steps, state.config) * group.get("lr_scale", 1.0)
        metrics = None
        while metrics is None:  # repeated after an fp16 overflow, or with less memory: until then nothing was updated
            metrics, _ = rows_within_memory(attempt, rows_of_step(rows, state.config, state.step), state.config)
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
    ids: list[str] = []
    done: list[Metrics] = []
    with state.policy.active(trainable=True, checkpointing=state.config.checkpointing is True) as network:
        for batch in micro_batches(rows, state.policy, state.config):
            interrupts.check()
            loss, values = objective.loss(network, batch, rows, state.step)
            state.scaler.scale(loss).backward()
            ids += batch.ids
            done.append({"loss": loss.detach(), **values})
    metrics = _collect(ids, done)
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(state.parameters, state.config.max_grad_norm).item()
    if not math.isfinite(grad_norm) and state.scaler.get_scale() > 1:
        state.scaler.update()
        print(f"a gradient overflowed in fp16: the loss scale is now {state.scaler.get_scale():g}", flush=True)
        return None
    check_finite(ids, {"gradient": [grad_norm]})
    try:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    except (RuntimeError, MemoryError) as error:  # a half update cannot be repeated
        raise WorkbenchError(
            f"An update must be complete. It failed halfway: {error}. Start the run again: with a folder it continues "
            "from its last checkpoint."
        ) from error
    return {"loss": metrics.pop("loss"), "grad_norm": grad_norm, **metrics}


def _collect(ids: Sequence[str], done: Sequence[Metrics]) -> dict[str, float]:
    """The sum of the micro-batches' losses and the mean of each metric over all rows, after `check_finite`."""
    values = {key: torch.cat([metrics[key].flatten() for metrics in done]) for key in done[0]}
    numbers = iter(torch.cat(list(values.values())).tolist())  # all together, so that a GPU waits only once in a step
    terms = {key: list(islice(numbers, len(tensor))) for key, tensor in values.items()}
    check_finite(ids, terms)
    return {key: sum(found) if key == "loss" else fmean(found) for key, found in terms.items()}


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

"""The loop: `train_step` is the algorithm; what follows feeds it, watches it and keeps its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from dpo_workbench.common import parallel
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.kept import Kept
from dpo_workbench.models.loading import Model
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite
from dpo_workbench.training.logps import answer_logps, token_logps
from dpo_workbench.training.losses import LOSSES, PairLogps, loss_terms
from dpo_workbench.training.packing import Batch, Row, lay_out, pack

# reference logps of a row's answers, by row id: (chosen, rejected)
Reference = dict[str, tuple[float, float]]
Metrics = dict[str, Tensor]  # by TRL's names, one value a row


class Overflow(ArithmeticError):
    """A gradient left the range of fp16 under the loss scale. Nothing was updated."""


def train_step(
    network: nn.Module,
    batches: Sequence[Batch],
    objective: Callable[[nn.Module, Batch], tuple[Tensor, Metrics]],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    scale: float = 1.0,
    kept: Kept | None = None,
) -> dict[str, float]:
    """One optimiser step over the micro-batches of one batch; returns the step's metrics.

    `objective` returns a micro-batch's share of the batch's loss, so the gradients simply add up: any number of
    micro-batches, on any number of processes, gives the same step. Nothing is updated when a loss, one of its terms or
    a gradient is not finite, or when memory runs out on the way.

    Args:
        scale: the loss is multiplied by it and the gradients are divided by it, so that fp16 holds small ones (loss
            scaling, arXiv 1710.03740, section 3.2).
        kept: room of the step before, which is used anew.

    Raises:
        Overflow: a gradient is not finite, and `scale` may be why.
    """
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    metrics: dict[str, list[float]] = {}
    kept = kept or Kept(network)
    with parallel.agreed():
        done = []
        for batch in batches:
            with kept.anew():
                loss, seen = objective(network, batch)
            (loss * scale).backward()
            done.append((batch.ids, loss.detach(), seen))
        for ids, share, terms in _read(done):
            check_finite("loss", share, ids, terms)
            total += share
            for key, values in terms.items():
                metrics.setdefault(key, []).extend(values)
    parallel.sum_gradients(parameters)
    if scale != 1.0:
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], scale)
    norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    if not torch.isfinite(norm):
        if scale > 1.0:
            raise Overflow
        check_finite("gradient", norm.item(), _blamed(network, batches, objective, parameters), {})
    _update(optimizer)
    shares = parallel.gathered((total, metrics))
    result = {"loss": sum(loss for loss, _ in shares), "grad_norm": norm.item()}
    for key in shares[0][1]:
        values = [v for _, terms in shares for v in terms.get(key, ())]
        result[key] = sum(values) / len(values)
    return result


def _read(
    done: Sequence[tuple[Sequence[str], Tensor, Metrics]],
) -> Iterator[tuple[Sequence[str], float, dict[str, list[float]]]]:
    """Losses and metrics as numbers. They are fetched together: a GPU waits once a step."""
    tensors = [x.flatten() for _, loss, seen in done for x in (loss, *seen.values())]
    numbers = iter(torch.cat(tensors).tolist() if tensors else ())
    for ids, _, seen in done:
        loss = next(numbers)
        yield ids, loss, {key: list(islice(numbers, x.numel())) for key, x in seen.items()}


def _blamed(network: nn.Module, batches: Sequence[Batch], objective: Callable, parameters: Sequence) -> list[str]:
    """Rows of the micro-batches whose gradients are not finite; all rows when only the gradients' sum is not."""
    bad: list[str] = []
    with parallel.agreed():
        for batch in batches:
            for p in parameters:
                p.grad = None
            objective(network, batch)[0].backward()
            if not all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None):
                bad += batch.ids
    found = parallel.gathered((bad, [i for batch in batches for i in batch.ids]))
    return [i for bad, _ in found for i in bad] or [i for _, ids in found for i in ids]


def _update(optimizer: torch.optim.Optimizer) -> None:
    """The optimiser's step. It cannot be done again when it fails halfway, so its errors end the run."""
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        raise WorkbenchError(
            f"An update must be whole. It failed halfway: {error}. Start the run again: with a folder it goes on from "
            "its last checkpoint."
        ) from error


def preference_objective(
    reference: Reference,
    config: TrainConfig,
    rows: Sequence[Row],
    model: Model,
    weights: Mapping[str, float] | None = None,
    prove: Callable[[PairLogps, Sequence[str], TrainConfig], None] | None = None,
) -> Callable[..., tuple[Tensor, Metrics]]:
    """The mean over a batch of pairs of the config's weighted sum of losses; a micro-batch gives its share of it.

    A loss that compares the pairs of a batch needs the policy's logps of all of them. They are computed once without a
    graph, and each micro-batch puts its own in their place: its gradient is the whole loss's by its own pairs, exactly.

    Args:
        rows: the pairs of the whole batch.
        model: what the batch is packed for.
        weights: by pair id, with a mean of 1 over all pairs of the run; 1 where an id is missing.
        prove: for the first step, where the policy still is the reference and stands in for a value that `reference`
            lacks. It sees each micro-batch's logps before anything is made of them, and raises where they are wrong.
    """
    terms, n_rows = loss_terms(config), len(rows)
    whole: Reference = {}  # the policy's own logps of all rows
    length = sum(len(row.answer_ids[0]) for row in rows) / n_rows

    def all_pairs(network: nn.Module, batch: Batch, logps: PairLogps) -> PairLogps:
        rest = [row for row in rows if row.id not in batch.ids]
        if rest and not whole:
            with torch.no_grad():
                for part in _cut(rows, model, config):  # the whole batch, in every process
                    sums = answer_logps(network, part).view(-1, 2)
                    check_finite("policy's logps", sums.sum().item(), part.ids, {})
                    whole.update(zip(part.ids, map(tuple, sums.tolist()), strict=True))
        facts = [(*whole[r.id], *reference[r.id], *map(len, r.answer_ids)) for r in rest]
        others = logps.policy_chosen_logps.new_tensor(facts).view(-1, 6).unbind(1)
        return PairLogps(*(torch.cat(both) for both in zip(logps, others, strict=False)))

    def objective(network: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        logps = pair_logps(network, batch, reference, bool(prove))._replace(batch_chosen_length=length)
        if prove:
            prove(logps, batch.ids, config)
        factor = logps.policy_chosen_logps.new_tensor([(weights or {}).get(i, 1.0) for i in batch.ids])
        total = torch.zeros((), device=factor.device)
        for name, weight in terms.items():
            if LOSSES[name].whole_batch:
                mean = LOSSES[name].values(all_pairs(network, batch, logps), config).mean()
                share = mean - mean.detach() * (1 - len(batch.ids) / n_rows)  # the shares' values add up to the mean
            else:
                share = (factor * LOSSES[name].values(logps, config)).sum() / n_rows
            total = total + weight * share
        return total, pair_metrics(logps, config.beta)

    return objective


def pair_logps(network: nn.Module, batch: Batch, reference: Reference, at_start: bool = False) -> PairLogps:
    """Policy logps from the network beside the cached reference logps, for a batch of pairs.

    `at_start`: the network still is the reference, so where `reference` has no values, its own are taken.
    """
    sums, lengths = answer_logps(network, batch), batch.lengths
    values = [reference.get(i, (0.0, 0.0)) if at_start else reference[i] for i in batch.ids]
    fixed = torch.tensor(values, device=sums.device)
    if at_start:
        known = torch.tensor([[i in reference] for i in batch.ids], device=sums.device)
        fixed = fixed.where(known, sums.detach().view(-1, 2))
    return PairLogps(sums[0::2], sums[1::2], fixed[:, 0], fixed[:, 1], lengths[0::2], lengths[1::2])


def pair_metrics(logps: PairLogps, beta: float) -> Metrics:
    """Per-pair values by TRL's names: rewards are beta times the log-ratio."""
    chosen, rejected = beta * logps.chosen_logratios, beta * logps.rejected_logratios
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps.policy_chosen_logps,
        "logps/rejected": logps.policy_rejected_logps,
    }
    return {key: value.detach() for key, value in values.items()}


def sft_objective(n_tokens: int) -> Callable[..., tuple[Tensor, Metrics]]:
    """Mean negative log-likelihood over the `n_tokens` answer tokens of a whole batch."""

    def objective(network: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        sums = answer_logps(network, batch)
        return -sums.sum() / n_tokens, {"mean_logps": sums.detach() / batch.lengths}

    return objective


def unlikelihood_objective(rows: Sequence[Row]) -> Callable[..., tuple[Tensor, Metrics]]:
    """Likelihood on the chosen answers, unlikelihood on the rejected: a baseline that needs no reference.

    Mean -log p over the chosen tokens plus mean -log(1 - p) over the rejected ones (arXiv 1908.04319, equation 2; as a
    term beside likelihood, equation 4, with weight 1), over all `rows` of a batch. What both answers begin with is not
    made unlikely.
    """
    shared = {row.id: row.n_shared for row in rows}
    n_chosen = sum(len(row.answer_ids[0]) for row in rows)
    n_rejected = max(1, sum(len(row.answer_ids[1]) - row.n_shared for row in rows))

    def objective(network: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        logps, owner = token_logps(network, batch), batch.owner
        begins = batch.lengths.cumsum(0) - batch.lengths  # where each answer's tokens start
        place = torch.arange(len(owner), device=owner.device) - begins[owner]
        same = torch.tensor([shared[i] for i in batch.ids], device=owner.device)[owner // 2]
        wrong = (owner % 2 == 1) & (place >= same)
        likely = -logps[owner % 2 == 0].sum() / n_chosen
        p = logps[wrong].exp().clamp(max=1 - 1e-6)
        unlikely = -torch.log1p(-p).sum() / n_rejected
        return likely + unlikely, {"likelihood": likely.detach()[None], "unlikelihood": unlikely.detach()[None]}

    return objective


def batch_rows(rows: Sequence[Row], config: TrainConfig, step: int) -> list[Row]:
    """The rows of step `step`, a pure function of (seed, step): resuming needs no state of a data loader.

    Each epoch is one shuffle; its last batch may be smaller.
    """
    per_epoch = steps_per_epoch(len(rows), config)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed * 100_003 + epoch)).tolist()
    return [rows[i] for i in order[place * config.batch_size : (place + 1) * config.batch_size]]


def steps_per_epoch(n_rows: int, config: TrainConfig) -> int:
    return math.ceil(n_rows / config.batch_size)


def micro_batches(rows: Sequence[Row], model: Model, config: TrainConfig) -> Iterator[Batch]:
    """Rows sorted by length and cut so that a batch's tokens stay under `micro_tokens` (one row always goes).

    Under `accelerate launch` each process gets its share of the rows.
    """
    yield from _cut(parallel.share(sorted(rows, key=lambda r: (-r.n_tokens, r.id))), model, config)


def _cut(rows: Sequence[Row], model: Model, config: TrainConfig) -> Iterator[Batch]:
    group: list[Row] = []

    def batch() -> Batch:
        if config.packing:
            return pack(group, model.device)
        return lay_out(group, model.tokenizer.eos_token_id, model.device)

    for row in rows:
        if group and _tokens([*group, row], config.packing) > config.micro_tokens:
            yield batch()
            group = []
        group.append(row)
    if group:
        yield batch()


def _tokens(rows: Sequence[Row], packing: bool) -> int:
    """Tokens of a batch, padding included."""
    if packing:
        return sum(row.n_tokens for row in rows)
    sizes = [len(row.prompt_ids) + len(answer) for row in rows for answer in row.answer_ids]
    return max(sizes) * len(sizes)


def learning_rate(step: int, n_steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `lr`, then linear to zero. `step` counts from 0; the last step still moves."""
    warm = max(1, round(config.warmup * n_steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * (n_steps - step) / max(1, n_steps - warm)


def optimizer_for(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on the adapter's fp32 weights."""
    return torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_line(step: int, n_steps: int, metrics: dict[str, Any]) -> str:
    """The plain line of a step that stays in a file."""
    line = f"step {step}/{n_steps} loss {metrics['loss']:.3f}"
    if "rewards/margins" in metrics:
        line += f" margin {metrics['rewards/margins']:+.2f} acc {metrics['rewards/accuracies']:.2f}"
    return line

"""Log-probabilities of answers without ever holding a (tokens x vocabulary) tensor of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.training.packing import Batch

SCORES = 6_000_000  # logits that exist at one time (24 MB in fp32): larger buffers are new memory each time


class _TokenLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target], chunk by chunk, for a frozen head.

    The gradient of one token's log-probability with respect to its hidden state is `weight[target] - p @ weight`, times
    one number from above. It is formed while the chunk's probabilities exist, so backward needs no logits at all.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, target: Tensor, scale: float) -> Tensor:  # (N, H) (V, H) (N,)
        logps = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden) if hidden.requires_grad else None
        chunk = max(1, SCORES // len(weight))
        for start in range(0, len(target), chunk):
            part = slice(start, start + chunk)
            scores = (hidden[part] @ weight.T).float()  # (n, V)
            if scale != 1.0:
                scores /= scale
            picked = scores.gather(1, target[part, None])[:, 0]
            norm = scores.logsumexp(dim=1)
            logps[part] = picked - norm
            if slope is not None:
                p = scores.sub_(norm[:, None]).exp_().to(weight.dtype)
                slope[part] = (weight[target[part]] - p @ weight) / scale
        ctx.save_for_backward(slope)
        return logps

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None, None


def token_states(network: nn.Module, batch: Batch) -> Tensor:
    """Last hidden state at the place that predicts each answer token. Shape (N, H); arguments as for `token_logps`."""
    causal = causal_lm(network)
    packed = {}
    if batch.layout is not None:  # a mask of four dimensions, so that transformers makes none
        packed = {"layout": batch.layout, "attention_mask": torch.ones(1, 1, 1, 1, device=batch.target.device).bool()}
    hidden = causal.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **packed
    ).last_hidden_state  # (1, T, H)
    return hidden.flatten(0, 1)[batch.source]


def token_logps(network: nn.Module, batch: Batch, states: Tensor | None = None) -> Tensor:
    """Log-probability (natural log, fp32) of each answer token of a packed batch. Shape (N,).

    Args:
        network: a causal LM of transformers, bare or inside a PEFT model, whose output head is not trained.
        batch: from `pack`.
        states: from `token_states`, where they are at hand.
    """
    causal = causal_lm(network)
    hidden = token_states(network, batch) if states is None else states
    scale = float(getattr(causal.config, "logits_scaling", 1.0) or 1.0)
    return _TokenLogps.apply(hidden, causal.get_output_embeddings().weight, batch.target, scale)


def answer_logps(network: nn.Module, batch: Batch) -> Tensor:
    """Sum of the token log-probabilities of each answer (`logps`, never a mean). Shape (A,), row by row."""
    per_token = token_logps(network, batch)
    sums = torch.zeros(batch.n_answers, device=per_token.device)
    return sums.index_add(0, batch.owner, per_token)

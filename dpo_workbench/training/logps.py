"""Log-probabilities of answers without ever holding a (tokens x vocabulary) tensor of the whole batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.kernels import vocabulary, wide
from dpo_workbench.models.layer import Read
from dpo_workbench.training.packing import Batch

SCORES = 2_500_000  # logits that exist at one time (10 MB in fp32): they stay in the processor's cache


class Head(NamedTuple):
    """A frozen output head: scores = cap * tanh((hidden @ weight.T + bias) * scale / cap), without the cap if None."""

    weight: Tensor  # (V, H)
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, causal: Any) -> Head:
        """The head of a causal LM of transformers, with what its configuration does to the scores."""
        layer, config = causal.get_output_embeddings(), causal.config.get_text_config()
        times, over = getattr(config, "logit_scale", None) or 1.0, getattr(config, "logits_scaling", None) or 1.0
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight, getattr(layer, "bias", None), float(times) / float(over), cap)


class _TokenLogps(torch.autograd.Function):
    """log softmax(scores)[target], a piece of the vocabulary at a time for all tokens, for a frozen head.

    The gradient of one token's log-probability with respect to its hidden state is `weight[target] - p @ weight`, times
    one number from above (and each score's own slope, where a head caps its scores). Sums of exponentials and of
    weighted rows are kept relative to the largest score so far (online softmax, arXiv 1805.02867, algorithm 3), so each
    score is made once, and backward needs no logits at all.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Head, target: Tensor) -> Tensor:  # (N, H), head, (N,)
        weight, bias, scale, cap = head
        n, high = len(target), torch.promote_types(hidden.dtype, torch.float32)
        picked, total = hidden.new_zeros(2, n, dtype=high)
        plain = bias is None and cap is None and scale == 1.0
        most = torch.full_like(total, float("-inf"))
        mean = torch.zeros_like(hidden, dtype=high) if hidden.requires_grad else None  # of the rows, by exp(score)
        own = weight[target] if mean is not None else weight[:0]
        piece = max(1, min(len(weight), SCORES // max(1, n)))
        asked = hidden.to(high) if wide(hidden) else hidden
        room = asked.new_empty(n * piece)
        for start in range(0, len(weight), piece):
            rows = weight[start : start + piece].to(asked.dtype)
            low = torch.mm(asked, rows.T, out=room[: n * len(rows)].view(n, -1))
            shrink = vocabulary(low, target, start, picked, most, total) if plain else None
            if shrink is not None:
                if mean is not None:
                    mean.mul_(shrink[:, None]).add_(low @ rows)
                continue
            scores = low.to(high)
            if bias is not None:
                scores += bias[start : start + piece]
            if scale != 1.0:
                scores *= scale
            if cap is not None:
                scores.div_(cap).tanh_().mul_(cap)
            place = (target - start).clamp(0, len(rows) - 1)[:, None]
            here = (target >= start) & (target < start + len(rows))
            picked = picked.where(~here, scores.gather(1, place)[:, 0])
            before, most = most, torch.maximum(most, scores.amax(1))
            shrink = (before - most).exp_()
            if mean is not None and cap is not None:
                bend = 1 - (scores / cap).square_()  # the slope of a capped score
                own = torch.where(here[:, None], own * bend.gather(1, place), own)
            p = scores.sub_(most[:, None]).exp_()
            total.mul_(shrink).add_(p.sum(1))
            if mean is not None:
                p = p if cap is None else p.mul_(bend)
                mean.mul_(shrink[:, None]).add_((p if low.dtype == high else low.copy_(p)) @ rows)
        slope = None if mean is None else (own - mean.div_(total[:, None])).mul_(scale).to(hidden.dtype)
        ctx.save_for_backward(slope)
        return (picked - most - total.log()).float()

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None


def token_states(network: nn.Module, batch: Batch) -> Tensor:
    """Last hidden state at the place that predicts each answer token. Shape (N, H); arguments as for `token_logps`."""
    causal = causal_lm(network)
    packed: dict[str, Any] = {}
    read = Read(batch.source)
    if batch.layout is not None:  # a mask of four dimensions, so that transformers makes none
        mask = torch.ones(1, 1, 1, 1, device=batch.target.device).bool()
        packed = {"layout": batch.layout, "read": read, "attention_mask": mask}
    if batch.position_ids is not None:
        packed["position_ids"] = batch.position_ids
    hidden = causal.get_decoder()(input_ids=batch.input_ids, use_cache=False, **packed).last_hidden_state.flatten(0, 1)
    return hidden if read.alone else hidden[batch.source]


def token_logps(network: nn.Module, batch: Batch, states: Tensor | None = None) -> Tensor:
    """Log-probability (natural log, fp32) of each answer token of a packed batch. Shape (N,).

    Args:
        network: a causal LM of transformers, bare or inside a PEFT model, whose output head is not trained.
        batch: from `pack`.
        states: from `token_states`, where they are at hand.
    """
    causal = causal_lm(network)
    hidden = token_states(network, batch) if states is None else states
    return _TokenLogps.apply(hidden, Head.of(causal), batch.target)


def answer_logps(network: nn.Module, batch: Batch) -> Tensor:
    """Sum of the token log-probabilities of each answer (`logps`, never a mean). Shape (A,), row by row."""
    return answer_sums(token_logps(network, batch), batch)


def answer_sums(per_token: Tensor, batch: Batch) -> Tensor:
    """(N,) values of the answer tokens, summed by answer. Shape (A,)."""
    return torch.zeros(batch.n_answers, device=per_token.device).index_add(0, batch.owner, per_token)

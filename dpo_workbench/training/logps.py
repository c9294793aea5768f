"""Log-probabilities of answers without ever holding a (tokens x vocabulary) tensor of the whole batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.training.packing import Batch

SCORES = 6_000_000  # logits that exist at one time (24 MB in fp32): larger buffers are new memory each time


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
    """log softmax(scores)[target], chunk by chunk, for a frozen head.

    The gradient of one token's log-probability with respect to its hidden state is `weight[target] - p @ weight`, times
    one number from above (and each score's own slope, where a head caps its scores). It is formed while the chunk's
    probabilities exist, so backward needs no logits at all.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Head, target: Tensor) -> Tensor:  # (N, H), head, (N,)
        weight, bias, scale, cap = head
        logps = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden) if hidden.requires_grad else None
        chunk = max(1, min(len(target), SCORES // len(weight)))
        room = torch.empty(2, chunk, len(weight), device=hidden.device, dtype=torch.float32)
        narrow = None if hidden.dtype == torch.float32 else hidden.new_empty(chunk, len(weight))
        for start in range(0, len(target), chunk):
            part = slice(start, min(start + chunk, len(target)))
            scores, p = room[:, : part.stop - start]  # (n, V)
            low = scores if narrow is None else narrow[: len(scores)]
            if bias is None:
                torch.mm(hidden[part], weight.T, out=low)
            else:
                torch.addmm(bias, hidden[part], weight.T, out=low)
            if low is not scores:
                scores.copy_(low)
            if scale != 1.0:
                scores *= scale
            if cap is not None:
                scores.div_(cap).tanh_().mul_(cap)
            picked = scores.gather(1, target[part, None])[:, 0]
            most = scores.amax(1, keepdim=True)
            norm = torch.sub(scores, most, out=p).exp_().sum(1).log_().add_(most[:, 0])
            logps[part] = picked - norm
            if slope is not None:
                torch.sub(scores, norm[:, None], out=p).exp_()
                own = weight[target[part]]
                if cap is not None:
                    bend = scores.div_(cap).square_().neg_().add_(1)  # the slope of a capped score
                    p, own = p.mul_(bend), own * bend.gather(1, target[part, None])
                slope[part] = (own - (p if low is scores else low.copy_(p)) @ weight) * scale
        ctx.save_for_backward(slope)
        return logps

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None


def token_states(network: nn.Module, batch: Batch) -> Tensor:
    """Last hidden state at the place that predicts each answer token. Shape (N, H); arguments as for `token_logps`."""
    causal = causal_lm(network)
    packed: dict[str, Any] = {}
    if batch.layout is not None:  # a mask of four dimensions, so that transformers makes none
        packed = {"layout": batch.layout, "attention_mask": torch.ones(1, 1, 1, 1, device=batch.target.device).bool()}
    if batch.position_ids is not None:
        packed["position_ids"] = batch.position_ids
    hidden = causal.get_decoder()(input_ids=batch.input_ids, use_cache=False, **packed).last_hidden_state  # (1, T, H)
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
    return _TokenLogps.apply(hidden, Head.of(causal), batch.target)


def answer_logps(network: nn.Module, batch: Batch) -> Tensor:
    """Sum of the token log-probabilities of each answer (`logps`, never a mean). Shape (A,), row by row."""
    return answer_sums(token_logps(network, batch), batch)


def answer_sums(per_token: Tensor, batch: Batch) -> Tensor:
    """(N,) values of the answer tokens, summed by answer. Shape (A,)."""
    return torch.zeros(batch.n_answers, device=per_token.device).index_add(0, batch.owner, per_token)

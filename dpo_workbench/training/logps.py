"""Log-probabilities of answer tokens, without ever holding the logits of a whole batch.

With a vocabulary of 150,000, the logits of 2,000 tokens take 1.2 GB in fp32, and their gradient as much again. Only the
answer tokens need logits, and a piece of them at a time is enough: in training each piece is computed again in the
backward pass (activation checkpointing), so that one piece of logits exists at any time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.files import decoder
from dpo_workbench.training.packing import Batch

MAX_LOGITS = 2**23  # logits in one piece: 32 MiB in fp32


def token_states(network: nn.Module, batch: Batch) -> Tensor:
    """The last hidden state of the token that predicts each answer token. Shape (N, H)."""
    packed = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    known = packed if batch.attention_mask is not None else {}  # not every model has these two arguments
    output = decoder(causal_lm(network))(input_ids=batch.input_ids, use_cache=False, **known)
    return output.last_hidden_state.flatten(0, 1)[batch.source]


def token_logps(network: nn.Module, batch: Batch) -> Tensor:
    """Log-probability (natural logarithm, fp32) of each answer token. Shape (N,)."""
    return logps_of_states(network, token_states(network, batch), batch.target)


def logps_of_states(network: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token (N,), given the hidden states (N, H) that predict them. Shape (N,)."""
    causal = causal_lm(network)
    piece = max(1, MAX_LOGITS // causal.get_output_embeddings().weight.shape[0])
    pieces = zip(hidden.split(piece), targets.split(piece), strict=True)
    settings = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in the output layer is random
    return torch.cat([checkpoint(_piece_logps, causal, *part, **settings) for part in pieces])


def _piece_logps(causal: Any, states: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities of one piece. Some architectures scale or cap their logits after the output head."""
    config = causal.config.get_text_config()
    logits = causal.get_output_embeddings()(states).float()  # (N, V)
    scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    scale *= getattr(config, "lm_head_multiplier", None) or 1
    if scale != 1:  # Cohere, Granite, Falcon-H1
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return -cross_entropy(logits, target, reduction="none")


def answer_logps(network: nn.Module, batch: Batch) -> Tensor:
    """Sum (never a mean) of the log-probabilities of each answer's tokens. Shape (A,), row by row."""
    return answer_sums(token_logps(network, batch), batch)


def answer_sums(per_token: Tensor, batch: Batch) -> Tensor:
    """Sum values of the answer tokens (N,) by answer. Shape (A,)."""
    return torch.zeros(batch.n_answers, device=per_token.device).index_add(0, batch.owner, per_token)

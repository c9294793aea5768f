"""How much memory a training run takes, from the model's config alone.

The model is built on PyTorch's `meta` device, where tensors have shapes but no values. So its parameters are counted
exactly, for every architecture, and a forward pass shows which tensors autograd keeps for the backward pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_workbench.models.adapter import add_adapter, causal_lm
from dpo_workbench.models.files import decoder

# As in training: logits that exist at one time, and tokens of the longest row that is packed for SDPA, with a mask
MAX_LOGITS, MAX_DENSE = 2**23, 4096
# NF4 with double quantization: half a byte, an 8-bit scale for 64 numbers, a 32-bit one for 256 scales (2305.14314)
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
CONTEXT, FRAGMENTED = 0.6 * 2**30, 0.05  # bytes of CUDA and its libraries; share lost between blocks: assumptions
LENGTHS = (256, 512)  # of the two forward passes; multiples of the chunks in which recurrent layers compute


class Device(NamedTuple):
    """What a run is planned for."""

    name: str
    memory: float  # bytes
    dtype: torch.dtype  # of weights that are not quantized
    cpu: bool = False
    flex: bool = False  # FlexAttention: packs need no dense masks
    tflops: float | None = None  # peak of dense matrix products in `dtype`


@dataclass(frozen=True)
class Needs:
    """What training one model takes, in bytes. `kept`, `inputs`, `inside` and `cache` count for each token."""

    parameters: int  # how many, without the adapter
    weights: int
    weights_4bit: int  # linear layers in NF4, everything else as it is
    unpacked: int  # the largest linear layer, which is unpacked from 4 bits for each use
    adapter: int  # fp32; its gradient takes the same again, and AdamW twice as much
    layers: int
    kept: float  # what autograd keeps of all layers
    inputs: int  # the input of each layer, which is all that activation checkpointing keeps
    inside: int  # temporary tensors within one layer: two of the widest, in fp32
    mask: float  # of all layers, for two tokens of a row: the mask, or the scores where attention is not fused
    vocabulary: int
    cache: int  # keys and values while sampling
    exact: bool  # False: `kept` is a rule of thumb, because the model can't be run without values

    def parts(self, tokens: int, row: int, checkpointing: bool, quantized: bool, flex: bool) -> dict[str, float]:
        """Bytes of the tensors at the peak of a training step, for a micro-batch with rows of `row` tokens."""
        masks = 0.0 if flex or row > MAX_DENSE else self.mask * tokens * row
        one_layer = (self.kept * tokens + masks) / self.layers
        logits = 12.0 * min(MAX_LOGITS, tokens * self.vocabulary)  # in fp32: log-softmax and two gradients
        kept = self.kept * tokens
        if checkpointing:  # one layer at a time is computed again, after the logits are gone
            kept, masks, logits = self.inputs * tokens + one_layer, 0.0, logits - one_layer
        return {
            "weights": self.weights_4bit if quantized else self.weights,
            "adapter, gradient, AdamW": 4 * self.adapter,
            "activations": kept,
            "attention masks": masks,
            "logits or gradients in a layer": max(logits, self.inside * tokens + self.unpacked * quantized),
        }

    def total(self, device: Device, tokens: int, row: int, checkpointing: bool, quantized: bool) -> float:
        """Bytes with what is lost. On a CPU the C library keeps freed memory, about as much as `kept` (measured)."""
        tensors = sum(self.parts(tokens, row, checkpointing, quantized, device.flex).values())
        return tensors + self.kept * tokens if device.cpu else tensors * (1 + FRAGMENTED) + CONTEXT

    def choose(
        self, device: Device, row: int, quantized: bool, start: int = 0, modes: Sequence[bool] = (False, True)
    ) -> tuple[int, bool] | None:
        """(micro_tokens, checkpointing) that fit, or None. `row` is the number of tokens of the longest row.

        The order is that in which training shrinks when memory runs out: halve micro_tokens down to a single row, then
        turn checkpointing on. `start` and `modes` fix one of the two.
        """
        sizes = [start or (1536 if device.cpu else 6144)]  # more tokens in one pass are almost no faster
        while not start and sizes[-1] > row:
            sizes.append(sizes[-1] // 2)
        options = [(tokens, checkpointing) for checkpointing in modes for tokens in sizes]
        return next(
            (o for o in options if self.total(device, max(o[0], row), row, o[1], quantized) <= device.memory), None
        )


def needs_of(config: Any, dtype: torch.dtype, rank: int) -> Needs:
    """What training a model with this config and a LoRA adapter of this rank takes."""
    values = {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    return _needs(json.dumps(values, sort_keys=True, default=str), dtype, rank)


@lru_cache  # seconds for a large model
def _needs(config: str, dtype: torch.dtype, rank: int) -> Needs:
    fused, build = True, AutoModelForCausalLM.from_config
    with torch.device("meta"):
        try:
            network = build(AutoConfig.for_model(**json.loads(config)), dtype=dtype, attn_implementation="sdpa")
        except ValueError:  # this architecture has no such attention, so scores are kept; the try changed its config
            fused, network = False, build(AutoConfig.for_model(**json.loads(config)), dtype=dtype)
        network.requires_grad_(False).eval()
        base, head = list(network.parameters()), network.get_output_embeddings()
        linear = {m.weight for m in network.modules() if isinstance(m, nn.Linear) and m is not head}
        size, packed = sum(p.nbytes for p in base), sum(w.nbytes for w in linear)
        adapted = add_adapter(network, "plan", rank, rank, 0)
    wrapped = [m for m in adapted.modules() if isinstance(m, LoraLayer)]
    short, long = (_kept(adapted, length) for length in LENGTHS)
    scores = (long / LENGTHS[1] - short / LENGTHS[0]) / (LENGTHS[1] - LENGTHS[0])  # kept = a T + scores T^2
    text = network.config.get_text_config()
    layers, heads = text.num_hidden_layers, getattr(text, "num_attention_heads", 1)
    sizes = text.to_dict()  # as an attribute, what differs between layers is an error (Gemma 4)
    head_size = sizes.get("head_dim") or text.hidden_size // heads
    return Needs(
        parameters=sum(p.numel() for p in base),
        weights=size,
        weights_4bit=round(size - packed + packed / dtype.itemsize * NF4_BYTES),
        unpacked=max((w.nbytes for w in linear), default=0),
        adapter=sum(p.nbytes for p in adapted.parameters() if p.requires_grad),
        layers=layers,
        kept=short / LENGTHS[0] - scores * LENGTHS[0] or 5.0 * sum(m.in_features + m.out_features for m in wrapped),
        inputs=layers * text.hidden_size * dtype.itemsize,
        inside=2 * 4 * max(max(m.in_features, m.out_features) for m in wrapped),
        mask=layers * dtype.itemsize if fused else scores,
        vocabulary=head.weight.shape[0],
        cache=layers * 2 * (sizes.get("num_key_value_heads") or heads) * head_size * dtype.itemsize,
        exact=short > 0,
    )


def _kept(network: nn.Module, length: int) -> int:
    """Bytes that autograd keeps for a packed row, parameters left out. 0 for models that can't run without values."""
    own = [tensor.untyped_storage() for tensor in [*network.parameters(), *network.buffers()]]
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids, mask = torch.zeros(1, length, dtype=torch.long), torch.ones(1, 1, length, length, dtype=torch.bool)
        try:
            decoder(causal_lm(network))(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False)
        except (TypeError, ValueError, RuntimeError):  # a mixture of experts, or a model that cannot take a pack
            return 0
    return sum(kept[key].nbytes() for key in kept.keys() - set(map(id, own)))

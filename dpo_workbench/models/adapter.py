"""LoRA adapters by PEFT: add, read, write, switch off, merge for the time of generation."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.memory import free_bytes
from dpo_workbench.models.files import decoder

# Settings of a saved adapter that do not change what its matrices mean, or that are checked elsewhere.
HARMLESS = (
    "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "layers_to_transform",
    "layers_pattern", "target_parameters", "rank_pattern", "alpha_pattern", "megatron_config", "eva_config",
)  # fmt: skip
BASE = "dpo_workbench_base"  # the base record's key in the metadata of adapter_model.safetensors
SIZES = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
PLAIN_STARTS = ("gaussian", "orthogonal", "eva")  # `init_lora_weights` that left the base weights as they were


def add_adapter(network: nn.Module, name: str, rank: int, alpha: int, seed: int) -> PeftModel:
    """Add a new LoRA adapter to all linear layers except the output head.

    Its B matrices are zero, so it does not change the outputs yet (arXiv 2106.09685, section 4.1).

    Args:
        network: a causal LM, or the PEFT model that an earlier call returned; it is changed in place.
        name: a name that is not in use yet.
        rank, alpha, seed: LoRA's r, its scale times r, and the seed of the random A matrices.
    """
    adapted = isinstance(network, PeftModel)
    excluded = next(iter(network.peft_config.values())).exclude_modules if adapted else _without_adapter(network)
    transposed = any(isinstance(module, Conv1D) for module in network.modules())  # GPT-2
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="all-linear", exclude_modules=excluded, task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        # On mixtures of experts PEFT sets patterns for expert layers that this adapter does not cover.
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match", category=RuntimeWarning)
        torch.manual_seed(seed)
        if adapted:
            network.add_adapter(name, config)
            return network
        return get_peft_model(network, config, adapter_name=name)


def _without_adapter(causal: Any) -> list[str] | None:
    """The linear layers, next to the output head, that get no adapter; None if there are none."""
    text, head = set(decoder(causal).modules()), causal.get_output_embeddings()
    # The kernels of Mamba blocks read these weights past any adapter.
    mamba = any(mark in causal.config.model_type for mark in ("mamba", "falcon_h1", "nemotron_h"))
    return [
        name for name, module in causal.named_modules()
        if isinstance(module, nn.Linear) and module is not head
        and (
            module not in text or "embed_tokens_extend" in name  # image and audio towers; Phi-4's are in its decoder
            or type(module).__name__.endswith(("Router", "GroupedLinear"))  # not a plain product with the weight
            or (mamba and name.endswith(("out_proj", "conv1d")))
        )
    ] or None  # fmt: skip


def causal_lm(network: nn.Module) -> Any:
    """The causal LM of transformers, without PEFT's wrapper."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any] | None]:
    """Weights, settings and base record of an adapter folder that PEFT (without a record) or `Model.save` wrote.

    Raises:
        WorkbenchError: a file is missing or damaged, or the adapter is a variant of LoRA that is not supported.
    """
    weights = folder / "adapter_model.safetensors"
    try:
        settings = dict(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
        with safe_open(weights, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            base = json.loads((file.metadata() or {}).get(BASE, "null"))
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise WorkbenchError(
            "An adapter folder must hold complete files adapter_model.safetensors and adapter_config.json. "
            f"{folder}: {error}. Name a folder that `run.model.save(...)` or PEFT wrote, or copy the adapter again."
        ) from error
    empty = [key for key, values in tensors.items() if not values.numel()]
    if empty or not tensors:
        raise WorkbenchError(
            f"An adapter must have weights. {weights} holds {len(tensors)} tensors, {len(empty)} of them empty."
        )
    # With other settings or tensors the weights mean something else than W + alpha / r * B A, or replace base weights.
    defaults = LoraConfig().to_dict()
    variants = [
        f"{key}={value!r}" for key, value in settings.items()
        if value and key not in HARMLESS and value not in (defaults.get(key, value), *PLAIN_STARTS)
    ]  # fmt: skip
    variants += [f"{key}={settings.get(key)!r}" for key in ("r", "lora_alpha") if not settings.get(key)]
    variants += [f"the weight {key}" for key in tensors if not key.endswith(("lora_A.weight", "lora_B.weight"))]
    if variants:
        raise not_plain(variants[0], folder)
    return tensors, settings, base


def not_plain(what: str, folder: Path) -> WorkbenchError:
    """The error for an adapter that computes something else than W + alpha / r * B A."""
    return WorkbenchError(
        f"An adapter must be plain LoRA with one rank. Got {what} in {folder}. Merge it into its model with PEFT and "
        "load the merged folder."
    )


def base_record(network: nn.Module) -> dict[str, list[Any]]:
    """What tells a base model from others: its sizes, and by name a sample of numbers from its weights.

    These are one number from each of 256 embeddings, mostly of frequent tokens, which full fine-tuning changes, and
    two from every other weight. Quantized weights are left out; the others are those of the unquantized model.
    """
    causal = causal_lm(network)
    embeddings, config = causal.get_input_embeddings().weight, causal.config.get_text_config().to_dict()
    k = torch.arange(256)
    samples = {"embeddings": embeddings[4 * k % embeddings.shape[0], 37 * k % embeddings.shape[1]]}
    for name, values in causal.named_parameters():
        if "lora_" not in name and values.is_floating_point() and values.dtype.itemsize > 1:
            third = max(1, values.numel() // 3)
            samples[name.replace(".base_layer", "")] = values.flatten()[third::third][:2]
    sizes = {key: [config.get(key)] for key in SIZES}
    return sizes | {name: [float(f"{x:.6g}") for x in values.tolist()] for name, values in samples.items()}


def base_differences(record: dict[str, list[Any]], other: dict[str, list[Any]]) -> list[str]:
    """Names of the values that two records share and that differ by more than rounding to 16 bits."""

    def same(a: Any, b: Any) -> bool:
        return a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=2**-8, abs_tol=1e-7))

    return [name for name in record if name in other and not all(map(same, record[name], other[name]))]


@contextmanager
def only_adapter(network: Any, name: str | None, trainable: bool = False) -> Iterator[Any]:
    """Inside, the network applies only the adapter `name`, or none; other adapters require no gradients."""
    if name is not None:
        network.set_adapter(name, inference_mode=not trainable)
    off = name is None and isinstance(network, PeftModel)
    with network.disable_adapter() if off else nullcontext():
        yield network


@contextmanager
def activation_checkpointing(network: nn.Module) -> Iterator[None]:
    """Inside, decoder layers keep only their inputs and compute the rest again in the backward pass.

    Layers checkpoint only in training mode. That mode is set on the decoder layers alone, not on the modules inside
    them. It starts no dropout, because `load_model` sets all dropout rates to zero.
    """
    layers = [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]
    model = causal_lm(network)
    if not layers:
        yield
        return
    # transformers renamed both methods in 5.x: gradient_checkpointing_* became activation_checkpointing_*.
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False
        getattr(model, f"{prefix}_checkpointing_disable")()


@contextmanager
def merged_weights(network: Any, name: str | None) -> Iterator[nn.Module]:
    """Inside, a network for generation, whose layers hold W + alpha / r * B A and need no products with the adapter.

    The original weights are put back afterwards. Subtracting the product again would not restore them exactly. If the
    copies would take more than half of a GPU's free memory, which the key-value cache needs as well, or if layers have
    no plain weights of their own (quantized layers, fused experts, layers that share one weight), the adapter stays
    separate: that is slower and gives the same answers.
    """
    if name is None:
        yield causal_lm(network)
        return
    layers = [m for m in network.modules() if isinstance(m, LoraLayer) and name in m.lora_A]
    weights: list[Any] = [getattr(layer.get_base_layer(), "weight", None) for layer in layers]
    plain = all(type(weight) is nn.Parameter and weight.is_floating_point() for weight in weights)
    if not plain or len({id(weight) for weight in weights}) < len(weights) or not room_for_copies(weights):
        yield network
        return
    originals = [weight.data for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            weight.data = (weight.data.float() + layer.get_delta_weight(name).float()).to(weight.dtype)
        with network.disable_adapter():
            yield causal_lm(network)
    finally:
        for weight, data in zip(weights, originals, strict=True):
            weight.data = data


def room_for_copies(weights: list[Any]) -> bool:
    """Whether copies take at most half of a GPU's free memory. On a CPU they always may."""
    device = weights[0].device
    return device.type != "cuda" or 2 * sum(weight.nbytes for weight in weights) <= free_bytes(device)


def dequantized_and_merged(network: PeftModel, name: str, folder: Path) -> Any:
    """The causal LM of a network with 4-bit weights, with W + alpha / r * B A as its weights and W dequantized.

    It computes what the network with its adapter computes, up to rounding. The network is changed in place. The new
    weights are files in `folder`, mapped into memory, because in 16 bits they may be larger than host memory.

    Raises:
        ValueError: a weight is not finite.
    """
    from bitsandbytes.functional import dequantize_4bit

    causal = causal_lm(network)
    for number, (path, layer) in enumerate(list(causal.named_modules())):
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        state = getattr(getattr(base, "weight", None), "quant_state", None)
        if path.endswith(".base_layer") or not (state or isinstance(layer, LoraLayer)):
            continue
        weight = (dequantize_4bit(base.weight.data, state) if state else base.weight).float()
        if isinstance(layer, LoraLayer):
            weight = weight + layer.get_delta_weight(name).float()
        if not weight.isfinite().all():
            raise ValueError(f"{path} has NaN or infinite weights")
        if state and issubclass(base.source_cls, Conv1D):  # transformers transposes these before they are quantized
            weight = weight.T
        file = torch.from_file(str(folder / str(number)), True, weight.numel(), dtype=causal.dtype)
        plain = nn.Linear(1, 1, bias=False, device="meta")
        plain.weight = nn.Parameter(file.view(weight.shape).copy_(weight), requires_grad=False)
        plain.bias = base.bias
        causal.set_submodule(path, plain)
    causal.hf_quantizer, causal.is_quantized = None, False
    del causal.config.quantization_config
    return causal

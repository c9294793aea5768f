"""LoRA adapters: PEFT holds and saves them, one fused product computes them, and "adapter off" is the base model."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.kernels import normed
from dpo_workbench.models.layer import kind_of, use_fast_layers

# a norm's output, its input, weight and inverse root: the products that read the output keep these, not the output
_Source = tuple[list[Tensor], Tensor, Tensor, Tensor]  # the list holds the output made again, in backward


class _LoraProduct(torch.autograd.Function):
    """x W^T + b + scale * (x A^T) B^T with W, b frozen: no fp32 copy of x or of the output is ever made."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, source: _Source | None
    ) -> Tensor:
        flat, a_low, b_low = x.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)  # (T, in) (rank, in) (out, rank)
        out, inner = _product(flat, weight, bias, a_low, b_low, scale)
        ctx.made, *parts = source or (None, flat)
        ctx.save_for_backward(weight, a_low, b_low, inner, *parts)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, a.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        weight, a_low, b_low, inner, *parts = ctx.saved_tensors
        flat = parts[0] if ctx.made is None else _made_again(ctx.made, *parts).flatten(0, -2)
        grad = grad.flatten(0, -2)
        down = (grad @ b_low) * ctx.scale  # (T, rank)
        grad_x = (grad @ weight).addmm_(down, a_low).view(ctx.shape) if ctx.needs_input_grad[0] else None
        grad_b = (grad.T @ inner).to(ctx.dtype) * ctx.scale
        return grad_x, None, None, (down.T @ flat).to(ctx.dtype), grad_b, None, None


class _GatedLoraProduct(torch.autograd.Function):
    """`_LoraProduct` of x = silu(gate) * up, of which only gate and up are kept: x is made again in backward."""

    @staticmethod
    def forward(
        ctx, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        flat, a_low, b_low = silu(gate).mul_(up).flatten(0, -2), a.to(gate.dtype), b.to(gate.dtype)
        out, inner = _product(flat, weight, bias, a_low, b_low, scale)
        ctx.save_for_backward(gate, up, weight, a_low, b_low, inner)
        ctx.scale, ctx.dtype = scale, a.dtype
        return out.view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        gate, up, weight, a_low, b_low, inner = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        down = (grad @ b_low) * ctx.scale  # (T, rank)
        grad_x = (grad @ weight).addmm_(down, a_low).view_as(gate)
        act = silu(gate)
        grad_up = grad_x * act
        flat = act.mul_(up).flatten(0, -2)
        grad_b = (grad.T @ inner).to(ctx.dtype) * ctx.scale
        grad_gate = torch.ops.aten.silu_backward(grad_x.mul_(up), gate)
        return grad_gate, grad_up, None, None, (down.T @ flat).to(ctx.dtype), grad_b, None


def _product(
    flat: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    inner = flat @ a.T  # (T, rank)
    return nn.functional.linear(flat, weight, bias).addmm_(inner, b.T, alpha=scale), inner


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight with a frozen weight, in fp32 inside; of x no fp32 copy is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, made: list[Tensor]) -> tuple[Tensor, Tensor]:
        high = x.float()
        inverse = torch.rsqrt(high.pow(2).mean(-1, keepdim=True) + eps)
        ctx.mark_non_differentiable(inverse)
        ctx.save_for_backward(x, weight, inverse)
        ctx.made = made
        return normed(x, weight, inverse), inverse

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor):
        x, weight, inverse = ctx.saved_tensors
        ctx.made.clear()  # its readers are done
        unit, grad = x * inverse, (grad * weight).float()  # (.., H) fp32
        along = (grad * unit).mean(-1, keepdim=True)
        return grad.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype), None, None, None


def _made_again(made: list[Tensor], x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    if not made:
        made.append(normed(x, weight, inverse))
    return made[0]


def _adapter_of(layer: LoraLinear) -> tuple[Any, ...]:
    """Weight, bias, A, B and scale of a layer's active adapter."""
    name = layer.active_adapters[0]
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    return base.weight, base.bias, a, b, layer.scaling[name]


def _fast_forward(self: LoraLinear, x: Tensor) -> Tensor:
    if self.disable_adapters or self.merged:
        return self.base_layer(x)
    source = getattr(x, "norm_source", None)
    return _LoraProduct.apply(x, *_adapter_of(self), source if source and x._version == 0 else None)


def _fast_mlp(self: Any, x: Tensor) -> Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if not isinstance(down, LoraLinear):  # PEFT has merged its layers away
        return down(silu(gate) * up)
    if down.disable_adapters or down.merged:
        return down.base_layer(silu(gate) * up)
    return _GatedLoraProduct.apply(gate, up, *_adapter_of(down))


def _fast_norm(self: Any, x: Tensor) -> Tensor:
    made: list[Tensor] = []
    out, inverse = _RmsNorm.apply(x, self.weight, self.variance_epsilon, made)
    if out.requires_grad:
        out.norm_source = made, x.detach(), self.weight, inverse  # of the tensor as it is now: version 0
    return out


def _use_fast_products(network: PeftModel) -> None:
    """Swap in the fused functions where they compute the same thing: one norm and one MLP of each kind are tried.

    Plain LoRA on plain linear layers without dropout, norms of Llama's kind, and MLPs down(silu(gate(x)) * up(x)).
    """
    tried: dict[tuple, bool] = {}
    with torch.no_grad():
        for module in network.modules():
            if _is_fast(module):
                module.forward = types.MethodType(_fast_forward, module)
            elif all(_is_fast(getattr(module, f"{name}_proj", None)) for name in ("gate", "up", "down")):
                _swap(module, _fast_mlp, module.gate_proj.base_layer.in_features, tried)  # type: ignore[union-attr, arg-type]
            elif type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
                _swap(module, _fast_norm, module.weight.shape[0], tried)  # type: ignore[union-attr, arg-type]


def _is_fast(module: Any) -> bool:
    return type(module) is LoraLinear and type(module.base_layer) is nn.Linear and not module.lora_variant


def _swap(module: nn.Module, fast: Callable[..., Tensor], size: int, tried: dict[tuple, bool]) -> None:
    kind = kind_of(module)
    if kind not in tried:
        weight = next(module.parameters())
        x = torch.linspace(-2, 2, 2 * size, device=weight.device).view(1, 2, size).to(weight.dtype)
        tried[kind] = torch.equal(type(module).forward(module, x), fast(module, x))
    if tried[kind]:
        module.forward = types.MethodType(fast, module)


def add_adapter(network: nn.Module, name: str, rank: int, alpha: int, seed: int) -> PeftModel:
    """Put a fresh LoRA adapter (B = 0, so it changes nothing yet) on all linear layers but the head.

    Args:
        network: a causal LM, bare or already a PEFT model; it is changed in place.
        name: of the adapter, not in use yet.
        rank, alpha: LoRA's r and its scale times r.
        seed: for the random A matrices.
    """
    # PEFT refuses these two in models with Mamba layers, whose kernels read their weights past any adapter
    mamba = any(mark in str(causal_lm(network).config.model_type) for mark in ("mamba", "falcon_h1", "nemotron_h"))
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM",
        exclude_modules=["out_proj", "conv1d"] if mamba else None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 asks a property that transformers 5.23 has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        if isinstance(network, PeftModel):
            network.add_adapter(name, config)
        else:
            network = get_peft_model(network, config, adapter_name=name)
    _use_fast_products(network)
    with torch.no_grad():
        use_fast_layers(causal_lm(network), _is_fast)
    return network


def causal_lm(network: nn.Module) -> Any:
    """The causal LM itself, without PEFT's wrapper."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def adapter_tensors(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's weights by PEFT's file names, as CPU copies that do not change when training goes on."""
    state = get_peft_model_state_dict(network, adapter_name=name, save_embedding_layers=False)
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}


def set_adapter_tensors(network: nn.Module, name: str, tensors: dict[str, Tensor], *, some: bool = False) -> None:
    """Write weights (as from `adapter_tensors`) into the adapter `name`.

    Args:
        network, name, tensors: which adapter, and its weights by PEFT's file names.
        some: layers without weights may stay as they are; else every one must be there.

    Raises:
        WorkbenchError: weights that the network has no place for, of another size, or missing.
    """
    try:
        result = set_peft_model_state_dict(network, tensors, adapter_name=name)
    except RuntimeError as error:  # a size mismatch
        raise WorkbenchError(
            f"An adapter's weights must fit the model. Got {str(error).strip().splitlines()[-1].strip()} Load it on "
            "the model it was trained on."
        ) from error
    lacking = [key for key in result.missing_keys if f".{name}." in key]
    if result.unexpected_keys or (lacking and not some):
        raise WorkbenchError(
            f"An adapter's weights must fit the model. Got {len(result.unexpected_keys)} unknown and {len(lacking)} "
            f"missing weights (such as {(list(result.unexpected_keys) + lacking)[0]!r}). Load it on the model it was "
            "trained on."
        )


# settings that change what the weights mean: read as plain LoRA such an adapter would compute something else
_NOT_PLAIN = ("use_rslora", "use_dora", "modules_to_save")
_PATTERNS = ("rank_pattern", "alpha_pattern")  # PEFT itself sets them on some fused layers


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and PEFT config of a saved adapter folder (safetensors only).

    Raises:
        WorkbenchError: a file is missing or damaged, or the adapter is not plain LoRA; names it.
    """
    import json

    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    for path in (weights, config):
        if not path.is_file():
            raise WorkbenchError(
                f"An adapter folder must hold adapter_model.safetensors and adapter_config.json. {path} is missing. "
                "Name the folder that `run.model.save(...)` or PEFT wrote."
            )
    try:
        tensors, settings = load_file(weights), json.loads(config.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError) as error:
        raise WorkbenchError(f"An adapter's files must be whole. {folder}: {error}. Copy or train it again.") from error
    other = [key for key in _NOT_PLAIN if settings.get(key)] + [k for k in ("r", "lora_alpha") if not settings.get(k)]
    if other:
        raise WorkbenchError(
            f"An adapter must be plain LoRA with one rank. Got {other[0]}={settings.get(other[0])!r} in {config}. "
            "Merge it into its model with PEFT and load the merged folder."
        )
    return tensors, settings


def check_patterns(network: PeftModel, name: str, settings: dict[str, Any]) -> None:
    """Raise where a saved adapter has other ranks in some layers than a fresh one of this network has."""
    for key in _PATTERNS:
        if (settings.get(key) or {}) != (getattr(network.peft_config[name], key) or {}):
            raise WorkbenchError(
                f"An adapter must be plain LoRA with one rank. Got {key}={settings.get(key)!r}. Merge it into its "
                "model with PEFT and load the merged folder."
            )


@contextmanager
def activation_checkpointing(network: nn.Module) -> Iterator[None]:
    """Inside: layers keep only their inputs for the gradient, where the model's layers can (transformers' own way)."""
    layers = [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]
    before = [layer.training for layer in layers]
    try:
        for layer in layers:  # `training` of the layer alone: nothing inside it drops out
            layer.gradient_checkpointing, layer.training = True, True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.gradient_checkpointing, layer.training = False, training


@contextmanager
def adapters_off(network: PeftModel) -> Iterator[None]:
    """Inside: the base model. As PEFT's `disable_adapter`, which asks each layer for a report each time."""
    layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merges(network: nn.Module, name: str) -> bool:
    """Does the adapter lie on linear layers alone? PEFT also puts one on fused experts, which hold no plain weight."""
    layers = (m for m in network.modules() if isinstance(m, BaseTunerLayer) and name in getattr(m, "lora_A", {}))
    return all(isinstance(layer, LoraLinear) for layer in layers)


@contextmanager
def merged_weights(network: PeftModel, name: str) -> Iterator[None]:
    """Inside: each linear layer holds W + scale * B A and the adapter is off, so generation pays nothing for it.

    The old weights are kept and put back untouched, so nothing is rounded twice.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, LoraLinear) and name in module.lora_A:
                    weight = module.base_layer.weight
                    kept.append((weight, weight.data))
                    delta = module.lora_B[name].weight @ module.lora_A[name].weight * module.scaling[name]
                    delta = delta.T if module.fan_in_fan_out else delta  # GPT-2's layers
                    weight.data = (weight.data.float() + delta.float()).to(weight.dtype)
        with adapters_off(network):
            yield
    finally:
        for weight, data in kept:
            weight.data = data

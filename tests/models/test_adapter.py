"""Adapters: the fused product against PEFT's own, and weights that do not fit are refused."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.adapter import (
    _use_fast_products,
    adapter_tensors,
    add_adapter,
    read_adapter,
    set_adapter_tensors,
)
from dpo_workbench.models.loading import load_adapter


class RMSNorm(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.linspace(0.5, 2, size), requires_grad=False), 1e-6

    def forward(self, x):
        high = x.float()
        high = high * torch.rsqrt(high.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * high.to(x.dtype)


class GemmaRMSNorm(RMSNorm):
    """Looks alike and is not: it multiplies by 1 + weight."""

    def forward(self, x):
        return super().forward(x) * (1 + 1 / self.weight)


class Gated(nn.Module):
    """A layer as in Llama: norm, gate, up, down."""

    def __init__(self, act, norm=RMSNorm):
        super().__init__()
        self.norm, self.act = norm(6), act
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, act=nn.functional.silu, norm=RMSNorm):
        super().__init__()
        self.first, self.norm, self.mlp = nn.Linear(6, 6), norm(6), Gated(act)

    def forward(self, x):
        return x + self.mlp(self.norm(self.first(x)))


def with_random_adapter(network: nn.Module, targets: list[str]):
    torch.manual_seed(0)
    network = get_peft_model(network, LoraConfig(r=3, lora_alpha=7, lora_dropout=0.0, target_modules=targets))
    for name, p in network.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p)
    return network


def outcome(network: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of all that is trained."""
    network.zero_grad()
    inputs = x.clone().requires_grad_()
    out = network(inputs)
    out.backward(upstream)
    return [out.detach(), inputs.grad, *(p.grad.clone() for p in network.parameters() if p.requires_grad)]


def swapped(network: nn.Module) -> list[str]:
    return sorted(m.forward.__func__.__name__ for m in network.modules() if "_fast" in str(m.forward))


def test_fused_mlp_and_norm_equal_the_plain_ones() -> None:
    network = with_random_adapter(Layer(), ["first", "gate_proj", "up_proj", "down_proj"])
    x, upstream = torch.randn(2, 5, 6), torch.randn(2, 5, 6)

    want = outcome(network, x, upstream)
    _use_fast_products(network)
    assert swapped(network) == ["_fast_forward"] * 4 + ["_fast_mlp"] + ["_fast_norm"] * 2
    for one, other in zip(outcome(network, x, upstream), want, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with network.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(network(x), network.get_base_model()(x))


def test_a_norms_readers_keep_its_input_and_not_its_output() -> None:
    network = with_random_adapter(Layer(), ["first", "gate_proj", "up_proj", "down_proj"])
    _use_fast_products(network)
    outputs, kept = [], []
    network.get_base_model().norm.register_forward_hook(lambda module, args, out: outputs.append(out.detach()))

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(torch.randn(2, 5, 6, requires_grad=True))
    places = [x.data_ptr() for x in kept]
    assert len(outputs) == 1 and places
    assert outputs[0].data_ptr() not in places


def test_a_norms_output_that_was_changed_in_place_is_not_made_again_from_the_norm() -> None:
    class Changed(Layer):
        def forward(self, x):
            return x + self.mlp(self.norm(self.first(x)).mul_(3))

    network = with_random_adapter(Changed(), ["first", "gate_proj", "up_proj", "down_proj"])
    x, upstream = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    want = outcome(network, x, upstream)
    _use_fast_products(network)
    for one, other in zip(outcome(network, x, upstream), want, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_what_computes_something_else_is_left_alone() -> None:
    network = with_random_adapter(
        Layer(nn.functional.gelu, GemmaRMSNorm), ["first", "gate_proj", "up_proj", "down_proj"]
    )
    _use_fast_products(network)
    assert swapped(network) == ["_fast_forward"] * 4 + ["_fast_norm"]  # the one norm inside the MLP is Llama's


class Net(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.up, self.down = nn.Linear(6, 10, bias=bias), nn.Linear(10, 4, bias=bias)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("bias", [True, False])
def test_fused_product_equals_pefts_own(bias: bool) -> None:
    network = with_random_adapter(Net(bias), ["up", "down"])
    x, upstream = torch.randn(2, 5, 6), torch.randn(2, 5, 4)

    want = outcome(network, x, upstream)
    _use_fast_products(network)
    fused = [
        m for m in network.modules() if isinstance(m, LoraLinear) and m.forward.__func__.__name__ == "_fast_forward"
    ]
    assert len(fused) == 2  # the next lines compare two different codes
    got = outcome(network, x, upstream)
    assert len(got) == 2 + 4
    for one, other in zip(got, want, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with network.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(network(x), network.get_base_model()(x))
        assert not torch.allclose(network(x), got[0])


def test_dropout_and_variants_keep_pefts_code() -> None:
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["up"], use_dora=True)
    network = get_peft_model(Net(True), config)
    _use_fast_products(network)
    assert not any("forward" in vars(m) for m in network.modules() if isinstance(m, LoraLinear))


def test_adapter_is_on_every_linear_layer_but_the_head(tiny) -> None:
    network = add_adapter(tiny.network, "mine", rank=4, alpha=8, seed=0)
    layers = {name.split(".base_layer")[0] for name, _ in network.named_parameters() if ".base_layer." in name}
    assert len(layers) == 2 * 7 and not any("lm_head" in name for name in layers)
    tensors = adapter_tensors(network, "mine")
    assert len(tensors) == 2 * 2 * 7
    assert all((v == 0).all() == ("lora_B" in k) for k, v in tensors.items())


def test_start_follows_the_seed_and_leaves_the_global_generator(tiny_folder) -> None:
    from dpo_workbench.models.loading import load_model

    def start(seed: int) -> dict[str, torch.Tensor]:
        return load_model(tiny_folder, device="cpu").with_new_adapter(rank=4, seed=seed).adapter_tensors()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = start(1), start(1), start(2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_copies_do_not_change_when_training_goes_on(moved) -> None:
    kept = moved.adapter_tensors()
    first = {k: v.clone() for k, v in kept.items()}
    with torch.no_grad():
        for p in moved.adapter_parameters():
            p.add_(1.0)
    assert all(torch.equal(kept[k], first[k]) for k in kept)
    assert not any(torch.equal(v, first[k]) for k, v in moved.adapter_tensors().items())


def test_missing_and_unknown_weights_raise(moved) -> None:
    tensors = moved.adapter_tensors()
    name = next(iter(tensors))
    with pytest.raises(WorkbenchError, match="0 unknown and 1 missing"):
        set_adapter_tensors(moved.network, moved.adapter, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(WorkbenchError, match="1 unknown and 0 missing"):
        set_adapter_tensors(
            moved.network, moved.adapter, tensors | {name.replace("layers.0", "layers.7"): tensors[name]}
        )
    with pytest.raises(WorkbenchError, match="must fit the model"):
        set_adapter_tensors(moved.network, moved.adapter, tensors | {name: tensors[name][:, :-1].contiguous()})
    set_adapter_tensors(moved.network, moved.adapter, tensors)  # negative control


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_missing_or_damaged_file_is_named(moved, tmp_path, name: str) -> None:
    folder = moved.save(tmp_path / "adapter")
    tensors, config = read_adapter(folder)
    assert config["r"] == 4 and len(tensors) == 28
    path = folder / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WorkbenchError, match="must be whole"):
        read_adapter(folder)
    path.unlink()
    with pytest.raises(WorkbenchError, match=f"{name} is missing"):
        read_adapter(folder)


@pytest.mark.parametrize(
    "change", [{"use_rslora": True}, {"use_dora": True}, {"r": None}, {"alpha_pattern": {"q_proj": 3}}]
)
def test_other_kinds_of_adapter_are_refused(moved, tmp_path, change: dict) -> None:
    """Read as plain LoRA they would compute something else without a word."""
    folder = moved.save(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WorkbenchError, match=f"plain LoRA.*{next(iter(change))}"):
        load_adapter(moved, folder)

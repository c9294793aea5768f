"""A decoder layer as one function: values and gradients of the layer itself, and only where it computes the same."""

import types

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dpo_workbench.models import attention, kernels
from dpo_workbench.models import layer as module
from dpo_workbench.models.adapter import add_adapter
from dpo_workbench.models.attention import use_attention
from dpo_workbench.models.kept import Kept
from dpo_workbench.training.logps import answer_logps, token_states
from dpo_workbench.training.packing import Row, pack

ROWS = [Row("a", tuple(range(3, 12)), ((6, 7, 8), (6, 9, 10, 0))), Row("b", (4, 5), ((8,), (9, 10, 11, 12, 0)))]


def layers(model) -> list[nn.Module]:
    return list(model._causal().get_decoder().layers)


def gradients(model, checkpointing: bool = False) -> list[torch.Tensor]:
    """logps of the answers, and the slopes of a weighted sum of them."""
    for p in model.adapter_parameters():
        p.grad = None
    with model.active(trainable=True, checkpointing=checkpointing) as network:
        sums = answer_logps(network, pack(ROWS))
        (sums * torch.tensor([1.0, -0.5, 0.3, -2.0])).sum().backward()
    return [sums.detach(), *(p.grad.clone() for p in model.adapter_parameters())]


def of_the_layers_themselves(model, compute):
    fast = [vars(layer).pop("forward") for layer in layers(model)]
    try:
        return compute(model)
    finally:
        for layer, forward in zip(layers(model), fast, strict=True):
            layer.forward = forward


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    """In fp64 each number, in fp32 all together: half a unit of the last place in the embedding alone moves single
    slopes of this model by 1.4e-5."""
    if want[0].dtype == torch.float64:
        for one, other in zip(got, want, strict=True):
            assert (one - other).abs().max() <= 1e-12 * other.abs().max() and other.abs().max() > 0
    assert (got[0] - want[0]).abs().max() <= 1e-6 * want[0].abs().max()
    one, other = (torch.cat([g.flatten() for g in found[1:]]) for found in (got, want))
    assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_the_layers_own(moved, monkeypatch, checkpointing: bool, dtype: torch.dtype) -> None:
    moved.network.to(dtype)
    if dtype == torch.float64:  # transformers' own norms round to fp32
        for norm in (x for x in moved.network.modules() if type(x).__name__ == "LlamaRMSNorm"):
            norm.forward = lambda x, n=norm: (
                n.weight * x / (x.pow(2).mean(-1, keepdim=True) + n.variance_epsilon).sqrt()
            )
    assert all(layer.forward.__func__.func is module._fast_layer for layer in layers(moved))
    want = of_the_layers_themselves(moved, gradients)
    calls, honest = [], module.attend
    monkeypatch.setattr(module, "attend", lambda *args: calls.append(1) or honest(*args))
    got = gradients(moved, checkpointing)
    assert len(calls) == len(layers(moved)) * (1 + checkpointing)
    assert_same(got, want)


def test_the_last_layer_goes_on_with_what_is_read(moved, monkeypatch) -> None:
    batch = pack(ROWS)
    lengths = []
    for name in ("gated", "gated_slopes"):
        honest = getattr(module, name)
        monkeypatch.setattr(module, name, lambda x, *more, honest=honest: lengths.append(len(x)) or honest(x, *more))
    gradients(moved)
    every, some = batch.input_ids.numel(), len(batch.source)
    assert lengths == [*[every] * (len(layers(moved)) - 1), some, some, *[every] * (len(layers(moved)) - 1)]
    forward = vars(layers(moved)[-1]).pop("forward")  # then what is read is picked afterwards
    want = gradients(moved)
    layers(moved)[-1].forward = forward
    assert_same(gradients(moved), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_memory_held_before_does_not_matter(moved, dtype) -> None:
    """AMX reads past the end of rows whose length is no multiple of 32."""
    lora = moved.adapter_tensors()
    moved.network.to(dtype)
    moved.set_adapter_tensors(lora)
    want = gradients(moved)
    for _ in range(20):
        nans = [torch.full((n,), float("nan"), dtype=dtype) for n in range(16, 4000, 13)]
        del nans
        assert all(torch.equal(one, other) for one, other in zip(gradients(moved), want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_changes_nothing_changes_no_bit(tiny, dtype) -> None:
    """Else a long answer in bf16 differs from its reference at step 0 by more than rounding may."""
    model = tiny.with_new_adapter(rank=8)
    tiny.network.to(dtype)
    rows = [Row(f"{i}", tuple(range(3 + i, 30)), ((6, 7, 8) * 30, (6, 9, 10) * 25)) for i in range(3)]

    def logps(handle) -> torch.Tensor:
        with handle.active() as network, torch.no_grad():
            return answer_logps(network, pack(rows))

    want = logps(tiny)
    assert torch.equal(logps(model), want)
    for p in model.adapter_parameters():
        p.data += 0.1
    assert not torch.equal(logps(model), want) and torch.equal(logps(tiny), want)
    for p in model.adapter_parameters():
        p.data *= float("nan")
    assert logps(model).isnan().any() and torch.equal(logps(tiny), want)


def test_no_product_is_of_bf16_where_the_processor_has_none(moved, monkeypatch) -> None:
    """PyTorch's own products are several times slower than those of fp32. Over many adapters both round alike."""
    lora = moved.adapter_tensors()
    found = {}
    for there, dtype in ((True, torch.bfloat16), (False, torch.bfloat16), (None, torch.float64)):
        moved.network.to(torch.bfloat16).to(dtype)
        moved.set_adapter_tensors(lora)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_multiplies_bf16", lambda there=there: there)
            patch.setattr(attention, "_has_tiles", lambda: False)
            seen: set = set()
            for name in ("mm", "bmm"):
                honest = getattr(torch, name)
                patch.setattr(torch, name, lambda a, b, f=honest, s=seen, **more: s.add(a.dtype) or f(a, b, **more))
            got = gradients(moved)
        assert (torch.bfloat16 in seen) == (there is True) and seen
        found[there] = torch.cat([x.flatten().double() for x in got])
    exact = found.pop(None)
    wrong = {there: ((got - exact).norm() / exact.norm()).item() for there, got in found.items()}
    assert 0 < wrong[False] < 2.5 * wrong[True] < 0.25, wrong


def test_another_adapter_between_forward_and_backward(moved) -> None:
    """Both use the same places beside the weights."""
    want = gradients(moved)
    other = moved.with_new_adapter()  # a copy
    for p in other.adapter_parameters():
        p.data *= 1.5
    for p in moved.adapter_parameters():
        p.grad = None
    with moved.active(trainable=True) as network:
        sums = answer_logps(network, pack(ROWS))
    with other.active() as network, torch.no_grad():
        assert (answer_logps(network, pack(ROWS)) - want[0]).abs().max() > 0.1
    with moved.active(trainable=True):
        (sums * torch.tensor([1.0, -0.5, 0.3, -2.0])).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(moved.adapter_parameters(), want[1:], strict=True))


def test_weights_that_are_replaced_or_moved_are_seen(moved, tiny) -> None:
    before, hash_ = gradients(moved), moved.fingerprint()
    weight = layers(moved)[0].self_attn.k_proj.base_layer.weight
    assert not weight.is_contiguous()  # it stands beside its adapter
    old = weight.data
    weight.data = weight.data.contiguous() * 1.01
    changed = gradients(moved)
    assert (changed[0] - before[0]).abs().max() > 1e-3
    assert_same(changed, of_the_layers_themselves(moved, gradients))
    with torch.no_grad():
        weight.copy_(old)  # in place
    assert all(torch.equal(one, other) for one, other in zip(gradients(moved), before, strict=True))
    moved._shared.fingerprint = None
    assert moved.fingerprint() == hash_
    with moved.merged() as network, torch.no_grad():
        merged = token_states(network, pack(ROWS))
    with moved.active() as network, torch.no_grad():
        torch.testing.assert_close(token_states(network, pack(ROWS)), merged, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(gradients(moved), before, strict=True))


def test_weights_beside_adapters_are_saved_as_others(moved, tmp_path) -> None:
    gradients(moved)
    causal = moved._causal()
    assert not causal.model.layers[0].mlp.up_proj.base_layer.weight.is_contiguous()
    assert all(value.is_contiguous() for value in causal.state_dict().values())
    want = moved.network.merge_and_unload()
    want.save_pretrained(tmp_path)
    got = LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(got(ids).logits, want(ids).logits)


def test_without_adapter_it_is_the_base_model(moved, tiny) -> None:
    def states(model):
        with model.active() as network, torch.no_grad():
            return token_states(network, pack(ROWS))

    torch.testing.assert_close(states(tiny), of_the_layers_themselves(tiny, states))
    assert not torch.allclose(states(moved), states(tiny))


def test_bf16_is_as_near_to_fp32_as_the_layer_itself(moved) -> None:
    exact = gradients(moved)
    moved.network.bfloat16()
    for name, p in moved.network.named_parameters():
        p.data = p.data.float() if "lora_" in name else p.data
    own, fast = of_the_layers_themselves(moved, gradients), gradients(moved)

    def error(found: list[torch.Tensor]) -> float:
        return float(sum((a - b).norm() for a, b in zip(found, exact, strict=True)))

    assert 0 < error(fast) < 1.5 * error(own)


def test_what_it_keeps_is_made_in_the_blocks(moved, monkeypatch) -> None:
    copied, place = [], Kept._place
    kept = Kept(moved.network)

    def watched(self, tensor, size):
        copied.append((tensor.device.type, size))
        return place(self, tensor, size)

    monkeypatch.setattr(Kept, "_place", watched)
    monkeypatch.setattr("dpo_workbench.models.kept.SMALLEST", 1)
    with moved.active(trainable=True) as network:
        with kept.anew():
            loss = answer_logps(network, pack(ROWS)).sum()
        loss.backward()
    made, moved_there = (sum(size for kind, size in copied if kind == which) for which in ("meta", "cpu"))
    assert made > 3 * moved_there > 0


@pytest.mark.parametrize(
    "other", [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}, {"hidden_act": "relu"}]
)
def test_other_layers_are_left_alone(other: dict) -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=use_attention(), **other,
    )  # fmt: skip
    network = add_adapter(LlamaForCausalLM(config), "other", rank=2, alpha=4, seed=0)
    assert not any(isinstance(vars(m).get("forward"), types.MethodType) for m in network.get_base_model().model.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_scales_its_output_is_left_alone(monkeypatch, dtype) -> None:
    """As Granite's, whose residual has a factor. In bf16 it would be lost in rounding."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=use_attention(),
    )  # fmt: skip
    honest = LlamaDecoderLayer.forward
    monkeypatch.setattr(LlamaDecoderLayer, "forward", lambda *args, **kwargs: 1.001 * honest(*args, **kwargs))
    network = add_adapter(LlamaForCausalLM(config).to(dtype), "other", rank=2, alpha=4, seed=0)
    assert "forward" not in vars(network.get_base_model().model.layers[0])


@pytest.mark.parametrize("unlike", ["setting", "hook"])
def test_one_layer_of_each_kind_is_tried(monkeypatch, unlike: str) -> None:
    """As SmolLM3's, of which every fourth has no rotary positions."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=use_attention(),
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    tried, honest, third = [], LlamaDecoderLayer.forward, network.model.layers[2]

    def forward(self, *args, **kwargs):
        tried.append(self.self_attn.layer_idx)
        return getattr(self, "factor", 1.0) * honest(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    if unlike == "setting":
        third.factor = 1.001
    else:
        third.mlp.register_forward_hook(lambda m, args, out: 1.01 * out)
    add_adapter(network, "other", rank=2, alpha=4, seed=0)
    assert tried == [0, 2]
    assert ["forward" in vars(layer) for layer in network.model.layers] == [True, True, False, True]


def test_adapters_of_unlike_ranks_take_the_layers_own_way(moved, monkeypatch) -> None:
    want = gradients(moved)
    monkeypatch.setattr(module, "attend", None)  # not called
    layers(moved)[0].mlp.down_proj.r[moved.adapter] = 7
    layers(moved)[1].self_attn.k_proj.scaling[moved.adapter] *= 1.0 + 1e-9
    assert_same(gradients(moved), want)

"""Adapters: where they are, what they start as, and weights that do not fit are refused."""

import json
import warnings

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.adapter import adapter_tensors, add_adapter, read_adapter, set_adapter_tensors
from dpo_workbench.models.loading import load_adapter


def test_adapter_is_on_every_linear_layer_but_the_head(tiny) -> None:
    network = add_adapter(tiny.network, "mine", rank=4, alpha=8, seed=0)
    layers = {name.split(".base_layer")[0] for name, _ in network.named_parameters() if ".base_layer." in name}
    assert len(layers) == 2 * 7 and not any("lm_head" in name for name in layers)
    tensors = adapter_tensors(network, "mine")
    assert len(tensors) == 2 * 2 * 7
    assert all((v == 0).all() == ("lora_B" in k) for k, v in tensors.items())


def test_routers_get_no_adapter() -> None:
    """The router of Phi's mixture of experts is a linear layer that returns three tensors."""
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    bare = hf.AutoModelForCausalLM.from_config(hf.PhimoeConfig(vocab_size=32, **sizes, **heads)).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        want = bare(ids).logits
        network = add_adapter(bare, "mine", rank=4, alpha=8, seed=0)
        assert torch.equal(network(ids).logits, want) and len(adapter_tensors(network, "mine")) == 2 * 4


def test_transposed_layers_get_their_adapters_without_a_warning() -> None:
    """GPT-2's layers are transformers' own Conv1D, with transposed weights."""
    bare = hf.AutoModelForCausalLM.from_config(hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=32))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network = add_adapter(bare, "mine", rank=4, alpha=8, seed=0)
        add_adapter(network, "second", rank=4, alpha=8, seed=0)
    assert network.peft_config["mine"].fan_in_fan_out and len(adapter_tensors(network, "mine")) == 2 * 4


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


def test_with_partial_only_missing_weights_are_allowed(moved) -> None:
    tensors = moved.adapter_tensors()
    name, other = list(tensors)[:2]
    moved.set_adapter_tensors({name: torch.zeros_like(tensors[name])}, partial=True)
    now = moved.adapter_tensors()
    assert (now[name] == 0).all() and torch.equal(now[other], tensors[other])
    with pytest.raises(WorkbenchError, match="1 unknown and 0 missing"):
        moved.set_adapter_tensors({name.replace("layers.0", "layers.7"): tensors[name]}, partial=True)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_missing_or_damaged_file_is_named(moved, tmp_path, name: str) -> None:
    folder = moved.save(tmp_path / "adapter")
    tensors, config = read_adapter(folder)
    assert config["r"] == 4 and len(tensors) == 28
    path = folder / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WorkbenchError, match="must be complete"):
        read_adapter(folder)
    path.unlink()
    with pytest.raises(WorkbenchError, match=f"{name} is missing"):
        read_adapter(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"use_rslora": True}, {"use_dora": True}, {"r": None}, {"alpha_pattern": {"q_proj": 3}}, {"bias": "lora_only"},
        {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"}, {"alora_invocation_tokens": [3]},
        {"lora_bias": True}, {"trainable_token_indices": [3]}, {"peft_type": "ADALORA"},
    ],
)  # fmt: skip
def test_other_kinds_of_adapter_are_refused(moved, tmp_path, change: dict) -> None:
    """Read as plain LoRA they would compute something else without a word."""
    folder = moved.save(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WorkbenchError, match=f"plain LoRA.*{next(iter(change))}"):
        load_adapter(moved, folder)


def test_harmless_settings_are_accepted(moved, tmp_path) -> None:
    folder = moved.save(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    other = {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "layers_to_transform": [0, 1], "of_next_year": 16}
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    assert load_adapter(moved, folder).fingerprint() == moved.fingerprint()


def test_trained_base_weights_in_an_adapter_are_refused_and_change_no_other_handle(tiny, tiny_folder, tmp_path) -> None:
    """PEFT writes embeddings and biases next to the matrices; loaded, they would replace the reference's own."""
    network = hf.AutoModelForCausalLM.from_pretrained(tiny_folder)
    trained = get_peft_model(network, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.nn.init.normal_(trained.get_input_embeddings().weight)
    trained.save_pretrained(tmp_path, save_embedding_layers=True)
    before = tiny.fingerprint()
    with pytest.raises(WorkbenchError, match="plain LoRA.*the weight .*(embed_tokens|lm_head).weight.*Merge it"):
        load_adapter(tiny, tmp_path)
    tiny._shared.fingerprint = None  # computed again
    assert tiny.fingerprint() == before

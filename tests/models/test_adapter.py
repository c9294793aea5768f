"""Adapters: where they are, what they start as, and weights that do not fit are refused."""

import json
import struct
import warnings

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.adapter import (
    add_adapter,
    base_differences,
    base_record,
    read_adapter,
)
from dpo_workbench.models.loading import load_adapter, load_model


def matrices(network) -> dict:
    return {name: values for name, values in network.named_parameters() if ".mine." in name}


def test_adapter_is_on_every_linear_layer_but_the_head(tiny) -> None:
    network = add_adapter(tiny.network, "mine", rank=4, alpha=8, seed=0)
    layers = {name.split(".base_layer")[0] for name, _ in network.named_parameters() if ".base_layer." in name}
    assert len(layers) == 2 * 7 and not any("lm_head" in name for name in layers)
    tensors = matrices(network)
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
        assert torch.equal(network(ids).logits, want) and len(matrices(network)) == 2 * 4


def test_transposed_layers_get_their_adapters_without_a_warning() -> None:
    """GPT-2's layers are transformers' own Conv1D, with transposed weights."""
    bare = hf.AutoModelForCausalLM.from_config(hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=32))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network = add_adapter(bare, "mine", rank=4, alpha=8, seed=0)
        add_adapter(network, "second", rank=4, alpha=8, seed=0)
    assert network.peft_config["mine"].fan_in_fan_out and len(matrices(network)) == 2 * 4


def test_start_follows_the_seed_and_leaves_the_global_generator(tiny_folder) -> None:
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
    with pytest.raises(WorkbenchError, match="Got 1 missing"):
        moved.set_adapter_tensors({k: v for k, v in tensors.items() if k != name})
    with pytest.raises(WorkbenchError, match="Got 1 missing"):
        moved.set_adapter_tensors(tensors | {name.replace("layers.0", "layers.7"): tensors[name]})
    with pytest.raises(WorkbenchError, match="must fit the model"):
        moved.set_adapter_tensors(tensors | {name: tensors[name][:, :-1].contiguous()})
    moved.set_adapter_tensors(tensors)  # negative control


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_missing_or_damaged_file_is_named(moved, tmp_path, name: str) -> None:
    folder = moved.save(tmp_path / "adapter")
    tensors, config, _ = read_adapter(folder)
    assert config["r"] == 4 and len(tensors) == 28
    path = folder / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WorkbenchError, match="must hold complete files"):
        read_adapter(folder)
    path.unlink()
    with pytest.raises(WorkbenchError, match=f"must hold complete files.*No such file.*{name}"):
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


def test_servers_of_adapters_can_read_it(moved, tmp_path) -> None:
    """vLLM reads these settings and names; what else stands in the files it leaves alone."""
    folder = moved.save(tmp_path / "adapter", dtype=torch.bfloat16)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none") and config["peft_type"] == "LORA"
    assert not any(config[key] for key in ("modules_to_save", "use_dora", "use_rslora", "lora_bias"))
    assert isinstance(config["target_modules"], list) and set(config) <= set(LoraConfig().to_dict())
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = [name.removeprefix("base_model.model.model.layers.") for name in file.keys()]  # noqa: SIM118
    assert "0.self_attn.q_proj.lora_A.weight" in names and len(names) == 2 * 2 * 7


def test_the_same_adapter_is_saved_in_the_same_bytes(moved, tmp_path) -> None:
    files = [moved.save(tmp_path / str(k)) / "adapter_model.safetensors" for k in range(8)]
    assert len({path.read_bytes() for path in files}) == 1


@pytest.fixture
def saved(moved, tmp_path):
    """A folder with an adapter of the tiny model, saved from fp32."""
    return moved.save(tmp_path / "adapter")


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_base_in_another_dtype_is_accepted(tiny_folder, tmp_path, capsys, dtype, other) -> None:
    folder = load_model(tiny_folder, device="cpu", dtype=dtype).with_new_adapter(rank=4).save(tmp_path / "adapter")
    assert load_model(tiny_folder, adapter=folder, device="cpu", dtype=other).adapter
    assert "no record" not in capsys.readouterr().out


def test_another_base_of_the_same_sizes_is_refused(saved, tiny_folder, tmp_path, make_tiny_folder) -> None:
    other = make_tiny_folder(tmp_path / "other", seed=1)
    with pytest.raises(WorkbenchError) as caught:
        load_model(other, adapter=saved, device="cpu")
    assert f"trained on {str(tiny_folder)!r}" in str(caught.value) and str(other) in str(caught.value)
    assert "places, such as embeddings. Load" in str(caught.value)
    assert load_model(tiny_folder, adapter=saved, device="cpu").adapter  # negative control


def test_another_architecture_is_refused(saved, tiny, tmp_path) -> None:
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for kind, difference in (
        (hf.LlamaConfig, "num_hidden_layers"),
        (hf.Qwen2Config, "model_type"),
    ):
        hf.AutoModelForCausalLM.from_config(kind(**sizes | {"num_hidden_layers": 3}, **heads)).save_pretrained(tmp_path)
        tiny.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(WorkbenchError, match=f"differs in .* places, such as {difference}"):
            load_model(tmp_path, adapter=saved, device="cpu")


@pytest.mark.parametrize("steps", [1, 20])
def test_the_base_after_full_fine_tuning_is_refused(saved, tiny, tmp_path, steps: int) -> None:
    """One step of AdamW at a usual learning rate, stored in bf16, is enough."""
    network = hf.AutoModelForCausalLM.from_pretrained(tiny.source, dtype=torch.float32)
    optimizer, ids = torch.optim.AdamW(network.parameters(), lr=1e-5), torch.arange(300)[None]
    for _ in range(steps):
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    network.to(torch.bfloat16).save_pretrained(tmp_path / "tuned")
    tiny.tokenizer.save_pretrained(tmp_path / "tuned")
    with pytest.raises(WorkbenchError, match="differs in .* places"):
        load_model(tmp_path / "tuned", adapter=saved, device="cpu", dtype=torch.bfloat16)


def test_the_base_with_an_adapter_merged_into_it_is_refused(saved, tiny, tmp_path) -> None:
    """Merging changes neither embeddings nor norms."""
    merged = load_adapter(tiny, saved).network.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tiny.tokenizer.save_pretrained(tmp_path / "merged")
    with pytest.raises(WorkbenchError, match="differs in .* places"):
        load_model(tmp_path / "merged", adapter=saved, device="cpu")


def test_weights_that_only_one_record_has_are_not_compared(tiny) -> None:
    """Quantized weights are in no record, so a 4-bit base is compared by what it keeps in 16 bits."""
    record, other = base_record(tiny.network), base_record(tiny.network)
    del other["model.layers.0.mlp.up_proj.weight"]
    assert base_differences(record, other) == base_differences(other, record) == []
    other["model.norm.weight"] = [1.5, 1.0]
    assert base_differences(record, other) == ["model.norm.weight"]  # negative control


@pytest.mark.parametrize("named, says", [("somebody/another-model", True), (None, False), ("the same", False)])
def test_an_adapter_without_a_record_loads_and_a_line_says_what_it_names(tiny, saved, capsys, named, says) -> None:
    """As PEFT writes it."""
    weights, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    save_file(load_file(weights), weights, {"format": "pt"})
    named = tiny.source if named == "the same" else named
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": named}))
    assert load_adapter(tiny, saved).adapter
    assert (f"it names {named!r}, and this is" in capsys.readouterr().out) == says


@pytest.mark.parametrize("which", ["no tensors", "one empty tensor", "only empty tensors"])
def test_an_adapter_file_without_weights_is_refused(tiny, saved, which: str) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    empty = {"no tensors": [], "one empty tensor": [next(iter(tensors))], "only empty tensors": list(tensors)}[which]
    tensors = {} if which == "no tensors" else tensors | {name: torch.zeros(0) for name in empty}
    save_file(tensors, path)
    with pytest.raises(
        WorkbenchError, match=f"must have weights.*holds {len(tensors)} tensors, {len(empty)} of them empty"
    ):
        load_adapter(tiny, saved)


def _longer(header: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(header) + 10**6) + header + rest


def _no_json(header: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + b"[" + header[1:] + rest


@pytest.mark.parametrize("damage", [_longer, _no_json, lambda header, rest: b"", lambda header, rest: b"\0" * 100])
def test_a_corrupted_adapter_file_is_refused(tiny, saved, damage) -> None:
    path = saved / "adapter_model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    path.write_bytes(damage(data[8 : 8 + size], data[8 + size :]))
    with pytest.raises(WorkbenchError, match="must hold complete files.*copy the adapter again"):
        load_adapter(tiny, saved)


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", "{"])
def test_a_corrupted_config_is_refused(tiny, saved, text: str) -> None:
    (saved / "adapter_config.json").write_text(text)
    with pytest.raises(WorkbenchError, match="must hold complete files"):
        load_adapter(tiny, saved)

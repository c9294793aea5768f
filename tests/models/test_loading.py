"""Loading: each bad folder is named, handles share weights and stay apart, adapters survive the disk bit for bit."""

import json
import shutil
from dataclasses import replace

import numpy
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import loading
from dpo_workbench.models.files import REFUSED
from dpo_workbench.models.loading import Model, load_adapter, load_model

PROMPT = "the answer to the question"


def logits(model: Model) -> torch.Tensor:
    with model.active() as network, torch.no_grad():
        return network(torch.tensor([model.chat.prompt_ids(PROMPT)])).logits


def folder_with(source, target, *names: str):
    target.mkdir()
    for name in names:
        shutil.copy(source / name, target / name)
    return target


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def test_folder_without_config(tiny_folder, tmp_path) -> None:
    folder = folder_with(tiny_folder, tmp_path / "m", "model.safetensors", *TOKENIZER)
    with pytest.raises(WorkbenchError, match="could not be loaded.*config.json"):
        load_model(folder)


def test_a_folder_with_an_adapter_is_no_model(moved, tmp_path) -> None:
    with pytest.raises(WorkbenchError, match="could not be loaded.*config.json.*an adapter goes into `adapter=`"):
        load_model(moved.save(tmp_path / "adapter"))


def test_folder_without_weights(tiny_folder, tmp_path) -> None:
    folder = folder_with(tiny_folder, tmp_path / "m", "config.json", *TOKENIZER)
    with pytest.raises(WorkbenchError, match=r"could not be loaded .*model.safetensors"):
        load_model(folder)
    shutil.copy(tiny_folder / "model.safetensors", folder)
    assert load_model(folder, device="cpu").name == str(folder)  # negative control


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_never_read(tiny_folder, tmp_path, monkeypatch, name: str) -> None:
    folder = folder_with(tiny_folder, tmp_path / "m", "config.json", *TOKENIZER)
    (folder / name).write_bytes(b"\x80\x04")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    with pytest.raises(WorkbenchError, match="A pickle .* is not read, because it can run code"):
        load_model(folder)


@pytest.mark.parametrize("name", ["./no/such", "/no/such/folder", "a/b/c", "~/model"])
def test_missing_path(name: str) -> None:
    with pytest.raises(WorkbenchError, match="could not be loaded .*Repo id must"):
        load_model(name)


def test_path_to_a_file(tiny_folder) -> None:
    with pytest.raises(WorkbenchError, match="could not be loaded"):
        load_model(tiny_folder / "config.json")


@pytest.mark.parametrize("name", ["no-such-owner-here/no-such-model", "nanno"])
def test_hub_id_without_network_names_three_ways(monkeypatch, name: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WorkbenchError) as caught:
        load_model(name)
    text = str(caught.value)
    assert repr(name) in text and "Three ways" in text
    assert all(word in text for word in ("`nano`", "`smol`", "a folder with config.json")) and "\n" not in text


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json"])
def test_damaged_folder_names_three_ways(tiny_folder, tmp_path, damage: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    path = folder / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WorkbenchError, match="could not be loaded.*Three ways"):
        load_model(folder)


@pytest.mark.parametrize("change", [{"vocab_size": 300}, {"hidden_size": 48}])
def test_weights_of_other_sizes_name_three_ways(tiny_folder, tmp_path, change: dict) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(WorkbenchError, match="could not be loaded.*Three ways"):
        load_model(folder)


@pytest.mark.parametrize("old, new", [("", "base_model.model."), ("q_proj", "q_proj.base_layer"), ("lm_head.", "h.")])
def test_weights_under_other_names_are_not_replaced_by_random_ones(tiny_folder, tmp_path, old: str, new: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k.replace(old, new, 1): v for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WorkbenchError, match="its files lack .* weights.*would stay random.*Three ways"):
        load_model(folder)


def test_tied_weights_are_stored_once_and_not_missed(tiny_folder, tmp_path) -> None:
    network = hf.LlamaForCausalLM(hf.LlamaConfig.from_pretrained(tiny_folder, tie_word_embeddings=True))
    network.save_pretrained(tmp_path)
    hf.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_model(tmp_path, device="cpu").name == str(tmp_path)


def test_no_chat_template_works_and_says_so(tmp_path, capsys, tiny, make_tiny_folder) -> None:
    plain = load_model(make_tiny_folder(tmp_path / "m", template=None), device="cpu")
    assert "no chat template; a prompt is plain text, and the answer follows it directly" in capsys.readouterr().out
    assert plain.tokenizer.decode(plain.chat.prompt_ids("ab cd")) == "ab cd"
    asked = load_model(tmp_path / "m", device="cpu", template={"join": "\n"})
    assert asked.tokenizer.decode(asked.chat.prompt_ids("ab cd")) == "ab cd\n"
    assert tiny.tokenizer.decode(tiny.chat.prompt_ids("ab cd")) == "<|user|>ab cd<|answer|>"


def test_a_tokenizer_that_ends_every_text_does_not_end_prompts(tmp_path, make_tiny_folder) -> None:
    """The answer would follow an end token (`add_eos_token` of Llama and Mistral tokenizers)."""
    folder = make_tiny_folder(tmp_path / "m", template=None)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    end = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    ids = {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokens["post_processor"] = {
        "type": "TemplateProcessing", "single": [one, end], "pair": [one, two, end], "special_tokens": ids,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    model = load_model(folder, device="cpu")
    assert model.tokenizer("ab")["input_ids"][-1] == model.tokenizer.eos_token_id
    assert model.tokenizer.decode(model.chat.prompt_ids("ab")) == "ab"
    assert model.tokenizer.decode(model.chat.answer_ids("ab", "yes")) == "yes<|end|>"


def test_tokenizer_without_end_token_raises(tiny_folder, tmp_path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(WorkbenchError, match="must have an end token.*Set eos_token"):
        load_model(folder)


@pytest.mark.parametrize("kind", [*sorted(REFUSED), "bart", "qwen2_5_vl", "mistral3", "t5"])
def test_models_that_cannot_be_trained_are_refused(tiny_folder, tmp_path, kind: str) -> None:
    folder = folder_with(tiny_folder, tmp_path / "m", "model.safetensors", *TOKENIZER)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(WorkbenchError, match=f"is {kind}: .*Choose another model"):
        load_model(folder)


def test_unknown_adapter_lists_the_shipped_ones(tiny, tmp_path, monkeypatch) -> None:
    with pytest.raises(WorkbenchError, match="shipped for .*: none. Got 'recipts'"):
        load_adapter(tiny, "recipts")
    monkeypatch.setattr(loading, "data_folder", lambda: tmp_path)
    (tmp_path / "adapters" / "nano-receipts").mkdir(parents=True)
    object.__setattr__(tiny, "name", "nano")
    with pytest.raises(WorkbenchError, match="shipped for 'nano': receipts. Got"):
        load_adapter(tiny, "recipts")
    with pytest.raises(
        WorkbenchError, match="No such file or directory.*adapter_model.safetensors|adapter_config.json"
    ):
        load_adapter(tiny, "receipts")


def test_dtype_and_device_as_asked(tiny_folder, tiny, monkeypatch) -> None:
    assert load_model(tiny_folder, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert (tiny.dtype, tiny.device.type) == (torch.float32, "cpu") and "no adapter, float32 on cpu" in repr(tiny)
    monkeypatch.setattr(loading, "choose_dtype", lambda device: torch.bfloat16)
    assert load_model(tiny_folder, device="cpu").dtype == torch.bfloat16
    assert load_model("nano", device="cpu").dtype == torch.float32  # small, and its figures are those of fp32


def test_new_adapter_changes_nothing_yet_and_base_stays_apart(tiny) -> None:
    before = logits(tiny)
    handle = tiny.with_new_adapter(rank=4, alpha=8, seed=1)
    assert handle.adapter == "adapter1" and tiny.adapter is None
    assert torch.equal(logits(handle), before) and torch.equal(logits(tiny), before)
    handle.set_adapter_tensors({k: torch.full_like(v, 0.1) for k, v in handle.adapter_tensors().items()})
    assert not torch.allclose(logits(handle), before, atol=1e-2)
    assert torch.equal(logits(tiny), before)  # the base handle still computes the base model


def test_copy_of_an_adapter_is_equal_and_then_independent(moved) -> None:
    copy = moved.with_new_adapter(rank=99, alpha=99)  # rank and scale are those of the adapter that is copied
    assert copy.adapter != moved.adapter and torch.equal(logits(copy), logits(moved))
    kept = moved.adapter_tensors()
    copy.set_adapter_tensors({k: torch.zeros_like(v) for k, v in kept.items()})
    assert not torch.equal(logits(copy), logits(moved))
    assert all(torch.equal(v, kept[k]) for k, v in moved.adapter_tensors().items())


def test_only_the_active_adapter_takes_gradients(tiny) -> None:
    one, two = tiny.with_new_adapter(rank=4), tiny.with_new_adapter(rank=4)
    with one.active(trainable=True) as network:
        network(torch.tensor([one.chat.prompt_ids(PROMPT)])).logits.sum().backward()
        takes = {n for n, p in network.named_parameters() if p.requires_grad}
    assert takes and all(".adapter1." in n for n in takes)
    assert all(p.grad is not None for p in one.adapter_parameters())
    assert all(p.grad is None for p in two.adapter_parameters())
    with two.active() as network:
        assert not any(p.requires_grad for p in network.parameters())


def n_parameters(model: Model) -> int:
    return sum(p.numel() for p in model.network.parameters())


def test_adapters_of_earlier_runs_are_freed(tiny, toy_pairs) -> None:
    """Training again and again on one loaded model holds the adapters of live handles and no others."""
    config = dw.TrainConfig(epochs=1, batch_size=6, rank=4, probes=0)
    before, sizes = n_parameters(tiny), []
    for seed in range(3):
        run = dw.train(tiny, toy_pairs, replace(config, seed=seed), show=False)
        sizes.append(n_parameters(tiny) - before)
        del run
    assert sizes[0] > 0 and sizes == [sizes[0]] * 3


def test_adapters_of_live_handles_are_kept(tiny) -> None:
    first = tiny.with_new_adapter(rank=4)
    first.set_adapter_tensors({k: torch.full_like(v, 0.1) for k, v in first.adapter_tensors().items()})
    want, same = logits(first), replace(first, name="another handle on the same adapter")
    del first
    for _ in range(3):
        tiny.with_new_adapter(rank=4)
    other = tiny.with_new_adapter(rank=4)
    assert torch.equal(logits(same), want)
    assert set(tiny.network.peft_config) == {same.adapter, other.adapter}


@pytest.mark.parametrize("kind", [hf.OPTConfig, hf.BioGptConfig, hf.FalconConfig])
def test_activation_checkpointing_starts_no_dropout(tiny, tmp_path, kind) -> None:
    rates = {"dropout": 0.5, "hidden_dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5}
    sizes = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config = kind(vocab_size=len(tiny.tokenizer), word_embed_proj_dim=32, pad_token_id=0, **rates, **sizes)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype=torch.float32).with_new_adapter(rank=4)
    ids, found = torch.tensor([model.chat.prompt_ids(PROMPT)]), []
    for checkpointing in (False, True):
        with model.active(trainable=True, checkpointing=checkpointing) as network:
            found.append(network(ids, use_cache=False).logits)
    assert torch.equal(*found)


def test_adapter_survives_the_disk_bit_for_bit(moved, tiny_folder, tmp_path) -> None:
    folder = moved.save(tmp_path / "adapter")
    assert {p.name for p in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    again = load_model(tiny_folder, adapter=folder, device="cpu", dtype=torch.float32)
    want, got = moved.adapter_tensors(), again.adapter_tensors()
    assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want)
    assert torch.equal(logits(again), logits(moved)) and again.fingerprint() == moved.fingerprint()


def test_saved_adapter_is_read_by_peft(moved, tiny_folder, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    moved.save(tmp_path / "adapter")
    bare = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(bare, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([moved.chat.prompt_ids(PROMPT)])).logits, logits(moved))


def test_adapter_of_peft_on_some_layers_computes_the_same(tiny_folder, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tiny_folder, adapter=tmp_path / "adapter", device="cpu", dtype=torch.float32)
    with torch.no_grad():
        want = theirs(torch.tensor([ours.chat.prompt_ids(PROMPT)])).logits
    torch.testing.assert_close(want, logits(ours))
    assert not torch.equal(want, logits(load_model(tiny_folder, device="cpu", dtype=torch.float32)))


def test_rank_of_numpy_is_saved_as_a_number(tiny, tmp_path) -> None:
    saved = tiny.with_new_adapter(rank=numpy.int64(4), alpha=numpy.int64(8)).save(tmp_path / "adapter")
    assert json.loads((saved / "adapter_config.json").read_text())["r"] == 4
    load_adapter(tiny, saved)


def test_handle_without_adapter_cannot_be_saved_or_set(tiny, tmp_path) -> None:
    for call in (lambda: tiny.save(tmp_path / "x"), lambda: tiny.set_adapter_tensors({}), tiny.adapter_parameters):
        with pytest.raises(WorkbenchError, match="needs an adapter"):
            call()
    assert tiny.adapter_tensors() == {} and not (tmp_path / "x").exists()


def test_fingerprint_follows_what_is_computed(tiny, tiny_folder, tmp_path, make_tiny_folder) -> None:
    base = tiny.fingerprint()
    handle = tiny.with_new_adapter(rank=4, alpha=8)
    fresh = handle.fingerprint()
    assert fresh != base and tiny.fingerprint() == base
    tensors = handle.adapter_tensors()
    tensors[next(iter(tensors))].view(-1)[0] += 1e-3
    handle.set_adapter_tensors(tensors)
    assert handle.fingerprint() != fresh  # one weight of the adapter
    other = load_model(make_tiny_folder(tmp_path / "other", seed=1), device="cpu", dtype=torch.float32)
    assert other.fingerprint() != base  # other base weights
    assert load_model(tiny_folder, device="cpu", dtype=torch.bfloat16).fingerprint() != base  # dtype


def test_fingerprint_does_not_hang_on_when_it_is_taken(tiny, tiny_folder) -> None:
    """PEFT renames the weights that it wraps; a run that goes on in a new process must know itself again."""
    late = load_model(tiny_folder, device="cpu", dtype=torch.float32)
    late.with_new_adapter(rank=4)
    assert late.fingerprint() == tiny.fingerprint()


def test_fingerprint_takes_single_numbers(tiny) -> None:
    tiny.network.register_buffer("scale", torch.tensor(1.0))
    first = tiny.fingerprint()
    tiny.network.scale += 1
    assert replace(tiny, _shared=replace(tiny._shared, fingerprint=None)).fingerprint() != first


def test_layers_that_share_a_weight_keep_it_and_their_adapters(tiny) -> None:
    """Merging would add both adapters to the one weight."""
    layers = tiny.network.model.layers
    layers[1].mlp.gate_proj.weight = layers[0].mlp.gate_proj.weight
    handle = tiny.with_new_adapter(rank=4, alpha=8)
    draw = torch.Generator().manual_seed(0)
    handle.set_adapter_tensors(
        {k: 0.2 * torch.randn(v.shape, generator=draw) for k, v in handle.adapter_tensors().items()}
    )
    want, before = logits(handle), logits(tiny)
    with handle.merged() as network, torch.no_grad():
        got = network(torch.tensor([handle.chat.prompt_ids(PROMPT)])).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(tiny), before)


def test_fingerprint_sees_the_adapters_scale(tiny) -> None:
    one, two = tiny.with_new_adapter(rank=4, alpha=8, seed=1), tiny.with_new_adapter(rank=4, alpha=16, seed=1)
    assert all(torch.equal(v, two.adapter_tensors()[k]) for k, v in one.adapter_tensors().items())
    assert one.fingerprint() != two.fingerprint()


def test_answer_ids_end_once_and_do_not_hang_on_the_prompt(tiny) -> None:
    ids = tiny.chat.answer_ids(PROMPT, "yes: 1")
    assert ids[-1] == tiny.tokenizer.eos_token_id and ids.count(ids[-1]) == 1
    assert tiny.tokenizer.decode(ids[:-1]) == "yes: 1"


def test_nano_is_here_and_says_so() -> None:
    """The shipped model itself: loads without a network, ends answers, has a template."""
    nano = load_model("nano", device="cpu")
    assert nano.dtype == torch.float32 and nano.tokenizer.chat_template and nano.tokenizer.eos_token_id is not None
    assert sum(p.numel() for p in nano.network.parameters()) < 10_000_000

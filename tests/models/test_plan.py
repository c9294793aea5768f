"""`plan`: the memory of a run from config.json, what fits, and what to set. The parts are those of real tensors."""

import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, MixtralConfig

import dpo_workbench as dw
from dpo_workbench.common import memory
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.needs import MAX_DENSE, MAX_LOGITS, NF4_BYTES, Device, needs_of
from dpo_workbench.models.plan import GIB, GPUS
from dpo_workbench.models.rows import Row, encode, pair_texts
from dpo_workbench.training import guards, logps, packing
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import fit_memory
from dpo_workbench.training.loop import TrainState
from dpo_workbench.training.packing import pack

BIG = {"hidden_size": 6400, "intermediate_size": 38400, "num_hidden_layers": 7, "num_attention_heads": 50}
BIG |= {"num_key_value_heads": 10, "vocab_size": 128000, "tie_word_embeddings": False}  # 7.5 B parameters, few layers


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> str:
    """A folder that holds nothing but a config.json."""
    folder = tmp_path_factory.mktemp("big") / "big-7B"
    LlamaConfig(**BIG, max_position_embeddings=32768).save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return str(folder)


@pytest.fixture
def needs(tiny_folder):
    return needs_of(AutoConfig.from_pretrained(tiny_folder), torch.float32, 4)


def test_parts_are_those_of_real_tensors(tiny, needs) -> None:
    weights = sum(p.nbytes for p in tiny.network.parameters())
    assert needs.parameters * 4 == needs.weights == weights
    policy = tiny.with_new_adapter(rank=4)
    state = TrainState(policy, TrainConfig(rank=4))
    for p in state.parameters:
        p.grad = torch.ones_like(p)
    state.optimizer.step()
    moments = [v for s in state.optimizer.state.values() for k, v in s.items() if k != "step"]
    adapter = sum(t.nbytes for p in state.parameters for t in (p, p.grad)) + sum(v.nbytes for v in moments)
    assert needs.parts(64, 64, False, False, False)["adapter, gradient, AdamW"] == adapter == 4 * needs.adapter
    base = tiny.network.get_base_model()
    linear = [m.base_layer.weight for m in base.modules() if hasattr(m, "base_layer")]
    rest = sum(w.numel() for w in linear)
    assert needs.weights_4bit == round(weights - 4 * rest + NF4_BYTES * rest)
    assert needs.cache == 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their size, bytes


def kept_for_backward(model, rows: list[Row]) -> int:
    """Bytes of the tensors that autograd keeps in a real forward pass over a pack."""
    batch, found = pack(rows), {}
    own = {p.data_ptr() for p in [*model.network.parameters(), *model.network.buffers()]}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with model.active(trainable=True) as network:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = logps.token_states(network, batch)  # noqa: F841 keeps the graph alive
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("length", [40, 400])
def test_activations_are_what_autograd_keeps(tiny, needs, n_rows: int, length: int) -> None:
    rows = [Row(str(k), (5,) * (length - 20), ((6,) * 10, (7,) * 10)) for k in range(n_rows)]
    real = kept_for_backward(tiny.with_new_adapter(rank=4), rows)
    parts = needs.parts(n_rows * length, length, False, False, False)
    assert parts["activations"] + parts["attention masks"] == pytest.approx(real, rel=0.03)


def test_limits_are_those_of_training() -> None:
    assert (MAX_LOGITS, MAX_DENSE) == (logps.MAX_LOGITS, packing.MAX_DENSE)


def test_weights_in_4_bits_are_those_of_bitsandbytes(make_tiny_folder, tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    config = LlamaConfig(hidden_size=512, intermediate_size=1024, num_hidden_layers=2, vocab_size=320)
    folder = make_tiny_folder(tmp_path / "model")
    LlamaForCausalLM(config).save_pretrained(folder)
    model = dw.load_model(folder, device="cpu", dtype=torch.float32, quantize="4bit")
    state = model.network.state_dict()
    real = sum(
        value.nbytes for key, value in state.items() if "quant_map" not in key
    )  # two tables of 16 and 256 numbers
    assert needs_of(config, torch.float32, 4).weights_4bit == pytest.approx(real, rel=0.01)


def test_memory_grows_with_tokens_and_shrinks_with_checkpointing_and_4_bits(big) -> None:
    needs = needs_of(AutoConfig.from_pretrained(big), torch.bfloat16, 16)
    device = Device("x", 0.0, torch.bfloat16)
    for quantized in (False, True):
        for checkpointing in (False, True):
            totals = [needs.total(device, n, 300, checkpointing, quantized) for n in (300, 600, 1200, 6000)]
            assert totals == sorted(set(totals))
        off, on = (needs.total(device, 2000, 300, mode, quantized) for mode in (False, True))
        assert on < off
    assert needs.total(device, 300, 300, True, True) < needs.total(device, 300, 300, True, False) / 2
    assert needs.weights_4bit < 0.45 * needs.weights
    twice = needs_of(AutoConfig.from_pretrained(big), torch.bfloat16, 32)
    assert twice.adapter == 2 * needs.adapter and twice.kept > needs.kept


def test_a_model_of_7b_fits_on_a_t4_in_4_bits_only(big, toy_pairs) -> None:
    facts = dw.plan(big, toy_pairs, gpu="T4").to_dict()
    assert [option["micro_tokens"] > 0 for option in facts["options"]] == [False, False, True, True]
    assert facts["recommended"]["quantize"] == "4bit" and facts["dtype"] == "float16"
    assert facts["budget_gib"]["total"] == pytest.approx(sum(facts["budget_gib"].values()) / 2)
    assert facts["budget_gib"]["total"] <= facts["memory_gib"] == GPUS["T4"][0]
    assert "--quantize 4bit --micro-tokens 768 --rank 16 --epochs 2" in facts["command"]
    larger = dw.plan(big, toy_pairs, gpu="A100-80").to_dict()
    assert larger["recommended"] == {"quantize": None, "micro_tokens": 6144, "checkpointing": False}
    assert larger["minutes"] == facts["minutes"] == 1 and "quantize" not in larger["command"]


def test_settings_of_the_plan_are_in_its_commands(big, toy_pairs) -> None:
    options = dw.plan(big, toy_pairs, memory_gib=80, rank=8).to_dict()["options"]
    between = sum(option["one_pair_gib"] for option in options[2:]) / 2  # 4-bit weights fit only with checkpointing
    command = dw.plan(big, toy_pairs, memory_gib=between, rank=8, epochs=1).to_dict()["command"]
    assert re.search(r" --quantize 4bit --checkpointing --micro-tokens \d+ --rank 8 --epochs 1$", command)


def test_nothing_fits(big, toy_pairs) -> None:
    facts = dw.plan(big, toy_pairs, memory_gib=4).to_dict()
    assert facts["recommended"] is facts["command"] is facts["minutes"] is None and facts["budget_gib"]["total"] > 4
    assert "Nothing fits" in repr(dw.plan(big, toy_pairs, memory_gib=4))


def test_tokens_come_from_the_tokenizer_or_are_estimated(tiny, tiny_folder, toy_pairs, big) -> None:
    facts = dw.plan(tiny_folder, toy_pairs, gpu="T4").to_dict()
    rows = [encode(tiny.chat, *pair_texts(pair)) for pair in toy_pairs]
    assert facts["longest"] == max(row.n_tokens for row in rows) and facts["notes"] == []
    assert "there is no tokenizer here" in dw.plan(big, toy_pairs, gpu="T4").to_dict()["notes"][0]


def test_a_row_beyond_the_models_positions_is_told(tiny_folder) -> None:
    pairs = dw.Pairs([dw.Pair("a", "question", "yes: " * 1500, "no"), dw.Pair("b", "question", "yes: 1", "no")])
    assert "1 pairs do not fit into the model's 2048 positions" in repr(dw.plan(tiny_folder, pairs, gpu="T4"))


def test_a_mixture_of_experts_gets_a_rule_of_thumb(tmp_path, toy_pairs) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=320).save_pretrained(tmp_path)
    facts = dw.plan(tmp_path, toy_pairs, gpu="L4").to_dict()
    assert any("rule of thumb" in note for note in facts["notes"]) and facts["recommended"]


def test_nano_is_planned_for_this_machine(toy_pairs) -> None:
    found = dw.plan("nano", toy_pairs)
    facts = found.to_dict()
    assert facts["parameters"] == 4_000_000 and facts["dtype"] == "float32" and facts["notes"] == []
    assert facts["recommended"]["checkpointing"] is False
    assert json.loads(json.dumps(facts)) == facts and "4,000,000 parameters" in found._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpu": "A100"}, "A100-40, L40S, A100-80, H100, H200. Got 'A100'. For another one"),
        ({"gpu": "abacus"}, "Got 'abacus'. For another one"),
        ({"memory_gib": 0}, "`memory_gib` must be above 0. Got 0"),
        ({"memory_gib": float("nan")}, "`memory_gib` must be above 0. Got nan"),
    ],
)
def test_bad_arguments(toy_pairs, arguments, words: str) -> None:
    with pytest.raises(WorkbenchError, match=re.escape(words)):
        dw.plan("nano", toy_pairs, **arguments)


@pytest.mark.parametrize("name", ["t4", "Tesla T4", "NVIDIA A100-80", "geforce rtx 4090", "a100_40", "RTX-3090"])
def test_names_of_gpus_are_read_with_patience(toy_pairs, name: str) -> None:
    assert dw.plan("nano", toy_pairs, gpu=name).to_dict()["device"] in GPUS


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "no such model"}', '{"model_type": "rwkv"}'])
def test_a_config_that_cannot_be_used(tmp_path, toy_pairs, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(WorkbenchError, match="could not be loaded|can't be trained"):
        dw.plan(tmp_path, toy_pairs, gpu="T4")


def test_the_command_prints_the_plan(run, tiny_folder, toy_pairs, tmp_path) -> None:
    toy_pairs.save(tmp_path / "my pairs.jsonl")
    code, out, err = run("plan", str(tiny_folder), "my pairs.jsonl", "--gpu", "T4")
    assert code == 0 and err == "" and "T4: 14.7 GiB, float16" in out
    assert f"dpo-workbench train 'my pairs.jsonl' --model {tiny_folder} --out runs/model --micro-tokens 6144" in out
    code, _, err = run("plan", str(tiny_folder), "my pairs.jsonl", "--gpu", "T5")
    assert code == 1 and "`gpu` must be one of T4" in err


# `auto` in training


def rows_of(model, n_tokens: int) -> list[Row]:
    return [Row(str(k), (5,) * (n_tokens - 20), ((6,) * 10, (7,) * 10)) for k in range(4)]


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory seems to be free, in bytes."""

    def to(size: float) -> None:
        monkeypatch.setattr(guards, "free_bytes", lambda device: size)

    return to


def test_auto_is_what_it_was_where_memory_is_no_matter(tiny, free, capsys) -> None:
    free(8 * GIB)
    found = fit_memory(tiny, rows_of(tiny, 100), TrainConfig())
    assert (found.micro_tokens, found.checkpointing) == (1536, False) and capsys.readouterr().out == ""


def test_auto_shrinks_with_memory(tiny, needs, free, capsys) -> None:
    rows, seen = rows_of(tiny, 100), []
    device = Device("cpu", 0.0, torch.float32, cpu=True)
    for size in (needs.total(device, n, 100, on, False) - needs.weights for n, on in ((1536, False), (800, False))):
        free(size)
        seen.append(fit_memory(tiny, rows, TrainConfig(rank=4)))
    assert [c.micro_tokens for c in seen] == [1536, 768] and not any(c.checkpointing for c in seen)
    assert "memory is short: micro_tokens=768, checkpointing=False" in capsys.readouterr().out
    free(needs.total(device, 100, 100, True, False) - needs.weights)
    assert fit_memory(tiny, rows, TrainConfig(rank=4)).checkpointing is True
    free(0)
    assert fit_memory(tiny, rows, TrainConfig(rank=4)).checkpointing is True  # training itself says what does not fit


def test_auto_leaves_given_values_alone(tiny, free) -> None:
    free(0)
    given = TrainConfig(micro_tokens=99, checkpointing=False)
    assert fit_memory(tiny, rows_of(tiny, 100), given) is given
    assert fit_memory(tiny, rows_of(tiny, 100), replace(given, micro_tokens="auto")).checkpointing is False
    assert fit_memory(tiny, rows_of(tiny, 100), replace(given, checkpointing="auto")).micro_tokens == 99


def test_a_resumed_run_keeps_the_sizes_it_began_with(tiny, toy_pairs, tmp_path, free) -> None:
    config = TrainConfig(epochs=1, probes=0, held_out=0.0)
    free(8 * GIB)
    first = dw.train(tiny, toy_pairs, config, folder=tmp_path, show=False)
    free(0)
    again = dw.train(tiny, toy_pairs, config, folder=tmp_path, show=False)
    assert first.config == again.config and first.config.micro_tokens == 1536 and first.config.checkpointing is False
    other = dw.train(tiny, toy_pairs, config, folder=tmp_path / "other", show=False)
    assert other.config.checkpointing is True  # negative control
    assert other.history[-1]["loss"] == pytest.approx(first.history[-1]["loss"], abs=1e-5)


def test_free_memory_of_a_cpu_is_read() -> None:
    assert 0 < memory.free_bytes(torch.device("cpu")) < float("inf")
    assert memory.free_bytes(torch.device("meta")) == float("inf")

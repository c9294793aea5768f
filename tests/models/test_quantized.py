"""4-bit weights: the whole chain from loading to merged weights, on a CPU, with the tiny model."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import files
from dpo_workbench.models.adapter import room_for_copies
from dpo_workbench.models.loading import Model, load_adapter, load_model
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import lay_out, pack
from dpo_workbench.training.tokens import pair_texts, tokenize

bitsandbytes = pytest.importorskip("bitsandbytes")
CONFIG = dw.TrainConfig(lr=1e-2, epochs=2, batch_size=6, rank=4, alpha=8, probes=2, held_out=0.2)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def load(folder, dtype=torch.float32, **given) -> Model:
    return load_model(folder, device="cpu", dtype=dtype, quantize="4bit", **given)


@pytest.fixture
def model(tiny_folder) -> Model:
    return load(tiny_folder)


def logits(model: Model) -> torch.Tensor:
    with model.active() as network, torch.no_grad():
        return network(torch.tensor([model.chat.prompt_ids("the answer to the question")])).logits.float()


def test_linear_layers_are_quantized_and_nothing_else(model, tiny) -> None:
    kinds = {type(module).__name__ for module in model.network.modules()}
    assert "Linear4bit" in kinds and type(model.network.lm_head) is torch.nn.Linear
    assert (model.quantize, tiny.quantize) == ("4bit", None)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    layer = model.network.model.layers[0].mlp.down_proj.weight
    assert (layer.quant_type, layer.compress_statistics) == ("nf4", True)  # NF4 with double quantization
    assert "4-bit weights, float32 on cpu" in repr(model) and "4-bit" not in repr(tiny)
    error = (logits(model) - logits(tiny)).abs().mean()
    assert 0.01 < error < 1.0


def test_fingerprint_is_that_of_the_quantized_weights(model, tiny, tiny_folder) -> None:
    first = model.fingerprint()
    logits(model)
    late = load(tiny_folder)
    late.with_new_adapter(rank=4)
    assert late.fingerprint() == first != tiny.fingerprint()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_reach_an_fp32_adapter(tiny_folder, toy_pairs, dtype) -> None:
    """Without `prepare_model_for_kbit_training`: nothing of the base is trained, so nothing needs to be cast."""
    model = load(tiny_folder, dtype).with_new_adapter(rank=4)
    assert model.dtype == dtype and {p.dtype for p in model.adapter_parameters()} == {torch.float32}
    batch = pack(tokenize(model, map(pair_texts, toy_pairs), 1024)[:3])
    for checkpointing in (False, True):
        with model.active(trainable=True, checkpointing=checkpointing) as network:
            answer_logps(network, batch).sum().backward()
        grads = [p.grad for n, p in model.network.named_parameters() if "lora_B" in n]
        assert grads and all(g.isfinite().all() and g.abs().max() > 0 for g in grads)
        model.network.zero_grad()
    assert not any(p.requires_grad for n, p in model.network.named_parameters() if "lora_" not in n)


def test_gradients_are_those_of_the_dequantized_weights(model, tiny_folder, toy_pairs) -> None:
    """The base of a second model is overwritten with the dequantized weights."""
    plain = load_model(tiny_folder, device="cpu", dtype=torch.float32)
    for name, module in model.network.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            values = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.network.get_submodule(name).weight.data = values
    found = []
    for handle in (model.with_new_adapter(rank=4, seed=1), plain.with_new_adapter(rank=4, seed=1)):
        batch = pack(tokenize(handle, map(pair_texts, toy_pairs), 1024)[:3])
        with handle.active(trainable=True) as network:
            answer_logps(network, batch).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in handle.adapter_parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_packed_rows_have_the_values_of_plain_sequences(model, toy_pairs) -> None:
    rows = tokenize(model, map(pair_texts, toy_pairs), 1024)
    with model.active() as network, torch.no_grad():
        packed = answer_logps(network, pack(rows))
        plain = answer_logps(network, lay_out(rows, model.chat.end_id))
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-4)


def test_a_cpu_with_avx512_bf16_stores_the_weights_in_the_same_order(tiny_folder, model, monkeypatch) -> None:
    """bitsandbytes reorders them there at the first pass without gradients, and then has none to give."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True, raising=False)
    there = load(tiny_folder)
    assert torch.equal(logits(there), logits(model))
    assert there.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_starts_at_the_reference_and_learns(tiny_folder, toy_pairs, dtype, tmp_path, capsys) -> None:
    model = load(tiny_folder, dtype)
    before = logits(model)
    run = dw.train(model, toy_pairs, replace(CONFIG, nll_weight=0.0), folder=tmp_path)
    first = run.history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6 if dtype == torch.float32 else 0.02)
    assert run.history[-1]["rewards/margins"] > 0.05
    assert len(run.scores) == 3 and "held-out log-ratios" in capsys.readouterr().out
    assert torch.equal(logits(model), before)  # the base is as it was


def test_a_stopped_run_ends_in_the_same_bits(tiny_folder, toy_pairs, tmp_path, monkeypatch) -> None:
    from dpo_workbench.training import loop

    whole = dw.train(load(tiny_folder), toy_pairs, CONFIG, show=False)
    honest, steps = loop.train_step, []

    def stops(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return honest(*arguments)

    config = replace(CONFIG, checkpoint_seconds=0.0)
    monkeypatch.setattr(loop, "train_step", stops)
    assert not dw.train(load(tiny_folder), toy_pairs, config, folder=tmp_path, show=False).finished
    again = dw.train(load(tiny_folder), toy_pairs, config, folder=tmp_path, show=False)
    assert again.finished and len(steps) == 3 + len(whole.history) - 2
    want = whole.model.adapter_tensors()
    assert all(torch.equal(v, want[k]) for k, v in again.model.adapter_tensors().items())
    monkeypatch.undo()
    plain = load_model(tiny_folder, device="cpu", dtype=torch.float32)  # another model: its run starts at the beginning
    assert dw.train(plain, toy_pairs, config, folder=tmp_path, show=False).history != again.history


def test_fine_tuning_mining_and_evaluation(model, toy_task) -> None:
    tuned = dw.sft(model, toy_task.train, replace(CONFIG, probes=1), show=False).model
    assert dw.mine(tuned, toy_task.train[:4], 2, show=False).n_samples == 8
    assert dw.evaluate(tuned, toy_task.dev, name="after", show=False).n == 4


def test_the_adapter_stays_separate_while_generating(model) -> None:
    """Merging into quantized weights would round again."""
    handle = model.with_new_adapter(rank=4)
    with handle.merged() as network:
        assert network is handle.network


@pytest.mark.parametrize("quantize", ["4bit", None])
def test_a_saved_adapter_is_used_on_either_kind_of_weights(model, tiny_folder, tmp_path, quantize) -> None:
    handle = model.with_new_adapter(rank=4, alpha=8)
    draw = torch.Generator().manual_seed(0)
    tensors = {k: 0.1 * torch.randn(v.shape, generator=draw) for k, v in handle.adapter_tensors().items()}
    handle.set_adapter_tensors(tensors)
    again = load_model(
        tiny_folder, adapter=handle.save(tmp_path / "a"), device="cpu", dtype=torch.float32, quantize=quantize
    )
    assert all(torch.equal(v, tensors[k]) for k, v in again.adapter_tensors().items())
    assert torch.equal(logits(again), logits(handle)) == (quantize == "4bit")
    assert load_adapter(model, again.save(tmp_path / "b")).adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_with_4_bit_weights_is_loaded_as_it_is(model, tiny_folder, tmp_path, dtype) -> None:
    """Such as `unsloth/...-bnb-4bit`. Its config may name another dtype to compute in, which a T4 does not have."""
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    model.network.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "float16"
    path.write_text(json.dumps(config))
    there = load_model(folder, device="cpu", dtype=dtype)
    assert there.quantize == "4bit" and there.network.model.layers[0].mlp.up_proj.compute_dtype == dtype
    assert load_model(folder, device="cpu", dtype=dtype, quantize="4bit").fingerprint() == there.fingerprint()
    if dtype == torch.float32:
        assert torch.equal(logits(there), logits(model)) and there.fingerprint() == model.fingerprint()


def with_quantization(source, target, settings: dict):
    folder = shutil.copytree(source, target)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return folder


@pytest.mark.parametrize("method", ["gptq", "awq", "mxfp4", "fp8", "bitsandbytes"])
def test_other_kinds_of_quantization_are_refused(tiny_folder, tmp_path, method: str) -> None:
    folder = with_quantization(tiny_folder, tmp_path / "m", {"quant_method": method, "load_in_8bit": True})
    with pytest.raises(WorkbenchError, match=f"quantized by {method}.*Load the original model with quantize"):
        load_model(folder, device="cpu")


def test_other_values_and_a_missing_package_are_refused(tiny_folder, monkeypatch) -> None:
    with pytest.raises(WorkbenchError, match="`quantize` must be \"4bit\" or None. Got '8bit'"):
        load_model(tiny_folder, device="cpu", quantize="8bit")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match=r'Run `pip install "dpo-workbench\[gpu\]"`'):
        load(tiny_folder)
    assert load_model(tiny_folder, device="cpu").quantize is None  # negative control


@pytest.mark.parametrize("quantize", ["4bit", None])
def test_weights_that_do_not_fit_are_told_apart_from_broken_ones(tiny_folder, monkeypatch, quantize) -> None:
    def full(*arguments, **given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(files.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(WorkbenchError, match="must fit on cpu. Memory ran out") as caught:
        load_model(tiny_folder, device="cpu", quantize=quantize)
    assert ('quantize="4bit"' in str(caught.value)) == (quantize is None)


@pytest.mark.parametrize("quantize", ["4bit", None])
def test_weights_go_straight_to_the_device(tiny_folder, monkeypatch, quantize) -> None:
    """A copy in host memory first, moved afterwards, would not fit into the 12.7 GB of a Colab machine."""
    honest, seen = files.AutoModelForCausalLM.from_pretrained, {}

    def watched(*arguments, **given):
        seen.update(given)
        return honest(*arguments, **given)

    monkeypatch.setattr(files.AutoModelForCausalLM, "from_pretrained", watched)
    monkeypatch.setattr(torch.nn.Module, "to", lambda *a, **k: pytest.fail("moved after it was loaded"))
    load_model(tiny_folder, device="cpu", quantize=quantize)
    assert seen["device_map"] == {"": torch.device("cpu")}


def test_copies_for_generation_leave_half_of_the_free_memory(monkeypatch) -> None:
    weights = [SimpleNamespace(device=torch.device("cuda"), nbytes=100)] * 3
    for name, value in {"memory_reserved": 90, "memory_allocated": 40}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for free, fits in ((550, True), (549, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1000))
        assert room_for_copies(weights) is fits

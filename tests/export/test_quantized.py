"""Runs on 4-bit weights leave the workbench: merged weights compute the same, and TRL trains on the same weights."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import dpo_workbench as dw
from dpo_workbench import cli
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.export import runs
from dpo_workbench.export.runs import export_merged, export_trl
from dpo_workbench.models.loading import Model, load_adapter, load_model

pytest.importorskip("bitsandbytes")
CONFIG = dw.TrainConfig(lr=1e-3, epochs=2, batch_size=4, rank=4, alpha=8, probes=0, held_out=0.0, nll_weight=0.0)


def gpt2_folder(tiny_folder: Path, folder: Path) -> Path:
    """GPT-2 has layers of transformers' own type, whose weights are transposed."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 320, "eos_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(hf.GPT2Config(**sizes)).save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def logits(network, model: Model) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.tensor([model.chat.prompt_ids("the answer to the question")])).logits.float()


@pytest.fixture(params=["llama", "gpt2"])
def source(request, tiny_folder, tmp_path) -> Path:
    return tiny_folder if request.param == "llama" else gpt2_folder(tiny_folder, tmp_path / "gpt2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merged_weights_compute_what_the_adapter_does(source, toy_pairs, tmp_path, dtype) -> None:
    model = load_model(source, device="cpu", dtype=dtype, quantize="4bit")
    run = tmp_path / "run"
    dw.record_run(run, model, toy_pairs, CONFIG)
    assert json.loads((run / "run.json").read_text())["quantize"] == "4bit"
    trained = dw.train(model, toy_pairs, replace(CONFIG, lr=1e-2), show=False).model
    trained.save(run / "adapter")
    done = export_merged(run, tmp_path / "out")
    assert "dequantized 4-bit" in repr(done) and {p.name for p in tmp_path.iterdir()} >= {"run", "out"}
    assert not any(p.name.startswith(".out") for p in tmp_path.iterdir())  # the mapped files are gone
    merged = AutoModelForCausalLM.from_pretrained(done.folder)
    assert merged.dtype == dtype and not hasattr(merged.config, "quantization_config")
    with trained.active() as network:
        want = logits(network, model)
    assert (logits(merged, model) - want).abs().max() < (1e-4 if dtype == torch.float32 else 0.1)
    plain = load_adapter(load_model(source, device="cpu", dtype=dtype), run / "adapter")
    with plain.active() as network:
        assert (logits(network, model) - want).abs().max() > 0.2  # negative control: the original weights


def test_weights_that_are_not_finite_are_refused(tiny_folder, toy_pairs, tmp_path) -> None:
    model = load_model(tiny_folder, device="cpu", quantize="4bit")
    dw.record_run(tmp_path / "run", model, toy_pairs, CONFIG)
    broken = model.with_new_adapter(rank=4)
    broken.set_adapter_tensors({k: v * float("nan") for k, v in broken.adapter_tensors().items()})
    broken.save(tmp_path / "run" / "adapter")
    with pytest.raises(WorkbenchError, match="Merged weights must be finite"):
        export_merged(tmp_path / "run", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_a_run_of_another_device_is_exported_with_a_line(tiny_folder, toy_pairs, tmp_path, capsys) -> None:
    """A GPU and a CPU may round differently when they quantize, so the fingerprints may differ."""
    model = load_model(tiny_folder, device="cpu", dtype=torch.float32, quantize="4bit")
    dw.record_run(tmp_path / "run", model, toy_pairs, CONFIG)
    model.with_new_adapter(rank=4).save(tmp_path / "run" / "adapter")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text()) | {"fingerprint": "of a GPU"}
    path.write_text(json.dumps(record | {"device": "cuda"}))
    export_merged(tmp_path / "run", tmp_path / "out")
    assert "quantized on cpu, in the run on cuda" in capsys.readouterr().out
    path.write_text(json.dumps(record))
    with pytest.raises(WorkbenchError, match="must be the one that the run started with"):
        export_merged(tmp_path / "run", tmp_path / "out2")


def test_a_model_of_the_hub_is_quantized_again_by_the_project(tiny_folder, toy_pairs, tmp_path, monkeypatch) -> None:
    model = load_model(tiny_folder, device="cpu", dtype=torch.float32, quantize="4bit")
    hub = replace(model, name="owner/name", source="owner/name")
    monkeypatch.setattr(runs, "load_model", lambda *a, **k: hub)
    dw.record_run(tmp_path / "run", hub, toy_pairs, CONFIG)
    out = export_trl(tmp_path / "run", tmp_path / "out").folder
    how = json.loads((out / "config.json").read_text())["model"]
    assert "bitsandbytes" in (out / "requirements.txt").read_text()
    assert not (out / "model").exists() and how.pop("pretrained_model_name_or_path") == "owner/name"
    how.pop("revision")
    again = AutoModelForCausalLM.from_pretrained(tiny_folder, **how)  # as train.py does
    assert torch.equal(
        logits(again, model),
        logits(load_model(tiny_folder, device="cpu", dtype=torch.float32, quantize="4bit").network, model),
    )


def test_from_the_command_line(tiny_folder, toy_pairs, tmp_path) -> None:
    toy_pairs.save(tmp_path / "pairs.jsonl")
    model, go, folder = ["--model", str(tiny_folder), "--quantize", "4bit"], CliRunner().invoke, str(tmp_path / "run")
    trains = ["train", str(tmp_path / "pairs.jsonl"), "--out", folder, "-a", "none", "--task", "", "--epochs", "1"]
    done = go(cli.app, [*trains, *model])
    assert done.exit_code == 0 and "4-bit weights" in done.output, done.output
    again = go(cli.app, [*trains, *model])
    assert again.exit_code == 0 and "continuing after step 1" in again.output
    plain = go(cli.app, [*trains, *model[:2]])  # the same without --quantize
    assert "continuing" not in plain.output and "belongs to a run with other settings" in plain.output
    assert go(cli.app, [*trains, *model]).exit_code == 0
    done = go(cli.app, ["export", "merged", folder])
    assert done.exit_code == 0 and "dequantized 4-bit" in done.output
    for command in ("mine", "evaluate"):
        refused = go(cli.app, [command, "--out", str(tmp_path / "x"), *model, "--engine", "http://127.0.0.1:9/v1"])
        assert "Got --engine with --adapter None, --quantize 4bit" in str(refused.exception)


MEMORY = """
import gc, sys, threading, time
import torch
import dpo_workbench as dw
from dpo_workbench.pairs.pair import Pair, Pairs

folder, run = sys.argv[1:]
peak = 0

def anonymous():  # MiB of memory that is no file's: what a machine without swap must hold
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

def step(work):
    global peak
    gc.collect()
    before, peak = anonymous(), 0
    result = work()
    print(peak - before)
    return result

nano = dw.load_model("nano", device="cpu", quantize="4bit")  # imports what is needed
pairs = Pairs([Pair(f"p{k}", f"question {k}", "yes", "no no") for k in range(4)])
threading.Thread(target=watch, daemon=True).start()
model = step(lambda: dw.load_model(folder, device="cpu", dtype=torch.float16, quantize="4bit"))
step(lambda: dw.record_run(run, model, pairs, dw.TrainConfig(rank=4)))
model.with_new_adapter(rank=4).save(run + "/adapter")
del model
step(lambda: dw.export_merged(run, run + "/merged"))
step(lambda: dw.export_trl(run, run + "/trl"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_step_copies_the_model_in_host_memory(tiny_folder, tmp_path) -> None:
    """A 16-bit copy of an 8B model would not fit into the 12.7 GB of a Colab machine."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = hf.LlamaConfig.from_pretrained(tiny_folder, **sizes, num_key_value_heads=8, head_dim=128)
    network = hf.LlamaForCausalLM(config).half()
    network.save_pretrained(tmp_path / "model")
    hf.AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "model")
    size = sum(p.nbytes for p in network.parameters()) / 2**20
    del network
    # glibc keeps small blocks that were freed; with this setting it returns all but the smallest
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, tmp_path / "model", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    peaks = [float(line) for line in done.stdout.splitlines() if line.replace(".", "").isdigit()]
    assert len(peaks) == 4 and max(peaks) < 0.5 * size, (size, peaks)
    assert peaks[0] > 0.2 * size  # negative control: the quantized model itself is seen


@pytest.mark.slow
def test_trl_has_this_loops_losses(tiny_folder, toy_pairs, tmp_path) -> None:
    model, run = load_model(tiny_folder, device="cpu", dtype=torch.float32, quantize="4bit"), tmp_path / "run"
    dw.record_run(run, model, toy_pairs, CONFIG)
    ours = dw.train(model, toy_pairs, CONFIG, show=False).history
    project = export_trl(run, run / "trl").folder
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, project / "train.py"], capture_output=True, text=True, env=environment, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = next((project / "checkpoints").glob("checkpoint-*")) / "trainer_state.json"
    theirs = [e["loss"] for e in json.loads(state.read_text())["log_history"] if "loss" in e]
    assert theirs == pytest.approx([h["loss"] for h in ours][: len(theirs)], abs=1e-4)
    assert ours[0]["loss"] - ours[-1]["loss"] > 0.05  # they move

"""The GPU benchmark at toy size on a CPU, and the check on fake CUDA tensors where PyTorch is built with CUDA."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CELLS = ["equal-toy-short", "train-toy-short", "generate-toy-medium", "packs-toy-medium"]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_every_kind_of_cell_runs_at_toy_size(tmp_path) -> None:
    pytest.importorskip("trl")
    file = tmp_path / "results.json"
    run("gpu.py", "--toy", "--cells", *CELLS, "--minutes", "60", "--results", str(file))
    record = json.loads(file.read_text(encoding="utf-8"))
    assert list(record["cells"]) == CELLS and {"machine", "command", "seed"} <= record.keys()
    assert not any("failed" in str(cell) for cell in record["cells"].values())

    found = record["cells"][CELLS[0]]["both"]
    assert found["trl"]["gradient_relative_difference"] < 1e-4 and found["trl"]["loss_difference"] < 1e-5
    packs, control = found["packs"]["packs_sdpa"], found["packs"]["control"]
    assert packs["gradient_relative_difference"] < 1e-4 and packs["nats_per_token"] < 1e-5
    assert control["gradient_relative_difference"] > 1e-2 and control["nats_per_token"] > 1e-4

    train = record["cells"][CELLS[1]]
    for side in ("ours", "trl"):
        assert train[side]["losses"][0] == pytest.approx(0.6931, abs=1e-3)
        assert train[side]["tokens_per_second"] > 0 and train[side]["peak_memory_gib"] > 0
    assert {"times_faster_than_trl", "share_of_trl_memory"} <= train.keys()

    answers = record["cells"][CELLS[2]]
    assert answers["same_greedy_answers"] == "4 of 4" and set(answers["ours"]) >= {"greedy", "4_samples"}
    assert answers["times_faster_than_transformers"].keys() == {"greedy", "4_samples"}

    before = file.read_bytes()  # what is recorded is not measured again
    assert "4 cells" in run("gpu.py", "--toy", "--cells", *CELLS, "--minutes", "60", "--results", str(file))
    assert json.loads(before)["cells"] == json.loads(file.read_text(encoding="utf-8"))["cells"]


def test_a_cell_for_which_there_is_no_time_is_left_for_the_next_run(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    calls, saved = [], []
    clock = iter([0.0, 1.0, 1.0, 1.0, 51.0, 51.0, 52.0])  # the first cell takes 50 of the 100 seconds
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(gpu, "run_side", lambda cell, side, seconds, toy: calls.append((cell, side)) or {"failed": "x"})
    gpu.measure(
        {"cells": {}}, ["packs-toy-short", "packs-toy-long"], 100.0, True, lambda r: saved.append(list(r["cells"]))
    )
    assert calls == [("packs-toy-short", "both")] and saved == [["packs-toy-short"]]
    assert "packs-toy-long: not measured, 48 s are left" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(), reason="needs a CUDA build and no GPU")
def test_no_tensor_stays_on_the_cpu(tmp_path) -> None:
    assert (
        run("fake_cuda.py", "--results", str(tmp_path / "fake_cuda.json")).count("no tensor on the wrong device") == 4
    )

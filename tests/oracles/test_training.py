"""Runs start at the reference, and a run that was killed or interrupted ends in the same bits as one left alone."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dpo_workbench as dw

SCRIPT = Path(__file__).with_name("killed_runs.py")
CONFIG = dw.TrainConfig(lr=2e-2, batch_size=4, epochs=6, rank=4, alpha=8, probes=0, held_out=0.0, nll_weight=0.0)


@pytest.mark.parametrize("start", ["fresh", "fine-tuned", "adapter that changes much"])
def test_a_run_starts_at_log_2_and_margin_0(tiny, moved, toy_pairs, start: str) -> None:
    model = moved if start.startswith("adapter") else tiny
    if start == "fine-tuned":
        model = dw.sft(tiny, toy_pairs, replace(CONFIG, epochs=3, lr=1e-2), show=False).model
    run = dw.train(model, toy_pairs, CONFIG, show=False)
    first, last = run.history[0], run.history[-1]
    assert first["step"] == 1 and len(run.history) == 18
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert last["loss"] < 0.65 and last["rewards/margins"] > 0.1  # negative control: these values can move
    if start != "fresh":
        assert max((v - w).abs().max() for v, w in zip(*map(_tensors, (model, run.model)), strict=True)) > 0


def _tensors(model) -> list[torch.Tensor]:
    return [values for _, values in sorted(model.adapter_tensors().items())]


@pytest.fixture(scope="module")
def ends(tiny_folder, tmp_path_factory) -> dict:
    """What killed_runs.py tells of its cases."""
    work = tmp_path_factory.mktemp("runs")
    package = Path(importlib.util.find_spec("dpo_workbench").origin).parents[1]
    env = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, SCRIPT, tiny_folder, work], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_killed_run_goes_on_and_ends_in_the_same_bits(ends, share: float) -> None:
    whole, resumed = ends["whole"], ends[f"killed in a probe at {share}"]
    assert resumed["ends"] == [signal.SIGKILL]
    assert resumed["finished"] and resumed["history"] == whole["history"]
    assert resumed["adapter"] == whole["adapter"]
    assert resumed["scored"] < whole["scored"]  # it went on, and did not begin again


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bits(ends) -> None:
    whole, resumed = ends["whole"], ends["interrupted"]
    assert resumed["ends"] == [0] and resumed["scored"] < whole["scored"]
    assert (resumed["adapter"], resumed["history"]) == (whole["adapter"], whole["history"])


def test_a_run_killed_at_four_random_moments_ends_in_the_same_bits(ends) -> None:
    whole, resumed = ends["whole"], ends["killed at any moment"]
    assert signal.SIGKILL in resumed["ends"]
    assert (resumed["adapter"], resumed["history"]) == (whole["adapter"], whole["history"])


def test_another_seed_ends_in_other_bits(tiny, toy_pairs) -> None:
    """Negative control: the bits that are compared above depend on the run."""
    one, same, other = (
        _tensors(dw.train(tiny, toy_pairs, replace(CONFIG, epochs=1, seed=seed), show=False).model)
        for seed in (0, 0, 1)
    )
    assert all(map(torch.equal, one, same)) and not all(map(torch.equal, one, other))

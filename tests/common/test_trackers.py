"""Metrics that go to a tracker: TRL's names, every step, and no run lost for a tracker's sake."""

from __future__ import annotations

import importlib
import inspect
import json
import struct
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_workbench.common import trackers
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training import loop
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import sft, train

CONFIG = TrainConfig(lr=1e-3, batch_size=4, epochs=2, probes=2, held_out=0.2, report_to="trackio")
FAKE = '''
"""A tracker that writes what it gets into a file, with the calls that accelerate makes."""
import json
from pathlib import Path

LOG = Path({log!r})

def write(**entry):
    with LOG.open("a") as file:
        file.write(json.dumps(entry) + "\\n")

class Run:
    def log(self, values, step=None):
        if {fails_at} == step:
            raise ConnectionError("the network is down")
        write(step=step, **values)

    def finish(self):
        write(finished=True)

class config:
    @staticmethod
    def update(values, allow_val_change=False):
        write(config=values)

def init(**options):
    if {fails_at} < 0:
        raise ValueError("nobody is logged in")
    write(options=options)
    return Run()
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Installs the fake as a package; gives a function that reads its file."""

    def install(name: str = "trackio", fails_at: int = 10**9) -> None:
        text = FAKE.format(log=str(tmp_path / "log.jsonl"), fails_at=fails_at)
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()

    def read() -> list[dict]:
        return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    install.read = read
    return install


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_steps_and_probes_by_trls_names(tiny, toy_pairs, fake, name) -> None:
    fake(name)
    run = train(tiny, toy_pairs, replace(CONFIG, report_to=name), show=False)
    start, config, *entries, end = fake.read()
    assert start["options"]["project"] == "dpo-workbench" and start["options"]["name"].startswith("dpo-")
    assert config["config"]["lr"] == 1e-3 and end == {"finished": True}
    steps = [entry for entry in entries if "train/loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6] == [h["step"] for h in run.history]
    assert steps[-1]["train/rewards/margins"] == run.history[-1]["rewards/margins"]
    probes = [entry for entry in entries if "eval/score" in entry]
    assert [entry["step"] for entry in probes] == [0, 3, 6] and "eval/failed" in probes[0]
    assert probes[-1]["eval/rewards/chosen"] == pytest.approx(CONFIG.beta * run.probes[-1]["chosen_logratio"])
    assert {"eval/rewards/margins", "eval/rewards/rejected", "eval/rewards/accuracies"} <= probes[-1].keys()
    assert [entry["step"] for entry in entries] == sorted(entry["step"] for entry in entries)


def test_the_names_are_those_of_trls_log() -> None:
    from transformers.integrations.integration_utils import rewrite_logs
    from trl import DPOTrainer

    source = inspect.getsource(DPOTrainer)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert name in source
    assert set(rewrite_logs({"loss": 1, "eval_rewards/chosen": 1})) == {"train/loss", "eval/rewards/chosen"}


def test_it_is_off_by_default_and_changes_nothing(tiny, toy_pairs, fake, tmp_path) -> None:
    fake()
    silent = train(tiny, toy_pairs, replace(CONFIG, report_to=TrainConfig().report_to), show=False)
    assert not (tmp_path / "log.jsonl").exists()
    assert train(tiny, toy_pairs, CONFIG, show=False).history == silent.history


def test_a_resumed_run_sends_its_earlier_steps_too(tiny, toy_pairs, fake, tmp_path, monkeypatch) -> None:
    fake()
    honest, calls = loop.train_step, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 5:  # the last checkpoint is after the probe at step 3
            raise RuntimeError
        return honest(*args)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(loop, "train_step", stopped)
        train(tiny, toy_pairs, CONFIG, folder=tmp_path / "run", show=False)
    train(tiny, toy_pairs, CONFIG, folder=tmp_path / "run", show=False)
    log = fake.read()
    starts = [entry["options"] for entry in log if "options" in entry]
    assert len(starts) == 2 and all(start["name"].startswith("run-") for start in starts) and starts[0] != starts[1]
    second = log[next(k for k, entry in enumerate(log) if entry.get("options") == starts[1]) :]
    assert [entry["step"] for entry in second if "train/loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in second if "eval/score" in entry] == [0, 3, 6]


def test_a_tracker_that_fails_costs_one_warning(tiny, toy_pairs, fake) -> None:
    fake(fails_at=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(tiny, toy_pairs, CONFIG, show=False)
    told = [str(w.message) for w in caught if "trackio" in str(w.message)]
    assert len(told) == 1 and "ConnectionError: the network is down" in told[0] and "Training goes on" in told[0]
    assert len(run.history) == 6 and run.finished
    assert max(entry.get("step", 0) for entry in fake.read()) == 1


def test_a_tracker_that_does_not_start_is_an_error(tiny, toy_pairs, fake) -> None:
    fake(fails_at=-1)
    with pytest.raises(WorkbenchError, match="'trackio' must start. It says: ValueError: nobody is logged in"):
        train(tiny, toy_pairs, CONFIG, show=False)


@pytest.mark.parametrize("fit", [train, sft])
def test_a_package_that_is_missing_is_named_before_training(tiny, toy_pairs, monkeypatch, fit) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match="needs the package tensorboard or tensorboardX. Type: pip install"):
        fit(tiny, toy_pairs, replace(CONFIG, report_to="tensorboard"), show=False)


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="`report_to` must be one of none, trackio, wandb, tensorboard. Got 'tb'"):
        TrainConfig(report_to="tb")


def scalars(folder: Path) -> list[tuple[str, int]]:
    """Name and step of each scalar in TensorBoard's files: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in folder.rglob("events*"):
        data = file.read_bytes()
        while data:
            size = struct.unpack("<Q", data[:8])[0]
            event = Event.FromString(data[12 : 12 + size])
            found += [(value.tag, event.step) for value in event.summary.value if value.HasField("simple_value")]
            data = data[16 + size :]
    return found


def test_tensorboard_files_hold_the_metrics(tiny, toy_pairs, tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    train(tiny, toy_pairs, replace(CONFIG, report_to="tensorboard"), folder=tmp_path / "run", show=False)
    found = scalars(tmp_path / "run" / "tensorboard")
    assert [step for name, step in found if name == "train/rewards/margins"] == [1, 2, 3, 4, 5, 6]
    assert [step for name, step in found if name == "eval/score"] == [0, 3, 6]

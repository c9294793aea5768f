"""Checkpoints: adapter, optimizer state, step and history. A checkpoint is complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dpo_workbench.common.files import replace_folder, write_json

KEPT = 2
TENSORS = ("adapter", "best_adapter", "optimizer")
FILES = (*(f"{name}.safetensors" for name in TENSORS), "state.json")

Tensors = dict[str, dict[str, torch.Tensor]]  # those of `TENSORS`, by name
Facts = dict[str, Any]  # step, history, probes, best step, loss scale and others: plain values


def run_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """The folder for checkpoints of a run with these settings. Runs with other settings get other folders."""
    return folder / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def save_checkpoint(folder: Path, tensors: Tensors, facts: Facts, settings: dict[str, Any]) -> None:
    """Write `folder/HASH/step-N` in one step, then delete all but the last two checkpoints of this run.

    The state of random generators is not saved: the order of rows and the learning rate follow from the step, and
    nothing in the loop draws from global generators. `settings` identify the run: its config, data and model.
    """
    own = run_folder(folder, settings)
    if not (own / "settings.json").is_file():
        write_json(own / "settings.json", settings)
    with replace_folder(own / f"step-{facts['step']:06d}") as fresh:
        for name in TENSORS:
            save_file(tensors[name], fresh / f"{name}.safetensors")
        (fresh / "state.json").write_text(json.dumps(facts), encoding="utf-8")
        sums = {name: _sha256(fresh / name) for name in FILES}
        (fresh / "MANIFEST.json").write_text(json.dumps(sums), encoding="utf-8")
    for old in _checkpoints(own)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, settings: dict[str, Any]) -> tuple[Tensors, Facts] | None:
    """The newest complete checkpoint of this very run, or None. A damaged one is skipped with a printed line."""
    own = run_folder(folder, settings)
    for stray in own.glob(".*step-*"):  # left by a save that was killed
        shutil.rmtree(stray, ignore_errors=True)
    for path in reversed(_checkpoints(own)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError) as error:
            print(f"{path} is damaged ({error}): skipped")
    if not own.is_dir():
        for other in sorted(folder.glob("*/settings.json")):
            there = json.loads(other.read_text(encoding="utf-8"))
            keys = [key for key in {**there, **settings} if there.get(key) != settings.get(key)]
            told = ", ".join(f"{key}: {there.get(key)} there, {settings.get(key)} here" for key in keys)
            print(f"{other.parent} belongs to a run with other settings ({told}): not used")
    return None


def _checkpoints(own: Path) -> list[Path]:
    """The run's checkpoints in the order of their steps."""
    return sorted(own.glob("step-" + 6 * "[0-9]"))


def _read(path: Path) -> tuple[Tensors, Facts]:
    sums = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    for name in FILES:
        if _sha256(path / name) != sums[name]:
            raise ValueError(f"{name} is damaged")
    tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSORS}
    return tensors, json.loads((path / "state.json").read_text(encoding="utf-8"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as named tensors: `0.exp_avg`, `0.exp_avg_sq`, `0.step`, ..."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value.clone().contiguous() for i, row in state.items() for key, value in row.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load what `pack_optimizer` returned into an optimizer."""
    rows: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        rows[int(number)][key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(rows)})

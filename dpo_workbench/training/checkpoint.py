"""Checkpoints of a run: adapter, optimizer state, step and history. A checkpoint is complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dpo_workbench.common.files import replace_folder

KEPT = 2
TENSORS = ("adapter", "best_adapter", "optimizer")
FILES = (*(f"{name}.safetensors" for name in TENSORS), "state.json")


@dataclass
class Checkpoint:
    """Everything that a run needs to continue in the same bits.

    The order of rows and the learning rate follow from the step, and nothing in the loop draws from global random
    generators, so their state is not needed.
    """

    step: int
    adapter: dict[str, torch.Tensor]
    best_adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    facts: dict[str, Any]  # history, probes, best step: plain values
    machine: dict[str, Any] = field(default_factory=dict)  # versions, threads: if they differ, the last bits may too


def run_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """The folder for checkpoints of a run with these settings. Runs with other settings get other folders."""
    return folder / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def save_checkpoint(folder: Path, state: Checkpoint, settings: dict[str, Any]) -> None:
    """Write `folder/HASH/step-N` in one step, then delete all but the last two checkpoints of this run.

    Args:
        folder: holds the checkpoints of all runs.
        state: what to save.
        settings: plain values that identify the run: its config, data and model.
    """
    own = run_folder(folder, settings)
    with replace_folder(own / f"step-{state.step:06d}") as fresh:
        for name in TENSORS:
            save_file(getattr(state, name), fresh / f"{name}.safetensors")
        plain = {key: value for key, value in vars(state).items() if key not in TENSORS}
        (fresh / "state.json").write_text(json.dumps({**plain, "settings": settings}), encoding="utf-8")
        sums = {name: _sha256(fresh / name) for name in FILES}
        (fresh / "MANIFEST.json").write_text(json.dumps(sums), encoding="utf-8")
    for old in _checkpoints(own)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, settings: dict[str, Any], adapter: dict[str, torch.Tensor], parameters: Sequence[torch.Tensor]
) -> Checkpoint | None:
    """The newest complete checkpoint of this very run, or None. A damaged one is skipped with a printed line.

    Args:
        folder, settings: as in `save_checkpoint`.
        adapter: weights of the run's adapter; a checkpoint's tensors must have the same names and shapes.
        parameters: the same weights in the optimizer's order.
    """
    own = run_folder(folder, settings)
    for stray in own.glob(".*step-*"):  # left by a save that was killed
        shutil.rmtree(stray, ignore_errors=True)
    for path in reversed(_checkpoints(own)):
        try:
            return _read(path, adapter, parameters)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            print(f"{path} is damaged ({error}): skipped")
    if not own.is_dir():
        for other in sorted({path.parent for path in folder.glob("*/step-*")}):
            print(f"{other} belongs to a run with other settings{_difference(other, settings)}: not used")
    return None


def _checkpoints(own: Path) -> list[Path]:
    """The run's checkpoints in the order of their steps."""
    found = [path for path in own.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _read(path: Path, adapter: dict[str, torch.Tensor], parameters: Sequence[torch.Tensor]) -> Checkpoint:
    sums = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    for name in FILES:
        if _sha256(path / name) != sums[name]:
            raise ValueError(f"{name} is damaged")
    saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
    del saved["settings"]
    saved |= {name: load_file(path / f"{name}.safetensors") for name in TENSORS}
    state = Checkpoint(**saved)
    weights = {key: value.shape for key, value in adapter.items()}
    moments = {f"{i}.{key}": p.shape for i, p in enumerate(parameters) for key in ("exp_avg", "exp_avg_sq")}
    steps = {f"{i}.step": torch.Size() for i in range(len(parameters))}
    want = {"adapter": weights, "best_adapter": weights, "optimizer": {**moments, **steps} if state.step else {}}
    for name, shapes in want.items():
        if {key: value.shape for key, value in getattr(state, name).items()} != shapes:
            raise ValueError(f"the tensors of {name}.safetensors are not this model's")
    return state


def _difference(other: Path, settings: dict[str, Any]) -> str:
    """How the settings of another run's newest checkpoint differ, such as ` (lr: 0.1 there, 0.2 here)`."""
    try:
        there = json.loads((_checkpoints(other)[-1] / "state.json").read_text(encoding="utf-8"))["settings"]
        return differences(there, settings)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """` (lr: 0.1 there, 0.2 here)`, or "" for equal settings."""
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    said = ", ".join(f"{key}: {there.get(key)} there, {here.get(key)} here" for key in keys)
    return f" ({said})" if said else ""


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as named tensors: `0.exp_avg`, `0.exp_avg_sq`, `0.step`, ..."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value.clone().contiguous() for i, row in state.items() for key, value in row.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load what `pack_optimizer` returned into an optimizer."""
    whole = optimizer.state_dict()
    rows: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        rows.setdefault(int(number), {})[key] = value
    whole["state"] = rows
    optimizer.load_state_dict(whole)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Checkpoints that are whole or not there, without pickle: adapter, optimiser, step and history."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dpo_workbench.runtime.run_folder import replace_folder

KEPT = 2


@dataclass
class State:
    """All that a run needs to go on in the same bits; the order of rows follows from the step alone."""

    step: int
    adapter: dict[str, torch.Tensor]
    best_adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    facts: dict[str, Any]  # history, probes, best score: plain values


def save_checkpoint(folder: Path, state: State, identity: str) -> None:
    """Write `folder/step-N` in one step, then drop all but the last two.

    Args:
        folder: of the run's checkpoints.
        state: what to keep.
        identity: hash of config, data and model; a run goes on only from its own checkpoints.
    """
    with replace_folder(folder / f"step-{state.step:06d}") as fresh:
        for name in ("adapter", "best_adapter", "optimizer"):
            save_file(getattr(state, name), fresh / f"{name}.safetensors")
        facts = {"step": state.step, "identity": identity, "facts": state.facts}
        (fresh / "state.json").write_text(json.dumps(facts), encoding="utf-8")
        sums = {p.name: _sha256(p) for p in sorted(fresh.iterdir())}
        (fresh / "MANIFEST.json").write_text(json.dumps(sums), encoding="utf-8")
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, identity: str) -> State | None:
    """The newest whole checkpoint of this very run, or None. A damaged one is passed over with one line."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            sums = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
            broken = [name for name, want in sums.items() if _sha256(path / name) != want]
            if broken:
                raise ValueError(f"{broken[0]} is damaged")
            saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if saved["identity"] != identity:
                print(f"{path} belongs to other settings, data or versions: passed over")
                continue
            tensors = [load_file(path / f"{name}.safetensors") for name in ("adapter", "best_adapter", "optimizer")]
            return State(saved["step"], tensors[0], tensors[1], tensors[2], saved["facts"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            print(f"{path} is not whole ({error}): passed over")
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as named tensors: `0.exp_avg`, `0.exp_avg_sq`, `0.step`, ..."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value.clone().contiguous() for i, row in state.items() for key, value in row.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `pack_optimizer` gave."""
    whole = optimizer.state_dict()
    rows: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        rows.setdefault(int(number), {})[key] = value
    whole["state"] = rows
    optimizer.load_state_dict(whole)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

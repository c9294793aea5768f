"""Checkpoints: complete or skipped, the last two of each run are kept, and no pickle."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training import checkpoint as checkpoints
from dpo_workbench.training.checkpoint import (
    FILES,
    Checkpoint,
    load_checkpoint,
    pack_optimizer,
    run_folder,
    save_checkpoint,
    unpack_optimizer,
)

ME, OTHER = {"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}


def state(step: int) -> Checkpoint:
    torch.manual_seed(step)
    facts = {"history": [{"step": k + 1, "loss": 0.1 * k} for k in range(min(step, 9))], "probes": [], "best_step": 0}
    moments = {"0.exp_avg": torch.randn(3), "0.exp_avg_sq": torch.randn(3), "0.step": torch.tensor(float(step))}
    return Checkpoint(step, {"a": torch.randn(3)}, {"a": torch.randn(3)}, moments, facts, {"torch": "2"})


def load(folder, settings=ME) -> Checkpoint | None:
    return load_checkpoint(folder, settings, {"a": torch.zeros(3)}, [torch.zeros(3)])


def path_of(folder, step: int, settings=ME):
    return run_folder(folder, settings) / f"step-{step:06d}"


def sign_again(path) -> None:
    """A manifest that fits the files as they are: whoever tampers can do that too."""
    sums = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in FILES}
    (path / "MANIFEST.json").write_text(json.dumps(sums))


def test_all_of_it_comes_back(tmp_path) -> None:
    save_checkpoint(tmp_path, state(7), ME)
    got, want = load(tmp_path), state(7)
    assert got is not None and (got.step, got.facts, got.machine) == (7, want.facts, want.machine)
    for part in ("adapter", "best_adapter", "optimizer"):
        assert all(torch.equal(v, getattr(got, part)[k]) for k, v in getattr(want, part).items())
    assert not torch.equal(got.adapter["a"], got.best_adapter["a"])
    names = {p.name for p in path_of(tmp_path, 7).iterdir()}
    assert names == {*FILES, "MANIFEST.json"} and {n.split(".")[1] for n in names} == {"json", "safetensors"}


def test_before_the_first_step_the_optimiser_is_empty(tmp_path) -> None:
    fresh = state(0)
    fresh.optimizer = {}
    save_checkpoint(tmp_path, fresh, ME)
    assert load(tmp_path).optimizer == {}


def test_the_last_two_are_kept_in_the_order_of_steps(tmp_path) -> None:
    for step in (2, 9, 10, 1_000_000, 999_999):
        save_checkpoint(tmp_path, state(step), ME)
    own = run_folder(tmp_path, ME)
    assert sorted(p.name for p in own.iterdir()) == ["step-1000000", "step-999999"]
    assert load(tmp_path).step == 1_000_000


def test_nothing_there(tmp_path) -> None:
    assert load(tmp_path / "none") is None


def test_another_runs_checkpoints_are_neither_taken_nor_lost(tmp_path, capsys) -> None:
    for step in (98, 99):
        save_checkpoint(tmp_path, state(step), OTHER)
    assert load(tmp_path) is None
    assert "belongs to a run with other settings (lr: 0.2 there, 0.1 here): not used" in capsys.readouterr().out
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), ME)
    assert load(tmp_path).step == 3 and load(tmp_path, OTHER).step == 99
    assert capsys.readouterr().out == ""


def test_foreign_files_are_left_alone(tmp_path) -> None:
    own = run_folder(tmp_path, ME)
    (own / "step-old").mkdir(parents=True)
    (own / "step-000009 copy").mkdir()
    (own / "notes.txt").write_text("mine")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), ME)
    (path_of(tmp_path, 3) / ".DS_Store").write_text("x")
    assert load(tmp_path).step == 3
    left = sorted(p.name for p in own.iterdir())
    assert left == ["notes.txt", "step-000002", "step-000003", "step-000009 copy", "step-old"]


def test_leavings_of_a_killed_save_are_swept(tmp_path) -> None:
    save_checkpoint(tmp_path, state(1), ME)
    stray = run_folder(tmp_path, ME) / ".step-000002.abc"
    stray.mkdir()
    (stray / "adapter.safetensors").write_bytes(b"half")
    assert load(tmp_path).step == 1 and not stray.exists()


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damaged_newest_is_skipped(tmp_path, capsys, name: str, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), ME)
    path = path_of(tmp_path, 2) / name
    raw = path.read_bytes()
    new = {"flip": raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:], "cut": raw[: len(raw) // 2], "gone": None, "empty": b""}[
        damage
    ]
    path.unlink() if new is None else path.write_bytes(new)
    assert load(tmp_path).step == 1
    out = capsys.readouterr().out
    assert "step-000002 is damaged" in out and "skipped" in out and out.count("\n") == 1


def tamper_shape(path) -> None:
    save_file({"a": torch.zeros(4)}, path / "adapter.safetensors")


def tamper_name(path) -> None:
    save_file({"b": torch.zeros(3)}, path / "best_adapter.safetensors")


def tamper_moments(path) -> None:
    save_file({"0.exp_avg": torch.zeros(3), "0.step": torch.tensor(1.0)}, path / "optimizer.safetensors")


def tamper_state(path) -> None:
    saved = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(saved | {"more": 1}))


@pytest.mark.parametrize("tamper", [tamper_shape, tamper_name, tamper_moments, tamper_state, lambda path: None])
def test_a_tampered_checkpoint_with_a_fitting_manifest_is_skipped(tmp_path, capsys, tamper) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), ME)
    tamper(path_of(tmp_path, 2))
    sign_again(path_of(tmp_path, 2))
    harmless = tamper.__name__ == "<lambda>"  # negative control
    assert load(tmp_path).step == (2 if harmless else 1)
    assert ("is damaged" in capsys.readouterr().out) != harmless


def test_a_manifest_neither_leaves_files_out_nor_leads_elsewhere(tmp_path) -> None:
    save_checkpoint(tmp_path, state(1), ME)
    manifest = path_of(tmp_path, 1) / "MANIFEST.json"
    sums = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({k: v for k, v in sums.items() if k != "adapter.safetensors"}))
    assert load(tmp_path) is None  # the file is sound, and not vouched for
    manifest.write_text(json.dumps(sums | {"../../../secret": "0"}))  # never read
    assert load(tmp_path).step == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_while_writing_leaves_the_last_one(tmp_path, monkeypatch, error: BaseException) -> None:
    save_checkpoint(tmp_path, state(1), ME)
    monkeypatch.setattr(checkpoints, "save_file", lambda *a: (_ for _ in ()).throw(error))
    with pytest.raises((KeyboardInterrupt, WorkbenchError)):
        save_checkpoint(tmp_path, state(2), ME)
    assert [p.name for p in run_folder(tmp_path, ME).iterdir()] == ["step-000001"]


def test_optimizer_goes_on_in_the_same_bits() -> None:
    def fresh():
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3))
        return weight, torch.optim.AdamW([weight], lr=0.1)

    def step(weight, optimizer, k: int) -> None:
        weight.grad = torch.full_like(weight, float(k + 1)) * weight.detach()
        optimizer.step()

    whole, optimizer = fresh()
    for k in range(4):
        step(whole, optimizer, k)
    first, stopped = fresh()
    for k in range(2):
        step(first, stopped, k)
    packed = pack_optimizer(stopped)
    assert set(packed) == {"0.exp_avg", "0.exp_avg_sq", "0.step"}
    second, again = fresh()
    second.data = first.data.clone()
    unpack_optimizer(again, packed)
    forgetful = torch.nn.Parameter(first.data.clone())
    cold = torch.optim.AdamW([forgetful], lr=0.1)
    for k in range(2, 4):
        step(second, again, k)
        step(forgetful, cold, k)
    assert torch.equal(second, whole)
    assert not torch.equal(forgetful, whole)  # negative control: without the optimiser's state it is another run

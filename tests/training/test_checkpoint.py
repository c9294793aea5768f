"""Checkpoints: complete or skipped, the last two of each run are kept, and no pickle."""

import json

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training import checkpoint as checkpoints
from dpo_workbench.training.checkpoint import (
    FILES,
    load_checkpoint,
    pack_optimizer,
    run_folder,
    save_checkpoint,
    unpack_optimizer,
)

ME, OTHER = {"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}


def state(step: int) -> tuple[dict, dict]:
    torch.manual_seed(step)
    facts = {
        "step": step,
        "history": [{"step": k + 1, "loss": 0.1 * k} for k in range(min(step, 9))],
        "probes": [],
        "best_step": 0,
    }
    moments = {"0.exp_avg": torch.randn(3), "0.exp_avg_sq": torch.randn(3), "0.step": torch.tensor(float(step))}
    tensors = {"adapter": {"a": torch.randn(3)}, "best_adapter": {"a": torch.randn(3)}, "optimizer": moments}
    return tensors, facts


def save(folder, step: int, settings=ME) -> None:
    save_checkpoint(folder, *state(step), settings)


def step_of(folder, settings=ME) -> int | None:
    found = load_checkpoint(folder, settings)
    return found[1]["step"] if found else None


def path_of(folder, step: int, settings=ME):
    return run_folder(folder, settings) / f"step-{step:06d}"


def test_all_of_it_comes_back(tmp_path) -> None:
    save(tmp_path, 7)
    (tensors, facts), (want, want_facts) = load_checkpoint(tmp_path, ME), state(7)
    assert facts == want_facts and tensors.keys() == want.keys() == {"adapter", "best_adapter", "optimizer"}
    for part, values in want.items():
        assert tensors[part].keys() == values.keys()
        assert all(torch.equal(value, tensors[part][key]) for key, value in values.items())
    assert not torch.equal(tensors["adapter"]["a"], tensors["best_adapter"]["a"])
    names = {p.name for p in path_of(tmp_path, 7).iterdir()}
    assert names == {*FILES, "MANIFEST.json"} and {n.split(".")[1] for n in names} == {"json", "safetensors"}


def test_before_the_first_step_the_optimiser_is_empty(tmp_path) -> None:
    tensors, facts = state(0)
    save_checkpoint(tmp_path, tensors | {"optimizer": {}}, facts, ME)
    assert load_checkpoint(tmp_path, ME)[0]["optimizer"] == {}


def test_the_last_two_are_kept_in_the_order_of_steps(tmp_path) -> None:
    for step in (2, 9, 10, 100_000, 99_999):
        save(tmp_path, step)
    own = run_folder(tmp_path, ME)
    assert sorted(p.name for p in own.glob("step-*")) == ["step-099999", "step-100000"]
    assert step_of(tmp_path) == 100_000


def test_nothing_there(tmp_path) -> None:
    assert step_of(tmp_path / "none") is None


def test_another_runs_checkpoints_are_neither_taken_nor_lost(tmp_path, capsys) -> None:
    for step in (98, 99):
        save(tmp_path, step, OTHER)
    assert step_of(tmp_path) is None
    assert "belongs to a run with other settings (lr: 0.2 there, 0.1 here): not used" in capsys.readouterr().out
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert step_of(tmp_path) == 3 and step_of(tmp_path, OTHER) == 99
    assert capsys.readouterr().out == ""


def test_foreign_files_are_left_alone(tmp_path) -> None:
    own = run_folder(tmp_path, ME)
    (own / "step-old").mkdir(parents=True)
    (own / "step-000009 copy").mkdir()
    (own / "notes.txt").write_text("mine")
    for step in (1, 2, 3):
        save(tmp_path, step)
    (path_of(tmp_path, 3) / ".DS_Store").write_text("x")
    assert step_of(tmp_path) == 3
    left = sorted(p.name for p in own.iterdir())
    assert left == ["notes.txt", "settings.json", "step-000002", "step-000003", "step-000009 copy", "step-old"]


def test_leavings_of_a_killed_save_are_swept(tmp_path) -> None:
    save(tmp_path, 1)
    stray = run_folder(tmp_path, ME) / ".step-000002.abc"
    stray.mkdir()
    (stray / "adapter.safetensors").write_bytes(b"half")
    assert step_of(tmp_path) == 1 and not stray.exists()


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damaged_newest_is_skipped(tmp_path, capsys, name: str, damage: str) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    path = path_of(tmp_path, 2) / name
    raw = path.read_bytes()
    new = {"flip": raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:], "cut": raw[: len(raw) // 2], "gone": None, "empty": b""}[
        damage
    ]
    path.unlink() if new is None else path.write_bytes(new)
    assert step_of(tmp_path) == 1
    out = capsys.readouterr().out
    assert "step-000002 is damaged" in out and "skipped" in out and out.count("\n") == 1


def test_a_manifest_neither_leaves_files_out_nor_leads_elsewhere(tmp_path) -> None:
    save(tmp_path, 1)
    manifest = path_of(tmp_path, 1) / "MANIFEST.json"
    sums = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({k: v for k, v in sums.items() if k != "adapter.safetensors"}))
    assert step_of(tmp_path) is None  # the file is sound, and not vouched for
    manifest.write_text(json.dumps(sums | {"../../../secret": "0"}))  # never read
    assert step_of(tmp_path) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_while_writing_leaves_the_last_one(tmp_path, monkeypatch, error: BaseException) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoints, "save_file", lambda *a: (_ for _ in ()).throw(error))
    with pytest.raises((KeyboardInterrupt, WorkbenchError)):
        save(tmp_path, 2)
    assert [p.name for p in run_folder(tmp_path, ME).glob("*step*")] == ["step-000001"]


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

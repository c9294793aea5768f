"""Checkpoints: whole or passed over, the last two kept, and no pickle."""

import json

import pytest
import torch

from dpo_workbench.training import checkpoints
from dpo_workbench.training.checkpoints import State, load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer


def state(step: int) -> State:
    torch.manual_seed(step)
    facts = {"history": [{"step": k + 1, "loss": 0.1 * k} for k in range(step)], "probes": [], "best_step": 0}
    return State(step, {"a": torch.randn(3)}, {"a": torch.randn(3)}, {"0.step": torch.tensor(float(step))}, facts)


def test_all_of_it_comes_back(tmp_path) -> None:
    save_checkpoint(tmp_path, state(7), "me")
    got, want = load_checkpoint(tmp_path, "me"), state(7)
    assert got is not None and (got.step, got.facts) == (want.step, want.facts)
    for part in ("adapter", "best_adapter", "optimizer"):
        assert all(torch.equal(v, getattr(got, part)[k]) for k, v in getattr(want, part).items())
    assert not torch.equal(got.adapter["a"], got.best_adapter["a"])
    names = {p.name for p in (tmp_path / "step-000007").iterdir()}
    assert names == {
        "adapter.safetensors",
        "best_adapter.safetensors",
        "optimizer.safetensors",
        "state.json",
        "MANIFEST.json",
    }


def test_the_last_two_are_kept_in_the_order_of_steps(tmp_path) -> None:
    for step in (2, 9, 10, 100):
        save_checkpoint(tmp_path, state(step), "me")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000100"]
    assert load_checkpoint(tmp_path, "me").step == 100


def test_nothing_there(tmp_path) -> None:
    assert load_checkpoint(tmp_path / "none", "me") is None


def test_another_runs_checkpoint_is_not_taken(tmp_path, capsys) -> None:
    save_checkpoint(tmp_path, state(3), "other")
    assert load_checkpoint(tmp_path, "me") is None
    assert "belongs to other settings" in capsys.readouterr().out
    assert load_checkpoint(tmp_path, "other").step == 3  # negative control


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damaged_newest_is_passed_over(tmp_path, capsys, name: str, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), "me")
    path = tmp_path / "step-000002" / name
    raw = path.read_bytes()
    new = {"flip": raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:], "cut": raw[: len(raw) // 2], "gone": None, "empty": b""}[
        damage
    ]
    path.unlink() if new is None else path.write_bytes(new)
    assert load_checkpoint(tmp_path, "me").step == 1
    out = capsys.readouterr().out
    assert "step-000002 is not whole" in out and "passed over" in out and "step-000001" not in out


def test_manifest_without_the_file_is_not_whole(tmp_path) -> None:
    save_checkpoint(tmp_path, state(1), "me")
    manifest = tmp_path / "step-000001" / "MANIFEST.json"
    sums = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({k: v for k, v in sums.items() if k != "adapter.safetensors"}))
    (tmp_path / "step-000001" / "adapter.safetensors").write_bytes(b"not tensors at all")
    assert load_checkpoint(tmp_path, "me") is None


def test_an_error_while_writing_leaves_the_last_one(tmp_path, monkeypatch) -> None:
    save_checkpoint(tmp_path, state(1), "me")
    monkeypatch.setattr(checkpoints, "save_file", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state(2), "me")
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


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

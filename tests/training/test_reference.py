"""Reference values: cached under all they depend on, computed again when damaged, checked at the first step."""

from dataclasses import replace

import pytest
import torch

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.interrupts import Interrupts
from dpo_workbench.training import loop, losses, packing, reference
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.losses import PairLogps, Preference, check_start
from dpo_workbench.training.packing import pack
from dpo_workbench.training.reference import choose_packing, reference_logps
from dpo_workbench.training.run import train
from dpo_workbench.training.tokens import pair_texts, tokenize

CONFIG = TrainConfig(batch_size=5, micro_tokens=150)


@pytest.fixture
def rows(moved, toy_pairs):
    return tokenize(moved, map(pair_texts, toy_pairs), 200)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many micro-batches were computed."""
    calls: list[int] = []
    monkeypatch.setattr(reference, "answer_logps", lambda n, b: calls.append(1) or answer_logps(n, b))
    return calls


def test_values_are_those_of_the_model_it_is_given(moved, tiny, rows) -> None:
    got, base = (reference_logps(m, rows, CONFIG, None) for m in (moved, tiny))
    with moved.active() as network, torch.no_grad():
        for row in rows:
            assert answer_logps(network, pack([row])).tolist() == pytest.approx(got[row.id], abs=1e-4)
    assert set(got) == {row.id for row in rows} and all(abs(got[i][0] - base[i][0]) > 1e-3 for i in got)


def test_cache_is_hit(moved, rows, tmp_path, counted) -> None:
    first = reference_logps(moved, rows, CONFIG, tmp_path)
    n = len(counted)
    assert n > 1 and reference_logps(moved, rows, CONFIG, tmp_path) == first and len(counted) == n


@pytest.mark.parametrize("what", ["model", "adapter", "rows", "seed", "batch_size", "micro_tokens", "packing"])
def test_cache_is_not_hit_by_anything_else(moved, tiny, rows, tmp_path, counted, what: str) -> None:
    reference_logps(moved, rows, CONFIG, tmp_path)
    n, model, config = len(counted), moved, CONFIG
    if what == "model":
        model = tiny
    elif what == "adapter":
        model = moved.with_new_adapter()
        tensors = model.adapter_tensors()
        next(iter(tensors.values())).mul_(1.01)
        model.set_adapter_tensors(tensors)
    elif what == "rows":
        rows = [replace(rows[0], answer_ids=rows[0].answer_ids[::-1]), *rows[1:]]
    else:
        config = replace(CONFIG, **{what: {"seed": 7, "batch_size": 4, "micro_tokens": 151, "packing": False}[what]})
    reference_logps(model, rows, config, tmp_path)
    assert len(counted) > n


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_damaged_cache_is_computed_again(moved, rows, tmp_path, capsys, damage: str) -> None:
    first = reference_logps(moved, rows, CONFIG, tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(path.read_bytes()[:20] if damage == "cut" else b"")
    assert reference_logps(moved, rows, CONFIG, tmp_path) == first
    assert "is damaged: computing it again" in capsys.readouterr().out
    assert reference_logps(moved, rows, CONFIG, tmp_path) == first and not capsys.readouterr().out


def test_rows_are_counted(moved, rows) -> None:
    counts: list[int] = []
    reference_logps(moved, rows, CONFIG, None, counts.append)
    assert sum(counts) == len(rows)


def test_values_that_are_not_finite_are_refused(moved, rows, monkeypatch) -> None:
    monkeypatch.setattr(reference, "answer_logps", lambda n, b: answer_logps(n, b) * float("nan"))
    with pytest.raises(WorkbenchError, match="reference chosen logps must be finite"):
        reference_logps(moved, rows, CONFIG, None)


def test_the_first_step_checks_the_reference_before_its_update(moved, rows) -> None:
    values = reference_logps(moved, rows, CONFIG, None)
    state = loop.TrainState(moved.with_new_adapter(), CONFIG)

    def first_step(values) -> None:
        state.step = 0
        loop.train_step(state, rows, Preference(values, CONFIG), Interrupts())

    before = state.policy.adapter_tensors()
    with pytest.raises(WorkbenchError, match="policy must equal the reference .loss 0.6931.*rows p.*Delete"):
        first_step({i: (c - 1.0, r) for i, (c, r) in values.items()})
    with pytest.raises(WorkbenchError, match="policy must equal the reference"):  # shifts that cancel in the loss
        first_step({i: (c - 1.0, r - 1.0) for i, (c, r) in values.items()})
    assert all(torch.equal(v, before[k]) for k, v in state.policy.adapter_tensors().items())
    first_step(values)
    with pytest.raises(WorkbenchError, match="policy must equal the reference"):  # after a step it is another model
        first_step(values)


def test_only_the_first_step_is_checked(moved, monkeypatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(losses, "check_start", lambda logps, ids, *_: seen.extend(ids))
    pairs = dw.Pairs([dw.Pair(f"p{i}", f"a b {i}", "c d", "e") for i in range(4)])
    train(moved, pairs, TrainConfig(batch_size=2, epochs=2, held_out=0.0, probes=0), show=False)
    assert len(seen) == 2


@pytest.mark.parametrize("folder", [True, False])
def test_values_that_depend_on_the_micro_batch_pass_the_check(moved, monkeypatch, tmp_path, folder: bool) -> None:
    """As in bf16 on some processors: each value is checked in a micro-batch of the size that it comes from."""
    honest = answer_logps
    for module in (losses, reference):
        monkeypatch.setattr(module, "answer_logps", lambda n, b: honest(n, b) + 0.5 * len(b.ids))
    pairs = dw.Pairs([dw.Pair(f"p{i}", f"a b {i}", "c d", "e") for i in range(5)])
    config = TrainConfig(batch_size=2, epochs=1, held_out=0.0, probes=0)
    run = train(moved, pairs, config, folder=tmp_path if folder else None, show=False)
    assert run.history[0]["rewards/chosen"] == 0.0


def test_more_rounding_is_allowed_in_16_bits() -> None:
    def check(gap: float, dtype: torch.dtype) -> None:
        values = [torch.tensor([x]) for x in (-90.0, -80.0, -90.0 - gap, -80.0)]
        check_start(PairLogps(*values, torch.tensor([75]), torch.tensor([60])), ["p"], dtype)

    check(0.84, torch.bfloat16)  # seen on a processor with AMX
    check(0.7, torch.float32)  # 0.01 nats a token
    for gap, dtype in ((0.84, torch.float32), (4.0, torch.bfloat16)):
        with pytest.raises(WorkbenchError, match="policy must equal the reference"):
            check(gap, dtype)


def test_a_model_that_cannot_take_packs_trains_on_plain_sequences(moved, rows, monkeypatch, capsys) -> None:
    """With a plain causal mask a pack is one sequence: the answers attend to each other and to the rows before."""
    assert choose_packing(moved, rows, CONFIG) == CONFIG and capsys.readouterr().out == ""
    want = reference_logps(moved, rows, CONFIG, None)

    def causal(rows, segments):
        return torch.ones(1, 1, len(rows), len(rows), dtype=torch.bool).tril()

    monkeypatch.setattr(packing, "dense_mask", causal)
    plain = choose_packing(moved, rows, CONFIG)
    assert not plain.packing and "cannot take packed rows" in capsys.readouterr().out
    for row_id, values in reference_logps(moved, rows, plain, None).items():
        assert values == pytest.approx(want[row_id], abs=1e-4)
    assert choose_packing(moved, rows, plain) == plain and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("dtype", "nats_a_token", "packing"),
    [
        (torch.float32, 5e-4, True),
        (torch.float32, 0.05, False),
        (torch.bfloat16, 0.25, True),
        (torch.bfloat16, 1, False),
    ],
)
def test_the_check_of_packing_allows_for_the_rounding_of_the_dtype(
    moved, rows, monkeypatch, dtype, nats_a_token, packing
) -> None:
    """smol's bf16 values of few tokens move by up to 0.25 nats each; in fp32 that much is a fault."""
    honest = reference.answer_logps
    monkeypatch.setattr(reference, "answer_logps", lambda n, b: honest(n, b) + nats_a_token)
    monkeypatch.setattr(type(moved), "dtype", property(lambda model: dtype))
    ends = [replace(row, answer_ids=tuple(a[-1:] for a in row.answer_ids)) for row in rows]  # answers of one token
    assert choose_packing(moved, ends, CONFIG).packing is packing


def test_a_window_shorter_than_a_row_switches_packing_off(moved, rows) -> None:
    longest = max(row.n_tokens for row in rows)
    for window, packs in ((longest, True), (longest - 1, False)):
        moved.network.config.sliding_window = window
        assert choose_packing(moved, rows, CONFIG).packing is packs


@pytest.mark.parametrize(
    ("error", "swallowed"),
    [
        (ValueError("too many values to unpack"), True),
        (TypeError("forward() got an unexpected keyword argument"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError(), False),
        (ZeroDivisionError(), False),
    ],
)
def test_out_of_memory_is_not_taken_for_a_model_that_cannot_take_packs(
    moved, rows, monkeypatch, capsys, error: Exception, swallowed: bool
) -> None:
    def fails(network, batch):
        raise error

    monkeypatch.setattr(reference, "answer_logps", fails)
    if swallowed:
        assert not choose_packing(moved, rows, CONFIG).packing
        assert type(error).__name__ in capsys.readouterr().out
    else:
        with pytest.raises(type(error)):
            choose_packing(moved, rows, CONFIG)


def test_an_output_head_that_is_not_known_is_refused(moved, rows, monkeypatch) -> None:
    """Logits that the model changes after its head would be trained on wrong."""
    honest = type(moved._causal()).forward

    def scaled(self, *args, **kwargs):
        output = honest(self, *args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(type(moved._causal()), "forward", scaled)
    for packing_on in (True, False):
        with pytest.raises(WorkbenchError, match="must be those of the model's own logits"):
            choose_packing(moved, rows, replace(CONFIG, packing=packing_on))

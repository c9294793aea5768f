"""Reference values: cached under all they depend on, computed again when damaged, proved at step 0."""

from dataclasses import replace

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training import loop, reference
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import pack
from dpo_workbench.training.reference import prove_packing, prove_start, reference_logps
from dpo_workbench.training.run import _row
from dpo_workbench.training.tokens import tokenize

CONFIG = TrainConfig(batch_size=5, micro_tokens=150)


@pytest.fixture
def rows(moved, toy_pairs):
    return tokenize(moved, map(_row, toy_pairs), 200)


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


@pytest.mark.parametrize("what", ["model", "adapter", "rows", "seed", "micro_tokens"])
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
        config = replace(CONFIG, **{what: 7 if what == "seed" else 151})
    reference_logps(model, rows, config, tmp_path)
    assert len(counted) > n


@pytest.mark.parametrize("damage", ["cut", "empty", "other rows", "other key"])
def test_damaged_cache_is_computed_again(moved, rows, tmp_path, capsys, damage: str) -> None:
    from safetensors.torch import save_file

    first = reference_logps(moved, rows, CONFIG, tmp_path)
    (path,) = tmp_path.glob("*/logps.safetensors")
    if damage == "other rows":
        save_file({"logps": torch.zeros(3, 2)}, path)
    elif damage == "other key":
        save_file({"x": torch.zeros(3, 2)}, path)
    else:
        path.write_bytes(path.read_bytes()[:20] if damage == "cut" else b"")
    assert reference_logps(moved, rows, CONFIG, tmp_path) == first
    assert "is damaged: computed again" in capsys.readouterr().out
    assert reference_logps(moved, rows, CONFIG, tmp_path) == first and not capsys.readouterr().out


def test_rows_are_counted(moved, rows) -> None:
    counts: list[int] = []
    reference_logps(moved, rows, CONFIG, None, counts.append)
    assert sum(counts) == len(rows)


def test_values_that_are_not_finite_are_refused(moved, rows, monkeypatch) -> None:
    monkeypatch.setattr(reference, "answer_logps", lambda n, b: answer_logps(n, b) * float("nan"))
    with pytest.raises(WorkbenchError, match="reference logps must be finite"):
        reference_logps(moved, rows, CONFIG, None)


def test_proof_at_step_0(moved, rows) -> None:
    """In the first step itself, before its update: wrong values leave the adapter as it was."""
    values = reference_logps(moved, rows, CONFIG, None)
    policy = moved.with_new_adapter()

    def step(values) -> None:
        objective = loop.preference_objective(values, CONFIG, rows, policy, prove=prove_start)
        parameters = policy.adapter_parameters()
        with policy.active(trainable=True) as network:
            batches = list(loop.micro_batches(rows, policy, CONFIG))
            loop.train_step(network, batches, objective, parameters, loop.optimizer_for(parameters, CONFIG), CONFIG)

    before = policy.adapter_tensors()
    with pytest.raises(WorkbenchError, match="At step 0 the policy must equal the reference .loss 0.6931.*Delete"):
        step({i: (c - 1.0, r) for i, (c, r) in values.items()})
    with pytest.raises(WorkbenchError, match="At step 0"):  # shifts that cancel in the loss are seen too
        step({i: (c - 1.0, r - 1.0) for i, (c, r) in values.items()})
    assert all(torch.equal(v, before[k]) for k, v in policy.adapter_tensors().items())
    step(values)
    with pytest.raises(WorkbenchError, match="At step 0"):  # after a step it is another model
        step(values)


def test_training_proves_its_start_and_only_its_start(moved, rows, monkeypatch) -> None:
    import dpo_workbench as dw
    from dpo_workbench.training import run

    seen: list[str] = []
    monkeypatch.setattr(run, "prove_start", lambda logps, ids, *_: seen.extend(ids))
    pairs = dw.Pairs([dw.Pair(f"p{i}", "a b", "c d", "e") for i in range(4)])
    run.train(moved, pairs, TrainConfig(batch_size=2, epochs=2, held_out=0.0, probes=0), show=False)
    assert len(seen) == 2


def test_values_that_depend_on_the_pack_do_not_fail_the_proof(moved, monkeypatch, tmp_path) -> None:
    """As products of bf16 do on some processors: each value is proved in a pack of the size that it comes from."""
    import dpo_workbench as dw
    from dpo_workbench.training import run

    honest = loop.answer_logps
    for module in (loop, reference):
        monkeypatch.setattr(module, "answer_logps", lambda n, b: honest(n, b) + 0.5 * len(b.ids))
    pairs = dw.Pairs([dw.Pair(f"p{i}", "a b", "c d", "e") for i in range(4)])
    config = TrainConfig(batch_size=2, epochs=1, held_out=0.0, probes=0)
    once = run.train(moved, pairs, config, show=False)
    assert once.history[0]["rewards/chosen"] == 0.0
    again = run.train(
        moved, pairs, config, folder=tmp_path, show=False
    )  # a pack that may be of the cache is proved too
    assert again.history == once.history
    twice = run.train(moved, pairs, replace(config, epochs=2), show=False)
    assert twice.history[0]["rewards/chosen"] == 0.0
    with pytest.raises(WorkbenchError, match="At step 0"):  # in fp32 so much is no rounding
        run.train(moved, pairs, replace(config, epochs=2, micro_tokens=1), reference=twice.reference, show=False)


def test_held_out_pairs_are_watched_in_the_packs_of_their_reference(moved, rows, monkeypatch) -> None:
    from dpo_workbench.training.run import _held_out_metrics

    for module in (loop, reference):
        monkeypatch.setattr(module, "answer_logps", lambda n, b: answer_logps(n, b) + 0.5 * len(b.ids))
    seen = _held_out_metrics(moved, rows, reference_logps(moved, rows, CONFIG, None), CONFIG)
    assert seen == {"chosen_logratio": 0.0, "rejected_logratio": 0.0}


def test_rounding_to_16_bits_is_allowed_for_where_packs_differ() -> None:
    def prove(gap: float, dtype: torch.dtype) -> None:
        values = [torch.tensor([x]) for x in (-90.0, -80.0, -90.0 - gap, -80.0)]
        prove_start(loop.PairLogps(*values, torch.tensor([75]), torch.tensor([60])), ["p"], CONFIG, dtype)

    prove(0.84, torch.bfloat16)  # seen on a processor with AMX
    for gap, dtype in ((0.84, torch.float32), (4.0, torch.bfloat16)):
        with pytest.raises(WorkbenchError, match="At step 0"):
            prove(gap, dtype)


def test_a_model_that_cannot_take_packs_is_found_out_and_trained_all_the_same(moved, rows, monkeypatch, capsys) -> None:
    """Without its layout a pack is one causal sequence: the answers see each other and the rows before them."""
    assert prove_packing(moved, rows, CONFIG) == CONFIG and capsys.readouterr().out == ""
    want = reference_logps(moved, rows, CONFIG, None)
    monkeypatch.setattr(moved.network.config, "_attn_implementation", "sdpa")
    plain = prove_packing(moved, rows, CONFIG)
    assert not plain.packing and "cannot take packed rows" in capsys.readouterr().out
    for row_id, values in reference_logps(moved, rows, plain, None).items():
        assert values == pytest.approx(want[row_id], abs=1e-4)
    assert prove_packing(moved, rows, plain) == plain


@pytest.mark.parametrize(
    ("dtype", "nats_a_token", "packing"),
    [
        (torch.float32, 5e-4, True),
        (torch.float32, 0.05, False),
        (torch.bfloat16, 0.25, True),
        (torch.bfloat16, 1, False),
    ],
)
def test_the_proof_of_packing_allows_for_the_noise_of_the_dtype(
    moved, rows, monkeypatch, dtype, nats_a_token, packing
) -> None:
    """smol's bf16 values of few tokens move by up to 0.25 nats each; in fp32 as much is a fault."""
    honest = reference.answer_logps

    def moved_in_a_pack(network, batch):
        return honest(network, batch) + nats_a_token  # no answer is shorter than a token

    monkeypatch.setattr(reference, "answer_logps", moved_in_a_pack)
    monkeypatch.setattr(type(moved), "dtype", property(lambda model: dtype))
    ends = [replace(row, answer_ids=tuple(a[-1:] for a in row.answer_ids)) for row in rows]
    assert prove_packing(moved, ends, CONFIG).packing is packing


def test_a_window_shorter_than_a_row_switches_packing_off(moved, rows) -> None:
    longest = max(row.n_tokens for row in rows)
    for window, packing in ((longest, True), (longest - 1, False)):
        moved.network.config.sliding_window = window
        assert prove_packing(moved, rows, CONFIG).packing is packing

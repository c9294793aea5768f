"""The loop: accumulation, the order of rows, the learning rate, and a stop before harm is done."""

from dataclasses import replace

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.loading import load_model
from dpo_workbench.training import loop
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.losses import LOSSES, PairLogps
from dpo_workbench.training.packing import Row
from dpo_workbench.training.reference import reference_logps
from dpo_workbench.training.run import _row
from dpo_workbench.training.tokens import tokenize

CONFIG = TrainConfig(lr=1e-2, batch_size=5, rank=4, alpha=8, nll_weight=0.2)
ROWS = [Row(f"r{k}", (1,), ((2,),)) for k in range(13)]


def one_step(model, pairs, config: TrainConfig, reference=None, objective=None, weights=None):
    """One step from a fresh adapter on the first batch: the adapter's weights after it, and the metrics."""
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=3)
    rows = tokenize(policy, map(_row, pairs), config.max_tokens)[: config.batch_size]
    if reference is None:
        reference = reference_logps(model, rows, config, None)
    batches = list(loop.micro_batches(rows, policy, config))
    parameters = policy.adapter_parameters()
    optimizer = loop.optimizer_for(parameters, config)
    made = objective or loop.preference_objective(reference, config, rows, policy, weights)
    with policy.active(trainable=True) as network:
        seen = loop.train_step(network, batches, made, parameters, optimizer, config)
    grads = torch.cat([p.grad.flatten() for p in parameters])
    return policy, grads, seen, len(batches)


def shifted(model, pairs, config: TrainConfig) -> loop.Reference:
    """A reference from which the policy has moved, by another amount for each answer."""
    honest = reference_logps(model, tokenize(model, map(_row, pairs), config.max_tokens), config, None)
    draw = torch.Generator().manual_seed(5)
    return {i: tuple(x + 3 * torch.randn((), generator=draw).item() for x in honest[i]) for i in sorted(honest)}


@pytest.mark.parametrize("name", [*LOSSES, "a sum"])
def test_any_number_of_micro_batches_gives_the_same_step(tiny, toy_pairs, name: str) -> None:
    loss = {"aot": 0.5, "sigmoid": 2.0, "sft": 0.1} if name == "a sum" else name
    smoothing = 0.1 if name == "a sum" or "label_smoothing" in LOSSES[name].settings else 0.0
    config = replace(CONFIG, loss=loss, label_smoothing=smoothing, max_grad_norm=1e9)
    reference = shifted(tiny, toy_pairs, config)
    _, whole, seen, one = one_step(tiny, toy_pairs, config, reference)
    _, parts, seen_parts, many = one_step(tiny, toy_pairs, replace(config, micro_tokens=1), reference)
    assert (one, many) == (1, 5)
    assert (parts - whole).norm() <= 1e-5 * whole.norm() and whole.norm() > 0
    assert seen_parts["loss"] == pytest.approx(seen["loss"], rel=1e-6)
    assert seen_parts["logps/chosen"] == pytest.approx(seen["logps/chosen"], rel=1e-6)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "sft"])
def test_what_looks_across_the_batch_needs_the_whole_batch(tiny, toy_pairs, monkeypatch, name: str) -> None:
    """The negative control of the test above: the same losses of micro-batches alone take another step."""
    config = replace(CONFIG, loss=name, nll_weight=0.0, max_grad_norm=1e9)
    mixed = [replace(p, chosen=p.rejected, rejected=p.chosen) if k % 2 else p for k, p in enumerate(toy_pairs)]
    found = shifted(tiny, mixed, config)
    reference = dict(zip(found, [*list(found.values())[1:], found["p0"]], strict=True))  # sorts in another order
    whole = one_step(tiny, mixed, config, reference)[1]
    right = one_step(tiny, mixed, replace(config, micro_tokens=1), reference)[1]
    assert (right - whole).norm() <= 1e-5 * whole.norm()
    monkeypatch.setitem(loop.LOSSES, name, LOSSES[name]._replace(whole_batch=False))
    monkeypatch.setattr(PairLogps, "_replace", lambda logps, **_: logps)
    parts = one_step(tiny, mixed, replace(config, micro_tokens=1), reference)[1]
    assert (parts - whole).norm() > 1e-2 * whole.norm()


def test_weights_scale_the_gradients_of_their_pairs(tiny, toy_pairs) -> None:
    """Five pairs weighing 3, 1, 1, 1, 1, which is 15/7 and 5/7 with a mean of 1."""
    config = replace(CONFIG, loss="hinge", max_grad_norm=1e9)
    reference, some = shifted(tiny, toy_pairs, config), toy_pairs[:5]
    weights = {p.id: (15 if k == 0 else 5) / 7 for k, p in enumerate(some)}
    each = [one_step(tiny, some[k : k + 1], config, reference)[1] for k in range(5)]
    want = sum(g * weights[p.id] for g, p in zip(each, some, strict=True)) / 5
    for micro_tokens in (1, 100, 10_000):
        got = one_step(tiny, some, replace(config, micro_tokens=micro_tokens), reference, weights=weights)[1]
        assert (got - want).norm() <= 1e-5 * want.norm()
    even = one_step(tiny, some, config, reference)[1]
    assert (even - want).norm() > 1e-2 * want.norm()  # negative control


def test_accumulated_sft_weighs_tokens_not_rows(tiny, toy_task) -> None:
    rows = tokenize(tiny, [("a", "ab", ("yes",)), ("b", "cd", ("no: cd cd cd 12 34 56",))], 100)
    n_tokens = sum(len(r.answer_ids[0]) for r in rows)
    totals = []
    for micro_tokens in (1, 1000):
        batches = list(loop.micro_batches(rows, tiny, replace(CONFIG, micro_tokens=micro_tokens)))
        objective = loop.sft_objective(n_tokens)
        with torch.no_grad():
            totals.append(sum(objective(tiny.network, b)[0].item() for b in batches))
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    with torch.no_grad():
        by_row = [objective(tiny.network, b)[1]["mean_logps"] for b in batches]
    lengths = [len(r.answer_ids[0]) for r in sorted(rows, key=lambda r: -r.n_tokens)]
    want = -sum(m * n for m, n in zip(by_row[0].tolist(), lengths, strict=True)) / n_tokens
    assert totals[1] == pytest.approx(want, rel=1e-5) and lengths[0] != lengths[1]


def test_step_at_the_start_is_log_two_plus_nll(tiny, toy_pairs) -> None:
    config = replace(CONFIG, nll_weight=0.0)
    assert one_step(tiny, toy_pairs, config)[2]["loss"] == pytest.approx(0.693147, abs=1e-5)
    seen = one_step(tiny, toy_pairs, CONFIG)[2]
    assert seen["loss"] > 0.75 and seen["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/rejected", "grad_norm"} <= set(seen)


def test_gradient_is_shortened_to_its_limit(tiny, toy_pairs) -> None:
    _, _, free, _ = one_step(tiny, toy_pairs, replace(CONFIG, max_grad_norm=1e9))
    _, grads, seen, _ = one_step(tiny, toy_pairs, replace(CONFIG, max_grad_norm=1e-3))
    assert grads.norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert seen["grad_norm"] == pytest.approx(free["grad_norm"]) and free["grad_norm"] > 1e-3


def test_nan_loss_stops_before_the_update(tiny, toy_pairs) -> None:
    reference = {p.id: (float("nan") if p.id == "p1" else -1.0, -1.0) for p in toy_pairs}
    fresh = tiny.with_new_adapter(rank=4, alpha=8, seed=3).adapter_tensors()
    with pytest.raises(WorkbenchError, match="loss must be finite. Got nan.*p1.*terms: .*rewards/chosen.*not changed"):
        one_step(tiny, toy_pairs, CONFIG, reference)
    policy = tiny.__class__(**{**vars(tiny), "adapter": f"adapter{tiny._shared.n_adapters}"})
    assert all(torch.equal(v, fresh[k]) for k, v in policy.adapter_tensors().items())
    sound, _, _, _ = one_step(tiny, toy_pairs, CONFIG)  # negative control: a sound reference does move it
    assert any(not torch.equal(v, fresh[k]) for k, v in sound.adapter_tensors().items())


def test_infinite_gradient_stops_before_the_update(tiny, toy_pairs) -> None:
    """The loss is finite and its slope is not: sqrt at zero."""

    def objective(network, batch):
        sums = loop.answer_logps(network, batch)
        return ((sums - sums.detach()).sum() + 0.0).abs().sqrt(), {}

    before = tiny.with_new_adapter(rank=4, alpha=8, seed=3).adapter_tensors()
    with pytest.raises(WorkbenchError, match="gradient must be finite.*p0"):
        one_step(tiny, toy_pairs, CONFIG, {}, objective)
    policy = tiny.__class__(**{**vars(tiny), "adapter": f"adapter{tiny._shared.n_adapters}"})
    assert all(torch.equal(v, before[k]) for k, v in policy.adapter_tensors().items())


def test_each_epoch_is_a_permutation() -> None:
    per_epoch = loop.steps_per_epoch(len(ROWS), CONFIG)
    assert per_epoch == 3
    epochs = [[r.id for s in range(e * 3, e * 3 + 3) for r in loop.batch_rows(ROWS, CONFIG, s)] for e in range(3)]
    assert all(sorted(ids) == sorted(r.id for r in ROWS) for ids in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [len(loop.batch_rows(ROWS, CONFIG, s)) for s in range(4)] == [5, 5, 3, 5]


def test_rows_of_a_step_are_a_pure_function_of_seed_and_step() -> None:
    want = [[r.id for r in loop.batch_rows(ROWS, CONFIG, s)] for s in range(9)]
    torch.manual_seed(123)
    assert [[r.id for r in loop.batch_rows(ROWS, CONFIG, s)] for s in reversed(range(9))] == want[::-1]
    other = replace(CONFIG, seed=1)
    assert [[r.id for r in loop.batch_rows(ROWS, other, s)] for s in range(9)] != want


def test_micro_batches_hold_each_row_once_and_stay_small(tiny, toy_pairs) -> None:
    rows = tokenize(tiny, map(_row, toy_pairs), 1000)
    for micro_tokens in (1, 60, 130, 10_000):
        batches = list(loop.micro_batches(rows, tiny, replace(CONFIG, micro_tokens=micro_tokens)))
        assert sorted(i for b in batches for i in b.ids) == sorted(r.id for r in rows)
        assert all(b.input_ids.numel() <= micro_tokens or len(b.ids) == 1 for b in batches)
    assert len(batches) == 1


def test_learning_rate_rises_and_falls() -> None:
    """20 steps with a tenth as warm-up: half, full, then down a straight line whose last step still moves."""
    config = TrainConfig(lr=1.0, warmup=0.1)
    rates = [loop.learning_rate(s, 20, config) for s in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(1 / 18)
    assert all(a >= b for a, b in zip(rates[1:], rates[2:], strict=False)) and min(rates) > 0
    assert loop.learning_rate(0, 1, config) == 1.0
    assert all(0 < loop.learning_rate(s, 3, TrainConfig(lr=1.0, warmup=1.0)) <= 1 for s in range(3))


def test_step_line() -> None:
    assert loop.step_line(3, 9, {"loss": 0.6931}) == "step 3/9 loss 0.693"
    line = loop.step_line(3, 9, {"loss": 0.5, "rewards/margins": 0.18, "rewards/accuracies": 0.75})
    assert line == "step 3/9 loss 0.500 margin +0.18 acc 0.75"


@pytest.fixture
def half(tiny_folder):
    """The tiny model in fp16, whose adapter is fp32 as always."""
    return load_model(tiny_folder, device="cpu", dtype=torch.float16)


def test_loss_scaling_saves_small_gradients_of_fp16(tiny, half, toy_pairs) -> None:
    """Gradients below fp16's smallest number are lost without it, and those of fp32 with it."""
    small = replace(CONFIG, beta=1e-6, nll_weight=0.0, max_grad_norm=1e9)
    reference = shifted(tiny, toy_pairs, small)

    def gradient(model, scale: float) -> torch.Tensor:
        policy = model.with_new_adapter(rank=4, alpha=8, seed=3)
        assert all(p.dtype == torch.float32 for p in policy.adapter_parameters())
        rows = tokenize(policy, map(_row, toy_pairs), small.max_tokens)[: small.batch_size]
        batches = list(loop.micro_batches(rows, policy, small))
        parameters = policy.adapter_parameters()
        objective = loop.preference_objective(reference, small, rows, policy)
        with policy.active(trainable=True) as network:
            optimizer = loop.optimizer_for(parameters, small)
            loop.train_step(network, batches, objective, parameters, optimizer, small, scale)
        return torch.cat([p.grad.flatten() for p in parameters])

    want, scaled, plain = gradient(tiny, 1.0), gradient(half, 2.0**14), gradient(half, 1.0)
    assert (scaled - want).norm() < 0.02 * want.norm()
    assert (plain - want).norm() > 0.2 * want.norm()


def test_fp16_that_overflows_updates_nothing(half, toy_pairs) -> None:
    rows = tokenize(half, map(_row, toy_pairs), CONFIG.max_tokens)[: CONFIG.batch_size]
    policy = half.with_new_adapter(rank=4, alpha=8, seed=3)
    parameters, before = policy.adapter_parameters(), policy.adapter_tensors()
    objective = loop.preference_objective(reference_logps(half, rows, CONFIG, None), CONFIG, rows, policy)
    with policy.active(trainable=True) as network, pytest.raises(loop.Overflow):
        batches = list(loop.micro_batches(rows, policy, CONFIG))
        optimizer = loop.optimizer_for(parameters, CONFIG)
        loop.train_step(network, batches, objective, parameters, optimizer, CONFIG, 2.0**40)
    assert all(torch.equal(v, before[k]) for k, v in policy.adapter_tensors().items())

"""The loop: micro-batches, the order of rows, the learning rate, fp16, memory, and a stop before harm is done."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.interrupts import Interrupts, Stopped
from dpo_workbench.models.loading import load_model
from dpo_workbench.training import loop, losses, packing
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.losses import LOSSES, Likelihood, PairLogps, Preference
from dpo_workbench.training.packing import Row, micro_batches, rows_of_step, steps_per_epoch
from dpo_workbench.training.reference import reference_logps
from dpo_workbench.training.tokens import pair_texts, tokenize

CONFIG = TrainConfig(lr=1e-2, batch_size=5, rank=4, alpha=8, nll_weight=0.2)
ROWS = [Row(f"r{k}", (1,), ((2,),)) for k in range(13)]


def rows_of(model, pairs, config: TrainConfig = CONFIG) -> list[Row]:
    return tokenize(model, map(pair_texts, pairs), config.max_tokens)


def start(model, config: TrainConfig, step: int = 1) -> loop.TrainState:
    """The state of a fresh adapter; by default not at step 0, which insists on the model's own reference."""
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=3)
    state = loop.TrainState(policy, config)
    state.step = step
    return state


def gradient(state: loop.TrainState) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in state.parameters]).clone()


def one_step(model, rows, config: TrainConfig, reference, weights=None, step: int = 1):
    """One step from a fresh adapter: the state after it, its gradient, and the metrics."""
    state = start(model, config, step)
    metrics = loop.train_step(state, rows, Preference(reference, config, weights or {}), Interrupts())
    return state, gradient(state), metrics


def shifted(model, rows, config: TrainConfig) -> dict[str, tuple[float, float]]:
    """A reference from which the policy has moved, by another amount for each answer."""
    honest = reference_logps(model, rows, config, None)
    draw = torch.Generator().manual_seed(5)
    return {i: tuple(x + 3 * torch.randn((), generator=draw).item() for x in honest[i]) for i in sorted(honest)}


@pytest.mark.parametrize("name", [*LOSSES, "a sum"])
@pytest.mark.parametrize("packed", [True, False])
def test_any_number_of_micro_batches_gives_the_same_step(tiny, toy_pairs, name: str, packed: bool) -> None:
    loss = {"cdpo": 0.5, "sigmoid": 2.0, "sft": 0.1} if name == "a sum" else name
    smoothing = 0.1 if name == "a sum" or "label_smoothing" in LOSSES[name].settings else 0.0
    config = replace(CONFIG, loss=loss, label_smoothing=smoothing, max_grad_norm=1e9, packing=packed)
    rows = rows_of(tiny, toy_pairs)[:5]
    reference = shifted(tiny, rows, config)
    _, whole, metrics = one_step(tiny, rows, config, reference)
    _, parts, metrics_of_parts = one_step(tiny, rows, replace(config, micro_tokens=1), reference)
    assert (parts - whole).norm() <= 1e-5 * whole.norm() and whole.norm() > 0
    assert metrics_of_parts == pytest.approx(metrics, rel=1e-5)


def test_sft_needs_the_mean_length_of_the_whole_batch(tiny, toy_pairs, monkeypatch) -> None:
    """The negative control of the test above: without that mean the same loss takes another step."""
    config = replace(CONFIG, loss="sft", nll_weight=0.0, max_grad_norm=1e9)
    mixed = [replace(p, chosen=p.rejected, rejected=p.chosen) if k % 2 else p for k, p in enumerate(toy_pairs)][:5]
    rows = rows_of(tiny, mixed)
    reference = shifted(tiny, rows, config)
    whole = one_step(tiny, rows, config, reference)[1]
    right = one_step(tiny, rows, replace(config, micro_tokens=1), reference)[1]
    assert (right - whole).norm() <= 1e-5 * whole.norm()
    monkeypatch.setattr(PairLogps, "_replace", lambda logps, **_: logps)
    parts = one_step(tiny, rows, replace(config, micro_tokens=1), reference)[1]
    assert (parts - whole).norm() > 1e-2 * whole.norm()


def test_weights_scale_the_gradients_of_their_pairs(tiny, toy_pairs) -> None:
    """Five pairs weighing 3, 1, 1, 1, 1, which is 15/7 and 5/7 with a mean of 1."""
    config = replace(CONFIG, loss="hinge", max_grad_norm=1e9)
    rows = rows_of(tiny, toy_pairs)[:5]
    reference = shifted(tiny, rows, config)
    weights = {row.id: (15 if k == 0 else 5) / 7 for k, row in enumerate(rows)}
    each = [one_step(tiny, [row], config, reference)[1] for row in rows]
    want = sum(g * weights[row.id] for g, row in zip(each, rows, strict=True)) / 5
    for micro_tokens in (1, 100, 10_000):
        got = one_step(tiny, rows, replace(config, micro_tokens=micro_tokens), reference, weights)[1]
        assert (got - want).norm() <= 1e-5 * want.norm()
    even = one_step(tiny, rows, config, reference)[1]
    assert (even - want).norm() > 1e-2 * want.norm()  # negative control


def test_fine_tuning_weighs_tokens_and_not_rows(tiny) -> None:
    rows = tokenize(tiny, [("a", "ab", ("yes",)), ("b", "cd", ("no: cd cd cd 12 34 56",))], 100)
    lengths = [len(r.answer_ids[0]) for r in rows]
    states = [start(tiny, replace(CONFIG, micro_tokens=n, max_grad_norm=1e9)) for n in (1, 1000)]
    metrics = [loop.train_step(state, rows, Likelihood(), Interrupts()) for state in states]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    torch.testing.assert_close(gradient(states[0]), gradient(states[1]), rtol=1e-4, atol=1e-6)
    alone = [loop.train_step(start(tiny, CONFIG), [row], Likelihood(), Interrupts())["loss"] for row in rows]
    by_token = sum(loss * n for loss, n in zip(alone, lengths, strict=True)) / sum(lengths)
    assert metrics[1]["loss"] == pytest.approx(by_token, rel=1e-5) != pytest.approx(sum(alone) / 2, rel=1e-2)


def test_first_step_is_log_two_plus_nll(tiny, toy_pairs) -> None:
    rows = rows_of(tiny, toy_pairs)[:5]
    reference = reference_logps(tiny, rows, CONFIG, None)
    without = one_step(tiny, rows, replace(CONFIG, nll_weight=0.0), reference, step=0)[2]
    assert without["loss"] == pytest.approx(math.log(2), abs=1e-5)
    metrics = one_step(tiny, rows, CONFIG, reference, step=0)[2]
    assert metrics["loss"] > 0.75 and metrics["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/rejected", "grad_norm"} <= set(metrics)


def test_a_long_gradient_is_shortened_to_the_limit(tiny, toy_pairs) -> None:
    rows = rows_of(tiny, toy_pairs)[:5]
    reference = shifted(tiny, rows, CONFIG)
    _, _, free = one_step(tiny, rows, replace(CONFIG, max_grad_norm=1e9), reference)
    _, short, metrics = one_step(tiny, rows, replace(CONFIG, max_grad_norm=1e-3), reference)
    assert short.norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert metrics["grad_norm"] == pytest.approx(free["grad_norm"]) and free["grad_norm"] > 1e-3


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_a_loss_that_is_nan_stops_before_the_update(tiny, toy_pairs) -> None:
    rows = rows_of(tiny, toy_pairs)[:5]
    bad = {row.id: (float("nan") if row.id == "p1" else -1.0, -1.0) for row in rows}
    state = start(tiny, CONFIG)
    before = state.policy.adapter_tensors()
    with pytest.raises(WorkbenchError, match="loss must be finite. Got nan.*p1.*also not finite: .*rewards/chosen"):
        loop.train_step(state, rows, Preference(bad, CONFIG), Interrupts())
    assert equal(state.policy.adapter_tensors(), before) and not state.optimizer.state
    good = reference_logps(tiny, rows, CONFIG, None)
    loop.train_step(state, rows, Preference(good, CONFIG), Interrupts())
    assert not equal(state.policy.adapter_tensors(), before)  # negative control: a finite loss does move it


@dataclass
class RootAtZero:
    """A finite loss whose gradient is not: the square root at zero."""

    def loss(self, network, batch, rows, step):
        sums = losses.answer_logps(network, batch)
        return (sums - sums.detach()).sum().abs().sqrt(), {}


def test_an_infinite_gradient_stops_before_the_update(tiny, toy_pairs) -> None:
    state = start(tiny, CONFIG)
    before = state.policy.adapter_tensors()
    with pytest.raises(WorkbenchError, match="gradient must be finite.*p0"):
        loop.train_step(state, rows_of(tiny, toy_pairs)[:5], RootAtZero(), Interrupts())
    assert equal(state.policy.adapter_tensors(), before) and not state.optimizer.state


def test_an_interrupt_is_seen_between_micro_batches(tiny, toy_pairs) -> None:
    """A step of five micro-batches is left after the third, without an update."""
    rows = rows_of(tiny, toy_pairs)[:5]
    config = replace(CONFIG, micro_tokens=1)
    interrupts, done = Interrupts(), []

    class Interrupting(Preference):
        def loss(self, network, batch, rows, step):
            done.append(batch.ids)
            if len(done) == 3:
                interrupts.seen = 2  # as the handler of Ctrl-C does
            return super().loss(network, batch, rows, step)

    state = start(tiny, config)
    before = state.policy.adapter_tensors()
    objective = Interrupting(shifted(tiny, rows, config), config)
    with pytest.raises(Stopped):
        next(loop.training_steps(state, rows, objective, interrupts))
    assert len(done) == 3 and state.step == 1
    assert equal(state.policy.adapter_tensors(), before) and not state.optimizer.state
    interrupts.seen = None
    after = one_step(tiny, rows, config, objective.reference)[0]
    loop.train_step(state, rows, Preference(objective.reference, config), interrupts)
    assert equal(state.policy.adapter_tensors(), after.policy.adapter_tensors())  # the same step, as if left alone


def test_each_epoch_is_a_permutation() -> None:
    assert steps_per_epoch(len(ROWS), CONFIG) == 3
    epochs = [[r.id for s in range(e * 3, e * 3 + 3) for r in rows_of_step(ROWS, CONFIG, s)] for e in range(3)]
    assert all(sorted(ids) == sorted(r.id for r in ROWS) for ids in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [len(rows_of_step(ROWS, CONFIG, s)) for s in range(4)] == [5, 5, 3, 5]


def test_rows_of_a_step_depend_on_seed_and_step_alone() -> None:
    want = [[r.id for r in rows_of_step(ROWS, CONFIG, s)] for s in range(9)]
    torch.manual_seed(123)
    assert [[r.id for r in rows_of_step(ROWS, CONFIG, s)] for s in reversed(range(9))] == want[::-1]
    other = replace(CONFIG, seed=1)
    assert [[r.id for r in rows_of_step(ROWS, other, s)] for s in range(9)] != want


@pytest.mark.parametrize("packed", [True, False])
def test_micro_batches_have_each_row_once_and_stay_small(tiny, toy_pairs, packed: bool) -> None:
    rows = rows_of(tiny, toy_pairs)
    for micro_tokens in (1, 60, 130, 10_000):
        config = replace(CONFIG, micro_tokens=micro_tokens, packing=packed)
        batches = list(micro_batches(rows, tiny, config))
        assert sorted(i for b in batches for i in b.ids) == sorted(r.id for r in rows)
        assert all(b.input_ids.numel() <= micro_tokens or len(b.ids) == 1 for b in batches)
    assert len(batches) == 1


def test_long_rows_are_not_packed_where_their_mask_would_be_large(tiny, toy_pairs, monkeypatch) -> None:
    """Longer than micro_tokens: a batch of its own. Longer than MAX_DENSE, with SDPA: each answer by itself."""
    rows = rows_of(tiny, toy_pairs)
    sizes = sorted(row.n_tokens for row in rows)
    limit = sizes[len(sizes) // 2]
    batches = list(micro_batches(rows, tiny, replace(CONFIG, micro_tokens=1)))
    assert all(len(b.ids) == 1 and b.attention_mask is not None for b in batches)
    packed = one_step(tiny, rows, CONFIG, reference_logps(tiny, rows, CONFIG, None))[1]
    monkeypatch.setattr(packing, "MAX_DENSE", limit)
    by_id = {row.id: row.n_tokens for row in rows}
    for micro_tokens in (1, 130, 10_000):
        batches = list(micro_batches(rows, tiny, replace(CONFIG, micro_tokens=micro_tokens)))
        for batch in batches:
            assert {by_id[i] > limit for i in batch.ids} == {batch.attention_mask is None}
            assert batch.input_ids.numel() <= micro_tokens or len(batch.ids) == 1
        assert sorted(i for b in batches for i in b.ids) == sorted(by_id)
        assert {b.attention_mask is None for b in batches} == {True, False}
    mixed = one_step(tiny, rows, CONFIG, reference_logps(tiny, rows, CONFIG, None))[1]
    assert (mixed - packed).norm() <= 1e-4 * packed.norm()
    monkeypatch.setattr(type(tiny), "uses_flex_attention", True)  # whose mask does not grow like that
    monkeypatch.setattr(packing, "pack", lambda rows, device, flex: flex)
    assert list(micro_batches(rows, tiny, replace(CONFIG, micro_tokens=10_000))) == [True]


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
    rows = rows_of(tiny, toy_pairs)[:5]
    reference = shifted(tiny, rows, small)
    found = {}
    for name, model, scaling in (("fp32", tiny, True), ("scaled", half, True), ("unscaled", half, False)):
        state = start(model, small)
        assert all(p.dtype == torch.float32 for p in state.parameters)
        assert state.scaler.is_enabled() == (model is half)  # fp32 needs none
        if not scaling:
            state.scaler = torch.amp.GradScaler("cpu", enabled=False)
        loop.train_step(state, rows, Preference(reference, small), Interrupts())
        found[name] = gradient(state)
    want = found["fp32"]
    assert (found["scaled"] - want).norm() < 0.02 * want.norm()
    assert (found["unscaled"] - want).norm() > 0.2 * want.norm()


def scaled(state: loop.TrainState, scale: float, growth_interval: int = 100) -> torch.amp.GradScaler:
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
    return state.scaler


def test_an_fp16_step_that_overflows_updates_nothing_and_is_repeated(half, toy_pairs, capsys) -> None:
    rows = rows_of(half, toy_pairs)[:5]
    objective = Preference(reference_logps(half, rows, CONFIG, None), CONFIG)
    state = start(half, CONFIG)
    scaler, before = scaled(state, 2.0**40), state.policy.adapter_tensors()
    assert loop.train_step(state, rows, objective, Interrupts()) is None
    assert scaler.get_scale() == 2.0**39 and "the loss scale is now" in capsys.readouterr().out
    assert equal(state.policy.adapter_tensors(), before) and not state.optimizer.state

    repeated = start(half, CONFIG)
    scaler = scaled(repeated, 2.0**40)
    metrics = next(loop.training_steps(repeated, rows, objective, Interrupts()))
    assert metrics["step"] == 2 and repeated.step == 2 and scaler.get_scale() < 2.0**35
    n_halvings = capsys.readouterr().out.count("the loss scale is now")
    assert scaler.get_scale() == 2.0 ** (40 - n_halvings)
    plain = start(half, CONFIG)
    scaled(plain, scaler.get_scale())
    assert next(loop.training_steps(plain, rows, objective, Interrupts())) == metrics  # the same step, at last
    assert equal(plain.policy.adapter_tensors(), repeated.policy.adapter_tensors())


def test_the_loss_scale_grows_again(half, toy_pairs) -> None:
    rows = rows_of(half, toy_pairs)[:5]
    state = start(half, CONFIG)
    scaler = scaled(state, 64.0, growth_interval=3)
    objective, scales = Preference(shifted(half, rows, CONFIG), CONFIG), []
    for _ in range(7):
        loop.train_step(state, rows, objective, Interrupts())
        scales.append(scaler.get_scale())
    assert scales == [64.0, 64.0, 128.0, 128.0, 128.0, 256.0, 256.0]


def test_fp16_gradients_that_overflow_at_any_scale_are_an_error(half, toy_pairs) -> None:
    state = start(half, CONFIG)
    scaler = scaled(state, 4.0)
    with pytest.raises(WorkbenchError, match="gradient must be finite"):
        next(loop.training_steps(state, rows_of(half, toy_pairs)[:5], RootAtZero(), Interrupts()))
    assert scaler.get_scale() == 1.0


def test_out_of_memory_halves_micro_batches_then_checkpoints_then_names_the_row(tiny, toy_pairs, capsys) -> None:
    config = replace(CONFIG, micro_tokens=1536, checkpointing=False)
    rows = rows_of(tiny, toy_pairs)[:5]
    reference = shifted(tiny, rows, config)
    want = one_step(tiny, rows, config, reference)
    n_longest = max(r.n_tokens for r in rows)
    n_total = len(rows) * n_longest  # padding included
    memory = {"tokens": 0, "checkpointed": 0}  # how many fit, without and with checkpointing
    tried: list[tuple[int, bool]] = []

    class Limited(Preference):
        def loss(self, network, batch, rows, step):
            tried.append((state.config.micro_tokens, state.config.checkpointing))
            room = memory["checkpointed" if state.config.checkpointing else "tokens"]
            if batch.input_ids.numel() > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
            return super().loss(network, batch, rows, step)

    def step(tokens: int, checkpointed: int) -> dict[str, float]:
        nonlocal state
        memory.update(tokens=tokens, checkpointed=checkpointed)
        tried.clear()
        state = start(tiny, config)
        metrics = next(loop.training_steps(state, rows, Limited(reference, config), Interrupts()))
        assert metrics.pop("step") == 2
        assert metrics == pytest.approx(want[2], rel=1e-5)
        torch.testing.assert_close(gradient(state), want[1], rtol=1e-4, atol=1e-6)
        return metrics

    state = start(tiny, config)
    step(n_total // 2, 0)
    out = capsys.readouterr().out
    assert (
        f"memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB.): continuing with micro_tokens={n_total // 2}"
        in out
    )
    assert state.config.micro_tokens == n_total // 2 and not state.config.checkpointing

    step(0, n_longest)
    assert state.config.checkpointing and state.config.micro_tokens < 2 * n_longest
    assert "continuing with checkpointing=True (slower)" in capsys.readouterr().out
    sizes = [size for size, checkpointing in tried if not checkpointing]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes) > 2  # each size failed once

    longest = max(rows, key=lambda r: r.n_tokens)
    with pytest.raises(
        WorkbenchError, match=rf"Row '{longest.id}' \({n_longest} tokens\) does not: CUDA out of memory"
    ):
        step(0, 0)
    assert state.step == 1 and not state.optimizer.state


def test_other_errors_are_not_taken_for_memory(tiny, toy_pairs) -> None:
    class Broken(Preference):
        def loss(self, network, batch, rows, step):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        next(loop.training_steps(start(tiny, CONFIG), rows_of(tiny, toy_pairs)[:5], Broken({}, CONFIG), Interrupts()))


def test_memory_that_runs_out_in_the_update_is_no_half_update(tiny, toy_pairs) -> None:
    rows = rows_of(tiny, toy_pairs)[:5]
    state = start(tiny, CONFIG)
    state.optimizer.register_step_post_hook(lambda *_: (_ for _ in ()).throw(MemoryError("no memory")))
    with pytest.raises(WorkbenchError, match="An update must be complete. It failed halfway: no memory"):
        next(loop.training_steps(state, rows, Preference(shifted(tiny, rows, CONFIG), CONFIG), Interrupts()))

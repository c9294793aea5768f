"""Values that are not finite, memory that runs out, answers that sink: the run says so, and no harm is done."""

import hashlib
import math
import warnings
import weakref
from dataclasses import replace

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import generation
from dpo_workbench.training import loop, losses, reference
from dpo_workbench.training import run as run_module
from dpo_workbench.training.checkpoint import pack_optimizer
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite, displacement, rows_within_memory
from dpo_workbench.training.packing import Row, rows_of_step
from dpo_workbench.training.run import train

CONFIG = TrainConfig(
    lr=1e-2, batch_size=6, epochs=2, rank=4, alpha=8, probes=0, held_out=0.0, micro_tokens=100, nll_weight=0.1,
    checkpointing=False,
)  # fmt: skip
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_not_finite(value: float) -> None:
    terms = {"logps/chosen": [1.0, value], "logps/rejected": [2.0]}
    with pytest.raises(WorkbenchError) as caught:
        check_finite(["a", "b"], {"loss": [1.0 + value], **terms})
    assert f"The loss must be finite. Got {value} in row b (also not finite: logps/chosen)" in str(caught.value)
    with pytest.raises(WorkbenchError, match="The logps/chosen must be finite. Got .* in row b"):
        check_finite(["a", "b"], {"loss": [0.0], **terms})  # a finite loss hides it


def test_finite_is_silent() -> None:
    assert check_finite(["a"], {"loss": [-1e30]}) is None


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(k.encode() + v.numpy().tobytes() for k, v in sorted(tensors.items()))).hexdigest()


def hashes(state: loop.TrainState) -> tuple[str, str]:
    return digest(state.policy.adapter_tensors()), digest(pack_optimizer(state.optimizer))


@pytest.fixture
def steps(monkeypatch) -> list[tuple[loop.TrainState, int, tuple[str, str]]]:
    """For each step that was begun: the run's state, the step, and hashes of weights and optimizer before it."""
    seen = []
    honest = loop.train_step

    def watched(state, rows, objective, interrupts):
        seen.append((state, state.step, hashes(state)))
        return honest(state, rows, objective, interrupts)

    monkeypatch.setattr(loop, "train_step", watched)
    return seen


def poison_loss(monkeypatch, due, row: str, value: float) -> None:
    """The loss of a row's micro-batch becomes `value`; its terms stay finite."""
    honest = losses.Preference.loss

    def poisoned(self, network, batch, rows, step):
        loss, values = honest(self, network, batch, rows, step)
        return (loss + value if due(batch) else loss), values

    monkeypatch.setattr(losses.Preference, "loss", poisoned)


def poison_gradient(monkeypatch, due, row: str, value: float) -> None:
    """The log-probabilities are finite, their gradient is not."""
    honest = losses.answer_logps

    def poisoned(network, batch):
        sums = honest(network, batch)
        if due(batch):
            sums.register_hook(lambda grad: grad * value)
        return sums

    monkeypatch.setattr(losses, "answer_logps", poisoned)


def poison_reference(monkeypatch, due, row: str, value: float) -> None:
    """A reference value goes bad."""
    honest = losses.pair_logps

    def poisoned(network, batch, known):
        return honest(network, batch, known | {row: (known[row][0], value)} if due(batch) else known)

    monkeypatch.setattr(losses, "pair_logps", poisoned)


def poison_logps(monkeypatch, due, row: str, value: float) -> None:
    """The policy's log-probability of the row's rejected answer goes bad."""
    honest = losses.answer_logps

    def poisoned(network, batch):
        sums = honest(network, batch)
        if not due(batch):
            return sums
        bad = torch.zeros_like(sums)
        bad[2 * batch.ids.index(row) + 1] = value
        return sums + bad

    monkeypatch.setattr(losses, "answer_logps", poisoned)


def from_pass(row: str, epoch: int):
    """True for the row's micro-batch from its training pass number `epoch` on."""
    passes = []

    def due(batch) -> bool:
        if row not in batch.ids or not torch.is_grad_enabled():
            return False
        passes.append(1)
        return len(passes) > epoch

    return due


PLACES = [
    (poison_loss, "p0", 0, NAN),
    (poison_loss, "p7", 1, INF),
    (poison_gradient, "p2", 0, NAN),
    (poison_gradient, "p5", 1, INF),
    (poison_reference, "p1", 0, NAN),
    (poison_reference, "p8", 1, -INF),  # the loss of this row becomes 0, which is finite
    (poison_logps, "p3", 0, NAN),
    (poison_logps, "p6", 1, -INF),
]


@pytest.mark.parametrize(("poison", "row", "epoch", "value"), PLACES)
def test_a_value_that_is_not_finite_stops_before_the_update(
    moved, toy_pairs, monkeypatch, steps, poison, row, epoch, value
) -> None:
    """Four kinds of values, in the first epoch and after updates. Only the rows that may be guilty are named."""
    poison(monkeypatch, from_pass(row, epoch), row, value)
    with pytest.raises(WorkbenchError, match="must be finite. Got .*The model was not changed") as caught:
        train(moved, toy_pairs, CONFIG, show=False)
    state, step, before = steps[-1]
    assert hashes(state) == before and state.step == step and step // 2 == epoch
    named = str(caught.value).split(" in row")[1].split(". The model")[0].split(" (also")[0].removeprefix("s ")
    rows = rows_of_step(run_module.tokenize(moved, map(run_module.pair_texts, toy_pairs), 1024), CONFIG, step)
    guilty = {poison_reference: [row], poison_logps: [row]}
    assert sorted(named.strip().split(", ")) == guilty.get(poison, sorted(r.id for r in rows))


def test_the_same_run_without_poison_finishes(moved, toy_pairs, monkeypatch, steps) -> None:
    """Negative control: hooks that add nothing stop nothing, and each step changes weights and optimizer."""
    poison_loss(monkeypatch, from_pass("p0", 0), "p0", 0.0)
    poison_logps(monkeypatch, from_pass("p3", 0), "p3", 0.0)
    assert train(moved, toy_pairs, CONFIG, show=False).finished
    assert [step for _, step, _ in steps] == [0, 1, 2, 3] and len({h for _, _, h in steps}) == 4


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]


class Big:
    """Something large that a failed pass holds."""


def small_memory(monkeypatch, module, limit: int, error: BaseException, left: list) -> list[int]:
    """Passes over more than `limit` tokens run out of memory; gives the sizes of all passes."""
    honest, sizes = module.answer_logps, []

    def limited(network, batch):
        assert all(ref() is None for ref in left), "the failed pass is still held"
        sizes.append(batch.input_ids.numel())
        if sizes[-1] > limit:
            big = Big()
            left.append(weakref.ref(big))
            raise type(error)(*error.args)
        return honest(network, batch)

    monkeypatch.setattr(module, "answer_logps", limited)
    return sizes


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("where", ["training", "reference"])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    moved, toy_pairs, monkeypatch, capsys, where: str, error: BaseException
) -> None:
    config = replace(CONFIG, micro_tokens=100_000)
    whole = train(moved, toy_pairs, config, show=False)
    assert whole.config == config
    left: list = []
    sizes = small_memory(monkeypatch, losses if where == "training" else reference, 150, error, left)
    less = train(moved, toy_pairs, config, show=False)
    out = capsys.readouterr().out
    assert left and "memory ran out" in out
    assert 50 < less.config.micro_tokens < 160 and f"continuing with micro_tokens={less.config.micro_tokens}\n" in out
    assert sum(n > 150 for n in sizes) == len(left) == out.count("memory ran out")  # kept for the rest of the run
    assert [h["step"] for h in less.history] == [h["step"] for h in whole.history]
    for one, other in zip(less.history, whole.history, strict=True):
        if one["step"] == 1:  # all margins are 0 up to rounding, which decides their signs
            one, other = ({k: v for k, v in h.items() if k != "rewards/accuracies"} for h in (one, other))
        assert one == pytest.approx(other, rel=1e-5, abs=1e-4)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
    weights = whole.model.adapter_tensors()
    assert all((v - weights[k]).abs().max() < 1e-5 for k, v in less.model.adapter_tensors().items())


def test_out_of_memory_in_a_probe_answers_fewer_at_a_time(moved, toy_pairs, monkeypatch, capsys) -> None:
    config = replace(CONFIG, probes=1, held_out=0.2)
    whole = train(moved, toy_pairs, config, show=False)
    honest, sizes = generation._decode, []

    def limited(network, ids, *rest):
        sizes.append(len(ids))
        if sizes[-1] > 2:
            raise ERRORS[0]
        return honest(network, ids, *rest)

    monkeypatch.setattr(generation, "_decode", limited)
    less = train(moved, toy_pairs, config, show=False)
    assert less.probes == whole.probes and less.history == whole.history and 2 in sizes
    assert "memory ran out" in capsys.readouterr().out


def test_out_of_memory_on_held_out_pairs_changes_no_value(moved, toy_pairs, monkeypatch) -> None:
    config = replace(CONFIG, probes=1, held_out=0.5, micro_tokens=100_000)
    whole = train(moved, toy_pairs, config, show=False)
    honest, failed = losses.answer_logps, []

    def limited(network, batch):
        if not torch.is_grad_enabled() and batch.input_ids.numel() > 100:
            failed.append(1)
            raise ERRORS[0]
        return honest(network, batch)

    monkeypatch.setattr(losses, "answer_logps", limited)
    less = train(moved, toy_pairs, config, show=False)
    assert failed and less.config.micro_tokens <= 100
    for one, other in zip(less.probes, whole.probes, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_rows_within_memory_halves_what_is_in_use() -> None:
    """Eight rows of 10 tokens use 80 of 1,000: after the first failure 40 are tried, then 20, then 10 (single rows)."""
    rows = [Row(f"r{k}", (1,) * 8, ((2, 3),)) for k in range(8)]
    tried = []

    def work(config: TrainConfig) -> str:
        tried.append(config.micro_tokens)
        if config.micro_tokens > 19:
            raise MemoryError
        return "done"

    done, fitted = rows_within_memory(work, rows, replace(CONFIG, micro_tokens=1000))
    assert done == "done" and tried == [1000, 40, 20, 10] and fitted.micro_tokens == 10


def test_rows_within_memory_does_not_retry_other_errors() -> None:
    tried = []

    def work(config: TrainConfig) -> None:
        tried.append(1)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        rows_within_memory(work, [Row("r", (1,), ((2,),))], CONFIG)
    assert len(tried) == 1


def test_displacement_is_reported_once_in_a_run(moved, toy_pairs) -> None:
    assert displacement(-0.9, 5) == "" and displacement(0.5, 5) == ""
    text = displacement(-2.3, 5)
    assert "likelihood displacement" in text and "e^2.3 times less likely" in text and "5 held-out pairs" in text
    steep = replace(CONFIG, lr=0.3, probes=2, held_out=0.2, nll_weight=0.0, epochs=8)
    with pytest.warns(UserWarning, match="likelihood displacement: the chosen answers of 2 held-out pairs") as caught:
        run = train(moved, toy_pairs, steep)
    assert min(p["chosen_logratio"] for p in run.probes) < -1 and len(caught) == 1  # once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calm = train(moved, toy_pairs, replace(steep, lr=1e-4))  # negative control
    assert min(p["chosen_logratio"] for p in calm.probes) > -1 and not math.isnan(calm.probes[0]["chosen_logratio"])

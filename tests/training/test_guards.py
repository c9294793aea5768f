"""Twelve places where a value can go bad, memory that runs out, answers that sink: told, and no harm done."""

import hashlib
import math
import warnings
import weakref
from dataclasses import replace

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import generation
from dpo_workbench.training import logps as logps_module
from dpo_workbench.training import loop, reference, trainer
from dpo_workbench.training import run as run_module
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite, displacement, rows_within_memory
from dpo_workbench.training.packing import Row
from dpo_workbench.training.run import train

CONFIG = TrainConfig(
    lr=1e-2, batch_size=6, epochs=2, rank=4, alpha=8, probes=0, held_out=0.0, micro_tokens=100, nll_weight=0.1
)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_not_finite(value: float) -> None:
    seen = {"logps/chosen": [1.0, value], "logps/rejected": [2.0]}
    with pytest.raises(WorkbenchError) as caught:
        check_finite("loss", 1.0 + value, ["a", "b"], seen)
    text = str(caught.value)
    assert f"The loss must be finite. Got {value} in row b (terms: logps/chosen)" in text
    with pytest.raises(WorkbenchError, match="The logps/chosen must be finite. Got .* in row b"):
        check_finite("loss", 0.0, ["a", "b"], seen)  # a finite loss hides it


def test_finite_is_silent() -> None:
    assert check_finite("loss", -1e30, ["a"], {}) is None


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(k.encode() + v.numpy().tobytes() for k, v in sorted(tensors.items()))).hexdigest()


class Watched(trainer.Trainer):
    """A trainer whose weights and optimiser are hashed before each step."""

    def _step(self, step: int, n_steps: int) -> None:
        self.before = (step, *self.hashes())
        super()._step(step, n_steps)

    def hashes(self) -> tuple[str, str]:
        packed = trainer.pack_optimizer(self.optimizer)
        return digest(self.policy.adapter_tensors()), digest({k: v.cpu() for k, v in packed.items()})


def poison_loss(monkeypatch, row: str, epoch: int, value: float) -> None:
    """The loss of a row becomes `value`, its terms stay sound."""
    honest = loop.preference_objective

    def objective(*args):
        made = honest(*args)

        def poisoned(network, batch):
            loss, seen = made(network, batch)
            return (loss + value if row in batch.ids and due(batch, row, epoch) else loss), seen

        return poisoned

    monkeypatch.setattr(loop, "preference_objective", objective)


def poison_gradient(monkeypatch, row: str, epoch: int, value: float) -> None:
    """The row's log-probability is sound, its slope is not."""
    honest = loop.answer_logps

    def poisoned(network, batch):
        sums = honest(network, batch)
        if row in batch.ids and due(batch, row, epoch):
            sums.register_hook(lambda grad: grad * value)
        return sums

    monkeypatch.setattr(loop, "answer_logps", poisoned)


def poison_reference(monkeypatch, row: str, epoch: int, value: float) -> None:
    """A reference value goes bad after the proof at step 0."""
    honest = loop.pair_logps

    def poisoned(network, batch, known, *start):
        if row in batch.ids and due(batch, row, epoch):
            known = known | {row: (known[row][0], value)}
        return honest(network, batch, known, *start)

    monkeypatch.setattr(loop, "pair_logps", poisoned)


def poison_logits(monkeypatch, row: str, epoch: int, value: float) -> None:
    """One hidden state before the head goes bad, at the first token of the row's rejected answer."""
    honest = logps_module._TokenLogps.apply

    def poisoned_logps(network, batch):
        def apply(hidden, head, target):
            if row in batch.ids and due(batch, row, epoch):
                place = int((batch.owner == 2 * batch.ids.index(row) + 1).nonzero()[0, 0])
                mask = torch.zeros_like(hidden)
                mask[place] = value
                hidden = hidden + mask
            return honest(hidden, head, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logps_module._TokenLogps, "apply", apply)
            return logps_module.answer_logps(network, batch)

    monkeypatch.setattr(loop, "answer_logps", poisoned_logps)


_calls: dict[str, int] = {}


def due(batch, row: str, epoch: int) -> bool:
    """True from the row's training pass number `epoch` on (with gradients; reference and proof do not count)."""
    if not torch.is_grad_enabled():
        return False
    _calls[row] = _calls.get(row, 0) + 1
    return _calls[row] > epoch


PLACES = [
    (poison_loss, "p0", 0, NAN),
    (poison_loss, "p7", 1, INF),
    (poison_loss, "p11", 1, -INF),
    (poison_gradient, "p2", 0, NAN),
    (poison_gradient, "p5", 1, INF),
    (poison_gradient, "p9", 0, INF),
    (poison_reference, "p1", 0, NAN),
    (poison_reference, "p8", 1, -INF),  # the loss of this row becomes 0, which is finite
    (poison_reference, "p4", 0, INF),
    (poison_logits, "p3", 0, NAN),
    (poison_logits, "p6", 1, INF),
    (poison_logits, "p10", 1, -INF),
]


@pytest.mark.parametrize(("poison", "row", "epoch", "value"), PLACES)
def test_a_value_that_is_not_finite_stops_before_the_update(
    moved, toy_pairs, monkeypatch, poison, row, epoch, value
) -> None:
    """Twelve places: four kinds, several rows, in the first epoch and after updates. Only the guilty row is named."""
    _calls.clear()
    made: list[Watched] = []
    monkeypatch.setattr(run_module, "Trainer", lambda *a: made.append(Watched(*a)) or made[-1])
    poison(monkeypatch, row, epoch, value)
    with pytest.raises(WorkbenchError, match="must be finite. Got .*The model was not changed") as caught:
        train(moved, toy_pairs, CONFIG, show=False)
    (run,) = made
    step, *before = run.before
    assert run.hashes() == tuple(before) and len(run.result.history) == step and step // 2 == epoch
    named = str(caught.value).split(" in row")[1].split(". The model")[0].split(" (terms")[0].removeprefix("s ")
    batch = loop.batch_rows(run.rows, CONFIG, step)
    micro = next(b.ids for b in loop.micro_batches(batch, run.policy, CONFIG) if row in b.ids)
    assert 1 < len(micro) < len(batch)
    by_row = poison in (poison_reference, poison_logits)
    assert named.strip().split(", ") == ([row] if by_row else list(micro))


def test_the_same_run_without_poison_goes_through(moved, toy_pairs, monkeypatch) -> None:
    """Negative control: hooks that add nothing stop nothing, and each step does change weights and optimiser."""
    _calls.clear()
    made: list[Watched] = []
    monkeypatch.setattr(run_module, "Trainer", lambda *a: made.append(Watched(*a)) or made[-1])
    poison_loss(monkeypatch, "p0", 0, 0.0)
    poison_logits(monkeypatch, "p3", 0, 0.0)
    assert train(moved, toy_pairs, CONFIG, show=False).finished
    assert made[0].before[0] == 3 and made[0].hashes() != made[0].before[1:]


def test_a_bad_reference_in_the_cache_is_computed_again(moved, toy_pairs, tmp_path, capsys) -> None:
    from safetensors.torch import load_file, save_file

    whole = train(moved, toy_pairs, CONFIG, folder=tmp_path / "a", show=False)
    (path,) = (tmp_path / "a" / "reference").glob("*/logps.safetensors")
    values = load_file(path)["logps"]
    values[-1, 1] = -INF
    save_file({"logps": values}, path)
    (tmp_path / "a").rename(tmp_path / "b")
    for old in (tmp_path / "b" / "checkpoints").iterdir():
        old.rename(tmp_path / old.name)
    assert train(moved, toy_pairs, CONFIG, folder=tmp_path / "b", show=False).history == whole.history
    assert "is damaged: computed again" in capsys.readouterr().out


def test_a_reference_with_nan_never_gets_past_the_first_step(moved, toy_pairs, monkeypatch) -> None:
    honest = run_module.reference_logps
    monkeypatch.setattr(run_module, "reference_logps", lambda *a: {i: (c, NAN) for i, (c, _) in honest(*a).items()})
    with pytest.raises(WorkbenchError, match="must be finite. Got nan in rows"):
        train(moved, toy_pairs, CONFIG, show=False)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]


class Big:
    """Something large that a failed pass holds."""


def small_memory(monkeypatch, module, limit: int, error: BaseException, left: list) -> list[int]:
    """Passes over more than `limit` padded tokens run out of memory; gives the sizes of all passes."""
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
    sizes = small_memory(monkeypatch, loop if where == "training" else reference, 150, error, left)
    less = train(moved, toy_pairs, config, show=False)
    out = capsys.readouterr().out
    assert left and "memory ran out: micro_tokens is" in out
    assert 50 < less.config.micro_tokens <= 150 and f"is {less.config.micro_tokens} from now on" in out
    assert sum(n > 150 for n in sizes) == len(left) == out.count("memory ran out")  # kept for the rest of the run
    assert [h["step"] for h in less.history] == [h["step"] for h in whole.history]
    for one, other in zip(less.history, whole.history, strict=True):
        assert one.keys() == other.keys() and all(one[k] == pytest.approx(other[k], abs=2e-5) for k in one)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
    weights = whole.model.adapter_tensors()
    assert all((v - weights[k]).abs().max() < 1e-5 for k, v in less.model.adapter_tensors().items())


def test_a_row_that_does_not_fit_alone_is_named(moved, toy_pairs, monkeypatch) -> None:
    small_memory(monkeypatch, loop, 20, ERRORS[0], [])
    with pytest.raises(WorkbenchError, match=r"Memory must hold row 'p\d+' \(\d+ tokens\) alone. It ran out .CUDA out"):
        train(moved, toy_pairs, CONFIG, show=False)


def test_other_errors_are_not_taken_for_memory(moved, toy_pairs, monkeypatch) -> None:
    small_memory(monkeypatch, loop, 20, RuntimeError("shapes do not match"), [])
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(moved, toy_pairs, CONFIG, show=False)


def test_memory_that_runs_out_in_the_update_is_no_half_update(moved, toy_pairs, monkeypatch) -> None:
    honest = loop.optimizer_for

    def optimizer_for(*args):
        optimizer = honest(*args)
        optimizer.register_step_post_hook(lambda *a: (_ for _ in ()).throw(MemoryError("no memory")))
        return optimizer

    monkeypatch.setattr(loop, "optimizer_for", optimizer_for)
    with pytest.raises(WorkbenchError, match="An update must be whole. It failed halfway: no memory"):
        train(moved, toy_pairs, CONFIG, show=False)


def test_out_of_memory_in_a_probe_answers_fewer_at_one_time(moved, toy_pairs, monkeypatch, capsys) -> None:
    whole = train(moved, toy_pairs, replace(CONFIG, probes=1, held_out=0.2), show=False)
    honest, rows = generation.generate, []

    def limited(*args, **kwargs):
        rows.append(kwargs["rows"])
        if rows[-1] > 30:
            raise ERRORS[0]
        return honest(*args, **kwargs)

    monkeypatch.setattr(trainer, "generate", limited)
    less = train(moved, toy_pairs, replace(CONFIG, probes=1, held_out=0.2), show=False)
    assert rows == [96, 48, 24] * 2 and less.probes == whole.probes
    assert "answers at one time is 48" in capsys.readouterr().out


def test_rows_within_memory_halves_what_is_in_use() -> None:
    """Eight rows of 10 tokens fill 80 of 1,000: the first try to fail goes on with 40, then 20, then 19 (single)."""
    rows = [Row(f"r{k}", (1,) * 8, ((2, 3),)) for k in range(8)]
    tried = []

    def work(config: TrainConfig) -> str:
        tried.append(config.micro_tokens)
        if config.micro_tokens > 19:
            raise MemoryError
        return "done"

    done, fitted = rows_within_memory(work, rows, 8, replace(CONFIG, micro_tokens=1000))
    assert done == "done" and tried == [1000, 40, 20, 19] and fitted.micro_tokens == 19


def test_displacement_is_told(moved, toy_pairs) -> None:
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

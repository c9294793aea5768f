"""Preference accuracy: margins by hand, exact zeros before training, intervals by prompt, bad input."""

import pytest
import torch

import dpo_workbench as dw
from dpo_workbench.evaluation.preference import preference_accuracy
from dpo_workbench.evaluation.statistics import wilson
from dpo_workbench.models.loading import load_model
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.studies.logps import sum_logps
from dpo_workbench.training.config import TrainConfig

CONFIG = TrainConfig(lr=2e-2, batch_size=4, epochs=4, rank=4, alpha=8, probes=0, held_out=0.0, nll_weight=0.0, beta=0.2)


def made(numbers) -> Pairs:
    return Pairs([Pair(f"p{k}", f"What is {k} plus 1?", f"It is {k + 1}.", f"No idea, {k} maybe.") for k in numbers])


@pytest.fixture(scope="module")
def start():
    return load_model("nano")


@pytest.fixture(scope="module")
def run(start):
    return dw.train(start, made(range(12)), CONFIG, show=False)


def test_margins_are_beta_times_the_difference_of_the_log_ratios(run, start) -> None:
    held_out = made(range(20, 32))
    found = preference_accuracy(run, start, held_out)
    prompts, answers = [p.prompt for p in held_out], [(p.chosen, p.rejected) for p in held_out]
    new, old = (sum_logps(model, prompts, answers) for model in (run.model, start))
    for pair, (c, r), (c0, r0) in zip(held_out, new, old, strict=True):
        assert found.margins[pair.id] == pytest.approx(0.2 * ((c - c0) - (r - r0)), abs=1e-3)
    n_wins = sum(margin > 0 for margin in found.margins.values())
    assert found.accuracy == wilson(n_wins, 12) and n_wins >= 10
    assert f"prefers the chosen answer on {n_wins} of 12 held-out pairs" in repr(found)
    assert "doesn't show that generated answers got better" in repr(found) and "better than chance" in repr(found)
    assert found.margin.low < found.margin.estimate < found.margin.high


def test_the_opposite_pairs_give_the_opposite_result(run, start) -> None:
    opposite = [Pair(p.id, p.prompt, p.rejected, p.chosen) for p in made(range(20, 32))]
    found = preference_accuracy(run, start, opposite)
    assert found.accuracy.high < 0.5 and found.margin.high < 0 and "worse than chance" in repr(found)


def test_the_reference_itself_is_at_chance(start) -> None:
    found = preference_accuracy(start, start, made(range(8)))
    assert set(found.margins.values()) == {0.0} and found.accuracy.estimate == 0.5
    assert "8 pairs have a margin of exactly 0" in repr(found) and "not clearly different from chance" in repr(found)


def test_pairs_of_one_prompt_count_as_one_unit(run, start) -> None:
    once = made(range(20, 26))
    often = [Pair(f"{p.id}-{k}", p.prompt, p.chosen, p.rejected) for p in once for k in range(5)]
    found = preference_accuracy(run, start, often)
    assert (found.accuracy.n, found.accuracy.n_groups) == (30, 6)
    assert found.smallest_detectable == preference_accuracy(run, start, once).smallest_detectable
    width = found.accuracy.high - found.accuracy.low
    naive = wilson(round(30 * found.accuracy.estimate), 30)
    assert width > naive.high - naive.low  # five copies of a pair are no new evidence


@pytest.mark.parametrize("pairs", [[], made([1]), [Pair("a", "q", "x", "y"), Pair("b", "Q ", "x", "z")]])
def test_one_prompt_is_too_few(start, pairs) -> None:
    with pytest.raises(dw.WorkbenchError, match="two prompts or more"):
        preference_accuracy(start, start, pairs)


def test_values_that_are_not_finite_name_the_pair(start) -> None:
    broken = load_model("nano").with_new_adapter(rank=2, alpha=4, seed=0)
    broken.set_adapter_tensors({k: torch.full_like(v, torch.nan) for k, v in broken.adapter_tensors().items()})
    with pytest.raises(dw.WorkbenchError, match="must be finite.*p0"):
        preference_accuracy(broken, start, made(range(4)))

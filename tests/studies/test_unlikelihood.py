"""Unlikelihood: its loss by hand, in any number of micro-batches, and a run that needs no reference."""

import math
from dataclasses import replace

import pytest
import torch

from dpo_workbench.models.loading import load_model
from dpo_workbench.studies.unlikelihood import Unlikelihood, unlikelihood
from dpo_workbench.training.batches import micro_batches
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.packing import Row
from dpo_workbench.training.run import train

CONFIG = TrainConfig(lr=2e-2, batch_size=4, epochs=4, rank=4, alpha=8, probes=0, held_out=0.0)
ROWS = [
    Row("a", (3, 4, 5), ((6, 7, 0), (8, 9, 10, 0))),
    Row("b", (3,), ((6, 11, 0), (6, 11, 12, 13))),  # both answers begin with 6, 11
    Row("c", (5, 9), ((20, 0), (21, 0))),
]


def token_probabilities(model, prompt, answer) -> list[float]:
    """p of each answer token, from the model's own logits."""
    ids = torch.tensor([[*prompt, *answer]])
    with model.active() as network, torch.no_grad():
        p = network(input_ids=ids, use_cache=False).logits[0].double().softmax(-1)
    return [float(p[len(prompt) + k - 1, token]) for k, token in enumerate(answer)]


@pytest.mark.parametrize("micro_tokens", [1, 1000])
@pytest.mark.parametrize("packing", [True, False])
def test_loss_is_the_papers_sum_over_the_tokens_of_the_batch(moved, micro_tokens: int, packing: bool) -> None:
    """The mean of -log p over chosen tokens, and of -log(1 - p) over the rejected ones after the common beginning."""
    likely = [p for r in ROWS for p in token_probabilities(moved, r.prompt_ids, r.answer_ids[0])]
    unlikely = [p for r in ROWS for p in token_probabilities(moved, r.prompt_ids, r.answer_ids[1])[r.n_shared :]]
    assert len(likely) == 8 and len(unlikely) == 4 + 2 + 2
    want = -sum(map(math.log, likely)) / 8 - sum(math.log(1 - p) for p in unlikely) / 8
    config = replace(CONFIG, micro_tokens=micro_tokens, packing=packing)
    with moved.active() as network, torch.no_grad():
        parts = [Unlikelihood().loss(network, b, ROWS, step=0)[0] for b in micro_batches(ROWS, moved, config)]
    assert len(parts) == (3 if micro_tokens == 1 else 1)
    assert float(sum(parts)) == pytest.approx(want, rel=1e-5)


def test_a_token_that_is_almost_certain_gives_a_finite_loss(moved, monkeypatch) -> None:
    """log(1 - p) has no limit as p goes to 1."""
    from dpo_workbench.studies import unlikelihood as module

    monkeypatch.setattr(module, "token_logps", lambda network, batch: torch.zeros(len(batch.owner), requires_grad=True))
    (batch,) = micro_batches(ROWS, moved, CONFIG)
    loss, _ = Unlikelihood().loss(None, batch, ROWS, step=0)
    assert 10 < loss.item() < 20


def test_training_raises_the_chosen_answers(tiny, toy_pairs) -> None:
    run = unlikelihood(tiny, toy_pairs, CONFIG, show=False)
    assert len(run.history) == 12 and run.finished and tiny.adapter is None
    assert run.history[-1]["likelihood"] < 0.8 * run.history[0]["likelihood"]
    assert run.history[-1]["loss"] == pytest.approx(run.history[-1]["likelihood"] + run.history[-1]["unlikelihood"])


def test_a_run_in_the_folder_of_a_dpo_run_does_not_continue_it(tiny_folder, toy_pairs, tmp_path, capsys) -> None:
    def fresh():
        return load_model(tiny_folder, device="cpu", dtype=torch.float32)

    want = unlikelihood(fresh(), toy_pairs, CONFIG, show=False)
    train(fresh(), toy_pairs, CONFIG, folder=tmp_path, show=False)
    got = unlikelihood(fresh(), toy_pairs, CONFIG, folder=tmp_path, show=False)
    assert got.history == want.history and "continuing" not in capsys.readouterr().out

"""The microscope against computations by hand."""

from dataclasses import replace

import pytest
import torch

import dpo_workbench as dw
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.studies.microscope import microscope
from dpo_workbench.training.config import TrainConfig

CONFIG = TrainConfig(lr=3e-2, batch_size=4, epochs=6, rank=4, alpha=8, probes=0, held_out=0.0, nll_weight=0.0)


def by_hand(model, prompt: str, answer: str) -> list[float]:
    """Token log-probabilities of one plain sequence."""
    before, ids = model.chat.prompt_ids(prompt), model.chat.answer_ids(prompt, answer)
    with model.active() as network, torch.no_grad():
        out = network(input_ids=torch.tensor([before + ids]))
    places = range(len(before) - 1, len(before) + len(ids) - 1)
    logps = out.logits[0].log_softmax(-1)
    return [logps[p, i].item() for p, i in zip(places, ids, strict=True)]


def test_numbers_are_those_of_plain_sequences(tiny, moved, toy_pairs) -> None:
    for pair, view in zip(toy_pairs, microscope(tiny, toy_pairs, moved), strict=True):
        for k, answer in enumerate((pair.chosen, pair.rejected)):
            before, after = (by_hand(model, pair.prompt, answer) for model in (tiny, moved))
            assert view.reference[k] == pytest.approx(before, abs=1e-4)
            assert view.policy[k] == pytest.approx(after, abs=1e-4)
            assert sum(view.log_ratios[k]) == pytest.approx(sum(after) - sum(before), abs=1e-3)


def test_what_is_shown_is_what_is_trained(tiny, toy_pairs) -> None:
    view, k = microscope(tiny, toy_pairs)[0], microscope(tiny, toy_pairs)[0].divergence
    chosen, rejected = view.tokens
    assert "".join(chosen) == toy_pairs[0].chosen + tiny.tokenizer.eos_token
    assert chosen[:k] == rejected[:k] and chosen[k] != rejected[k]
    cut = microscope(tiny, Pairs([replace(toy_pairs[0], rejected_finished=False)]))[0]
    assert cut.tokens[1] == rejected[:-1]  # a cut answer has no end token


def test_after_training_the_pairs_are_ranked_correctly(moved, toy_pairs) -> None:
    turned = Pairs(replace(p, chosen=p.rejected, rejected=p.chosen) for p in toy_pairs)  # the model prefers the others
    run = dw.train(moved, turned, CONFIG, show=False)
    texts = [repr(view) for view in microscope(moved, turned, run)]
    assert all("correctly\n" in text for text in texts) and any("wrongly, then correctly" in text for text in texts)

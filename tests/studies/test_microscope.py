"""The microscope against computations by hand."""

from dataclasses import replace

import pytest
import torch

import dpo_workbench as dw
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.studies.microscope import STATES, Microscope, margin, microscope
from dpo_workbench.training.config import TrainConfig

CONFIG = TrainConfig(lr=3e-2, batch_size=4, epochs=6, rank=4, alpha=8, probes=0, held_out=0.0, nll_weight=0.0)


@pytest.fixture
def seen(tiny, moved, toy_pairs) -> Microscope:
    return microscope(tiny, toy_pairs, moved)


def by_hand(model, prompt: str, answer: str) -> list[float]:
    """Token log-probabilities of one plain sequence."""
    before, ids = model.prompt_ids(prompt), model.answer_ids(answer)
    with model.active() as network, torch.no_grad():
        out = network(input_ids=torch.tensor([before + ids]))
    places = range(len(before) - 1, len(before) + len(ids) - 1)
    logps = out.logits[0].log_softmax(-1)
    return [logps[p, i].item() for p, i in zip(places, ids, strict=True)]


def test_numbers_are_those_of_plain_sequences(tiny, moved, toy_pairs, seen) -> None:
    for pair, view in zip(toy_pairs, seen, strict=True):
        chosen = by_hand(tiny, pair.prompt, pair.chosen)
        rejected = by_hand(tiny, pair.prompt, pair.rejected)
        assert view.reference[0] == pytest.approx(chosen, abs=1e-4)
        assert view.reference[1] == pytest.approx(rejected, abs=1e-4)
        after = [sum(by_hand(moved, pair.prompt, a)) for a in (pair.chosen, pair.rejected)]
        assert margin(view.policy) == pytest.approx(after[0] - after[1], abs=1e-3)
        assert view.reward_margin == pytest.approx(0.1 * (after[0] - after[1] - sum(chosen) + sum(rejected)), abs=1e-3)
        assert [sum(part) for part in view.log_ratios] == pytest.approx(
            [after[0] - sum(chosen), after[1] - sum(rejected)], abs=1e-3
        )


def test_what_is_shown_is_what_is_trained(tiny, seen) -> None:
    view = seen[0]
    assert "".join(view.chosen_tokens) == view.pair.chosen + tiny.tokenizer.eos_token
    k = view.divergence
    assert view.chosen_tokens[:k] == view.rejected_tokens[:k] and view.chosen_tokens[k] != view.rejected_tokens[k]
    cut = microscope(tiny, Pairs([replace(view.pair, rejected_finished=False)]))[0]
    assert cut.rejected_tokens == view.rejected_tokens[:-1]  # a cut answer has no end token


def test_states_follow_the_ranking_before_and_after(seen) -> None:
    view = seen[0]
    margins = {"kept": (2, 1), "learned": (-2, 3), "unlearned": (2, -3), "never learned": (-2, 1)}
    for state, (before, reward) in margins.items():
        made = replace(view, reference=([before], [0.0]), policy=([before + reward], [0.0]))
        assert made.state == state and made.reward_margin == pytest.approx(0.1 * reward)
    assert replace(view, policy=None).state is None
    assert sum(seen.states.values()) == len(seen) and list(seen.states) == list(STATES)


def test_learned_after_training(moved, toy_pairs) -> None:
    turned = Pairs(replace(p, chosen=p.rejected, rejected=p.chosen) for p in toy_pairs)  # the model prefers the others
    run = dw.train(moved, turned, CONFIG, show=False)
    seen = microscope(moved, turned, run)
    assert seen.states["never learned"] + seen.states["unlearned"] == 0 and seen.states["learned"] > 0
    assert all(view.reward_margin > 0 for view in seen)


def test_the_reward_margin_has_the_scale_of_the_runs_history(moved, toy_pairs) -> None:
    config = replace(CONFIG, beta=0.5, lr=1e-30, epochs=1, batch_size=len(toy_pairs))  # moves nothing
    run = dw.train(moved, toy_pairs, config, show=False)
    run.model.set_adapter_tensors({k: v + 0.05 for k, v in run.model.adapter_tensors().items()})
    view = microscope(moved, toy_pairs, run)[0]
    before, after = ([sum(by_hand(m, view.pair.prompt, a)) for a in (view.pair.chosen, view.pair.rejected)]
                     for m in (moved, run.model))  # fmt: skip
    margin = 0.5 * (after[0] - before[0]) - 0.5 * (after[1] - before[1])  # the difference of two implicit rewards
    assert abs(margin) > 1e-3 and view.reward_margin == pytest.approx(margin, abs=1e-3)


def test_table_and_text(tiny, toy_pairs, seen) -> None:
    table = seen.to_dataframe()
    assert len(table) == len(toy_pairs) and table["reference_margin"].tolist() == [margin(v.reference) for v in seen]
    text = repr(seen)
    assert f"{len(toy_pairs)} pairs, seen by" in text and "never learned" in text
    assert "pair p1:" in repr(seen[1])
    view = seen[0]
    gap = len(tiny.answer_ids(view.pair.chosen)) - len(tiny.answer_ids(view.pair.rejected))
    assert table["length_gap"][0] == gap and table["chosen_logratio"][0] == pytest.approx(sum(view.log_ratios[0]))
    before = microscope(tiny, toy_pairs)
    assert before.states is None and "never learned" not in repr(before) and "training:" not in repr(before[0])

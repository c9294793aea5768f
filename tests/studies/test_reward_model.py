"""A reward model learns its pairs, and the log-probabilities of answers are those of plain sequences."""

import math

import pytest
import torch

from dpo_workbench.models.generation import Answer
from dpo_workbench.studies.logps import mean_logps, sum_logps
from dpo_workbench.studies.reward_model import train_reward_model
from dpo_workbench.training.config import TrainConfig

CONFIG = TrainConfig(lr=3e-3, epochs=6, batch_size=4, held_out=0.0, probes=0)


def test_reward_model_learns_its_pairs(tiny, toy_pairs):
    reward = train_reward_model(tiny, toy_pairs, CONFIG, show=False)
    assert reward.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the head starts at zero
    assert reward.history[-1]["loss"] < 0.5
    assert reward.accuracy(toy_pairs) > 0.9


def test_a_reward_does_not_depend_on_the_answers_beside_it(tiny, toy_pairs):
    reward = train_reward_model(tiny, toy_pairs, CONFIG, show=False)
    pair = toy_pairs[0]
    ((one, other),) = reward.scores([pair.prompt], [(pair.chosen, pair.rejected)])
    ((alone,),) = reward.scores([pair.prompt], [(pair.rejected,)])
    assert alone == pytest.approx(other, abs=1e-4) and one != other
    ((twice, same),) = reward.scores([pair.prompt], [(pair.chosen, pair.chosen)])
    assert twice == pytest.approx(same) == pytest.approx(one, abs=1e-4)


def test_a_cut_answer_has_another_reward_than_a_whole_one_and_an_empty_one_has_one(tiny, toy_pairs):
    reward = train_reward_model(tiny, toy_pairs, CONFIG, show=False)
    cut, whole, empty = Answer("yes: 1", 3, False), Answer("yes: 1", 3, True), Answer("", 0, False)
    ((a, b, c),) = reward.scores(["question"], [(cut, whole, empty)])
    assert len({a, b, c}) == 3 and all(map(math.isfinite, (a, b, c)))


def test_the_log_probability_of_an_answer_is_the_plain_one(tiny):
    prompt, answer = "question", Answer("yes: 12 ab", 5, True)
    ids = tiny.chat.prompt_ids(prompt)
    wanted = tiny.chat.answer_ids(prompt, answer.text)
    with tiny.active() as network, torch.no_grad():
        logits = network(torch.tensor([[*ids, *wanted]])).logits[0].log_softmax(-1)
    plain = sum(logits[len(ids) - 1 + k, token].item() for k, token in enumerate(wanted))
    ((seen,),) = sum_logps(tiny, [prompt], [[answer]])
    assert seen == pytest.approx(plain, abs=1e-4)
    assert mean_logps(tiny, [prompt], [[answer]])[0][0] == pytest.approx(plain / len(wanted), abs=1e-5)

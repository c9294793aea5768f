"""The route that DPO replaces: a reward that learns pairs, best of n by it, a policy gradient that follows it."""

import math

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.generation import Answer, generate
from dpo_workbench.studies.reward_model import (
    RewardModel,
    mean_logps,
    policy_gradient,
    sum_logps,
    train_reward_model,
)
from dpo_workbench.training.config import TrainConfig

CONFIG = TrainConfig(lr=3e-3, epochs=6, batch_size=4, held_out=0.0, probes=0)


def test_reward_model_learns_its_pairs_and_comes_back_from_a_file(tiny, toy_pairs, tmp_path):
    reward = train_reward_model(tiny, toy_pairs, CONFIG, show=False)
    assert reward.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the head starts at zero
    assert reward.history[-1]["loss"] < 0.5
    assert reward.accuracy(toy_pairs) > 0.9
    again = RewardModel.load(tiny, reward.save(tmp_path / "reward"), CONFIG)
    prompts = [p.prompt for p in toy_pairs]
    both = [(p.chosen, p.rejected) for p in toy_pairs]
    flat = [[value for row in which.scores(prompts, both) for value in row] for which in (again, reward)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-5)


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
    ids = tiny.prompt_ids(prompt)
    wanted = tiny.answer_ids(answer.text)
    with tiny.active() as network, torch.no_grad():
        logits = network(torch.tensor([[*ids, *wanted]])).logits[0].log_softmax(-1)
    plain = sum(logits[len(ids) - 1 + k, token].item() for k, token in enumerate(wanted))
    ((seen,),) = sum_logps(tiny, [prompt], [[answer]])
    assert seen == pytest.approx(plain, abs=1e-4)
    assert mean_logps(tiny, [prompt], [[answer]])[0][0] == pytest.approx(plain / len(wanted), abs=1e-5)


class ShortIsGood:
    """A known reward: minus the number of characters."""

    def scores(self, prompts, answers):
        return [[-float(len(a.text)) for a in given] for given in answers]


def test_policy_gradient_moves_towards_a_known_reward(tiny):
    prompts = [f"question {k}" for k in range(8)]
    config = TrainConfig(lr=2e-2, batch_size=8, beta=0.01)
    settings = {"steps": 12, "samples": 8, "max_new_tokens": 12, "show": False}
    policy, history = policy_gradient(tiny, ShortIsGood(), prompts, config, **settings)
    assert len(history) == 12 and all(h["sampled"] > 0 for h in history)
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)  # the policy begins as the reference

    def length(model):
        drawn = generate(model, prompts, samples=16, temperature=1.0, max_new_tokens=12, seed=9)
        return sum(len(a.text) for row in drawn for a in row)

    assert length(policy) < 0.9 * length(tiny)
    with pytest.raises(WorkbenchError, match="two samples"):
        policy_gradient(tiny, ShortIsGood(), prompts, config, steps=1, samples=1)

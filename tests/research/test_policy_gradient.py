"""The policy gradient of `research/claims.py` raises a known reward."""

import pytest
from policy_gradient import policy_gradient  # research/policy_gradient.py

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.generation import generate
from dpo_workbench.training.config import TrainConfig


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

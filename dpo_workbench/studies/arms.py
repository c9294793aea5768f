"""The arms: different ways to improve the same fine-tuned model, DPO among them, and what each of them costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.run import Evaluation, evaluate, evaluate_answers
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.studies.reward_model import train_reward_model
from dpo_workbench.studies.study import BEST_OF, Study
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import Run, record_run, sft, train

T = TypeVar("T")


@dataclass
class Cost:
    """What an arm spent in addition to the fine-tuned start, which all arms share."""

    steps: int = 0  # optimizer steps
    sampled_tokens: int = 0  # tokens generated in addition to the one answer per test prompt
    train_seconds: float = 0.0
    answer_seconds: float = 0.0  # for the test prompts


def run_arm(study: Study, name: str) -> tuple[Evaluation, Cost]:
    """The arm's answers to the test prompts and its cost, read from the folder if it has finished before."""
    file, cost_file = (study.folder / "evaluations" / f"{name}{ending}" for ending in (".json", ".cost.json"))
    if file.is_file():
        study.say(f"{name}: read from the folder")
        return Evaluation.load(file), Cost(**json.loads(cost_file.read_text(encoding="utf-8")))
    _ = study.start  # where it is fine-tuned on first use, that is not part of an arm's cost
    cost, begun = Cost(), time.monotonic()
    done = replace(ARMS[name](study, cost), name=name)
    cost.answer_seconds = time.monotonic() - begun - cost.train_seconds
    write_json(cost_file, asdict(cost))
    done.save(file)
    study.say(f"{name}: {done.n_failed} of {done.n} held-out answers failed, mean score {done.mean_score:.3f}")
    return done, cost


def _answers(study: Study, model: Model, **decoding: Any) -> Evaluation:
    return evaluate(model, study.test, show=study.show, **decoding)


def _dpo(study: Study, cost: Cost) -> Evaluation:
    record_run(study.folder / "dpo", study.start, study.pairs, study.recipe.dpo)
    return _trained(study, cost, "dpo", train, study.recipe.dpo)


def _more_sft(study: Study, cost: Cost) -> Evaluation:
    """The control: fine-tuning on the chosen answers of the same pairs, for as many steps."""
    return _trained(study, cost, "control", sft, replace(study.recipe.dpo, nll_weight=0.0))


def _trained(study: Study, cost: Cost, stage: str, fit: Callable[..., Run], config: TrainConfig) -> Evaluation:
    """Train, then answer the test prompts."""
    run = timed(cost, lambda: study.fit(stage, fit, study.start, study.pairs, config))
    cost.steps = len(run.history)
    if run.unchanged:
        study.say("No adapter was better on the dev prompts than the fine-tuned model, so its answers are used")
        return run_arm(study, "sft")[0]
    return _answers(study, run.model)


def _reward_best(study: Study, cost: Cost) -> Evaluation:
    """For each prompt the best of n samples by a reward model that was trained on the same pairs."""
    start, pairs, config = study.start, study.pairs, study.recipe.dpo
    reward = timed(cost, lambda: train_reward_model(start, pairs, config, show=study.show))
    cost.steps = len(reward.history)
    prompts = [example.prompt for example in study.test]
    decoding: dict[str, Any] = {"temperature": study.recipe.temperature, "samples": BEST_OF, "seed": config.seed}
    samples = generate(start, prompts, max_new_tokens=study.task.max_new_tokens, **decoding)
    cost.sampled_tokens = sum(answer.n_tokens for row in samples for answer in row)
    rewards = reward.scores(prompts, samples)
    best = [row[max(range(len(row)), key=r.__getitem__)] for row, r in zip(samples, rewards, strict=True)]
    return evaluate_answers("best", study.test, best, model=study.settings["model"], decoding=decoding)


def timed(cost: Cost, training: Callable[[], T]) -> T:
    """The result of a training, whose seconds are added to the cost."""
    begun = time.monotonic()
    done = training()
    cost.train_seconds += time.monotonic() - begun
    return done


# An arm is a function from a study and an empty `Cost`, which it may fill in, to an `Evaluation`.
ARMS: dict[str, Callable[[Study, Cost], Evaluation]] = {
    "base": lambda study, cost: _answers(study, study.base),
    "sft": lambda study, cost: _answers(study, study.start),
    "sft+dpo": _dpo,
    "sft+sft on chosen": _more_sft,
    "sft, repetition penalty": lambda study, cost: _answers(study, study.start, repetition_penalty=1.1),
    f"sft, reward best of {BEST_OF}": _reward_best,
}

"""The arms: different ways to improve the same fine-tuned model, DPO among them, and what each of them costs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.run import Evaluation, evaluate, evaluate_answers
from dpo_workbench.models.generation import Answer, generate
from dpo_workbench.models.loading import Model
from dpo_workbench.studies.reward_model import train_reward_model
from dpo_workbench.studies.study import BEST_OF, Study
from dpo_workbench.tasks.task import Split
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import Run, record_run, sft, train

T = TypeVar("T")
NLL_WEIGHT = 0.2  # of the arm DPO+NLL, if the recipe names none


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


def _answers(study: Study, model: Model) -> Evaluation:
    return evaluate(model, study.test, show=study.show)


def _dpo(study: Study, cost: Cost, stage: str, nll_weight: float) -> Evaluation:
    config = replace(study.recipe.dpo, nll_weight=nll_weight)
    rates = [factor * config.lr for factor in (1 / 3, 1, 3)]
    return _trained(study, cost, stage, train, config, rates)


def _control(study: Study, cost: Cost) -> Evaluation:
    """Fine-tuning on the chosen answers of the same pairs, for as many steps.

    Its learning rates reach from that of DPO to that of fine-tuning, which is usually higher.
    """
    recipe = study.recipe
    low, high = recipe.dpo.lr, recipe.sft.lr
    config = replace(recipe.dpo, nll_weight=0.0, lr=recipe.control_lr or low)
    return _trained(study, cost, "control", sft, config, (low, math.sqrt(low * high), high))


def _trained(
    study: Study, cost: Cost, stage: str, fit: Callable[..., Run], config: TrainConfig, rates: Sequence[float]
) -> Evaluation:
    """Train, then answer the test prompts. A study that tunes first chooses one of the learning rates on dev."""
    if study.tune and config.probes:
        config = replace(config, lr=timed(cost, lambda: tuned_lr(study, stage, fit, config, rates)))
    if fit is train:
        record_run(study.folder / stage, study.start, study.pairs, config)
    run = timed(cost, lambda: study.fit(stage, fit, study.start, study.pairs, config))
    cost.steps = len(run.history)
    if run.unchanged:
        study.say("No adapter was better on the dev prompts than the start, so the answers of the start are used")
        return run_arm(study, "start")[0]
    return _answers(study, run.model)


def tuned_lr(study: Study, stage: str, fit: Callable[..., Run], config: TrainConfig, rates: Sequence[float]) -> float:
    """The learning rate whose best adapter scores highest on dev; of equal ones the lowest. Reads or writes a note."""
    note = study.folder / "tuning" / f"{stage}.json"
    if not note.is_file():
        dev_scores = {}
        for lr in (float(f"{rate:.2g}") for rate in rates):
            run = study.fit(f"tuning/{stage}-{lr:g}", fit, study.start, study.pairs, replace(config, lr=lr))
            dev_scores[lr] = max(probe["score"] for probe in run.scores)
        chosen = max(dev_scores, key=dev_scores.__getitem__)
        write_json(note, {"dev_scores": dev_scores, "chosen": chosen})
        (study.folder / "tuning" / f"{stage}-{chosen:g}").rename(study.folder / stage)  # not trained again
    return float(json.loads(note.read_text(encoding="utf-8"))["chosen"])


def _decoded(study: Study, split: Split, **rule: Any) -> Evaluation:
    """Greedy answers of the start under a rule against repetition."""
    decoding: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": study.task.max_new_tokens, **rule}
    answers = generate(study.start, [example.prompt for example in split], **decoding)
    return evaluate_answers("rule", split, [a for (a,) in answers], model=study.settings["model"], decoding=decoding)


def _decoding_fix(study: Study, rule: str, values: Sequence[float]) -> Evaluation:
    """The start with a rule against repetition. A study that tunes chooses the rule's value on dev."""
    note, chosen = study.folder / "tuning" / f"{rule}.json", values[0]
    if study.tune and not note.is_file():
        dev = study.task.dev[: study.recipe.probe_prompts]
        dev_scores = {value: _decoded(study, dev, **{rule: value}).mean_score for value in values}
        write_json(note, {"dev_scores": dev_scores, "chosen": max(dev_scores, key=dev_scores.__getitem__)})
    if study.tune:
        chosen = json.loads(note.read_text(encoding="utf-8"))["chosen"]
    return _decoded(study, study.test, **{rule: chosen})


def _samples(study: Study, cost: Cost) -> tuple[list[list[Answer]], dict[str, Any]]:
    """`BEST_OF` sampled answers of the start to each test prompt, and how they were drawn."""
    decoding: dict[str, Any] = {"temperature": study.recipe.temperature, "samples": BEST_OF}
    decoding["seed"] = study.recipe.dpo.seed
    prompts = [example.prompt for example in study.test]
    samples = generate(study.start, prompts, max_new_tokens=study.task.max_new_tokens, **decoding)
    cost.sampled_tokens = sum(answer.n_tokens for row in samples for answer in row)
    return samples, decoding


def _best_without_verifier(study: Study, cost: Cost) -> Evaluation:
    """For each prompt, of n samples that end, the one of median length; of samples that all do not end, the first."""
    samples, decoding = _samples(study, cost)
    ended = [sorted((a for a in row if a.finished), key=lambda a: a.n_tokens) or row[:1] for row in samples]
    best = [row[len(row) // 2] for row in ended]
    return evaluate_answers("best", study.test, best, model=study.settings["model"], decoding=decoding)


def _reward_best(study: Study, cost: Cost) -> Evaluation:
    """For each prompt the best of n samples by a reward model that was trained on the same pairs."""
    start, pairs, config = study.start, study.pairs, study.recipe.dpo
    reward = timed(cost, lambda: train_reward_model(start, pairs, config, show=study.show))
    cost.steps = len(reward.history)
    samples, decoding = _samples(study, cost)
    rewards = reward.scores([example.prompt for example in study.test], samples)
    best = [row[max(range(len(row)), key=r.__getitem__)] for row, r in zip(samples, rewards, strict=True)]
    return evaluate_answers("best", study.test, best, model=study.settings["model"], decoding=decoding)


def timed(cost: Cost, training: Callable[[], T]) -> T:
    """The result of a training, whose seconds are added to the cost."""
    begun = time.monotonic()
    done = training()
    cost.train_seconds += time.monotonic() - begun
    return done


DECODING_ARMS = ("repetition penalty", "no repeated n-grams")
# An arm is a function from a study and an empty `Cost`, which it may fill in, to an `Evaluation`.
ARMS: dict[str, Callable[[Study, Cost], Evaluation]] = {
    "base": lambda study, cost: _answers(study, study.base),
    "start": lambda study, cost: _answers(study, study.start) if study.fine_tunes else run_arm(study, "base")[0],
    "control": _control,
    "DPO": lambda study, cost: _dpo(study, cost, "dpo", nll_weight=0.0),
    "DPO+NLL": lambda study, cost: _dpo(study, cost, "dpo+nll", study.recipe.dpo.nll_weight or NLL_WEIGHT),
    "repetition penalty": lambda study, cost: _decoding_fix(study, "repetition_penalty", (1.1, 1.05, 1.2)),
    "no repeated n-grams": lambda study, cost: _decoding_fix(study, "no_repeat_ngram", (4, 3, 6)),
    f"finished of {BEST_OF}": _best_without_verifier,
    f"reward best of {BEST_OF}": _reward_best,
}

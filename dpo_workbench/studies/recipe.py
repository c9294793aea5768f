"""Recipes: the sizes and settings of a demo or a comparison, chosen on dev prompts (see docs/recipe.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.builtin import PLANTED
from dpo_workbench.tasks.task import Task
from dpo_workbench.training.config import SFT_CONFIG, TrainConfig

# Tasks on which an instruct model's own failures are mined, without fine-tuning it first. Nothing is planted.
NATURAL = ("long_answers", "instructions", "briefs")
# Fine-tuning prompts and epochs of `nano` where the usual 800 prompts and 2 epochs were not enough.
NANO_SFT = {"science": (1200, 3), "briefs": (1100, 6)}


@dataclass(frozen=True)
class Recipe:
    """Sizes and settings for one model on one task."""

    test_prompts: int  # held-out prompts that every arm answers
    sft_prompts: int  # fine-tuning uses this many prompts from the start of the training split; 0: no fine-tuning
    mine_from: int  # index of the first training prompt to mine
    mine_prompts: int
    samples: int  # answers sampled for each mined prompt
    max_pairs: int
    temperature: float  # of the sampled answers
    per_prompt: int  # pairs made from one prompt, at most
    target: tuple[str, ...]  # failure classes to train against; (): the most frequent ones
    probe_prompts: int  # dev prompts that choose the best adapter during training
    dpo: TrainConfig
    sft: TrainConfig
    greedy: bool = False  # also mine the greedy answers
    gap: float | None = None  # see `Found.pairs`; with a gap, all failure classes are used
    control_lr: float | None = None  # of the control, where it was chosen on dev before; None: that of DPO


_NANO = Recipe(
    test_prompts=80,
    sft_prompts=2080,
    mine_from=2080,
    mine_prompts=32,
    samples=4,
    max_pairs=48,
    temperature=0.7,
    per_prompt=1,
    target=PLANTED["receipts"][:1],
    probe_prompts=16,
    dpo=TrainConfig(lr=3e-4, nll_weight=1.0, epochs=1, batch_size=8, probes=1, held_out=0.0),
    # No probes: the dev score counts the planted habit as a failure, so it would choose an adapter without the habit.
    sft=replace(SFT_CONFIG, probes=0),
)
_SMOL = replace(
    _NANO,
    test_prompts=200,
    mine_prompts=40,
    probe_prompts=96,
    dpo=replace(_NANO.dpo, lr=1.5e-5, micro_tokens=1024),
    sft=replace(_NANO.sft, epochs=1, lr=8e-4, batch_size=8, micro_tokens=1024),
)
_INSTRUCT = Recipe(
    test_prompts=180,
    sft_prompts=0,
    mine_from=0,
    mine_prompts=120,
    samples=4,
    max_pairs=160,
    temperature=0.8,
    per_prompt=2,
    target=(),
    probe_prompts=40,
    dpo=TrainConfig(lr=1e-4, nll_weight=0.5, epochs=1, batch_size=8, probes=2, held_out=0.0),
    sft=replace(SFT_CONFIG, lr=1e-3),  # the highest learning rate that the control tries
    greedy=True,
    gap=0.2,
)
RECIPES = {"nano": _NANO, "smol": _SMOL}
# The demo of nano runs on a task with short answers and takes about a minute. Other models answer open questions.
DEMO_TASKS = {"nano": "science"}
DEMO_TASK = "long_answers"
DEMO_SIZES: dict[str, dict[str, Any]] = {
    # the control's learning rate was the best of three on dev: benchmarks/results/sweep-nano.json
    "nano": {"test_prompts": 200, "mine_prompts": 80, "probe_prompts": 32, "control_lr": 7.7e-4},
    "smol": {"test_prompts": 40, "mine_prompts": 32, "samples": 3, "max_pairs": 48, "probe_prompts": 16},
}  # of the demo, which should take minutes; other models have the sizes of their recipe


def recipe_for(model_name: str, task: str | Task) -> Recipe:
    """The recipe for a model on a task: `nano`'s, or `smol`'s for every other model. See docs/recipe.md.

    On the tasks in `NATURAL`, a model is trained against its own failures as it is, without fine-tuning it first. On
    `briefs`, `nano` is the exception.

    Args:
        model_name: as in `demo`.
        task: the name of a built-in task, or any task. For a task of your own the sizes follow from the number of
            training prompts: a third of them (at most 300) are mined, and the others are used for fine-tuning, with
            enough epochs for about 1,600 rows.
    """
    recipe = RECIPES.get(model_name, _SMOL)
    own = isinstance(task, Task) and not task.built_in
    name = task.name if isinstance(task, Task) else task
    if name in NATURAL and not own and (recipe is _SMOL or name not in PLANTED):
        return _INSTRUCT
    if name == "receipts" and not own:
        return recipe
    if recipe is _SMOL:  # answers of the other tasks are short, so a larger learning rate is safe
        recipe = replace(recipe, max_pairs=64, dpo=replace(recipe.dpo, lr=6e-5, probes=2))
    if isinstance(task, Task) and own:
        return _sized_for(recipe, task)
    prompts = 800
    if model_name == "nano":
        recipe = replace(recipe, probe_prompts=96)
        if name in NANO_SFT:
            prompts, epochs = NANO_SFT[name]
            recipe = replace(recipe, sft=replace(recipe.sft, lr=2e-3, epochs=epochs))
    return replace(
        recipe,
        sft_prompts=prompts,
        mine_from=prompts,
        mine_prompts=300 if name == "sql" else 100,  # only one SQL answer in six has the planted habit
        per_prompt=2,
        target=PLANTED[name][:1] if name in PLANTED else (),
    )


def _sized_for(recipe: Recipe, task: Task) -> Recipe:
    """The recipe in the sizes that the task's training prompts allow."""
    n = len(task.train)
    if n < 30:
        raise WorkbenchError(
            f"Fine-tuning and mining need at least 30 training prompts together. Got {n} in task {task.name!r}. Add "
            "rows, or give the training split a larger share (`shares`)."
        )
    mined = min(300, n // 3)
    tuned = min(800, n - mined)
    epochs = min(8, max(recipe.sft.epochs, round(1600 / tuned)))
    # Labels that differ from the references may teach a habit that the dev score punishes, so don't choose by it.
    has_labels = any(example.label is not None for example in task.train)
    sft = replace(recipe.sft, epochs=epochs, batch_size=8, probes=0 if has_labels else 2)
    return replace(
        recipe, sft_prompts=tuned, mine_from=tuned, mine_prompts=mined, per_prompt=2, target=(), sft=sft, greedy=True
    )

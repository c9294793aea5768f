"""`demo`: the whole job. Mine a model's own failures, train with DPO, and count the same failures again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation
from dpo_workbench.studies.arms import Cost, run_arm
from dpo_workbench.studies.compare import Comparison, write_results
from dpo_workbench.studies.recipe import PLANTED, Recipe
from dpo_workbench.studies.recipe import RECIPES as RECIPES  # notebooks import it and `recipe_for` from here
from dpo_workbench.studies.recipe import recipe_for as recipe_for
from dpo_workbench.studies.study import Study, open_study
from dpo_workbench.tasks.task import Task

# The arms of the demo, and what it prints before each of them.
STEPS = {
    "base": "Step 1 of 5: the base model answers {n} held-out prompts.",
    "sft": "Step 2 of 5: the fine-tuned model answers the same prompts. DPO starts from this model.",
    "pairs": "Step 3 of 5: it answers training prompts several times. Its failures are paired with its better answers.",
    "sft+dpo": "Step 4 of 5: train with DPO on these pairs, then answer the held-out prompts again.",
    "sft+sft on chosen": "Step 5 of 5: the control. Fine-tune on the chosen answers alone. If this helps as much, you "
    "don't need DPO.",
}
DEMO_ARMS = tuple(name for name in STEPS if name != "pairs")


def demo(
    model_name: str = "nano",
    folder: str | Path | None = None,
    *,
    task_name: str | Task = "receipts",
    from_scratch: bool = False,
    adapter: str | Path | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    show: bool = True,
) -> Comparison:
    """Run the whole job and write `results.json`, `report.html` and all intermediate results into `folder`.

    A step whose result is already in the folder is read, not run again, so a stopped demo continues where it stopped.

    Args:
        model_name: `nano` or `smol`, or any model that `load_model` takes (with smol's recipe).
        folder: `runs/demo-MODEL` by default.
        task_name: a built-in task, a .py file of your own (see `load_task`), or a task itself.
        from_scratch: fine-tune here instead of using the shipped adapter. Where none is shipped, this happens anyway.
        adapter: folder of a fine-tuned LoRA adapter to start from, instead of the shipped one.
        recipe: other sizes and settings.
        seed: of mining, training order and adapters.
    """
    if from_scratch and adapter:
        raise WorkbenchError("`from_scratch` trains the adapter and `adapter` gives one. Leave one of them out.")
    folder = folder or Path("runs") / f"demo-{Path(model_name).name}"
    given: dict[str, Any] = {"recipe": recipe, "adapter": adapter, "from_scratch": from_scratch}
    study = open_study(model_name, task_name, folder, **given, seed=seed, show=show)
    study.say(introduction(study))
    arms: dict[str, Evaluation] = {}
    costs: dict[str, Cost] = {}
    for step, text in STEPS.items():
        study.say("\n" + text.format(n=len(study.test)))
        if step == "pairs":
            study.pairs  # noqa: B018 - mined on first use
        else:
            arms[step], costs[step] = run_arm(study, step)
    result = Comparison(arms, costs, {}, study.folder, study.verdict_context)
    write_results(study, result, command(study))
    return result


def introduction(study: Study) -> str:
    """What the demo is about to do, and whether the failures it fixes were planted."""
    task = study.task
    lines = [repr(study.base), f"Task: {task.name}{f' ({task.description})' if task.description else ''}"]
    if task.built_in and task.name in PLANTED:
        lines.append(
            "Note: we planted the flaw that this demo fixes. In part of the fine-tuning labels, "
            f"{PLANTED[task.name][1]}. The fine-tuned model has learned to do the same, and DPO should undo it. This "
            "shows how the method works, not how much it helps with failures that nobody planted."
        )
    return "\n".join(lines)


def command(study: Study) -> str:
    """How to repeat this run from a shell."""
    settings = study.settings
    start = f" --adapter {shlex.quote(settings['adapter'])}" if "adapter" in settings else ""
    start = " --from-scratch" if settings["from_scratch"] else start
    seed = study.recipe.dpo.seed
    return f"dpo-workbench demo --model {settings['model']} --task {settings['task']} --seed {seed}{start}"

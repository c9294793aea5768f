"""`demo`: the whole job. Mine a model's own failures, train with DPO, and count the same failures again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.studies.compare import Comparison, run_arms
from dpo_workbench.studies.recipe import DEMO_SIZES, DEMO_TASK, DEMO_TASKS, PLANTED, Recipe
from dpo_workbench.studies.recipe import RECIPES as RECIPES  # notebooks import it and `recipe_for` from here
from dpo_workbench.studies.recipe import recipe_for as recipe_for
from dpo_workbench.studies.study import Study, open_study
from dpo_workbench.tasks.task import Task

DEMO_ARMS = ("base", "start", "control", "DPO+NLL")
STEPS = """The demo mines the model's failures on training prompts and pairs them with its better answers. \
Then {n} held-out prompts are answered by
{start}
  control  the start, fine-tuned on the chosen answers alone. If this helps as much, you don't need DPO.
  DPO+NLL  the start after DPO on the pairs, with the likelihood of the chosen answers as a second term
The control's learning rate is {rate}."""
FINE_TUNED = """\
  base     the model before fine-tuning
  start    the fine-tuned model, from which control and DPO start"""
AS_IT_IS = "  start    the model as it is, from which control and DPO start"


def demo(
    model_name: str = "nano",
    folder: str | Path | None = None,
    *,
    task_name: str | Task | None = None,
    from_scratch: bool = False,
    adapter: str | Path | None = None,
    quantize: str | None = None,
    recipe: Recipe | None = None,
    template: dict[str, Any] | None = None,
    seed: int = 0,
    show: bool = True,
) -> Comparison:
    """Run the whole job and write `results.json`, `report.html` and all intermediate results into `folder`.

    A step whose result is already in the folder is read, not run again, so a stopped demo continues where it stopped.

    Args:
        model_name: `nano` or `smol`, or any model that `load_model` takes (with smol's recipe).
        folder: `runs/demo-MODEL` by default.
        task_name: a built-in task, a .py file of your own (see `load_task`), or a task itself. None is `science` for
            `nano`, whose short answers take about a minute, and `long_answers` for other models.
        from_scratch: fine-tune here instead of using the shipped adapter. Where none is shipped, this happens anyway.
        adapter, quantize, recipe, template, seed: as in `compare`.
    """
    if from_scratch and adapter:
        raise WorkbenchError("`from_scratch` trains the adapter and `adapter` gives one. Leave one of them out.")
    folder = folder or Path("runs") / f"demo-{Path(model_name).name}"
    task_name = task_name or DEMO_TASKS.get(model_name, DEMO_TASK)
    if recipe is None and task_name == DEMO_TASKS.get(model_name, DEMO_TASK):
        recipe = replace(recipe_for(model_name, task_name), **DEMO_SIZES.get(model_name, {}))
    given: dict[str, Any] = {"recipe": recipe, "adapter": adapter, "quantize": quantize, "template": template}
    given["from_scratch"] = from_scratch
    study = open_study(model_name, task_name, folder, **given, seed=seed, show=show)
    study.say(introduction(study))
    result = run_arms([study], DEMO_ARMS if study.fine_tunes else DEMO_ARMS[1:], "demo")
    if result.holes:  # without the control a verdict would say too much
        missing = "; ".join(f"{name}: {why}" for name, why in result.holes.items())
        raise WorkbenchError(
            f"Every arm of the demo must have a result. Got none for {missing}. "
            "Remove the cause and run the same command again: finished arms are read from the folder."
        )
    return result


def introduction(study: Study) -> str:
    """What the demo is about to do, and whether the failures it fixes were planted."""
    task = study.task
    lines = [repr(study.base), f"Task: {task.name}{f' ({task.description})' if task.description else ''}"]
    if study.fine_tunes and task.built_in and task.name in PLANTED:
        lines.append(
            "Note: we planted the flaw that this demo fixes. In part of the fine-tuning labels, "
            f"{PLANTED[task.name][1]}. The fine-tuned model has learned to do the same, and DPO should undo it. This "
            "shows how the method works, not how much it helps with failures that nobody planted."
        )
    tuned = study.recipe.control_lr
    rate = (
        f"{tuned:g}, chosen on dev (benchmarks/results/sweep-nano.json)" if tuned else "that of DPO, not tuned for it"
    )
    start = FINE_TUNED if study.fine_tunes else AS_IT_IS
    return "\n".join([*lines, STEPS.format(n=len(study.test), rate=rate, start=start)])

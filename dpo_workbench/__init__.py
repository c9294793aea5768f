"""Direct preference optimisation beyond chatbots: mine a model's own failures, train on them, count them again.

    import dpo_workbench as dw

    task = dw.load_task("receipts")
    model = dw.load_model("nano", adapter="receipts")
    before = dw.evaluate(model, task.test)
    found = dw.mine(model, task.train, samples=4)
    pairs = found.pairs()
    run = dw.train(model, pairs, dw.TrainConfig(beta=0.1))
    after = dw.evaluate(run.model, task.test)
    dw.verdict(before, after)

Names are imported when they are first used: `import dpo_workbench` needs neither torch nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "common.errors": ("WorkbenchError",),
    "common.environment": ("describe",),
    "tasks.task": ("Task", "Example", "Score", "Split"),
    "tasks.builtin": ("load_task", "task_names"),
    "models.loading": ("load_model", "load_adapter", "Model"),
    "models.generation": ("generate",),
    "models.publish": ("publish",),
    "models.plan": ("plan",),
    "pairs.pair": ("Pair", "Pairs", "read_pairs"),
    "pairs.splits": ("split_pairs", "find_leaks"),
    "mining.sample": ("mine", "Found"),
    "mining.branch": ("branch",),
    "mining.headroom": ("Headroom",),
    "training.config": ("TrainConfig", "SFT_CONFIG"),
    "training.run": ("train", "sft", "Run", "record_run"),
    "training.losses": ("LOSSES",),
    "export.runs": ("export_trl", "export_merged"),
    "labelling.widget": ("label", "label_text"),
    "labelling.labels": ("plan_labelling", "read_labels", "Labels"),
    "labelling.report": ("agreement",),
    "labelling.blind": ("judge_blind",),
    "labelling.judge": ("judge",),
    "labelling.rubric": ("Rubric",),
    "evaluation.run": ("evaluate", "Evaluation"),
    "evaluation.logs": ("read_evaluation",),
    "evaluation.preference": ("preference_accuracy",),
    "evaluation.verdict": ("verdict",),
    "evaluation.report": ("write_report",),
    "studies.microscope": ("microscope",),
    "studies.preflight": ("preflight", "show"),
    "studies.demo": ("demo",),
    "studies.arms": ("ARMS",),
    "studies.compare": ("compare", "Comparison"),
    "studies.learning_curve": ("LearningCurve", "learning_curve"),
    "studies.side_effects": ("side_effects",),
    "evaluation.statistics": ("prompts_needed", "smallest_detectable", "over_seeds", "win_rate"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dpo_workbench' has no name {name!r}")
    value = getattr(importlib.import_module(f"dpo_workbench.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME_OF]

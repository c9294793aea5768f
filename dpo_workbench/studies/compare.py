"""`compare`: several arms on the same held-out prompts, each against one baseline, with intervals and costs."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import describe, peak_memory_gib
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.report import write_report
from dpo_workbench.evaluation.run import Evaluation, sees_line
from dpo_workbench.evaluation.statistics import holm, paired_difference, paired_p, win_rate
from dpo_workbench.evaluation.verdict import Verdict, paired_rows, scores, verdict
from dpo_workbench.evaluation.wording import p_text, text_table
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.plots.evaluation import ArmsDisplay
from dpo_workbench.studies.arms import ARMS, Cost, run_arm
from dpo_workbench.studies.recipe import Recipe
from dpo_workbench.studies.study import Study, open_study
from dpo_workbench.tasks.task import Task

BASELINE = "sft"
HEADER = ("arm", "failed", "95 % interval", "score", "change", "95 % interval", "Holm p", "wins", "tokens")


@dataclass(frozen=True)
class Comparison:
    """The arms on the same prompts, each compared with `BASELINE`."""

    arms: dict[str, Evaluation]
    costs: dict[str, Cost]
    holes: dict[str, str]  # arm -> why it has no result
    folder: Path | None = None
    context: dict[str, Any] = field(default_factory=dict)  # further arguments for `verdict`

    def rows(self) -> list[dict[str, Any]]:
        """One dict per arm: failures and score; except for the baseline also score difference, Holm's p and wins."""
        base = self._arm(BASELINE)
        paired = {name: scores(paired_rows(base, arm)) for name, arm in self.arms.items() if name != BASELINE}
        adjusted = dict(zip(paired, holm([paired_p(*values) for values in paired.values()]), strict=True))
        found = []
        for name, arm in self.arms.items():
            row = {"arm": name, "n": arm.n, "failed": arm.n_failed, "share": arm.interval().to_dict()}
            row |= {"score": arm.mean_score, "tokens": arm.mean_tokens}
            if name in paired:
                row["difference"] = paired_difference(*paired[name]).to_dict()
                row["holm_p"] = adjusted[name]
                row["wins"] = win_rate(*paired[name]).to_dict()
            found.append(row)
        return found

    def _arm(self, name: str) -> Evaluation:
        if name not in self.arms:
            raise WorkbenchError(
                f"This needs the arm {name!r}, which has no answers ({self.holes.get(name, 'it was not asked for')}). "
                f"Arms with answers: {', '.join(self.arms)}. Run {name!r} as well."
            )
        return self.arms[name]

    def verdict(self, after: str = "sft+dpo", control: str | None = "sft+sft on chosen") -> Verdict:
        """`verdict` of one arm against the baseline."""
        control_arm = self.arms.get(control or "")
        return verdict(self._arm(BASELINE), self._arm(after), control=control_arm, **self.context)

    def plot(self) -> Any:
        """Forest plot of the score differences from the baseline; see `ArmsDisplay`."""
        return ArmsDisplay.from_differences(self.rows(), BASELINE).plot()

    def __str__(self) -> str:
        detectable = sees_line(self._arm(BASELINE).n, 0.2, ", if 20 % of them change")
        holes = [f"{name}: no result ({why})" for name, why in self.holes.items()]
        return "\n".join([text_table([HEADER, *map(_cells, self.rows())]), detectable, *holes])

    __repr__ = __str__


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share, change = row["share"], ("", "", "", "")
    if "difference" in row:
        seen, wins = row["difference"], f"{100 * row['wins']['estimate']:.0f} %"
        interval = f"{seen['low']:+.3f} to {seen['high']:+.3f}"
        change = (f"{seen['estimate']:+.3f}", interval, p_text(row["holm_p"]), wins)
    failed = (f"{row['failed']} of {row['n']}", f"{100 * share['low']:.1f} to {100 * share['high']:.1f} %")
    return (row["arm"], *failed, f"{row['score']:.3f}", *change, f"{row['tokens']:.0f}")


def compare(
    task: Task | str,
    arms: Sequence[str] = tuple(ARMS),
    *,
    model: str = "nano",
    adapter: str | Path | None = None,
    quantize: str | None = None,
    pairs: Pairs | None = None,
    recipe: Recipe | None = None,
    split: str = "test",
    folder: str | Path | None = None,
    seed: int = 0,
    show: bool = True,
) -> Comparison:
    """Run arms from one fine-tuned start on the same held-out prompts.

    The trained arms see the same pairs in the same order for the same number of steps, and each keeps the adapter with
    the best score on the same dev prompts. A finished arm is read from the folder, not run again. An arm that fails is
    listed in `holes` with the reason, and the others still run.

    Args:
        arms: names from `ARMS`; the others are compared with `sft`.
        task, model: what `load_task` and `load_model` take, or a task itself.
        adapter: the fine-tuned start. By default the one that is shipped for model and task, or else it is trained.
        quantize: "4bit", or None, as for `load_model`.
        pairs: to train on; by default the failures of the fine-tuned model are mined with the recipe.
        recipe: sizes and settings; by default those of `recipe_for(model, task)`.
        split: whose prompts are answered. Use `dev` while you choose settings.
        folder: for all results; `runs/compare-MODEL-TASK` by default.
        seed: of mining, training and sampling.
    """
    unknown = [name for name in arms if name not in ARMS]
    if unknown or not arms:
        raise WorkbenchError(f"`arms` must be some of {', '.join(ARMS)}. Got {unknown or 'none'}.")
    name = task.name if isinstance(task, Task) else Path(task).stem
    folder = folder or Path("runs") / f"compare-{Path(model).name}-{name}"
    given: dict[str, Any] = {"split": split, "recipe": recipe, "adapter": adapter, "pairs": pairs, "quantize": quantize}
    return run_arms(open_study(model, task, folder, **given, seed=seed, show=show), arms, "arms")


def run_arms(study: Study, names: Sequence[str], command: str) -> Comparison:
    """Run the arms and, if `BASELINE` has finished, write results.json and report.html. `command` repeats the study."""
    context = study.verdict_context  # makes the pairs, without which no arm can be trained
    arms: dict[str, Evaluation] = {}
    costs: dict[str, Cost] = {}
    holes: dict[str, str] = {}
    for name in names:
        try:
            arms[name], costs[name] = run_arm(study, name)
        except (WorkbenchError, RuntimeError, ArithmeticError, MemoryError) as error:
            holes[name] = str(error).split("\n")[0]
            study.say(f"{name}: no result. {holes[name]}")
    result = Comparison(arms, costs, holes, study.folder, context)
    if BASELINE in arms:
        _write_results(study, result, command)
    return result


def shell_command(study: Study, command: str) -> str:
    """How to repeat a study from a shell."""
    settings = study.settings
    words = ["dpo-workbench", command, "--model", settings["model"], "--task", settings["task"]]
    words += ["--split", settings["split"]] if command == "arms" else []
    for name in ("adapter", "quantize"):
        words += [f"--{name}", settings[name]] if name in settings else []
    words += ["--from-scratch"] if settings["from_scratch"] else []
    return shlex.join([*words, "--seed", str(study.recipe.dpo.seed)])


def _write_results(study: Study, result: Comparison, command: str) -> None:
    decided = result.verdict() if "sft+dpo" in result.arms else None
    rows, training = result.rows(), study.folder / "dpo" / "training.json"
    results: dict[str, Any] = {
        "settings": {**study.settings, "seed": study.recipe.dpo.seed, "arms": list(result.arms)},
        "command": shell_command(study, command),
        "machine": describe(),
        "arms": {name: evaluation.summary() for name, evaluation in result.arms.items()},
        "comparison": rows,
        "holes": result.holes,
        "pairs": study.pairs.summary(),
        "training": json.loads(training.read_text(encoding="utf-8")) if training.is_file() else None,
        "verdict": {"outcome": decided.outcome, "text": decided.text, "numbers": decided.numbers} if decided else None,
        "times": {
            "date": date.today().isoformat(),
            "costs": {name: asdict(cost) for name, cost in result.costs.items()},
            "total_seconds": round(time.monotonic() - study.begun, 1),
            "peak_memory_gib": round(peak_memory_gib(), 2),
        },
    }
    if study.given_pairs is None:
        found = study.found
        headroom = found.headroom(found.settings["target"]).to_dict()
        results["mined"] = {"failures": dict(found.failures), "samples": found.n_samples, "headroom": headroom}
    costs = [
        (name, str(cost.steps), f"{cost.sampled_tokens:,}", f"{cost.train_seconds:.1f}", f"{cost.answer_seconds:.1f}")
        for name, cost in result.costs.items()
    ]
    cost_header = ("arm", "steps", "tokens sampled", "training (s)", "answers (s)")
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = [
        (f"Each arm compared with {BASELINE}", HEADER, list(map(_cells, rows))),
        ("What each arm cost in addition to the fine-tuned start", cost_header, costs),
    ]
    if result.holes:
        tables.append(("Arms without a result", ("arm", "why"), list(result.holes.items())))
    changes = ArmsDisplay.from_differences(rows, BASELINE)
    displays = {f"Change of the score compared with {BASELINE}": changes} if changes.rows else {}
    write_report(study.folder, results, result.arms, decided, tables=tables, displays=displays)

"""`compare`: several arms on the same held-out prompts, each against one baseline, with intervals and costs."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from dpo_workbench.common.environment import describe, peak_memory_gib
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.report import write_report
from dpo_workbench.evaluation.run import Evaluation, sees_line, shared_rows
from dpo_workbench.evaluation.statistics import Interval, holm, paired_change, win_rate
from dpo_workbench.evaluation.verdict import Verdict, verdict
from dpo_workbench.evaluation.wording import p_text, text_table
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.plots.evaluation import ChangesDisplay
from dpo_workbench.studies.arms import ARMS, DECODING_ARMS, Cost, run_arm
from dpo_workbench.studies.recipe import Recipe
from dpo_workbench.studies.study import Study, open_study
from dpo_workbench.tasks.task import Task

BASELINE = "start"
DPO_ARMS = ("DPO", "DPO+NLL")  # the first one that has run is judged
HEADER = ("arm", "failed", "score", "change", "95 % interval", "Holm p", "wins", "tokens")


@dataclass(frozen=True)
class Comparison:
    """The arms on the same prompts, each compared with `BASELINE`, over all seeds."""

    runs: tuple[dict[str, Evaluation], ...]  # for each seed: arm -> evaluation
    costs: dict[str, Cost]  # with the first seed
    holes: dict[str, str]  # arm -> why it has no result
    folder: Path | None = None
    context: dict[str, Any] = field(default_factory=dict)  # further arguments for `verdict`

    @property
    def arms(self) -> dict[str, Evaluation]:
        """The arms with the first seed."""
        return self.runs[0]

    def rows(self) -> list[dict[str, Any]]:
        """One dict per arm: failures and score; except for the baseline also score difference, Holm's p and wins."""
        changes = {name: self._change(name) for name in self.arms if name != BASELINE}
        adjusted = dict(zip(changes, holm([p for _, p, _ in changes.values()]), strict=True))
        found = []
        for name in self.arms:
            runs = self.over_seeds(name)
            row = {"arm": name, "n": runs[0].n, "failed": fmean(run.n_failed for run in runs)}
            row |= {"score": fmean(run.mean_score for run in runs), "tokens": fmean(run.mean_tokens for run in runs)}
            if name in changes:
                difference, _, wins = changes[name]
                row |= {"difference": difference.to_dict(), "holm_p": adjusted[name], "wins": wins.to_dict()}
            found.append(row)
        return found

    def _change(self, name: str) -> tuple[Interval, float, Interval]:
        """The difference of the score from the baseline, its p-value, and the win rate."""
        before, after = self.over_seeds(BASELINE), self.over_seeds(name)
        shared = shared_rows(*before, *after)
        values = np.array([[row.value for row in rows] for rows in shared], dtype=float).T
        was, now, groups = values[: len(before)], values[len(before) :], [rows[0].group for rows in shared]
        return *paired_change(was, now, groups), win_rate(was.mean(axis=0), now.mean(axis=0), groups)

    def over_seeds(self, name: str) -> list[Evaluation]:
        """The evaluations of an arm, one for each seed."""
        if name not in self.arms:
            raise WorkbenchError(
                f"This needs the arm {name!r}, which has no answers ({self.holes.get(name, 'it was not asked for')}). "
                f"Arms with answers: {', '.join(self.arms)}. Run {name!r} as well."
            )
        return [arms[name] for arms in self.runs]

    def verdict(self, after: str | None = None) -> Verdict:
        """`verdict` of one arm, by default DPO, against the baseline, the control and the base, if these have run."""
        after = after or next((name for name in DPO_ARMS if name in self.arms), DPO_ARMS[0])
        control, base = (self.over_seeds(role) if role in self.arms else None for role in ("control", "base"))
        return verdict(self.over_seeds(BASELINE), self.over_seeds(after), control=control, base=base, **self.context)

    def plot(self) -> ChangesDisplay:
        """What DPO changed in each failure class, compared with the start and with the control."""
        return self.verdict().plot()

    def __str__(self) -> str:
        detectable = sees_line(self.over_seeds(BASELINE)[0].n, 0.2, ", if 20 % of them change")
        holes = [f"{name}: no result ({why})" for name, why in self.holes.items()]
        return "\n".join([text_table([HEADER, *map(_cells, self.rows())]), detectable, *holes])

    __repr__ = __str__


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    change = ("", "", "", "")
    if "difference" in row:
        seen, wins = row["difference"], f"{100 * row['wins']['estimate']:.0f} %"
        interval = f"{seen['low']:+.3f} to {seen['high']:+.3f}"
        change = (f"{seen['estimate']:+.3f}", interval, p_text(row["holm_p"]), wins)
    return (
        row["arm"],
        f"{round(row['failed'], 1):g} of {row['n']}",
        f"{row['score']:.3f}",
        *change,
        f"{row['tokens']:.0f}",
    )


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
    template: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    seeds: Sequence[int] = (0,),
    show: bool = True,
) -> Comparison:
    """Run arms from one fine-tuned start on the same held-out prompts.

    The trained arms see the same pairs in the same order for the same number of steps. DPO, DPO+NLL and the control
    each try three learning rates and keep the adapter with the best score on the same dev prompts. A finished arm is
    read from the folder, not run again. An arm that fails is listed in `holes` with the reason, and the others still
    run.

    With several seeds, fine-tuning, mining and training are repeated with each of them, and results are means over
    seeds. The learning rates are those chosen with the first seed.

    Args:
        arms: names from `ARMS`; the others are compared with `start`.
        task, model: what `load_task` and `load_model` take, or a task itself.
        adapter: the fine-tuned start of all seeds. By default the first seed has the one that is shipped for model and
            task, and the others train their own.
        quantize: "4bit", or None, as for `load_model`.
        pairs: to train on; by default the failures of the fine-tuned model are mined with the recipe.
        recipe: sizes and settings; by default those of `recipe_for(model, task)`.
        template: arguments of the chat template, as in `load_model`.
        split: whose prompts are answered. Use `dev` while you choose settings.
        folder: for all results; `runs/compare-MODEL-TASK` by default.
        seeds: of fine-tuning, mining, training and sampling.
    """
    unknown = [name for name in arms if name not in ARMS]
    if unknown or not arms:
        raise WorkbenchError(f"`arms` must be some of {', '.join(ARMS)}. Got {unknown or 'none'}.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise WorkbenchError(f"`seeds` must be one number or more, all different. Got {list(seeds)}.")
    name = task.name if isinstance(task, Task) else Path(task).stem
    folder = Path(folder or Path("runs") / f"compare-{Path(model).name}-{name}")
    given: dict[str, Any] = {"split": split, "recipe": recipe, "pairs": pairs, "quantize": quantize}
    given |= {"template": template, "tune": True, "show": show}
    studies = [open_study(model, task, folder, adapter=adapter, seed=seeds[0], **given)]
    given |= {"adapter": adapter, "from_scratch": adapter is None, "base": studies[0].base}
    studies += [open_study(model, task, folder / f"seed-{seed}", seed=seed, **given) for seed in seeds[1:]]
    return run_arms(studies, arms, "arms")


def run_arms(studies: Sequence[Study], names: Sequence[str], command: str) -> Comparison:
    """Run the arms of a study, one for each seed. If `BASELINE` has finished, write results.json and report.html.

    `command` repeats the study.
    """
    first, runs = studies[0], []
    costs: dict[str, Cost] = {}
    holes: dict[str, str] = {}
    for study in studies:
        _ = study.pairs  # without them no arm can be trained
        arms: dict[str, Evaluation] = {}
        if study is not first:
            share_with(study, first)
        for name in names:
            try:
                arms[name], cost = run_arm(study, name)
                costs.setdefault(name, cost)
            except (WorkbenchError, RuntimeError, ArithmeticError, MemoryError) as error:
                holes[name] = str(error).split("\n")[0]
                study.say(f"{name}: no result. {holes[name]}")
        runs.append(arms)
    complete = tuple({name: run for name, run in arms.items() if name not in holes} for arms in runs)
    result = Comparison(complete, costs, holes, first.folder, first.verdict_context)
    if BASELINE in result.arms:
        _write_results(studies, result, command)
    return result


def share_with(study: Study, first: Study) -> None:
    """Copy what does not depend on the seed, or is chosen once: greedy answers of the base, and tuned settings."""
    files = ["evaluations/base.*", "tuning/*.json"]
    if not study.fine_tunes:
        files += [f"evaluations/{name}.*" for name in ("start", *DECODING_ARMS)]
    for file in (path for pattern in files for path in first.folder.glob(pattern)):
        copy = study.folder / file.relative_to(first.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def shell_command(studies: Sequence[Study], command: str) -> str:
    """How to repeat a study from a shell."""
    settings = studies[0].settings
    words = ["dpo-workbench", command, "--model", settings["model"], "--task", settings["task"]]
    words += ["--split", settings["split"]] if command == "arms" else []
    for name in ("adapter", "quantize"):
        words += [f"--{name}", settings[name]] if name in settings else []
    for name, value in settings.get("template", {}).items():
        words += ["--template", f"{name}={json.dumps(value)}"]
    words += ["--from-scratch"] if settings["from_scratch"] else []
    return shlex.join([*words, *(word for study in studies for word in ("--seed", str(study.recipe.dpo.seed)))])


def _write_results(studies: Sequence[Study], result: Comparison, command: str) -> None:
    study = studies[0]
    judged = next((name for name in DPO_ARMS if name in result.arms), None)
    decided = result.verdict(judged) if judged else None
    rows, training = result.rows(), study.folder / (judged or "").lower() / "training.json"
    tuning = {note.stem: json.loads(note.read_text(encoding="utf-8")) for note in study.folder.glob("tuning/*.json")}
    results: dict[str, Any] = {
        "settings": {**study.settings, "seed": study.recipe.dpo.seed, "arms": list(result.arms)},
        "command": shell_command(studies, command),
        "machine": describe(),
        "arms": {name: evaluation.summary() for name, evaluation in result.arms.items()},
        "other_seeds": [{name: run.summary() for name, run in arms.items()} for arms in result.runs[1:]],
        "tuning": tuning,
        "comparison": rows,
        "holes": result.holes,
        "pairs": study.pairs.summary(),
        "training": json.loads(training.read_text(encoding="utf-8")) if training.is_file() else None,
        "verdict": {"outcome": decided.outcome, "text": str(decided), "numbers": decided.numbers} if decided else None,
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
    write_report(study.folder, results, result.arms, decided, tables)

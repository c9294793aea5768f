"""The main job end to end: base, SFT, mine, pairs, DPO beside its control arm, held-out evaluation, verdict, report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import describe, peak_memory_gib
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.report import write_report
from dpo_workbench.evaluation.run import Evaluation, evaluate
from dpo_workbench.evaluation.verdict import Verdict, verdict
from dpo_workbench.export.runs import record_run
from dpo_workbench.mining.branch import branch
from dpo_workbench.mining.sample import Found, mine
from dpo_workbench.models.loading import Model, load_adapter, load_model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.tasks.builtin import load_task, shipped_adapter
from dpo_workbench.tasks.task import Split, Task, with_all_splits
from dpo_workbench.training.config import SFT_CONFIG, TrainConfig
from dpo_workbench.training.run import Run, sft, train


@dataclass(frozen=True)
class Recipe:
    """The sizes and settings of a demo, chosen on dev prompts (docs/recipe.md) for one model."""

    test_prompts: int
    sft_prompts: int  # of the training split, from its start: what `--from-scratch` fine-tunes on
    mine_from: int  # the first training prompt that is mined
    mine_prompts: int
    samples: int
    max_pairs: int
    temperature: float
    per_prompt: int  # pairs of one prompt at most
    target: tuple[str, ...]  # the mined classes, rejected in the pairs and counted again; (): the common ones
    probe_prompts: int
    dpo: TrainConfig
    sft: TrainConfig
    greedy: bool = False  # mine the greedy answers too


RECIPES = {
    "nano": Recipe(
        test_prompts=200,
        sft_prompts=2080,
        mine_from=2080,
        mine_prompts=40,
        samples=4,
        max_pairs=48,
        temperature=0.7,
        per_prompt=1,
        target=("missing_field",),
        probe_prompts=48,
        dpo=TrainConfig(lr=3e-4, nll_weight=1.0, epochs=1, batch_size=8, probes=1, held_out=0.0),
        sft=replace(SFT_CONFIG, probes=0),  # the last adapter: its labels teach what dev punishes
    ),
    "smol": Recipe(
        test_prompts=200,
        sft_prompts=2080,
        mine_from=2080,
        mine_prompts=40,
        samples=4,
        max_pairs=48,
        temperature=0.7,
        per_prompt=1,
        target=("missing_field",),
        probe_prompts=96,
        dpo=TrainConfig(lr=1.5e-5, nll_weight=1.0, epochs=1, batch_size=8, probes=1, micro_tokens=1024, held_out=0.0),
        sft=replace(SFT_CONFIG, epochs=1, lr=8e-4, batch_size=8, micro_tokens=1024, probes=0),
    ),
}
# What the labels of the other built-in tasks teach, and the verifier counts (see their datasheets).
HABITS = {"science": "wrong_unit", "sql": "all_columns", "python": "no_result", "briefs": "too_long"}
NANO_SFT = {"science": (1200, 3), "briefs": (1100, 6)}  # prompts and passes: with 800 and 2 it was still learning


ENOUGH = 24  # pairs of whole answers; with fewer, failed answers get better endings
FEWEST = 30  # training prompts of a task of your own: two thirds to fine-tune on, one third to mine


def recipe_for(model_name: str, task: str | Task) -> Recipe:
    """The recipe of a model on a task: `nano`'s, or `smol`'s for any other model.

    Other tasks than receipts have short answers: fine-tuned on fewer prompts, with a longer step for `smol`, and with
    more dev prompts to choose the adapter of `nano` by. Of a task that is not built in, greedy answers are mined too,
    and their common failures are the target. The sizes follow from its training prompts: a third is mined, at most
    300; on the others it is fine-tuned, in as many passes as make some 1,600 rows, since a model that still learns
    from references does not need preferences yet.

    Args:
        model_name: as in `demo`.
        task: a built-in task's name, or any task.

    Raises:
        WorkbenchError: fewer than 30 training prompts.
    """
    recipe, own = RECIPES.get(model_name, RECIPES["smol"]), isinstance(task, Task) and not task.built_in
    name = task.name if isinstance(task, Task) else task
    if name == "receipts" and not own:
        return recipe
    if recipe is RECIPES["smol"]:
        recipe = replace(recipe, max_pairs=64, dpo=replace(recipe.dpo, lr=6e-5, probes=2))
    if isinstance(task, Task) and own:
        return _fitted(recipe, task)
    prompts = 800
    if model_name == "nano":
        recipe = replace(recipe, probe_prompts=96)
        if name in NANO_SFT:
            prompts, passes = NANO_SFT[name]
            recipe = replace(recipe, sft=replace(recipe.sft, lr=2e-3, epochs=passes))
    return replace(
        recipe,
        sft_prompts=prompts,
        mine_from=prompts,
        mine_prompts=300 if name == "sql" else 100,  # one question of six has such a failure
        per_prompt=2,
        target=(HABITS[name],) if name in HABITS else (),
    )


def _fitted(recipe: Recipe, task: Task) -> Recipe:
    """The recipe in the sizes that the task's training prompts allow."""
    n = len(task.train)
    if n < FEWEST:
        raise WorkbenchError(
            f"Fine-tuning and mining need at least {FEWEST} training prompts together. Got {n} in task {task.name!r}. "
            "Add rows, or give train a larger share (`shares`)."
        )
    mined = min(300, n // 3)
    tuned = min(800, n - mined)
    typed = any(example.label is not None for example in task.train)  # they teach what dev punishes: no choice by dev
    passes = min(8, max(recipe.sft.epochs, round(1600 / tuned)))
    settings = replace(recipe.sft, epochs=passes, batch_size=8, probes=0 if typed else 2)
    recipe = replace(recipe, sft_prompts=tuned, mine_from=tuned, mine_prompts=mined)
    return replace(recipe, per_prompt=2, target=(), sft=settings, greedy=True)


ARMS = ("base", "sft", "sft+dpo", "sft+sft on chosen")


@dataclass
class Demo:
    """What a demo made; everything is in `folder` too."""

    folder: Path
    evaluations: dict[str, Evaluation]
    found: Found
    pairs: Pairs
    run: Run
    verdict: Verdict
    report: Path

    def __repr__(self) -> str:
        return f"{self.verdict}\n\nreport: {self.report}"


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
) -> Demo:
    """Run the whole job and write `results.json`, `report.html` and every intermediate result into `folder`.

    A stage whose result is already in the folder is read, not run again, so a stopped demo goes on where it was.

    Args:
        model_name: `nano` or `smol`, or any model that `load_model` takes (with smol's recipe).
        folder: of the run; `runs/demo-NAME` by default.
        task_name: a built-in task, a file of your own (see `load_task`), or a task itself.
        from_scratch: train the SFT adapter too instead of taking the shipped one; where none is shipped it is trained.
        adapter: folder of an SFT adapter to begin with, instead of the shipped one.
        recipe: other sizes and settings.
        seed: of mining, training order and adapter.
        show: progress and plain lines.

    Raises:
        WorkbenchError: with what must hold and what to do; finished stages stay in the folder.
    """
    task = with_all_splits(task_name if isinstance(task_name, Task) else load_task(task_name))
    task_name = task.name if isinstance(task_name, Task) else task_name
    recipe = recipe or recipe_for(model_name, task)
    recipe = replace(recipe, dpo=replace(recipe.dpo, seed=seed), sft=replace(recipe.sft, seed=seed))
    path = Path(folder) if folder else Path("runs") / f"demo-{Path(model_name).name}"
    if from_scratch and adapter:
        raise WorkbenchError("`from_scratch` trains the SFT adapter and `adapter` gives one. Leave one of them out.")
    given = {"adapter": str(adapter)} if adapter else {}
    names = {"model": model_name, "task": task_name, "from_scratch": from_scratch, **given, "arms": list(ARMS)}
    stages = Stages(path, {**names, **asdict(recipe)}, show)
    job = Job(recipe, stages, task, {})
    base = stages.timed("load", lambda: load_model(model_name))
    stages.say(repr(base))
    ready = adapter or (None if from_scratch else shipped_adapter(model_name, task))
    start = stages.timed("sft", lambda: load_adapter(base, ready) if ready else job.fine_tuned(base))
    job.answer("base", base)
    job.answer("sft", start)
    found = job.mined(start)
    target = tuple(found.settings["target"])
    pairs = job.pairs(found, target)
    record_run(path / "dpo", start, pairs, recipe.dpo)
    run = job.trained("sft+dpo", "dpo", partial(train, start, pairs, recipe.dpo))
    control = partial(sft, start, pairs, replace(recipe.dpo, nll_weight=0.0), start=run.start)
    job.trained("sft+sft on chosen", "control", control)
    arms = job.evaluations
    decided = verdict(
        arms["sft"],
        arms["sft+dpo"],
        control=arms["sft+sft on chosen"],
        mined=target,
        headroom=found.headroom(target),
        pairs=pairs,
    )
    return Demo(path, arms, found, pairs, run, decided, stages.finish(arms, found, pairs, run, decided))


@dataclass
class Job:
    """The steps of a demo, each with what it says on the way."""

    recipe: Recipe
    stages: Stages
    task: Task
    evaluations: dict[str, Evaluation]  # of the arms so far, in their order

    @property
    def probe(self) -> Split:
        return self.task.dev[: self.recipe.probe_prompts]

    def fine_tuned(self, base: Model) -> Model:
        """The SFT adapter, trained here."""
        recipe, stages = self.recipe, self.stages
        rows = self.task.train[: recipe.sft_prompts]
        run = sft(base, rows, recipe.sft, probe=self.probe, folder=stages.folder / "sft", show=stages.show)
        stop_if_interrupted(run)
        run.model.save(stages.folder / "sft" / "adapter")
        stages.say(f"{run!r}{still_learning(run)}")
        return run.model

    def answer(self, name: str, model: Model, run: Run | None = None) -> None:
        """Evaluate an arm on the held-out prompts."""
        stages = self.stages

        def answered() -> Evaluation:
            if run and run.unchanged:
                stages.say(f"{name}: the adapter that was kept is the one it began with, so its answers are sft's")
                return replace(self.evaluations["sft"], name=name)
            test = self.task.test[: self.recipe.test_prompts]
            return evaluate(model, test, name=name, show=stages.show)

        done = stages.cached(f"evaluations/{name}.json", answered, Evaluation.save, Evaluation.load)
        stages.say(
            f"{name}: {100 * done.failed_share:.1f} % of {done.n} held-out answers failed, score {done.mean_score:.3f}"
        )
        self.evaluations[name] = done

    def mined(self, start: Model) -> Found:
        """The failures of the fine-tuned model, with better endings, and what they promise."""
        recipe, stages = self.recipe, self.stages
        prompts, seed = self.task.train[recipe.mine_from :][: recipe.mine_prompts], recipe.dpo.seed

        def mined() -> Found:
            drawn: dict[str, Any] = {"temperature": recipe.temperature, "greedy": recipe.greedy}
            found = mine(start, prompts, recipe.samples, seed=seed, show=stages.show, **drawn)
            target = recipe.target or common_failures(found)
            found = replace(found, settings=found.settings | {"target": list(target)})
            if not target or (recipe.greedy and right_and_wrong(found, target) >= ENOUGH):
                return found  # where nothing failed, `pairs` says so
            return branch(start, found, target, per_prompt=recipe.per_prompt, seed=seed, show=stages.show)

        found = stages.cached("mined.json", mined, Found.save, lambda file: Found.load(file, self.task))
        stages.say(f"{found}\nheadroom: {found.headroom(found.settings['target'])}")
        return found

    def pairs(self, found: Found, target: tuple[str, ...]) -> Pairs:
        recipe = self.recipe
        pairs = self.stages.timed(
            "pairs",
            lambda: found.pairs(
                per_prompt=recipe.per_prompt, classes=target or None, use_reference=False, most=recipe.max_pairs
            ),
        )
        pairs.save(self.stages.folder / "pairs.jsonl")
        self.stages.say(repr(pairs))
        return pairs

    def trained(self, name: str, stage: str, fit: Callable[..., Run]) -> Run:
        """Train an arm and evaluate it."""
        stages, folder = self.stages, self.stages.folder / stage
        run = stages.timed(stage, lambda: fit(probe=self.probe, folder=folder, show=stages.show))
        stop_if_interrupted(run)
        run.model.save(folder / "adapter")
        stages.say(repr(run))
        self.answer(name, run.model, run)
        return run


def common_failures(found: Found) -> tuple[str, ...]:
    """The commonest class, and others with a quarter or more of the failures; of greedy answers where some failed."""
    ranked = (found.greedy_failures or found.failures).most_common()
    total = sum(n for _, n in ranked)
    return tuple(name for place, (name, n) in enumerate(ranked) if place == 0 or 4 * n >= total)


def right_and_wrong(found: Found, target: tuple[str, ...]) -> int:
    """Prompts with both an answer that fails as `target` and one that passes: pairs of whole answers."""
    drawn = [{s.failure for s in samples} for _, samples in found.rows]
    return sum(None in failures and not failures.isdisjoint(target) for failures in drawn)


def still_learning(run: Run) -> str:
    """A sentence where fine-tuning ended while the dev score rose by more than 0.02 between its last two probes."""
    scores = [probe["score"] for probe in run.probes]
    if len(scores) < 3 or scores[-1] - scores[-2] <= 0.02:
        return ""
    return (
        f" It has not levelled off (dev score {scores[-2]:.3f} at the probe before): more rows or passes may bring "
        "more than preferences."
    )


def stop_if_interrupted(run: Run) -> None:
    """A half-trained arm must not be measured as if it were done; the same command goes on from its checkpoint."""
    if not run.finished:
        raise KeyboardInterrupt


class Stages:
    """The run folder of a demo: what is done, how long it took, and the end result."""

    def __init__(self, folder: Path, settings: dict[str, Any], show: bool):
        self.folder, self.settings, self.show = folder, settings, show
        self.seconds: dict[str, float] = {}
        mark = folder / "settings.json"
        if mark.is_file():
            import json

            if json.loads(mark.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
                raise WorkbenchError(
                    f"A run folder holds one run. {folder} holds one with other settings (settings.json). Choose "
                    "another folder with --out, or delete this one."
                )
        else:
            write_json(mark, settings)

    def say(self, text: str) -> None:
        if self.show:
            print(text, flush=True)

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        value = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
        return value

    def cached(self, name: str, work: Callable[[], Any], save: Callable, load: Callable) -> Any:
        """The stage's result from its file, or from `work`, saved before it is returned."""
        file = self.folder / name
        if file.is_file():
            self.say(f"{name}: already there")
            return load(file)
        value = self.timed(name.rsplit(".", 1)[0], work)
        save(value, file)
        return value

    def command(self) -> str:
        """How to repeat this run."""
        scratch = " --from-scratch" if self.settings["from_scratch"] else ""
        if "adapter" in self.settings:
            scratch = f" --adapter {shlex.quote(self.settings['adapter'])}"
        seed = self.settings["dpo"]["seed"]
        return (
            f"dpo-workbench demo --model {self.settings['model']} --task {self.settings['task']} --seed {seed}{scratch}"
        )

    def finish(
        self, evaluations: dict[str, Evaluation], found: Found, pairs: Pairs, run: Run, decided: Verdict
    ) -> Path:
        """Write results.json and report.html."""
        results = {
            "settings": self.settings,
            "command": self.command(),
            "machine": describe(),
            "arms": {name: e.summary() for name, e in evaluations.items()},
            "mined": {
                "failures": dict(found.failures),
                "samples": found.n_samples,
                "headroom": found.headroom(found.settings["target"]).to_dict(),
            },
            "pairs": pairs.summary(),
            "training": {
                "history": run.history,
                "probes": run.probes,
                "best_step": run.best_step,
                "finished": run.finished,
            },
            "verdict": {"outcome": decided.outcome, "text": decided.text, "numbers": decided.numbers},
            "times": {
                "date": date.today().isoformat(),
                "seconds": {k: round(v, 1) for k, v in self.seconds.items()},
                "total_seconds": round(sum(self.seconds.values()), 1),
                "peak_memory_gib": round(peak_memory_gib(), 2),
            },
        }
        return write_report(self.folder, results, evaluations, decided, run)

"""`compare`: the same test prompts under every way to spend the budget, DPO one of them; and what each way costs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import describe, peak_memory_gib
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.report import ReportTable, write_report
from dpo_workbench.evaluation.run import Evaluation, evaluate, evaluate_answers, sees_line
from dpo_workbench.evaluation.statistics import holm, paired_difference, paired_p, wilson, win_rate
from dpo_workbench.evaluation.verdict import Verdict, paired_rows, verdict
from dpo_workbench.evaluation.wording import text_table
from dpo_workbench.models.generation import Answer, generate
from dpo_workbench.models.loading import Model, load_adapter, load_model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.plots.evaluation import DifferencesDisplay
from dpo_workbench.studies.demo import Job, Recipe, Stages, recipe_for, stop_if_interrupted
from dpo_workbench.studies.reward_model import RewardModel, mean_logps, policy_gradient, train_reward_model
from dpo_workbench.studies.side_effects import HEADER as EFFECTS_HEADER
from dpo_workbench.studies.side_effects import SideEffects, side_effects
from dpo_workbench.tasks.builtin import load_task, shipped_adapter
from dpo_workbench.tasks.failures import loop_reason
from dpo_workbench.tasks.task import Split, Task, with_all_splits
from dpo_workbench.training.packing import Row
from dpo_workbench.training.run import Run, sft, train, unlikelihood

BEST_OF = 4
PENALTY = 1.1  # of the repetition penalty, the usual first try


@dataclass
class Cost:
    """What an arm spent beyond the fine-tuned start that all share."""

    steps: int = 0  # optimiser steps
    trained_tokens: int = 0  # tokens that went through forward and backward
    sampled_tokens: int = 0  # tokens generated for training, or beside the one answer a prompt
    train_seconds: float = 0.0
    answer_seconds: float = 0.0  # for the test prompts
    flops: float | None = None  # of training; counted only where asked

    def row(self) -> tuple[str, ...]:
        """Cells for `COST_HEADER`."""
        flops = "" if self.flops is None else f"{self.flops / 1e12:.2f}"
        numbers = (self.steps, f"{self.trained_tokens:,}", f"{self.sampled_tokens:,}")
        return (*map(str, numbers), f"{self.train_seconds:.1f}", f"{self.answer_seconds:.1f}", flops)


COST_HEADER = ("steps", "tokens trained", "tokens sampled", "training (s)", "answers (s)", "training (TFLOP)")
HEADER = (
    "arm", "failed", "95 % interval", "score", "change", "95 % interval", "Holm p", "wins", "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The arms on the same prompts, each against `baseline`; `holes` says why an arm is missing."""

    arms: dict[str, Evaluation]
    costs: dict[str, Cost]
    holes: dict[str, str]
    baseline: str = "sft"
    folder: Path | None = None
    effects: SideEffects | None = None  # of DPO
    context: dict[str, Any] = field(default_factory=dict)  # mined classes, headroom, pairs: what `verdict` reads

    def rows(self) -> list[dict[str, Any]]:
        """One dict an arm: failures, score, the paired difference from the baseline, Holm's p over the arms, wins."""
        base = self._baseline()
        others = {name: paired_rows(base, arm) for name, arm in self.arms.items() if name != self.baseline}
        values = {n: ([b.value or 0.0 for b, _ in p], [a.value or 0.0 for _, a in p]) for n, p in others.items()}
        groups = {name: [b.group for b, _ in pairs] for name, pairs in others.items()}
        adjusted = dict(zip(others, holm([paired_p(*values[n], groups[n]) for n in others]), strict=True))
        found = []
        for name, arm in self.arms.items():
            share = wilson(arm.n_failed, arm.n)
            row: dict[str, Any] = {"arm": name, "n": arm.n, "failed": arm.n_failed, "share": share.to_dict()}
            row |= {"score": arm.mean_score, "tokens": arm.mean_tokens}
            if name in others:
                row["difference"] = paired_difference(*values[name], groups[name]).to_dict()
                row["holm_p"] = adjusted[name]
                row["wins"] = win_rate(*values[name], groups[name]).to_dict()
            found.append(row)
        return found

    def _baseline(self) -> Evaluation:
        if self.baseline not in self.arms:
            why = self.holes.get(self.baseline, "it was not asked for")
            raise WorkbenchError(
                f"The arms are compared with {self.baseline!r}, which has no answers ({why}). Add it, or mend it."
            )
        return self.arms[self.baseline]

    def verdict(self, after: str = "sft+dpo", control: str | None = "sft+sft on chosen") -> Verdict:
        """`verdict` of one arm against the baseline, with the side effects where they were measured.

        Raises:
            WorkbenchError: the arm is a hole.
        """
        if after not in self.arms:
            raise WorkbenchError(
                f"The verdict needs the arm {after!r}, which has no answers "
                f"({self.holes.get(after, 'it was not asked for')}). There: {', '.join(self.arms)}."
            )
        beside = self.arms.get(control or "")
        effects = self.effects if after == "sft+dpo" else None
        return verdict(self._baseline(), self.arms[after], control=beside, effects=effects, **self.context)

    @cached_property
    def table(self) -> list[tuple[str, ...]]:
        """Rows for `HEADER`."""
        return [_cells(row) for row in self.rows()]

    def plot(self) -> Any:
        """Forest plot of the score's difference from the baseline; see `DifferencesDisplay`."""
        return DifferencesDisplay.from_rows(self.rows(), self.baseline).plot()

    def _notes(self) -> list[str]:
        base = self._baseline()
        notes = [f"{name}: no result ({why})" for name, why in self.holes.items()]
        return [sees_line(base.n, 0.2, ", if 20 % of them change"), *notes]

    def __str__(self) -> str:
        return "\n".join([text_table([HEADER, *self.table]), *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import paragraph, table

        costs = [(name, *cost.row()) for name, cost in self.costs.items()]
        notes = "".join(paragraph(note) for note in self._notes())
        return table(HEADER, self.table) + notes + table(("arm", *COST_HEADER), costs)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share, n = row["share"], row["n"]
    cells = [row["arm"], f"{row['failed']} of {n}", f"{100 * share['low']:.1f} to {100 * share['high']:.1f} %"]
    cells.append(f"{row['score']:.3f}")
    if "difference" in row:
        change, p = row["difference"], row["holm_p"]
        cells += [f"{change['estimate']:+.3f}", f"{change['low']:+.3f} to {change['high']:+.3f}"]
        cells += ["< 0.001" if p < 0.001 else f"{p:.3f}", f"{100 * row['wins']['estimate']:.0f} %"]
    else:
        cells += ["", "", "", ""]
    return (*cells, f"{row['tokens']:.0f}")


@dataclass
class _Setting:
    """What the arms share: model, fine-tuned start, pairs, test prompts."""

    task: Task
    test: Split
    recipe: Recipe
    base: Model
    start: Model
    pairs: Pairs
    prompts: list[str]  # training prompts that were mined: what a policy gradient samples on
    stages: Stages
    cost: Cost
    count_flops: bool
    trained_here: float = 0.0  # seconds of the arm's training in this process; a reward model may come from a file
    kept: dict[str, Run] = field(default_factory=dict)

    @property
    def probe(self) -> Split:
        return self.task.dev[: self.recipe.probe_prompts]

    @property
    def n_steps(self) -> int:
        config = self.recipe.dpo
        return -(-len(self.pairs) // config.batch_size) * config.epochs

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside: seconds, and floating-point operations where asked, go to the arm's cost."""
        begun = time.monotonic()
        if self.count_flops:
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                yield
            self.cost.flops = (self.cost.flops or 0.0) + counter.get_total_flops()
        else:
            yield
        seconds = time.monotonic() - begun
        self.cost.train_seconds += seconds
        self.trained_here += seconds

    def fitted(self, fit: Callable[..., Run], stage: str, *, chosen_only: bool = False) -> Model:
        """Train an arm on the pairs, its adapter chosen by the same dev probe as DPO's."""
        begin = self.kept["first"].start if "first" in self.kept else None
        with self.training():
            run = fit(probe=self.probe, folder=self.stages.folder / stage, start=begin, show=self.stages.show)
        stop_if_interrupted(run)
        self.kept.setdefault("first", run)
        run.model.save(self.stages.folder / stage / "adapter")
        self._spend(len(run.history), chosen_only)
        return run.model

    def _spend(self, steps: int, chosen_only: bool = False) -> None:
        """Steps, and the tokens of the packed rows that went through them."""
        rows = [
            Row(p.id, tuple(self.start.prompt_ids(p.prompt)), tuple(tuple(self.start.answer_ids(a)) for a in answers))
            for p in self.pairs
            for answers in [(p.chosen,) if chosen_only else (p.chosen, p.rejected)]
        ]
        self.cost.steps += steps
        self.cost.trained_tokens += self.recipe.dpo.epochs * sum(row.n_tokens for row in rows)

    def answered(self, name: str, model: Model, **decoding: Any) -> Evaluation:
        return evaluate(model, self.test, name=name, show=self.stages.show, **decoding)

    @cached_property
    def samples(self) -> list[list[Answer]]:
        """`BEST_OF` answers of the fine-tuned start to each test prompt, kept in the run folder."""

        def draw() -> list[list[Answer]]:
            return generate(
                self.start,
                [example.prompt for example in self.test],
                samples=BEST_OF,
                temperature=self.recipe.temperature,
                max_new_tokens=self.task.max_new_tokens,
                seed=self.recipe.dpo.seed,
            )

        def save(found: list[list[Answer]], path: Path) -> None:
            write_json(path, [[asdict(a) for a in row] for row in found])

        def load(path: Path) -> list[list[Answer]]:
            return [[Answer(**a) for a in row] for row in json.loads(path.read_text(encoding="utf-8"))]

        return self.stages.cached("samples.json", draw, save, load)

    def best(self, name: str, values: Sequence[Sequence[float]]) -> Evaluation:
        """The sample with the highest value, prompt by prompt."""
        chosen = [row[max(range(len(row)), key=v.__getitem__)] for row, v in zip(self.samples, values, strict=True)]
        self.cost.sampled_tokens += sum(a.n_tokens for row in self.samples for a in row)
        decoding = {"temperature": self.recipe.temperature, "samples": BEST_OF, "seed": self.recipe.dpo.seed}
        return evaluate_answers(name, self.test, chosen, model=self.stages.settings["model"], decoding=decoding)

    @cached_property
    def reward(self) -> RewardModel:
        """The reward model, trained once for the two arms that use it."""
        folder, config = self.stages.folder / "reward", self.recipe.dpo
        facts = folder.with_suffix(".json")
        if not facts.is_file():
            with self.training():
                reward = train_reward_model(self.start, self.pairs, config, show=self.stages.show)
            reward.save(folder)
            spent = {"train_seconds": self.cost.train_seconds, "flops": self.cost.flops, "history": reward.history}
            write_json(facts, {**spent, "accuracy": reward.accuracy(self.pairs)})
        else:
            known = json.loads(facts.read_text(encoding="utf-8"))
            self.cost.train_seconds, self.cost.flops = known["train_seconds"], known["flops"]
        self._spend(self.n_steps)
        return RewardModel.load(self.start, folder, config)


def _dpo(s: _Setting, name: str) -> Evaluation:
    return s.answered(name, s.fitted(partial(train, s.start, s.pairs, s.recipe.dpo), "dpo"))


def _more_sft(s: _Setting, name: str) -> Evaluation:
    config = replace(s.recipe.dpo, nll_weight=0.0)
    return s.answered(name, s.fitted(partial(sft, s.start, s.pairs, config), "control", chosen_only=True))


def _unlikelihood(s: _Setting, name: str) -> Evaluation:
    return s.answered(name, s.fitted(partial(unlikelihood, s.start, s.pairs, s.recipe.dpo), "unlikelihood"))


def _likeliest(s: _Setting, name: str) -> Evaluation:
    """Best of n by length-normalised log-probability: what a model without a verifier can choose by."""
    return s.best(name, mean_logps(s.start, [e.prompt for e in s.test], s.samples))


def _penalty(s: _Setting, name: str) -> Evaluation:
    return s.answered(name, s.start, repetition_penalty=PENALTY)


def _limit(s: _Setting, name: str) -> Evaluation:
    """No answer longer than the longest label of training: the first thing to try against loops."""
    longest = max(len(s.start.answer_ids(e.label or e.reference)) for e in s.task.train)
    return s.answered(name, s.start, max_new_tokens=min(longest, s.task.max_new_tokens))


def _loop_stop(s: _Setting, name: str) -> Evaluation:
    """Stop where the answer begins to go round: a rule on the text, no training."""
    known = s.stages.folder / "evaluations" / "sft.json"
    plain = Evaluation.load(known) if known.is_file() else s.answered("sft", s.start)
    answers = [stop_loop(Answer(row.answer, row.n_tokens, row.finished)) for row in plain.rows]
    return evaluate_answers(name, s.test, answers, model=plain.model, decoding=plain.decoding | {"stop": "loop"})


def stop_loop(answer: Answer) -> Answer:
    """A cut answer that goes round, ended after the first round; any other stays as it is."""
    text = answer.text
    if answer.finished or not loop_reason(text):
        return answer
    # the shortest beginning that already loops, halved until it does not: its end is the first round
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loop_reason(text[:middle]) else (middle, high)
    tail = text[:high][-15:]
    first = text.find(tail)
    end = first + len(tail) if 0 <= first < high - len(tail) else high
    return Answer(text[:end], max(1, round(answer.n_tokens * end / len(text))), True)


def _rewarded(s: _Setting, name: str) -> Evaluation:
    """Best of n by a reward model trained on the same pairs."""
    reward = s.reward
    return s.best(name, reward.scores([e.prompt for e in s.test], s.samples))


def _gradient(s: _Setting, name: str) -> Evaluation:
    """A policy gradient against the same reward model, as many steps as DPO had."""
    reward, config = s.reward, s.recipe.dpo
    with s.training():
        model, history = policy_gradient(
            s.start,
            reward,
            s.prompts,
            config,
            steps=s.n_steps,
            samples=BEST_OF,
            max_new_tokens=s.task.max_new_tokens,
            show=s.stages.show,
        )
    model.save(s.stages.folder / "gradient" / "adapter")
    write_json(s.stages.folder / "gradient" / "history.json", history)
    s.cost.steps += len(history)
    s.cost.sampled_tokens += int(sum(h["sampled"] for h in history))
    s.cost.trained_tokens += int(sum(h["trained"] for h in history))
    return s.answered(name, model)


ARMS: dict[str, Callable[[_Setting, str], Evaluation]] = {
    "base": lambda s, name: s.answered(name, s.base),
    "sft": lambda s, name: s.answered(name, s.start),
    "sft+dpo": _dpo,
    "sft+sft on chosen": _more_sft,
    "sft+unlikelihood": _unlikelihood,
    f"sft, likeliest of {BEST_OF}": _likeliest,
    "sft, repetition penalty": _penalty,
    "sft, length limit": _limit,
    "sft, loop stop": _loop_stop,
    f"sft, reward best of {BEST_OF}": _rewarded,
    "sft+policy gradient": _gradient,
}


def compare(
    task: Task | str,
    arms: Sequence[str] = tuple(ARMS),
    *,
    model: str = "nano",
    adapter: str | Path | None = None,
    pairs: Pairs | None = None,
    recipe: Recipe | None = None,
    split: str = "test",
    folder: str | Path | None = None,
    seed: int = 0,
    effects: bool = False,
    count_flops: bool = False,
    show: bool = True,
) -> Comparison:
    """Run arms with one budget from one fine-tuned start, on the same held-out prompts.

    The trained arms see the same pairs in the same order for the same number of steps; each adapter is chosen by the
    same dev probe. A finished arm is read from the folder, not run again. An arm that fails leaves a hole that says
    why, and the others go on.

    Args:
        task: a task, or what `load_task` takes.
        arms: names from `ARMS`; `sft` is what the others are compared with.
        model: `nano`, `smol`, or what `load_model` takes.
        adapter: of the fine-tuned start: a folder or a shipped one; by default the task's, or it is trained.
        pairs: to train on; by default the start's own failures are mined by the recipe.
        recipe: sizes and settings; by default the demo's for model and task.
        split: whose prompts are answered; `dev` while you choose settings.
        folder: of the run; `runs/compare-MODEL-TASK` by default.
        seed: of mining, training and sampling.
        effects: measure DPO's side effects too (see `side_effects`).
        count_flops: count floating-point operations of training, which slows it a little.
        show: progress and plain lines.

    Raises:
        WorkbenchError: an unknown arm, or the part that all arms share fails.
    """
    unknown = [name for name in arms if name not in ARMS]
    if unknown or not arms:
        raise WorkbenchError(f"`arms` must be some of {', '.join(ARMS)}. Got {unknown or 'none'}.")
    task = with_all_splits(load_task(task) if isinstance(task, str) else task)
    recipe = recipe or recipe_for(model, task)
    recipe = replace(recipe, dpo=replace(recipe.dpo, seed=seed), sft=replace(recipe.sft, seed=seed))
    path = Path(folder) if folder else Path("runs") / f"compare-{Path(model).name}-{task.name}"
    settings = {"model": model, "task": task.name, "split": split, "from_scratch": False, **asdict(recipe)}
    settings |= {"adapter": str(adapter)} if adapter else {}
    test = task.split(split)[: recipe.test_prompts]
    settings["prompts"] = _digest([(e.id, e.prompt, e.reference) for e in test])
    settings |= {"pairs": _digest([asdict(p) for p in pairs])} if pairs is not None else {}
    stages = Stages(path, settings, show)
    base = load_model(model)
    job = Job(recipe, stages, task, {})
    ready = adapter or shipped_adapter(model, task)
    trained = path / "sft" / "adapter"
    start = load_adapter(base, ready or trained) if ready or trained.is_dir() else job.fine_tuned(base)
    context: dict[str, Any] = {}
    mined = [e.prompt for e in task.train[recipe.mine_from :][: recipe.mine_prompts]]
    if pairs is None:
        found = job.mined(start)
        target = tuple(found.settings["target"])
        pairs = job.pairs(found, target)
        context = {"mined": target, "headroom": found.headroom(target)}
    context["pairs"] = pairs
    setting = _Setting(task, test, recipe, base, start, pairs, mined, stages, Cost(), count_flops)
    done, costs, holes = _run(setting, arms)
    measured = None
    if effects and "sft+dpo" in done:
        after = load_adapter(base, path / "dpo" / "adapter")
        measured = stages.cached(
            "side_effects.json",
            lambda: side_effects(start, after, task, show=show),
            SideEffects.save,
            SideEffects.load,
        )
    result = Comparison(done, costs, holes, "sft", path, measured, context)
    if "sft" in done:
        _write(result, setting, seed)
    return result


def _digest(rows: Any) -> str:
    """Same rows, same text: a run folder is not gone on with when its prompts or pairs have changed."""
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:12]


def _run(setting: _Setting, arms: Sequence[str]) -> tuple[dict[str, Evaluation], dict[str, Cost], dict[str, str]]:
    """Each arm from the folder, or run now; (evaluations, costs, holes)."""
    stages, done, costs, holes = setting.stages, {}, {}, {}
    for name in arms:
        file, spent = (stages.folder / "evaluations" / f"{name}{end}" for end in (".json", ".cost.json"))
        setting.cost, setting.trained_here = Cost(), 0.0
        try:
            if file.is_file() and spent.is_file():
                done[name] = Evaluation.load(file)
                setting.cost = Cost(**json.loads(spent.read_text(encoding="utf-8")))
                stages.say(f"{name}: already there")
            else:
                begun = time.monotonic()
                found = replace(ARMS[name](setting, name), name=name)
                setting.cost.answer_seconds = time.monotonic() - begun - setting.trained_here
                found.save(file)
                write_json(spent, asdict(setting.cost))
                done[name] = found
                stages.say(f"{name}: {found.n_failed} of {found.n} failed, score {found.mean_score:.3f}")
        except (WorkbenchError, RuntimeError, ArithmeticError, MemoryError) as error:
            holes[name] = str(error).split("\n")[0]
            stages.say(f"{name}: no result. {holes[name]}")
            continue
        costs[name] = setting.cost
    return done, costs, holes


def _write(result: Comparison, setting: _Setting, seed: int) -> None:
    """results.json and report.html of a comparison."""
    decided = result.verdict() if "sft+dpo" in result.arms else None
    stages = setting.stages
    results = {
        "settings": {**stages.settings, "seed": seed, "arms": list(result.arms)},
        "command": f"dpo-workbench arms --model {stages.settings['model']} --task {setting.task.name} --seed {seed}",
        "machine": describe(),
        "arms": {name: e.summary() for name, e in result.arms.items()},
        "comparison": result.rows(),
        "holes": result.holes,
        "pairs": setting.pairs.summary(),
        "side_effects": result.effects.to_dict() if result.effects else None,
        "verdict": {"outcome": decided.outcome, "text": decided.text, "numbers": decided.numbers} if decided else None,
        "times": {
            "date": date.today().isoformat(),
            "costs": {name: asdict(cost) for name, cost in result.costs.items()},
            "peak_memory_gib": round(peak_memory_gib(), 2),
        },
    }
    costs = [(name, *cost.row()) for name, cost in result.costs.items()]
    tables = [
        ReportTable(f"Each arm against {result.baseline}", HEADER, result.table),
        ReportTable("What each arm cost beyond the fine-tuned start", ("arm", *COST_HEADER), costs),
    ]
    if result.effects:
        tables.append(ReportTable("Side effects of DPO, on dev prompts", EFFECTS_HEADER, result.effects.rows()))
    if result.holes:
        tables.append(ReportTable("Arms without a result", ("arm", "why"), list(result.holes.items())))
    changes = DifferencesDisplay.from_rows(result.rows(), result.baseline)
    displays = {f"Change of the score against {result.baseline}": changes} if changes.names else {}
    write_report(stages.folder, results, result.arms, decided, tables=tables, displays=displays)

"""The steps from a shell: `dpo-workbench demo | models | tasks | check | mine | label | train | evaluate | ...`."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from dpo_workbench.common.errors import WorkbenchError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Mine a model's own failures, train on them with DPO, and count the same failures again on held-out prompts. "
    "Start with: dpo-workbench demo",
)
export = typer.Typer(no_args_is_help=True, help="Take a run to other engines: trl, merged weights, pairs.")
app.add_typer(export, name="export")
console = Console()
errors = Console(stderr=True)


@app.callback()
def _settings(
    allow_weak_sandbox: Annotated[
        bool, typer.Option(help="Run a model's code even where only limits hold it (docs/sandbox.md).")
    ] = False,
) -> None:
    if allow_weak_sandbox:
        from dpo_workbench.sandbox.process import allow_weak

        allow_weak()


_SHIPPED = "the one that is shipped for model and task, if there is one"
ModelName = Annotated[str, typer.Option("--model", "-m", help="nano, smol, a Hub id (owner/name) or a folder.")]
ServedName = Annotated[
    str | None, typer.Option("--model", "-m", help="nano (the default), smol, a Hub id (owner/name) or a folder.")
]
AdapterName = Annotated[
    str | None, typer.Option("--adapter", "-a", help="LoRA adapter: a folder, or a shipped one (receipts).")
]
TaskName = Annotated[str, typer.Option("--task", "-t", help="See `dpo-workbench tasks`; or a file.py of your own.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Run folder that takes the results. A stopped run goes on in it.")
]
Seed = Annotated[int, typer.Option(help="Seed of all draws.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` or `demo` wrote.")]
New = Annotated[Path | None, typer.Option("--out", "-o", help="New folder; RUN/export/... by default.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder that is not empty.")]

Engine = Annotated[
    str | None,
    typer.Option(
        help="Sample at this OpenAI-compatible server (http://127.0.0.1:8000/v1). --model is then the name that it "
        "serves, by default its only one."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Use only the first N prompts.")]


@app.command()
def demo(
    model: ModelName = "nano",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/demo-MODEL by default.")] = None,
    task: TaskName = "receipts",
    from_scratch: Annotated[bool, typer.Option(help="Train the fine-tuned start too, not only the DPO stage.")] = False,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", "-a", help="Begin with this fine-tuned LoRA adapter (a folder).")
    ] = None,
    again: Annotated[
        bool, typer.Option(help="Go on with (or show) the run in --out instead of starting a new one.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """The main job: fine-tuned start, mine failures, DPO beside its control, held-out test, verdict, report."""
    from dpo_workbench.studies.demo import demo as run_demo

    folder = out or Path("runs") / f"demo-{Path(model).name}"
    if not again:
        folder = _fresh(folder)
    _log_to(folder)
    result = run_demo(model, folder, task_name=task, from_scratch=from_scratch, adapter=adapter, seed=seed)
    decided = result.verdict()
    console.print(f"\n[bold]{decided.outcome}[/bold]\n")
    console.print(decided.text, markup=False)
    console.print(f"\nreport:  {folder / 'report.html'}\nresults: {folder / 'results.json'}", markup=False)


@app.command()
def models() -> None:
    """List the models that can be used by name, and whether they are on this machine."""
    from dpo_workbench.models.embedded import available

    _table(("model", "what", "where"), available())


@app.command()
def tasks() -> None:
    """List the built-in tasks with the sizes of their splits."""
    from dpo_workbench.tasks.builtin import load_task, task_names

    loaded = [load_task(name) for name in task_names()]
    rows = [(t.name, t.description, ", ".join(f"{k} {len(s)}" for k, s in t.splits.items())) for t in loaded]
    _table(("task", "what", "prompts"), rows)


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, TSV or Parquet, also .gz; or hub:owner/name.")],
    layout: Annotated[str | None, typer.Option(help="Its layout (docs/data.md); found by itself if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print counts and findings as JSON.")] = False,
    fix: Annotated[Path | None, typer.Option(help="New file with what can be mended without loss.")] = None,
    quarantine: Annotated[Path | None, typer.Option(help="File that takes the refused rows, byte for byte.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Refuse rows with more words and signs.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page about the pairs.")] = None,
    model: Annotated[str | None, typer.Option(help="For the page: the model that training would start from.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Another file (a test split): prompts that are in both, or nearly so.")
    ] = None,
) -> None:
    """Read preference data and name what is wrong; exit code 1 when rows were refused, or prompts leaked."""
    from dpo_workbench.pairs.readers import read_pairs
    from dpo_workbench.pairs.result import fix_file
    from dpo_workbench.pairs.splits import find_leaks

    read = read_pairs(file, layout=layout, max_tokens=max_tokens)
    found = find_leaks({file: read.found, against: read_pairs(against).found}) if against else None
    # plain print: rich would break lines
    if as_json:
        print(json.dumps(read.to_dict() | ({"leaks": found.to_dict()} if found else {}), indent=1, ensure_ascii=True))
    else:
        print(*filter(None, (read, found)), sep="\n")
    if quarantine:
        read.quarantine(quarantine)
    if fix:
        mended = fix_file(file, read, fix)
        errors.print(f"{fix}: {', '.join(mended) or 'nothing to mend'}", markup=False)
    if report:
        from dpo_workbench.models.loading import load_model
        from dpo_workbench.studies.data_report import data_report

        errors.print(f"report: {data_report(read, report, load_model(model) if model else None)}", markup=False)
    if read.refused or (found and found.leaks):
        raise typer.Exit(1)


@app.command()
def mine(
    out: Out,
    model: ServedName = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", "-a", help="LoRA adapter: a folder, or a shipped one.", show_default=_SHIPPED),
    ] = None,
    task: TaskName = "receipts",
    samples: Annotated[int, typer.Option(min=1, help="Answers sampled for each prompt.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.01, help="1.0 samples from the model as it is.")] = 1.0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Mine the greedy answers too, which are what evaluation sees.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A failure class to mend, more than once for several: rejected are such answers, chosen "
            "the same with a better ending of the model's own. All classes by default."
        ),
    ] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many prompts: those that fine-tuning has seen.")] = 0,
    limit: Limit = None,
    seed: Seed = 0,
    engine: Engine = None,
) -> None:
    """Sample answers to the training prompts, class the failures, and write pairs.jsonl."""
    from dpo_workbench.mining.branch import branch
    from dpo_workbench.mining.sample import mine as run_mine
    from dpo_workbench.tasks.builtin import shipped_adapter

    _log_to(out)
    if engine and target:
        raise WorkbenchError(
            "--target takes answers up again in the middle, which the chat endpoint of --engine cannot. Mine without "
            "--target, or call `dw.branch` with the same model loaded."
        )
    loaded = _task(task)
    handle = _handle(model, adapter or (None if engine else shipped_adapter(model or "nano", loaded)), engine)
    prompts = loaded.train[skip:][:limit]
    found = run_mine(handle, prompts, samples, temperature=temperature, greedy=greedy, seed=seed, engine=engine)
    if target:
        found = branch(handle, found, target, seed=seed)
    found.save(out / "mined.json")
    console.print(repr(found), markup=False)
    console.print(f"headroom: {found.headroom(target or ())}", markup=False)
    pairs = found.pairs(classes=target or None)
    pairs.save(out / "pairs.jsonl")
    console.print(repr(pairs), markup=False)
    console.print(f"pairs: {out / 'pairs.jsonl'}", markup=False)


@app.command()
def train(
    pairs: Annotated[Path, typer.Argument(help="Pairs as `mine` writes them, or a file that `check` can read.")],
    out: Out,
    model: ModelName = "nano",
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", "-a", help="LoRA adapter: a folder, or a shipped one.", show_default=_SHIPPED),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            help="Task whose dev prompts are scored on the way: a name, or a file.py of your own.",
            show_default="the built-in task that the prompts are from, if they all are",
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="sigmoid (DPO), cdpo, robust, hinge, ipo, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, "
            "apo_zero, apo_down, discopop, sigmoid_norm, dpop, simpo, sft or nll; see docs/losses.md. Several as "
            "NAME=WEIGHT make a weighted sum."
        ),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Lower lets the policy move further from the reference.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the LoRA weights.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs.")] = None,
    nll_weight: Annotated[
        float | None, typer.Option(help="Weight of the chosen answers' likelihood; steadies the run.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of labels taken to be wrong; cdpo, robust, exo_pair and aot read it.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """LoRA DPO on a pair file; keeps the best adapter by the task's dev score. Run again after a stop to go on.

    Several GPUs or processes: accelerate launch -m dpo_workbench train ...
    """
    from dpo_workbench.common import parallel
    from dpo_workbench.pairs.pair import Pairs
    from dpo_workbench.tasks.builtin import shipped_adapter
    from dpo_workbench.training.config import TrainConfig
    from dpo_workbench.training.record import record_run
    from dpo_workbench.training.run import train as run_train

    _log_to(out)
    parallel.join()
    console.quiet = parallel.rank() > 0
    given = {"loss": _loss(loss), "beta": beta, "lr": lr, "epochs": epochs, "nll_weight": nll_weight, "seed": seed}
    given["label_smoothing"] = label_smoothing
    config = TrainConfig.from_dict({k: v for k, v in given.items() if v is not None})
    loaded = Pairs.load(pairs, _task(task) if task else None)
    if task is None:
        loaded.task = _task_of(loaded)
    start = _model(model, adapter or shipped_adapter(model, loaded.task))
    if parallel.rank() == 0:
        record_run(out, start, loaded, config)
    run = run_train(start, loaded, config, folder=out)
    if parallel.rank() == 0:
        run.model.save(out / "adapter")
    console.print(repr(run), markup=False)
    console.print(f"adapter: {out / 'adapter'}", markup=False)
    if not run.finished:
        raise typer.Exit(130)


@app.command()
def label(
    pairs: Annotated[Path, typer.Argument(help="Pair file, in any layout that `check` reads.")],
    rater: Annotated[str, typer.Option("--rater", "-r", help="Who judges; initials will do.")],
    store: Annotated[Path, typer.Option(help="File that takes the labels; several raters may share it.")] = Path(
        "labels.jsonl"
    ),
    rubric: Annotated[str | None, typer.Option(help="A YAML file, or the name of a built-in task.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Plan of `dw.plan_labelling`; default: all pairs, once.")] = None,
    hints: Annotated[bool, typer.Option(help="After each vote, say what the verifier thinks.")] = False,
) -> None:
    """Judge pairs blind, one by one. Each vote is saved at once; the same command goes on where you stopped."""
    from dpo_workbench.labelling.widget import label_text
    from dpo_workbench.pairs.pair import Pairs

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    label_text(Pairs.load(pairs), rubric=rubric, rater=rater, store=store, plan=plan, hints=hints, write=say)


@app.command()
def agreement(
    store: Annotated[list[Path], typer.Argument(help="Label files; copies of one another count once.")],
    pairs: Annotated[Path, typer.Option("--pairs", "-p", help="The pairs that were judged.")],
    plan: Annotated[Path | None, typer.Option(help="The plan; it knows the gold items.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the pairs that follow to this file.")] = None,
    how: Annotated[str, typer.Option(help="majority, weighted or bradley-terry.")] = "majority",
) -> None:
    """How far raters agree, what biases them, what to do, and the pairs that follow from their labels."""
    from dpo_workbench.labelling.labels import read_labels
    from dpo_workbench.labelling.report import agreement as measure
    from dpo_workbench.pairs.pair import Pairs

    labels = read_labels(store, Pairs.load(pairs), plan)
    console.print(f"{measure(labels)}\n\n{labels}", markup=False, highlight=False)
    if out is not None:
        made = labels.pairs(how)
        made.save(out)
        console.print(f"{len(made)} pairs: {out}", markup=False)


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file that takes the answers and scores.")],
    model: ServedName = None,
    adapter: AdapterName = None,
    task: TaskName = "receipts",
    split: Annotated[str, typer.Option(help="dev while you choose settings; test once, at the end.")] = "dev",
    limit: Limit = None,
    name: Annotated[str | None, typer.Option(help="Name of this arm in reports.")] = None,
    seed: Seed = 0,
    engine: Engine = None,
) -> None:
    """Answer held-out prompts greedily and count failures by class, with intervals."""
    from dpo_workbench.evaluation.run import evaluate as run_evaluate

    _log_to(out.parent)
    chosen = _task(task).split(split)[:limit]
    label = None if engine else f"{model or 'nano'}{f' + {adapter}' if adapter else ''}"
    handle = _handle(model, adapter, engine)
    done = run_evaluate(handle, chosen, name=name or label, seed=seed, engine=engine)
    done.save(out)
    console.print(str(done), markup=False)
    console.print(f"answers: {out}", markup=False)


@app.command()
def report(
    before: Annotated[Path, typer.Argument(help="JSON file that `evaluate` wrote for the model before.")],
    after: Annotated[Path, typer.Argument(help="... and after.")],
    out: Out,
    control: Annotated[Path | None, typer.Option(help="... and for a control arm with the same budget.")] = None,
) -> None:
    """Compare evaluations of the same prompts: verdict in words, report.html and results.json."""
    from dpo_workbench.common.environment import describe
    from dpo_workbench.evaluation.report import write_report
    from dpo_workbench.evaluation.run import Evaluation
    from dpo_workbench.evaluation.verdict import verdict

    _log_to(out)
    arms = [Evaluation.load(path) for path in (before, after, control) if path]
    decided = verdict(arms[0], arms[1], control=arms[2] if control else None)
    results = {"arms": {arm.name: arm.summary() for arm in arms}, "machine": describe(), "verdict": decided.numbers}
    page = write_report(out, results, {arm.name: arm for arm in arms}, decided)
    console.print(f"[bold]{decided.outcome}[/bold]\n")
    console.print(decided.text, markup=False)
    console.print(f"\nreport: {page}", markup=False)


@app.command()
def arms(
    task: TaskName = "receipts",
    model: ModelName = "nano",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", "-a", help="Begin with this fine-tuned LoRA adapter (a folder).")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="An arm to run, more than once for several; all by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="dev while you choose settings; test once, at the end.")] = "dev",
    effects: Annotated[bool, typer.Option(help="Measure what else training moved: other tasks, plain text.")] = True,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; a stopped run goes on in it.")] = None,
    seed: Seed = 0,
) -> None:
    """DPO beside every other way to spend the budget: more SFT, unlikelihood, reward model, best of n, decoding."""
    from dpo_workbench.studies.arms import ARMS
    from dpo_workbench.studies.compare import compare

    folder = out or Path("runs") / f"compare-{Path(model).name}-{Path(task).stem}"
    _log_to(folder)
    names = tuple(arm) if arm else tuple(ARMS)
    done = compare(task, names, model=model, adapter=adapter, split=split, folder=folder, seed=seed, effects=effects)
    print(done)  # plain print: rich would break the table's lines
    if "sft+dpo" in done.arms:
        decided = done.verdict()
        console.print(f"\n[bold]{decided.outcome}[/bold]\n")
        console.print(decided.text, markup=False)
    console.print(f"\nreport: {folder / 'report.html'}", markup=False)


@app.command("compare")
def compare_runs(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder, or a file that `evaluate` wrote.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="... the one that should be better.")],
    arm: Annotated[str, typer.Option(help="Which arm of a run folder.")] = "sft+dpo",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for report.html and results.json.")] = None,
) -> None:
    """Two runs on the same prompts: which settings differ, and whether the second is clearly better."""
    from dataclasses import replace

    from dpo_workbench.evaluation.report import setting_differences, write_report
    from dpo_workbench.evaluation.run import Evaluation
    from dpo_workbench.evaluation.verdict import verdict

    def load(run: Path) -> Evaluation:
        file = run / "evaluations" / f"{arm}.json" if run.is_dir() else run
        return replace(Evaluation.load(file), name=f"{run.name}: {arm}" if run.is_dir() else run.stem)

    first, second = load(run_a), load(run_b)
    if first.name == second.name:
        first, second = replace(first, name=f"{first.name} (A)"), replace(second, name=f"{second.name} (B)")
    decided = verdict(first, second)
    for name, a, b in setting_differences(run_a, run_b):
        console.print(f"{name}: {a} in A, {b} in B", markup=False)
    console.print(f"\n[bold]{decided.outcome}[/bold]\n")
    console.print(decided.text, markup=False)
    if out is not None:
        results = {"arms": {e.name: e.summary() for e in (first, second)}, "verdict": decided.numbers}
        console.print(f"\nreport: {write_report(out, results, {e.name: e for e in (first, second)}, decided)}")


@export.command("trl")
def export_trl(run: RunFolder, out: New = None, force: Force = False) -> None:
    """A project for many GPUs: data, config and a script that trains as here, with TRL under Accelerate."""
    from dpo_workbench.export.runs import export_trl as run_export

    console.print(repr(run_export(run, out or run / "export" / "trl", force=force)), markup=False)


@export.command("merged")
def export_merged(run: RunFolder, out: New = None, force: Force = False) -> None:
    """The model with its adapter added into the weights, for transformers, vLLM and others."""
    from dpo_workbench.export.runs import export_merged as run_export

    console.print(repr(run_export(run, out or run / "export" / "merged", force=force)), markup=False)


@export.command("pairs")
def export_pairs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder with pairs.jsonl, or such a file.")],
    layout: Annotated[str, typer.Option("--format", help="trl, openai or together.")] = "trl",
    out: New = None,
    force: Force = False,
) -> None:
    """The pairs in the preference format of TRL, OpenAI or Together; what it cannot hold is counted and kept apart."""
    from dpo_workbench.export.runs import export_pairs as run_export

    parent = run if run.is_dir() else run.parent
    target = out or parent / "export" / f"pairs-{layout}"
    console.print(repr(run_export(run, target, layout, force=force)), markup=False)


def _model(name: str, adapter: str | None) -> Any:
    from dpo_workbench.models.loading import load_model

    model = load_model(name, adapter=adapter if adapter != "none" else None)
    console.print(repr(model), markup=False)
    return model


def _loss(given: list[str] | None) -> str | dict[str, float] | None:
    """A name, or weights by name from `NAME=WEIGHT` (a name alone has weight 1)."""
    if not given or given == [given[0].partition("=")[0]]:
        return given[0] if given else None
    try:
        return {name: float(weight or 1) for name, _, weight in (term.partition("=") for term in given)}
    except ValueError as error:
        raise WorkbenchError(f"`--loss` takes NAME or NAME=WEIGHT. Got {' '.join(given)} ({error}).") from error


def _handle(name: str | None, adapter: str | None, engine: str | None) -> Any:
    """The loaded model; with an engine the name of the served one."""
    if engine is None:
        return _model(name or "nano", adapter)
    if adapter:
        raise WorkbenchError(
            f"A server answers with what it serves. Got --adapter {adapter} with --engine. Serve the adapter under a "
            "name (docs/server.md) and give that as --model."
        )
    return name


def _task(name: str) -> Any:
    from dpo_workbench.tasks.builtin import load_task

    return load_task(name)


def _task_of(pairs: Any) -> Any:
    """The built-in task among whose training prompts all of these are, or None."""
    from dpo_workbench.tasks.builtin import task_names

    prompts = {pair.prompt for pair in pairs}
    for task in map(_task, task_names()):
        if prompts <= {example.prompt for example in task.train}:
            return task
    console.print(
        "The prompts are of no built-in task, so no dev prompts are scored on the way, and the last adapter is kept. "
        "Name a task of yours with --task FILE.py (docs/tasks.md).",
        markup=False,
    )
    return None


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _fresh(folder: Path) -> Path:
    """The folder, or folder-2, folder-3, ... when a finished run lies there; an unfinished one goes on."""
    number, candidate = 1, folder
    while (candidate / "results.json").exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


_log = Path("dpo-workbench-error.log")


def _log_to(folder: Path) -> None:
    global _log  # the one place where a command says where its traceback goes
    _log = folder / "error.log"


def main() -> None:
    """Entry point: errors are one paragraph, the traceback goes to the run's error.log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    gc.set_threshold(50_000, 20, 20)  # torch and transformers make a million objects, and none is garbage
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        _fail(error)
    if code == 130:  # typer's own answer to a KeyboardInterrupt
        errors.print("interrupted: what was saved is whole; the same command goes on from there")
    gc.freeze()  # nor when the process ends: a second less
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, WorkbenchError):
        text = str(error)
    elif hasattr(error, "format_message"):  # a usage error of the command line
        errors.print(f"{error.format_message()} See: dpo-workbench --help", markup=False)  # type: ignore[attr-defined]
        sys.exit(2)
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        text = "Memory must hold the batch. It ran out. Lower micro_tokens in TrainConfig, or take a smaller model."
    else:
        text = f"{type(error).__name__}: {str(error)[:300]}. This should not happen: please report it with the log."
    errors.print(f"[bold red]error:[/bold red] {_plain(text)}", highlight=False)
    try:
        _log.parent.mkdir(parents=True, exist_ok=True)
        with _log.open("a", encoding="utf-8") as file:
            file.write(
                f"{datetime.now().isoformat(timespec='seconds')} {' '.join(sys.argv)}\n{traceback.format_exc()}\n"
            )
        errors.print(f"traceback: {_log}", markup=False)
    except OSError:
        pass  # a full disk must not hide the message above
    sys.exit(1)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)

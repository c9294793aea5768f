"""The program `dpo-workbench`: one function for each command, and `main`.

`dw` imports a name when it is first used, so `--help` and wrong usage answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import dpo_workbench as dw
from dpo_workbench import cli_shared as shared
from dpo_workbench.cli_shared import say, warn
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text
from dpo_workbench.common.html import page
from dpo_workbench.sandbox.process import ALLOW_WEAK

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of options
    help="Find a model's own failures, train on them with DPO, and count the same failures again on held-out prompts. "
    "Start with: dpo-workbench demo",
)


@app.callback()
def _for_all_commands(
    allow_weak_sandbox: Annotated[
        bool, typer.Option(help="Run model-written code even if only resource limits contain it (docs/sandbox.md).")
    ] = False,
) -> None:
    if allow_weak_sandbox:
        os.environ[ALLOW_WEAK] = "1"


@app.command()
def demo(
    model: shared.ModelName = "nano",
    out: shared.OptionalOut = None,
    task: shared.DemoTask = None,
    from_scratch: Annotated[bool, typer.Option(help="Also train the fine-tuned starting point.")] = False,
    adapter: shared.AdapterName = None,
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    seed: shared.Seed = 0,
) -> None:
    """The whole method: find failures, train with DPO and with a control, test both on held-out prompts, report."""
    folder = out or Path("runs") / f"demo-{Path(model).name}"
    start: dict[str, Any] = {"adapter": adapter, "quantize": quantize, "template": shared.template_arguments(template)}
    result = dw.demo(model, folder, task_name=task, from_scratch=from_scratch, **start, seed=seed)
    shared.say_verdict(result.verdict())
    say(f"\nreport:  {folder / 'report.html'}\nresults: {folder / 'results.json'}")


@app.command()
def tasks() -> None:
    """List the built-in tasks and the sizes of their splits."""
    for task in map(dw.load_task, dw.task_names()):
        sizes = ", ".join(f"{name} {len(split)}" for name, split in task.splits.items())
        say(f"{task.name}: {task.description} ({sizes})")


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, TSV or Parquet, also .gz; or hub:owner/name.")],
    columns: Annotated[list[str] | None, typer.Option("--map", help="Such as prompt=question; repeat it.")] = None,
    save: Annotated[Path | None, typer.Option(help="New file for the pairs that were kept, ready for `train`.")] = None,
    against: Annotated[str | None, typer.Option(help="A second file (a test split): find prompts in both.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Also check for this model; no weights.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="For --model: limit of a prompt with one answer.")] = 1024,
    template: Annotated[list[str] | None, typer.Option(help="For --model: such as enable_thinking=false.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="For --model: also write a page.")] = None,
) -> None:
    """Read preference data and report its problems; with --model, also what tokenizer and template do to the pairs.

    Exit code 1: rows were refused, prompts are in both files, or training would refuse pairs (`error:`).
    """
    if model is None and (template or html):
        raise WorkbenchError("--template and --html need --model. Name the model, such as --model smol.")
    with redirect_stdout(sys.stderr if as_json else sys.stdout):  # notes, such as "no chat template"
        read = dw.read_pairs(file, mapping=shared.named_values("--map", columns))
        found = dw.find_leaks({file: read.found, against: dw.read_pairs(against).found}) if against else None
        arguments = shared.template_arguments(template)
        flight = None
        if model and read.found:
            flight = dw.preflight(read.found, model, max_tokens=max_tokens, template=arguments)
    if as_json:
        told = {"file": read.to_dict(), "leaks": found and str(found), "preflight": flight and flight.to_dict()}
        say(json.dumps(told))
    else:
        say("\n".join(str(part) for part in (read, found, flight) if part))
    if html and flight:
        write_text(html, page(flight.title, flight._repr_html_()))
    if save:
        warn(f"{len(read.pairs)} pairs: {read.pairs.save(save)}")
    if read.refused or (found and found.leaks) or (flight and flight.failed):
        raise typer.Exit(1)


@app.command()
def mine(
    out: shared.Out,
    model: shared.ServedName = None,
    adapter: shared.AdapterName = None,
    quantize: shared.Quantize = None,
    task: shared.TaskName = "receipts",
    samples: Annotated[int, typer.Option(min=1, help="Answers sampled for each prompt.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 1.0,
    target: Annotated[list[str] | None, typer.Option(help="Failure class to pair with better endings.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Skip the first N prompts, for example those of fine-tuning.")] = 0,
    limit: shared.Limit = None,
    template: shared.Template = None,
    seed: shared.Seed = 0,
    engine: shared.Engine = None,
) -> None:
    """Sample answers to the training prompts, classify the failures, and write pairs.jsonl."""
    from dpo_workbench.tasks.builtin import shipped_adapter

    if engine and target:
        raise WorkbenchError("--target continues answers from the middle, which --engine cannot do. Leave one out.")
    loaded = dw.load_task(task)
    if adapter is None and engine is None:
        adapter = shipped_adapter(model or "nano", loaded)
    handle, server = shared.load(model, adapter, quantize, template, engine)
    found = dw.mine(handle, loaded.train[skip:][:limit], samples, temperature=temperature, seed=seed, **server)
    if target:
        found = dw.branch(handle, found, target, seed=seed)
    found.save(out / "mined.json")
    say(f"{found!r}\nheadroom: {found.headroom(target or ())}")
    pairs = found.pairs(classes=target or None)
    pairs.save(out / "pairs.jsonl")
    say(f"{pairs!r}\npairs: {out / 'pairs.jsonl'}")


@app.command()
@shared.train_options
def train(
    pairs: Annotated[Path, typer.Argument(help="Pairs that `mine` wrote, or any file that `check` can read.")],
    out: shared.Out,
    model: shared.ModelName = "nano",
    adapter: shared.AdapterName = None,
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    task: shared.DevTask = None,
    loss: Annotated[list[str] | None, typer.Option(help="A name in docs/losses.md; or NAME=WEIGHT, repeated.")] = None,
    **settings: Any,
) -> None:
    """Train a LoRA adapter with DPO on a pair file. The same command continues a stopped run.

    For several GPUs: `dpo-workbench export trl`.
    """
    from dpo_workbench.tasks.builtin import shipped_adapter

    if loss:
        weighted = len(loss) > 1 or "=" in loss[0]
        settings["loss"] = shared.named_values("--loss", loss, float) if weighted else loss[0]
    config = dw.TrainConfig(**{name: value for name, value in settings.items() if value is not None})
    loaded = dw.Pairs.load(pairs, dw.load_task(task) if task else None)
    if task is None:
        prompts = {pair.prompt for pair in loaded}
        builtin = map(dw.load_task, dw.task_names())
        loaded.task = next((known for known in builtin if prompts <= {e.prompt for e in known.train}), None)
        if loaded.task is None:
            say("The prompts are of no built-in task, so the last adapter is kept. Name your task with --task FILE.py.")
    adapter = adapter or shipped_adapter(model, loaded.task)
    start, _ = shared.load(model, adapter, quantize, template)
    dw.record_run(out, start, loaded, config)
    run = dw.train(start, loaded, config, folder=out)
    run.save(out)
    say(f"{run!r}\nadapter: {out / 'adapter'}")
    if not run.finished:
        raise typer.Exit(130)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="nano, smol, a Hub id (owner/name) or a folder with config.json.")],
    file: Annotated[Path, typer.Argument(help="Pairs, in any layout that `check` can read.")],
    gpu: Annotated[str | None, typer.Option(help="Such as T4, L4, A100-40, RTX-4090. Default: this machine.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory of the GPU, if it differs.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 16,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 2,
) -> None:
    """Will it fit? Memory by part, what to set, and a command to copy. Of the model it reads config.json only."""
    say(dw.plan(model, file, gpu=gpu, memory_gib=memory_gib, rank=rank, epochs=epochs))


@app.command()
def label(
    pairs: Annotated[Path, typer.Argument(help="Pair file, in any layout that `check` can read.")],
    rater: Annotated[str, typer.Option("--rater", "-r", help="Who judges; initials are enough.")],
    store: Annotated[Path, typer.Option(help="Label file; several raters may share it.")] = Path("labels.jsonl"),
    rubric: Annotated[str | None, typer.Option(help="A text file, or the name of a built-in task.")] = None,
) -> None:
    """Judge pairs blind, one by one. Each vote is saved at once; the same command continues where you stopped."""
    dw.label_text(dw.Pairs.load(pairs), rubric=rubric, rater=rater, store=store, write=say)


@app.command()
def agreement(
    store: Annotated[list[Path], typer.Argument(help="Label files. Labels that are in several files count once.")],
    pairs: Annotated[Path, typer.Option("--pairs", "-p", help="The pairs that were judged.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the labelled pairs to this file.")] = None,
    how: Annotated[str, typer.Option(help="How votes become pairs: majority or weighted.")] = "majority",
) -> None:
    """Measure how far raters agree and what biases them, and turn their labels into training pairs."""
    labels = dw.read_labels(store, dw.Pairs.load(pairs))
    say(f"{dw.agreement(labels)}\n\n{labels}")
    if out is not None:
        made = labels.pairs(how)
        say(f"{len(made)} pairs: {made.save(out)}")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file for the answers and scores.")],
    model: shared.ServedName = None,
    adapter: shared.AdapterName = None,
    quantize: shared.Quantize = None,
    task: shared.TaskName = "receipts",
    split: shared.SplitName = "dev",
    limit: shared.Limit = None,
    template: shared.Template = None,
    seed: shared.Seed = 0,
    engine: shared.Engine = None,
) -> None:
    """Answer held-out prompts greedily and count failures by class, with confidence intervals."""
    prompts = dw.load_task(task).split(split)[:limit]
    name = None if engine else f"{model or 'nano'}{f' + {adapter}' if adapter else ''}"
    handle, server = shared.load(model, adapter, quantize, template, engine)
    done = dw.evaluate(handle, prompts, name=name, seed=seed, **server)
    done.save(out)
    say(f"{done}\nanswers: {out}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="File of `evaluate`, run folder, JSONL, lm-eval or inspect_ai log.")],
    after: Annotated[Path, typer.Argument(help="The same for the model or run that should be better.")],
    out: shared.OptionalOut = None,
    control: Annotated[Path | None, typer.Option(help="The same for a control, such as fine-tuning alone.")] = None,
    base: Annotated[Path | None, typer.Option(help="The same for the model before any training.")] = None,
    metric: Annotated[str | None, typer.Option(help="The score, for logs that have several.")] = None,
) -> None:
    """Compare evaluations of the same prompts: what changed, what got worse; with --out also a report."""
    others = {role: path for role, path in (("base", base), ("control", control)) if path}
    arms = {role: dw.read_evaluation(path, metric=metric) for role, path in others.items()}
    first, second = dw.read_evaluation(before, metric=metric), dw.read_evaluation(after, metric=metric)
    if first.name == second.name:
        first, second = replace(first, name=f"{first.name} (A)"), replace(second, name=f"{second.name} (B)")
    decided = dw.verdict(first, second, **arms)
    shared.say_verdict(decided)
    if out is not None:
        by_name = {e.name: e for e in (first, second, *arms.values())}
        summaries = {name: e.summary() for name, e in by_name.items()}
        results: dict[str, Any] = {"arms": summaries, "machine": dw.describe()}
        results["verdict"] = {"outcome": decided.outcome, "text": str(decided), "numbers": decided.numbers}
        say(f"\nreport: {dw.write_report(out, results, by_name, decided)}")


@app.command()
def arms(
    task: shared.TaskName = "receipts",
    model: shared.ModelName = "nano",
    adapter: shared.AdapterName = None,
    quantize: shared.Quantize = None,
    arm: Annotated[list[str] | None, typer.Option(help="An arm to run; repeat it for several. Default: all.")] = None,
    split: shared.SplitName = "dev",
    out: shared.OptionalOut = None,
    template: shared.Template = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeat it for several runs, each from its own start.")] = None,
) -> None:
    """Compare DPO with other ways to use the same budget: more SFT, a reward model, best of n, decoding rules.

    DPO and the control each choose one of three learning rates on dev prompts.
    """
    folder = out or Path("runs") / f"compare-{Path(model).name}-{Path(task).stem}"
    start: dict[str, Any] = {"adapter": adapter, "quantize": quantize, "template": shared.template_arguments(template)}
    done = dw.compare(task, tuple(arm or dw.ARMS), model=model, **start, split=split, folder=folder, seeds=seed or (0,))
    say(done)
    if "start" in done.arms and {"DPO", "DPO+NLL"} & done.arms.keys():
        shared.say_verdict(done.verdict())
    say(f"\nreport: {folder / 'report.html'}")


@app.command()
def export(
    kind: Annotated[Literal["trl", "merged"], typer.Argument(help="What to write.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` or `demo` wrote.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New folder; by default RUN/export/...")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Take a run to other tools: a TRL project for several GPUs, or merged weights."""
    write = dw.export_trl if kind == "trl" else dw.export_merged
    say(write(run, out or run / "export" / kind, force=force))


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` or `demo` wrote.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A new repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who can see the repository.")] = True,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Only write this folder, and upload nothing.")] = None,
    license: Annotated[str, typer.Option(help="As the Hub names it, such as apache-2.0.")] = "unknown",
) -> None:
    """Upload a run's adapter to the Hugging Face Hub, with its tokenizer and a model card that tells its verdict."""
    made = dw.publish(run, name, private=private, license=license, out=out)
    say(f"{'folder' if out else 'published'}: {made}")


def main() -> None:
    """Entry point. Exit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        shared.fail(error)
    if code == 130:  # typer also returns this code for a KeyboardInterrupt that it caught
        warn("Interrupted. What was saved is complete. Run the same command again to continue.")
    sys.exit(code if isinstance(code, int) else 0)

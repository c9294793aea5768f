"""What the commands of `dpo-workbench` share: option types, output, the error log, and reading of values."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpo_workbench.common.errors import WorkbenchError

console = Console()
errors = Console(stderr=True)
ERROR_LOG = Path("dpo-workbench-error.log")  # in the folder where the program runs


class Kind(str, Enum):
    """What `export` can write."""

    TRL, MERGED, PAIRS = "trl", "merged", "pairs"


ModelName = Annotated[str, typer.Option("--model", "-m", help="nano, smol, a Hub id (owner/name) or a folder.")]
ServedName = Annotated[str | None, typer.Option("--model", "-m", help="nano (default), smol, a Hub id or a folder.")]
AdapterName = Annotated[str | None, typer.Option("--adapter", "-a", help="A folder, a built-in one by name, or none.")]
AdapterFolder = Annotated[Path | None, typer.Option("--adapter", "-a", help="Start from this LoRA adapter (a folder).")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="See `dpo-workbench tasks`; or a Python file of yours.")]
DevTask = Annotated[str | None, typer.Option("--task", "-t", help="Its dev prompts decide which adapter is kept.")]
LossNames = Annotated[
    list[str] | None, typer.Option(help="A name of docs/losses.md; or NAME=WEIGHT, repeated for a weighted sum.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder for the results. A stopped run continues in it.")]
OptionalOut = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
SplitName = Annotated[str, typer.Option(help="dev while you choose settings; test once, at the end.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Use only the first N prompts.")]
Engine = Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server that serves --model.")]


def fail(error: Exception) -> NoReturn:
    """Print an error as one paragraph, write its traceback to the log, and exit."""
    if hasattr(error, "format_message"):  # a usage error of the command line
        errors.print(f"{error.format_message()} See: dpo-workbench --help", markup=False)
        sys.exit(2)
    if isinstance(error, WorkbenchError):
        text = str(error)
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        text = "Memory ran out. Lower micro_tokens (--set micro_tokens=768 for `train`), or use a smaller model."
    else:
        text = f"{type(error).__name__}: {str(error)[:300]}. This is a bug: please report it with the log."
    errors.print(f"[bold red]error:[/bold red] {escape(text)}", highlight=False)
    try:
        with ERROR_LOG.open("a", encoding="utf-8") as file:
            time = datetime.now().isoformat(timespec="seconds")
            file.write(f"{time} {' '.join(sys.argv)}\n{traceback.format_exc()}\n")
        errors.print(f"traceback: {ERROR_LOG}", markup=False)
    except OSError:
        pass  # a full disk must not hide the message above
    sys.exit(1)


def say(text: object) -> None:
    """Print text as it is: brackets in it are not markup."""
    console.print(str(text), markup=False, highlight=False)


def say_verdict(verdict: Any) -> None:
    """Print the outcome in bold, then the explanation."""
    console.print(f"\n[bold]{verdict.outcome}[/bold]\n")
    say(verdict.text)


def say_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table."""
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def load(name: str, adapter: str | None) -> Any:
    """The model, with its description printed."""
    from dpo_workbench.models.loading import load_model

    model = load_model(name, adapter=adapter if adapter != "none" else None)
    say(repr(model))
    return model


def load_or_served(name: str | None, adapter: str | None, engine: str | None) -> Any:
    """The loaded model, or with an engine the name of the served model."""
    if engine is None:
        return load(name or "nano", adapter)
    if adapter:
        raise WorkbenchError(
            f"A server answers with the model that it serves. Got --adapter {adapter} with --engine. Serve the adapter "
            "under a name (docs/server.md) and pass that name as --model."
        )
    return name


def builtin_task_of(prompts: set[str]) -> Any:
    """The built-in task that has all of these prompts in its training split, or None."""
    from dpo_workbench.tasks.builtin import load_task, task_names

    tasks = map(load_task, task_names())
    return next((task for task in tasks if prompts <= {example.prompt for example in task.train}), None)


def named_values(option: str, given: list[str] | None) -> dict[str, str]:
    """What a repeated option says as NAME=VALUE, by name."""
    terms = [term.partition("=") for term in given or ()]
    if wrong := ["".join(term) for term in terms if not all(term)]:
        raise WorkbenchError(f"`{option}` takes NAME=VALUE. Got {wrong[0]!r}.")
    return {name: value for name, _, value in terms}


def settings_from(option: str, given: list[str] | None) -> dict[str, Any]:
    """`named_values`, with numbers, true and false as such."""
    settings: dict[str, Any] = {}
    for name, value in named_values(option, given).items():
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings

"""What the commands of `dpo-workbench` share: option types, output, errors, and reading of values."""

from __future__ import annotations

import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_type_hints

import typer

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training.config import TrainConfig

say, warn = typer.echo, partial(typer.echo, err=True)

ModelName = Annotated[str, typer.Option("--model", "-m", help="nano, smol, a Hub id (owner/name) or a folder.")]
ServedName = Annotated[str | None, typer.Option("--model", "-m", help="nano (default), smol, a Hub id or a folder.")]
AdapterName = Annotated[str | None, typer.Option("--adapter", "-a", help="A folder, a built-in one by name, or none.")]
Quantize = Annotated[Literal["4bit"] | None, typer.Option(help="4bit: NF4 weights, in a quarter of the memory.")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="See `dpo-workbench tasks`; or a Python file of yours.")]
DemoTask = Annotated[str | None, typer.Option("--task", "-t", help="By default science for nano, else long_answers.")]
DevTask = Annotated[str | None, typer.Option("--task", "-t", help="Its dev prompts decide which adapter is kept.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder for the results. A stopped run continues in it.")]
OptionalOut = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
SplitName = Annotated[str, typer.Option(help="dev while you choose settings; test once, at the end.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Use only the first N prompts.")]
Template = Annotated[
    list[str] | None, typer.Option(help="An argument of the chat template: enable_thinking=false. Repeat it.")
]
Engine = Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server that serves --model.")]


def train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: the `**settings` of a command become an option for each field of `TrainConfig`.

    The help of an option is the comment at its field.
    """
    comments = dict(re.findall(r"^    (\w+): .+?  # (.+)$", inspect.getsource(TrainConfig), re.MULTILINE))
    signature, types = inspect.signature(command, eval_str=True), get_type_hints(TrainConfig)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in fields(TrainConfig):
        if field.name not in signature.parameters:
            option, how = typer.Option(help=comments.get(field.name)), inspect.Parameter.KEYWORD_ONLY
            default, kind = field.default, types[field.name]
            if field.name == "checkpointing":  # a flag; without it or --no-checkpointing it is auto
                default, kind = None, bool | None
            elif field.name == "micro_tokens":
                kind, option.metavar, option.parser = str, "INTEGER|auto", json_value
            parameters.append(inspect.Parameter(field.name, how, default=default, annotation=Annotated[kind, option]))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def fail(error: Exception) -> NoReturn:
    """Print an error as one paragraph, below its traceback if it is a bug, and exit."""
    if hasattr(error, "format_message"):  # a usage error of the command line
        warn(f"{error.format_message()} See: dpo-workbench --help")
        sys.exit(2)
    if isinstance(error, WorkbenchError):
        text = str(error)
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        text = "Memory ran out. Lower --micro-tokens (for example to 768, for `train`), or use a smaller model."
    else:
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {str(error)[:300]}. This is a bug: please report it with the lines above."
    warn(f"{typer.style('error:', fg='red', bold=True)} {text}")
    sys.exit(1)


def say_verdict(verdict: Any) -> None:
    """Print the verdict in one line, in three, and as a table."""
    line, rest = str(verdict).split("\n", 1)
    say(f"\n{typer.style(line, bold=True)}\n{rest}\n{verdict.details[-1]}")


def load(
    name: str | None, adapter: str | None, quantize: str | None, template: list[str] | None, engine: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """The loaded model, whose description is printed, or the name of the served one; and arguments about the server."""
    arguments = template_arguments(template)
    if engine is None:
        start: dict[str, Any] = {"adapter": adapter if adapter != "none" else None, "quantize": quantize}
        model = dw.load_model(name or "nano", **start, template=arguments)
        say(repr(model))
        return model, {}
    if adapter or quantize:
        raise WorkbenchError(
            f"A server answers with the model that it has loaded. Got --engine with --adapter {adapter}, --quantize "
            f"{quantize}. Leave both out. Serve an adapter under a name (docs/server.md) and pass it as --model."
        )
    return name, {"engine": engine, "template": arguments}


def template_arguments(given: list[str] | None) -> dict[str, Any]:
    """What --template says."""
    return named_values("--template", given, json_value)


def json_value(text: str) -> Any:
    """A value such as false, 3 or "x"; other words are text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def named_values(option: str, given: list[str] | None, kind: Callable[[str], Any] = str) -> dict[str, Any]:
    """What a repeated option says as NAME=VALUE, by name."""
    try:
        return {name: kind(value) for name, value in (term.split("=", 1) for term in given or ())}
    except ValueError:
        raise WorkbenchError(f"`{option}` takes NAME=VALUE. Got {', '.join(given or ())!r}.") from None

"""A task from a file, a table or a Hub data set: which columns are prompt and reference, and how answers are judged."""

from __future__ import annotations

import difflib
import json
import math
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.checks import normal
from dpo_workbench.pairs.sources import open_source, stop
from dpo_workbench.pairs.splits import deal, drawn
from dpo_workbench.tasks import scores
from dpo_workbench.tasks.task import Example, Score, Task

Column = str | Callable[[dict[str, Any]], Any]
SPLITS = {"training": "train", "validation": "dev", "validate": "dev", "valid": "dev", "val": "dev", "testing": "test"}
SHARES = {"train": 0.6, "dev": 0.15, "test": 0.25}


def task_from(
    source: Any,
    *,
    prompt: Column,
    reference: Column,
    score: str | Callable[[Example, str], Score | float],
    name: str | None = None,
    description: str = "",
    id: Column | None = None,
    group: Column | None = None,
    split: Column | None = None,
    label: Column | None = None,
    shares: Mapping[str, float] | None = None,
    on_leak: str = "raise",
    seed: int = 0,
    max_new_tokens: int = 256,
    runs_code: bool = False,
) -> Task:
    """Build a `Task` from rows. `Task.from_jsonl` and `Task.from_hub` are this.

    Args:
        source: a path (JSONL, JSON, CSV, TSV, Parquet, gzipped too), `hub:owner/name@config/split`, a DataFrame, a
            `datasets` object, a list of mappings; or a mapping from split to any of these.
        prompt: a column, a template with columns in braces (`"{schema}\\n\\nQuestion: {question}"`), or a function of
            the row.
        reference: the same. Numbers, lists and objects become JSON text; of a list of texts the first is the reference.
        score: a verifier, or a ready one by name: `"number(tolerance=0.01)"` (see `dpo_workbench.tasks.scores`).
        name: of the task; default: the file's.
        id: default: the file's name and the row's number.
        group: what must not be on two sides of a split; default: the prompt.
        split: the column that names each row's split (`validation` and the like are `dev`); default: drawn by group.
        label: what fine-tuning should learn where that is not the reference (see `Example`).
        shares: of the rows by split, where these are drawn; 0.6 train, 0.15 dev and 0.25 test.
        on_leak: what to do where given splits share a group: `raise`, or `drop` its rows from all splits but the last
            that has it (test before dev before train) and print how many.
        seed: of the drawing, and of the order of the rows in each split: a file is often sorted by class or database,
            and the first rows of a split must stand for all of it.
        max_new_tokens: the length at which an answer is cut off.
        runs_code: see `Task`.

    All columns go along in `Example.extra`, where verifiers find what they need (tests, a database, facts).

    Raises:
        WorkbenchError: a row that cannot be read, lacks a column or has an empty prompt or reference; a name twice;
            a group in two given splits; an unknown verifier. Nothing is dropped in silence.
    """
    judge = scores.named(score) if isinstance(score, str) else score
    parts = source if isinstance(source, Mapping) else {None: source}
    found: dict[str, list[Example]] = defaultdict(list)
    names = []
    for given, part in parts.items():
        opened = open_source(part)
        names.append(opened.name)
        for number, row in enumerate(opened.rows, 1):  # several can stand in one line
            where = f"{opened.name}:{row.line}"
            if row.problem is not None:
                raise stop(row.problem.code, row.problem.got or row.raw or b"", where, row.problem.fix)
            if not isinstance(row.value, dict):
                raise WorkbenchError(
                    f"Each row must have columns. Got {str(row.value)[:60]!r} ({where}). Give one JSON object a line."
                )
            example, home = _example(
                row.value, where, "-".join(filter(None, (Path(opened.name).stem, given, str(number)))),
                prompt=prompt, reference=reference, id=id, group=group, split=split, label=label,
            )  # fmt: skip
            found[str(given or home)].append(example)
    if not found:
        raise WorkbenchError(f"A task must have rows. Got none in {', '.join(names)}. Write at least one example.")
    if split is None and not isinstance(source, Mapping):
        found = _dealt(found[""], shares or SHARES, seed)  # type: ignore[assignment]
    else:
        found = _without_leaks(found) if on_leak == "drop" else found
        found = {name: sorted(rows, key=lambda e: drawn(e.group, seed)) for name, rows in found.items()}  # type: ignore[assignment]
    label_of = name or "".join(c if c.isalnum() else "-" for c in Path(names[0].removeprefix("hub:")).stem).strip("-")
    return Task(label_of, found, judge, description, max_new_tokens, runs_code)


def with_all_splits(task: Task) -> Task:
    """The task; where it has no dev or no test rows, with some of its training rows for these, by group."""
    missing = {split: share for split, share in SHARES.items() if not len(task.splits.get(split, ()))}
    if not missing:
        return task
    parts = _dealt(task.train, {"train": 1 - sum(missing.values()), **missing})  # no train: says so
    sizes = ", ".join(f"{len(rows)} for {split}" for split, rows in parts.items())
    print(
        f"{task.name} has no {' and no '.join(missing)} split: its {len(task.train)} training rows are cut into {sizes}"
    )
    return task.with_splits({**task.splits, **parts})


def _dealt(examples: Iterable[Example], shares: Mapping[str, float], seed: int = 0) -> dict[str, list[Example]]:
    """Examples by split, each group whole in one."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    return deal(groups, shares, seed)


def _without_leaks(found: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """The same splits; a group that is in several stays in the one that measures most."""
    rank = {"train": 0, "dev": 1, "test": 2}
    order = sorted(found, key=lambda split: rank.get(split, 0))
    home = {example.group: split for split in order for example in found[split]}
    kept = {split: [e for e in rows if home[e.group] == split] for split, rows in found.items()}
    lost = {split: len(rows) - len(kept[split]) for split, rows in found.items() if len(rows) > len(kept[split])}
    if lost:
        told = ", ".join(f"{n} of {len(found[split])} from {split}" for split, n in lost.items())
        print(f"Dropped, as their groups are in a later split too: {told}")
    return kept


def _example(
    row: dict[str, Any], where: str, number: str, *, prompt: Column, reference: Column, **more: Column | None
) -> tuple[Example, str]:
    """One row as an example, and the name of its split ("" where none is given)."""
    asked, wanted = _take(row, prompt, "prompt", where), _take(row, reference, "reference", where)
    if isinstance(wanted, list) and wanted and all(isinstance(w, str) for w in wanted):
        wanted = wanted[0]
    texts = {"prompt": _text(asked), "reference": _text(wanted)}
    for what, text in texts.items():
        if not text.strip():
            raise WorkbenchError(
                f"Each row must have a {what} with text. Got {text!r} ({where}). Mend or drop the row."
            )
    given = {key: _text(_take(row, column, key, where)) for key, column in more.items() if column is not None}
    home = given.get("split", "").strip()
    if "split" in given and not home:
        raise WorkbenchError(f"Each row must name its split. Got none ({where}). Fill the column.")
    example = Example(
        given.get("id", number),
        texts["prompt"],
        texts["reference"],
        given.get("group", normal(texts["prompt"])),
        {str(key): value for key, value in row.items()},
        given.get("label"),
    )
    return example, SPLITS.get(home.lower(), home)


def _take(row: dict[str, Any], column: Column, what: str, where: str) -> Any:
    if callable(column):
        try:
            return column(row)
        except Exception as error:
            raise WorkbenchError(
                f"The function for the {what} must work on each row. Got {type(error).__name__}: {error} ({where})."
            ) from error
    if column in row:
        return row[column]
    fields = [f for _, f, _, _ in string.Formatter().parse(column) if f] if "{" in column else [column]
    for field in fields:
        if field not in row:
            near = difflib.get_close_matches(field, map(str, row), 1)
            hint = f"Did you mean {near[0]!r}?" if near else "Name a column that every row has."
            raise WorkbenchError(
                f"Each row must have the {what}'s column {field!r}. Got {', '.join(map(str, row))[:200]} ({where}). "
                + hint
            )
    return column.format(**{field: _text(row[field]) for field in fields})


def _text(value: Any) -> str:
    """A cell as text: whole floats without their point, what is no text as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)

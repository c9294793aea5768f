"""`write_report`: one self-contained HTML file about a run for people, and `results.json` for programs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text
from dpo_workbench.common.html import escape
from dpo_workbench.evaluation.run import Evaluation, Judged, shared_rows
from dpo_workbench.evaluation.verdict import Verdict
from dpo_workbench.evaluation.wording import STAR
from dpo_workbench.plots.evaluation import ChangesDisplay
from dpo_workbench.plots.training import TrainingDisplay

EXAMPLES = 4  # prompts shown of each kind


def write_report(
    folder: str | Path,
    results: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    verdict: Verdict | None = None,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> Path:
    """Write `results.json` and `report.html` into `folder`, and return the path of the report.

    The page contains no script and loads nothing; a Content-Security-Policy forbids both. All text is escaped. The
    example answers are the first by id, not a selection.

    Args:
        results: plain values for results.json. The page shows `settings`, `machine`, `command`, `mined` (`headroom`),
            `pairs`, `training` (`history`, `probes`, `best_step`) and `times`.
        evaluations: name of the arm -> evaluation, in the order of the table.
        verdict: its two arms are compared. Without a verdict, the first and the last arm are.
        tables: more tables (title, header, rows).

    Raises:
        WorkbenchError: no evaluations, an arm of the verdict is missing, or the disk is full.
    """
    import jinja2
    import markupsafe

    if not evaluations:
        raise WorkbenchError("A report needs at least one evaluation. Got none. Evaluate a model first.")
    names = [verdict.numbers[role] for role in ("before", "after")] if verdict else [*evaluations]
    if missing := set(names) - set(evaluations):
        raise WorkbenchError(
            f"The evaluations must include the two arms of the verdict. Got {', '.join(evaluations)}; "
            f"{missing.pop()!r} is missing. Pass the evaluations that the verdict compared."
        )
    before, after = evaluations[names[0]], evaluations[names[-1]]
    training = results.get("training") or {}
    figures = []
    if training.get("history"):
        curves = TrainingDisplay(training["history"], training["probes"], training["best_step"])
        figures.append(_figure("Training", curves))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["show"] = lambda text: markupsafe.Markup(escape(text))
    template = environment.from_string(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    page = template.render(
        verdict=verdict,
        star=STAR,
        picture=verdict and _figure("What changed", ChangesDisplay.from_numbers(verdict.numbers, verdict.line)),
        title=f"{before.model}, {before.task}/{before.split}",
        arms=evaluations.values(),
        figures=figures,
        tables=tables,
        headroom=(results.get("mined") or {}).get("headroom"),
        examples=examples(before, after),
        names=(before.name, after.name),
        settings=results_json({k: results.get(k) for k in ("settings", "pairs")}),
        machine=results_json({k: results.get(k) for k in ("machine", "times")}),
        command=results.get("command"),
    )
    write_text(Path(folder) / "results.json", results_json(results))
    write_text(Path(folder) / "report.html", page)
    return Path(folder) / "report.html"


def _figure(title: str, display: Any) -> tuple[str, str, str]:
    """A Display's title, its image as a data URI, and its text. Equal displays give equal bytes."""
    import matplotlib
    import matplotlib.pyplot as plt

    drawn, buffer = display.plot().figure_, io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dpo_workbench", "svg.fonttype": "path"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(drawn)
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return title, source, str(display)


def examples(before: Evaluation, after: Evaluation) -> list[tuple[str, int, list[tuple[Judged, ...]]]]:
    """(kind, number of prompts, the first few by id) for prompts that were fixed, broken, or failed in both arms."""
    pairs = sorted(shared_rows(before, after), key=lambda pair: pair[0].id)
    kinds = {"fixed": (True, False), "broken": (False, True), "failed in both": (True, True)}
    found = {name: [p for p in pairs if (p[0].failed, p[1].failed) == kind] for name, kind in kinds.items()}
    return [(name, len(rows), rows[:EXAMPLES]) for name, rows in found.items()]


def results_json(results: Mapping[str, Any]) -> str:
    """The text of results.json: sorted keys, floats with 6 significant digits, null for what is not finite."""
    text = json.dumps(results, default=lambda value: value.item())  # scalars of numpy and torch
    plain = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.6g}"), parse_constant=lambda _: None)
    return json.dumps(plain, indent=1, sort_keys=True) + "\n"

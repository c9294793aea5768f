"""`write_report`: a run as one self-contained HTML file for people, and `results.json` for programs."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text
from dpo_workbench.common.html import escape
from dpo_workbench.evaluation.run import Evaluation, Judged, sees_line
from dpo_workbench.evaluation.statistics import holm, wilson
from dpo_workbench.evaluation.verdict import Verdict, compare_failures
from dpo_workbench.evaluation.wording import HEADER, table_rows
from dpo_workbench.plots.evaluation import ArmsDisplay, FailureClassesDisplay
from dpo_workbench.plots.training import TrainingDisplay

EXAMPLES = 4  # prompts shown of each kind: mended, broken, failed in both
_TIME = re.compile(r"(^|[_/.])(seconds|minutes|time|date|memory|gib)($|[_/.])")


@dataclass(frozen=True)
class Figure:
    """One figure of the report: a data URI, and the same as text."""

    title: str
    source: str
    text: str

    @classmethod
    def of(cls, title: str, display: Any) -> Figure:
        """Draw a Display."""
        drawn = display.plot().figure_
        try:
            return cls(title, _svg(drawn), str(display))
        finally:
            import matplotlib.pyplot as plt

            plt.close(drawn)


@dataclass(frozen=True)
class ReportTable:
    """One more table of the report."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    folder: str | Path,
    results: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    verdict: Verdict | None = None,
    run: Any = None,
    tables: Sequence[ReportTable] = (),
    displays: Mapping[str, Any] | None = None,
) -> Path:
    """Write `results.json` and `report.html` into `folder`; returns the path of the report.

    The page has no script and loads nothing; a Content-Security-Policy forbids both. Model text goes through the one
    escape function. The first prompts by id are shown, mended and broken alike, not chosen ones.

    Args:
        folder: made if it is missing.
        results: plain values. Read here: `settings`, `machine`, `command` (how to repeat), `mined` (`headroom`),
            `pairs`, `training` (`history`, `probes`, `best_step`), `times`. All of it goes into results.json.
        evaluations: arm -> evaluation, in the order of the table.
        verdict: what `verdict` said; it names the arms to compare. Without one the first arm and the last.
        run: what `train` returned, for its curve; by default `results["training"]`.
        tables: more tables, behind the figures.
        displays: more figures by title.

    Raises:
        WorkbenchError: no evaluations, or the disk is full.
    """
    import jinja2
    import markupsafe

    if not evaluations:
        raise WorkbenchError("A report needs at least one evaluation. Got none. Evaluate a model first.")
    folder = Path(folder)
    arms = {name: replace(evaluation, name=name) for name, evaluation in evaluations.items()}
    before, after = _compared(arms, evaluations, verdict)
    training = results.get("training") or {}
    if run is not None:
        training = {"history": run.history, "probes": run.probes, "best_step": run.best_step}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["show"] = lambda text: markupsafe.Markup(escape(text))
    template = environment.from_string(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    page = template.render(
        verdict=verdict,
        verdict_table=(HEADER, table_rows(verdict)) if verdict else None,
        title=f"{before.model}, {before.task}/{before.split}",
        arms=_on_its_side(*arm_table(arms, before)),
        sees=sees_line(before.n, _discordance(verdict)),
        figures=_figures(arms, before, after, training)
        + [Figure.of(name, display) for name, display in (displays or {}).items()],
        tables=tables,
        headroom=headroom_rows(results, verdict),
        probes=probe_table(training),
        examples=examples(before, after),
        names=(before.name, after.name),
        settings=_flat({k: results.get(k) or {} for k in ("settings", "pairs")}),
        machine=_flat({k: results.get(k) or {} for k in ("machine", "times")}),
        command=results.get("command"),
    )
    write_text(folder / "results.json", results_json(results))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def results_json(results: Mapping[str, Any]) -> str:
    """The text of results.json: keys sorted, floats to 6 significant digits, no NaN.

    Times, dates and memory that stand in the machine's or the training's facts are moved under the one key `times`,
    so that two runs with the same results differ only there.
    """
    plain = _plain(results)
    times = plain.setdefault("times", {})
    for key in ("machine", "training"):
        if key in plain:
            plain[key] = _without_times(plain[key], key, times)
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def setting_differences(one: Path, other: Path) -> list[tuple[str, str, str]]:
    """(dotted name, value in one run, in the other) of each setting that differs; empty where a run has no results."""

    def settings(run: Path) -> dict[str, str]:
        file = run / "results.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return dict(_flat(known.get("settings") or {}))

    a, b = settings(one), settings(other)
    return [(k, a.get(k, "none"), b.get(k, "none")) for k in sorted({*a, *b}) if a and b and a.get(k) != b.get(k)]


def arm_table(evaluations: Mapping[str, Evaluation], baseline: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the arms: failures with Wilson intervals, classes, score, tokens, p against `baseline`.

    The p values are of exact McNemar tests, adjusted by Holm over the arms.
    """
    classes = sorted({name for e in evaluations.values() for name in e.failures} | {"loop"})
    others = [e for e in evaluations.values() if e.name != baseline.name]
    raw = [compare_failures(baseline, e)["mcnemar_p"] for e in others]
    adjusted = dict(zip([e.name for e in others], holm(raw), strict=True))
    header = ["arm", "n", "failed", "95 % interval", *classes]
    header += ["mean score", "mean tokens", f"p against {baseline.name}"]
    rows = []
    for name, e in evaluations.items():
        share = wilson(e.n_failed, e.n)
        p = adjusted.get(e.name)
        rows.append(
            [
                name,
                f"{e.n}" + (f" (+ {e.n_unscored} unscored)" if e.n_unscored else ""),
                f"{e.n_failed} ({100 * share.estimate:.1f} %)",
                f"{100 * share.low:.1f} to {100 * share.high:.1f} %",
                *(str(e.failures[c]) for c in classes),
                f"{e.mean_score:.3f}",
                f"{e.mean_tokens:.0f}",
                "baseline" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
            ]
        )
    return header, rows


def _on_its_side(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """A column for each row, and the header as first column: there are more failure classes than arms."""
    return list(zip(header, *rows, strict=True))


def probe_table(training: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of the guard's probes: dev score and held-out log-ratios on the way, and which was kept."""
    probes: Sequence[Mapping[str, Any]] = training.get("probes") or ()
    if not probes:
        return None
    names = {"score": "dev score", "failed": "failed share", "chosen_logratio": "chosen log-ratio (nats)"}
    names["rejected_logratio"] = "rejected log-ratio (nats)"
    shown = [key for key in names if any(key in probe for probe in probes)]
    rows = [
        [
            str(probe["step"]),
            *(f"{probe[key]:.3f}" if key in probe else "" for key in shown),
            "kept" if probe.get("kept", probe["step"] == training.get("best_step")) else "",
        ]
        for probe in probes
    ]
    return ["step", *(names[key] for key in shown), "adapter"], rows


def headroom_rows(results: Mapping[str, Any], verdict: Verdict | None) -> list[tuple[str, str]]:
    """What the samples promised before training, and what came of it."""
    headroom = (results.get("mined") or {}).get("headroom") or results.get("headroom") or {}
    rows = [("before training", str(headroom["text"]))] if headroom.get("text") else []
    forecast = (verdict.numbers if verdict else {}).get("forecast")
    if forecast and forecast["seen_cut"] is not None:
        rows.append(("forecast", f"a cut of failures by up to {100 * forecast['expected_cut']:.0f} %"))
        rows.append(("outcome", f"a cut by {100 * forecast['seen_cut']:.1f} % on held-out prompts"))
    return rows


def examples(before: Evaluation, after: Evaluation) -> list[tuple[str, int, list[tuple[Judged, Judged]]]]:
    """(kind, how many there are, the first few by id) for mended, broken and failed-in-both prompts."""
    later = {row.id: row for row in after.scored}
    pairs = [(row, later[row.id]) for row in sorted(before.scored, key=lambda row: row.id) if row.id in later]
    kinds = (("mended", (True, False)), ("broken", (False, True)), ("failed in both", (True, True)))
    chosen = [(name, [p for p in pairs if (p[0].failed, p[1].failed) == kind]) for name, kind in kinds]
    return [(name, len(found), found[:EXAMPLES]) for name, found in chosen]


def _compared(
    arms: Mapping[str, Evaluation], evaluations: Mapping[str, Evaluation], verdict: Verdict | None
) -> tuple[Evaluation, Evaluation]:
    """The two arms that the verdict compares; the first and the last without one."""
    if verdict is None:
        return next(iter(arms.values())), list(arms.values())[-1]
    key_of = {evaluation.name: key for key, evaluation in evaluations.items()}
    lacking = [name for name in (verdict.before, verdict.after) if name not in key_of]
    if lacking:
        raise WorkbenchError(
            f"The evaluations must hold the two arms of the verdict. Got {', '.join(key_of)}; {lacking[0]!r} is not "
            "there. Pass the evaluations that the verdict was made of."
        )
    return arms[key_of[verdict.before]], arms[key_of[verdict.after]]


def _figures(
    arms: Mapping[str, Evaluation], before: Evaluation, after: Evaluation, training: Mapping[str, Any]
) -> list[Figure]:
    classes = FailureClassesDisplay.from_evaluations(before, after)
    figures = [
        Figure.of("Failure classes before and after", classes),
        Figure.of("The arms", ArmsDisplay.from_evaluations(arms.values())),
    ]
    if training.get("history"):
        curve = TrainingDisplay(training["history"], training.get("probes") or (), training.get("best_step"))
        figures.append(Figure.of("Training", curve))
    return figures


def _svg(figure: Any) -> str:
    """The same figure gives the same bytes: no date, and ids that do not change."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dpo_workbench", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _discordance(verdict: Verdict | None) -> float:
    return float(verdict.numbers["changed_share"]) if verdict else 0.2


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        rows += _flat(inner, f"{name}.") if isinstance(inner, Mapping) else [(name, str(inner))]
    return rows


def _plain(value: Any) -> Any:
    """JSON values; floats to 6 significant digits, what is not finite as null."""
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):  # numpy's and torch's scalars
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Iterable):
        return [_plain(inner) for inner in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return str(value)


def _without_times(value: Any, path: str, times: dict[str, Any]) -> Any:
    """`value` without its times, dates and memory, which are put into `times` under their dotted path."""
    if isinstance(value, list):
        return [_without_times(inner, f"{path}.{place}", times) for place, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    times |= {f"{path}.{key}": inner for key, inner in value.items() if _TIME.search(key)}
    return {key: _without_times(inner, f"{path}.{key}", times) for key, inner in value.items() if not _TIME.search(key)}

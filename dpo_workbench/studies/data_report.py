"""`data_report`: one self-contained HTML page about a set of pairs. All text of models and people is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dpo_workbench.common import html
from dpo_workbench.common.files import write_text
from dpo_workbench.evaluation.report import Figure
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.checks import Annotator, length_auc
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.pairs.result import Read
from dpo_workbench.plots.pairs import DifficultyDisplay, LengthsDisplay, LikenessDisplay
from dpo_workbench.studies.advice import advise_pairs
from dpo_workbench.studies.microscope import microscope
from dpo_workbench.training.run import Run

N_EXAMPLES = 5
N_ANNOTATORS = 20


def data_report(
    pairs: Pairs | Read,
    path: str | Path,
    model: Model | None = None,
    after: Model | Run | None = None,
    *,
    beta: float | None = None,
    show: bool = True,
) -> Path:
    """Write a page about a set of pairs: counts, findings and, with a model, lengths, difficulty and advice.

    Args:
        pairs: a set, or the result of `read_pairs`, whose findings are then listed.
        path: the HTML file.
        model: where training would start; None leaves out what only a model can tell.
        after: the trained model or run, to show what was learned.
        beta: as in `microscope`; the advice depends on it.
        show: a progress bar.

    Raises:
        WorkbenchError: no pair is left, or an error of `microscope`.
    """
    rows = pairs.pairs if isinstance(pairs, Read) else pairs
    context: dict[str, Any] = {"pairs": rows, "counts": _counts(rows)}
    if isinstance(pairs, Read):
        context["read"] = pairs
        context["people"] = [_annotator_row(person) for person in pairs.annotators[:N_ANNOTATORS]]
    if model is None:
        context["examples"] = rows[:N_EXAMPLES]
    else:
        seen = microscope(model, rows, after, beta=beta, show=show)
        by_difficulty = sorted(seen, key=lambda view: view.reference_margin)
        context["seen"] = seen
        context["advice"] = [(a.code, a.what, a.reason) for a in advise_pairs(seen)]
        context["figures"] = [
            Figure.of("Lengths", LengthsDisplay.from_microscope(seen)),
            Figure.of("Difficulty", DifficultyDisplay.from_microscope(seen)),
            Figure.of("Similarity", LikenessDisplay.from_microscope(seen)),
        ]
        context["examples"] = by_difficulty[:: max(1, (len(seen) - 1) // (N_EXAMPLES - 1))][:N_EXAMPLES]
    write_text(Path(path), _page(context))
    return Path(path)


def _page(context: dict[str, Any]) -> str:
    """The template with every value escaped; the functions below return HTML that is escaped already."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["show"] = lambda text: Markup(html.escape(text))
    environment.globals["table"] = lambda header, rows: Markup(html.table(header, rows))
    environment.globals["pre"] = lambda text: Markup(html.pre(repr(text)))
    environment.globals["html"] = lambda view: Markup(view._repr_html_())
    return environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(context)


def _counts(pairs: Pairs) -> list[tuple[str, str]]:
    rows = []
    for name, value in pairs.summary().items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        rows.append((name, text))
    return [*rows, ("AUC of length (0.5 is chance)", f"{length_auc(pairs.rows):.2f}")]


def _annotator_row(person: Annotator) -> tuple[Any, ...]:
    facts = person.to_dict()
    side, longer, agreement = (
        "" if facts[key] is None else f"{facts[key]:.0%}" for key in ("side_share", "longer_share", "agreement")
    )
    agrees = f"{agreement} of {facts['compared']}" if facts["compared"] else ""
    return facts["annotator"], facts["labels"], f"{side} {facts['side'] or ''}", longer, agrees

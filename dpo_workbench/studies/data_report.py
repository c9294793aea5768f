"""`data_report`: one page about a pair set, self-contained, with all text of models and people escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_workbench.common.files import write_text
from dpo_workbench.common.html import escape, paragraph, pre, table
from dpo_workbench.evaluation.report import Figure
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.checks import length_auc
from dpo_workbench.pairs.pair import Pairs, ReadResult
from dpo_workbench.plots.pairs import DifficultyDisplay, LengthsDisplay, LikenessDisplay
from dpo_workbench.studies.microscope import microscope
from dpo_workbench.training.run import Run

SHOWN = 5  # pairs under the microscope
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pairs</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: .9rem; } th, td { border: 1px solid #c8c8c8; padding: .25rem .5rem; }
pre { background: #f2f2f2; padding: .5rem; font-size: .82rem; } figure { margin: 1rem 0; } img { max-width: 100%; }
</style>
</head>
<body>
"""


def data_report(
    pairs: Pairs | ReadResult,
    path: str | Path,
    model: Model | None = None,
    after: Model | Run | None = None,
    *,
    beta: float = 0.1,
    show: bool = True,
) -> Path:
    """Write a page that shows what a pair set teaches: counts, findings and, with a model, lengths, difficulty, advice.

    Args:
        pairs: a set, or what `read_pairs` gave (its findings are listed).
        path: the HTML file; written in one step.
        model: where training would start; None leaves out what only a model can say.
        after: the trained model or run, to show what was learned.
        beta: that training uses; the advice depends on it.
        show: a progress bar.

    Raises:
        WorkbenchError: nothing was kept, or as `microscope`.
    """
    kept = pairs.pairs if isinstance(pairs, ReadResult) else pairs
    parts = [f"<h1>{escape(len(kept))} preference pairs</h1>", _counts(kept)]
    if isinstance(pairs, ReadResult):
        parts += ["<h2>What reading found</h2>", pre(repr(pairs))]
    if model is not None:
        seen = microscope(model, kept, after, show=show)
        advice = seen.advice(beta=beta)
        parts += [f"<h2>What {escape(model.name)} sees</h2>", pre(repr(seen).split("\n  advice: ")[0])]
        parts += ["<h2>Advice</h2>"]
        rows = [(a.code, a.what, a.reason) for a in advice]
        parts += [table(("code", "what", "why"), rows) if rows else paragraph("Nothing stands out.")]
        displays = {
            "Lengths": LengthsDisplay.from_microscope(seen),
            "Difficulty": DifficultyDisplay.from_microscope(seen),
            "Likeness": LikenessDisplay.from_microscope(seen),
        }
        figures = [Figure.of(name, display) for name, display in displays.items()]
        parts += [_figure(figure) for figure in figures]
        parts += [f"<h2>{SHOWN} pairs under the microscope</h2>", paragraph("From the hardest to the easiest.")]
        order = sorted(seen, key=lambda view: view.reference_margin)
        step = max(1, (len(order) - 1) // max(1, SHOWN - 1))
        parts += [view._repr_html_() for view in order[::step][:SHOWN]]
    else:
        parts += ["<h2>The first pairs</h2>"]
        parts += [
            table((f"pair {p.id}", ""), [("prompt", p.prompt), ("chosen", p.chosen), ("rejected", p.rejected)])
            for p in kept[:SHOWN]
        ]
    write_text(Path(path), HEAD + "\n".join(parts) + "\n</body>\n</html>\n")
    return Path(path)


def _counts(pairs: Pairs) -> str:
    def cell(value: Any) -> str:
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    rows = [(name, cell(value)) for name, value in pairs.summary().items()]
    rows.append(("AUC of length (0.5 is chance)", f"{length_auc(pairs.rows):.2f}"))
    return table(("what", "value"), rows)


def _figure(figure: Figure) -> str:
    return (
        f'<figure><img src="{figure.source}" alt="{escape(figure.text)}"><figcaption>{escape(figure.title)}'
        "</figcaption></figure>"
    )

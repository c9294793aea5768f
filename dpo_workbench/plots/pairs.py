"""Displays of pairs: lengths, difficulty, how alike the answers are, what was learned, and a token heat map."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.common.html import NO_MATH, escape
from dpo_workbench.plots.evaluation import BLUE, GREEN, GREY, ORANGE, axes, plain

_MARKS = {"kept": (GREY, "o"), "learned": (GREEN, "^"), "unlearned": (ORANGE, "v"), "never learned": (BLUE, "s")}


@dataclass
class LengthsDisplay:
    """Tokens of chosen against rejected answers. `plot()` sets `figure_` and `ax_`."""

    chosen: Sequence[int]
    rejected: Sequence[int]
    auc: float  # of length as a predictor of the label
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_microscope(cls, seen: Any) -> LengthsDisplay:
        """From what `dw.microscope` returned."""
        from dpo_workbench.pairs.checks import length_auc

        rows = [(len(v.chosen_tokens), len(v.rejected_tokens)) for v in seen]
        return cls([c for c, _ in rows], [r for _, r in rows], length_auc(seen.pairs.rows))

    @property
    def title(self) -> str:
        """The finding."""
        longer = sum(c > r for c, r in zip(self.chosen, self.rejected, strict=True))
        return f"The chosen answer is longer in {longer} of {len(self.chosen)} pairs; AUC of length {self.auc:.2f}"

    def plot(self, ax: Any = None) -> LengthsDisplay:
        """One point a pair, in `ax` or in a figure of its own."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.2))
        most = max([*self.chosen, *self.rejected])
        self.ax_.plot([0, most], [0, most], color=GREY, linestyle=":", linewidth=1)
        self.ax_.plot(self.rejected, self.chosen, "o", color=BLUE, alpha=0.6, markersize=5)
        self.ax_.set_xlabel(f"tokens of the rejected answer (n = {len(self.chosen)} pairs)")
        self.ax_.set_ylabel("tokens of the chosen answer")
        self.ax_.set_title(self.title, loc="left", fontsize=11)
        return self

    def __str__(self) -> str:
        middle = statistics.median(self.chosen), statistics.median(self.rejected)
        return f"{self.title}\n  tokens in the middle: {middle[0]:.0f} chosen, {middle[1]:.0f} rejected"


@dataclass
class DifficultyDisplay:
    """Reference margins before training and, after it, where they went; one point a pair."""

    margins: Sequence[float]  # nats; above 0 the reference ranks the pair right
    after: Sequence[float] | None = None  # the policy's
    states: Sequence[str] | None = None
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_microscope(cls, seen: Any) -> DifficultyDisplay:
        """From what `dw.microscope` returned, with or without `after`."""
        margins = [v.reference_margin for v in seen]
        if seen.states is None:
            return cls(margins)
        return cls(margins, [v.policy_margin for v in seen], [v.state for v in seen])

    @property
    def title(self) -> str:
        """The finding."""
        n, right = len(self.margins), sum(m > 0 for m in self.margins)
        if self.states is None:
            return f"The reference ranks {right} of {n} pairs right"
        counts = Counter(self.states)
        return f"Of {n} pairs {counts['learned']} were learned, {counts['unlearned']} unlearned, " + (
            f"{counts['never learned']} never learned"
        )

    def plot(self, ax: Any = None) -> DifficultyDisplay:
        """A histogram before training; after it the margins before against after, by what became of the pair."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.2))
        if self.after is None or self.states is None:
            self.ax_.hist(self.margins, bins=min(30, max(5, len(self.margins) // 4)), color=BLUE, edgecolor="black")
            self.ax_.set_ylabel("pairs")
        else:
            for state, (colour, marker) in _MARKS.items():
                points = [(b, a) for b, a, s in zip(self.margins, self.after, self.states, strict=True) if s == state]
                if points:
                    label = f"{state} ({len(points)})"
                    self.ax_.plot(*zip(*points, strict=True), marker, color=colour, alpha=0.7, label=label)
            self.ax_.axhline(0, color=GREY, linewidth=1)
            self.ax_.set_ylabel("margin after training (nats)")
            self.ax_.legend(frameon=False)
        self.ax_.axvline(0, color=GREY, linewidth=1)
        self.ax_.set_xlabel(f"log p(chosen) - log p(rejected) of the reference (nats); n = {len(self.margins)}")
        self.ax_.set_title(self.title, loc="left", fontsize=11)
        return self

    def __str__(self) -> str:
        ordered = sorted(self.margins)
        quarter = len(ordered) // 4
        return (
            f"{self.title}\n  margin (nats): a quarter below {ordered[quarter]:.1f}, half below "
            f"{statistics.median(ordered):.1f}, a quarter above {ordered[-quarter - 1]:.1f}"
        )


@dataclass
class LikenessDisplay:
    """How alike the answers of each pair are: on paper (edit distance) and inside the model (CHES)."""

    edit_distances: Sequence[float]
    ches: Sequence[float]
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_microscope(cls, seen: Any) -> LikenessDisplay:
        """From what `dw.microscope` returned."""
        return cls([v.edit_distance for v in seen], [v.reference.ches for v in seen])

    @property
    def title(self) -> str:
        """The finding."""
        n, alike = len(self.edit_distances), sum(d < 0.25 for d in self.edit_distances)
        return f"{alike} of {n} pairs differ in less than a quarter of their tokens"

    def plot(self, ax: Any = None) -> LikenessDisplay:
        """One point a pair, in `ax` or in a figure of its own."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.2))
        self.ax_.plot(self.edit_distances, self.ches, "o", color=BLUE, alpha=0.6, markersize=5)
        self.ax_.set_xlim(-0.02, 1.02)
        self.ax_.set_xlabel(f"edit distance of the tokens (0 the same, 1 nothing in common); n = {len(self.ches)}")
        self.ax_.set_ylabel("CHES (higher: chosen sinks more easily)")
        self.ax_.set_title(self.title, loc="left", fontsize=11)
        return self

    def __str__(self) -> str:
        middle = statistics.median
        return (
            f"{self.title}\n  in the middle: distance {middle(self.edit_distances):.2f}, CHES {middle(self.ches):.2f}"
        )


@dataclass
class TokenHeatmapDisplay:
    """Each answer token with a number: its log-ratio after training, or before training its log-probability."""

    tokens: tuple[Sequence[str], Sequence[str]]  # of the chosen and of the rejected answer
    values: tuple[Sequence[float], Sequence[float]]  # nats
    divergence: int  # tokens before the first that differs
    trained: bool  # the values are log-ratios
    figure_: Any = field(default=None, init=False, repr=False)
    axes_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_view(cls, view: Any) -> TokenHeatmapDisplay:
        """From one pair of `dw.microscope`."""
        ratios = view.log_ratios
        values = ratios if ratios is not None else view.reference.logps
        return cls((view.chosen_tokens, view.rejected_tokens), values, view.divergence, ratios is not None)

    @property
    def title(self) -> str:
        """The finding."""
        chosen, rejected = map(sum, self.values)
        if self.trained:
            return f"Training moved the chosen answer by {chosen:+.1f} nats, the rejected one by {rejected:+.1f}"
        return f"Before training: log p {chosen:.1f} for the chosen answer, {rejected:.1f} for the rejected one"

    @property
    def span(self) -> float:
        """The value of the strongest colour."""
        return max(1e-6, *(abs(v) for part in self.values for v in part))

    def plot(self, axes: Any = None) -> TokenHeatmapDisplay:
        """Bars token by token, chosen above rejected, in two `axes` or in a figure of their own."""
        if axes is None:
            import matplotlib.pyplot as plt

            width = min(16.0, 2 + 0.22 * max(map(len, self.tokens)))
            self.figure_, axes = plt.subplots(2, 1, figsize=(width, 4.6), layout="constrained", sharey=True)
        self.axes_ = list(axes)
        self.figure_ = self.axes_[0].figure
        rows = zip(self.axes_, self.tokens, self.values, ("chosen", "rejected"), strict=True)
        for ax, tokens, values, name in rows:
            ax.bar(range(len(values)), values, color=[BLUE if v >= 0 else ORANGE for v in values])
            ax.axvline(self.divergence - 0.5, color=GREY, linestyle=":")
            ax.set_xticks(range(len(tokens)), [plain(repr(t)[1:-1])[:8] for t in tokens], rotation=90, fontsize=7)
            ax.set_ylabel(f"{name} (nats)")
        self.figure_.suptitle(self.title, fontsize=11)
        return self

    def _repr_html_(self) -> str:
        lines = [
            f'<p class="{NO_MATH}"><strong>{name}</strong> {"".join(self._spans(tokens, values))}</p>'
            for name, tokens, values in zip(("chosen", "rejected"), self.tokens, self.values, strict=True)
        ]
        what = "log-ratio: blue rose, orange fell" if self.trained else "log-probability: the darker, the less likely"
        note = f"{what}; the number is shown over a token; a bar marks where the answers part"
        return f'<div class="{NO_MATH}"><p>{escape(self.title)}</p>{"".join(lines)}<p><small>{note}</small></p></div>'

    def _spans(self, tokens: Sequence[str], values: Sequence[float]) -> Iterable[str]:
        for k, (token, value) in enumerate(zip(tokens, values, strict=True)):
            red, green, blue = (0, 114, 178) if value >= 0 else (230, 159, 0)
            look = f"background: rgba({red}, {green}, {blue}, {min(1.0, abs(value) / self.span):.2f})"
            look += "; border-left: 2px solid" if k == self.divergence else ""
            shown = escape(token).replace("\n", "↵")
            yield f'<span title="{value:+.3f} nats" style="{look}; white-space: pre-wrap">{shown}</span>'

    def __str__(self) -> str:
        lines = [self.title]
        for name, tokens, values in zip(("chosen", "rejected"), self.tokens, self.values, strict=True):
            lines.append(f"  {name}")
            lines += [f"    {v:+8.3f}  {t!r}" for t, v in zip(tokens, values, strict=True)]
        return "\n".join(lines)

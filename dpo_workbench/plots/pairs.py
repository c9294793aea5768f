"""Displays of pairs: lengths, difficulty, and a heat map of tokens."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.common.html import NO_MATH, escape
from dpo_workbench.pairs.checks import length_auc
from dpo_workbench.plots.evaluation import BLUE, GREEN, GREY, ORANGE, axes, label

_LOOKS = ((GREY, "o"), (GREEN, "^"), (BLUE, "s"), (ORANGE, "v"))  # colour and marker of each state


@dataclass
class LengthsDisplay:
    """Tokens of the chosen against the rejected answer of each pair. `plot()` sets `figure_` and `ax_`."""

    chosen: Sequence[int]
    rejected: Sequence[int]
    auc: float  # of length as a predictor of the label
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_microscope(cls, seen: Any) -> LengthsDisplay:
        """From the result of `dw.microscope`."""
        chosen, rejected = [len(v.chosen_tokens) for v in seen], [len(v.rejected_tokens) for v in seen]
        return cls(chosen, rejected, length_auc(seen.pairs.rows))

    @property
    def title(self) -> str:
        """The finding."""
        longer = sum(c > r for c, r in zip(self.chosen, self.rejected, strict=True))
        return f"The chosen answer is longer in {longer} of {len(self.chosen)} pairs; AUC of length {self.auc:.2f}"

    def plot(self, ax: Any = None) -> LengthsDisplay:
        """Draw one point per pair, in `ax` or in a new figure."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.2))
        longest = max([*self.chosen, *self.rejected])
        self.ax_.plot([0, longest], [0, longest], color=GREY, linestyle=":", linewidth=1)
        self.ax_.plot(self.rejected, self.chosen, "o", color=BLUE, alpha=0.6, markersize=5)
        x = f"tokens of the rejected answer (n = {len(self.chosen)} pairs)"
        label(self.ax_, self.title, x, "tokens of the chosen answer")
        return self

    def __str__(self) -> str:
        medians = statistics.median(self.chosen), statistics.median(self.rejected)
        return f"{self.title}\n  median tokens: {medians[0]:.0f} chosen, {medians[1]:.0f} rejected"


@dataclass
class DifficultyDisplay:
    """Reference margin of each pair and, after training, the policy's margin."""

    margins: Sequence[float]  # nats; above 0 the reference ranks the pair correctly
    after: Sequence[float] | None = None  # the policy's
    states: Sequence[str] | None = None  # what became of each pair
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_microscope(cls, seen: Any) -> DifficultyDisplay:
        """From the result of `dw.microscope`, with or without `after`."""
        margins = [v.reference_margin for v in seen]
        if seen.states is None:
            return cls(margins)
        return cls(margins, [v.policy_margin for v in seen], [v.state for v in seen])

    @property
    def title(self) -> str:
        """The finding."""
        n = len(self.margins)
        if self.states is None:
            return f"The reference ranks {sum(m > 0 for m in self.margins)} of {n} pairs correctly"
        return f"Of {n} pairs: {', '.join(f'{k} {state}' for state, k in sorted(Counter(self.states).items()))}"

    def plot(self, ax: Any = None) -> DifficultyDisplay:
        """Draw a histogram before training, or the margins before and after it, by state."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.2))
        if self.after is None or self.states is None:
            self.ax_.hist(self.margins, bins=min(30, max(5, len(self.margins) // 4)), color=BLUE, edgecolor="black")
        else:
            for state, (colour, marker) in zip(sorted(set(self.states)), _LOOKS, strict=False):
                points = [(b, a) for b, a, s in zip(self.margins, self.after, self.states, strict=True) if s == state]
                name = f"{state} ({len(points)})"
                self.ax_.plot(*zip(*points, strict=True), marker, color=colour, alpha=0.7, label=name)
            self.ax_.axhline(0, color=GREY, linewidth=1)
            self.ax_.legend(frameon=False)
        self.ax_.axvline(0, color=GREY, linewidth=1)
        x = f"log p(chosen) - log p(rejected) of the reference (nats); n = {len(self.margins)}"
        label(self.ax_, self.title, x, "pairs" if self.states is None else "margin after training (nats)")
        return self

    def __str__(self) -> str:
        ordered = sorted(self.margins)
        quarter = len(ordered) // 4
        return (
            f"{self.title}\n  margin (nats): lower quartile {ordered[quarter]:.1f}, median "
            f"{statistics.median(ordered):.1f}, upper quartile {ordered[-quarter - 1]:.1f}"
        )


@dataclass
class TokenHeatmapDisplay:
    """A number for each answer token, shown as HTML or text: its log-ratio after training, or its log-probability."""

    tokens: tuple[Sequence[str], Sequence[str]]  # of the chosen and of the rejected answer
    values: tuple[Sequence[float], Sequence[float]]  # nats
    divergence: int  # number of tokens before the first one that differs
    trained: bool  # the values are log-ratios

    @classmethod
    def from_view(cls, view: Any) -> TokenHeatmapDisplay:
        """From one pair of `dw.microscope`."""
        ratios = view.log_ratios
        values = view.reference.logps if ratios is None else ratios
        return cls((view.chosen_tokens, view.rejected_tokens), values, view.divergence, ratios is not None)

    @property
    def title(self) -> str:
        """The finding."""
        chosen, rejected = map(sum, self.values)
        if self.trained:
            return f"Training moved the chosen answer by {chosen:+.1f} nats, the rejected one by {rejected:+.1f}"
        return f"Before training: log p is {chosen:.1f} for the chosen answer, {rejected:.1f} for the rejected one"

    @property
    def span(self) -> float:
        """The value with the strongest colour."""
        return max(1e-6, *(abs(v) for part in self.values for v in part))

    def _repr_html_(self) -> str:
        lines = [
            f'<p class="{NO_MATH}"><strong>{name}</strong> {"".join(self._spans(tokens, values))}</p>'
            for name, tokens, values in zip(("chosen", "rejected"), self.tokens, self.values, strict=True)
        ]
        what = "log-ratio: blue rose, orange fell" if self.trained else "log-probability: darker is less likely"
        note = f"{what}; hover over a token for its number; a vertical line marks where the answers diverge"
        return f'<div class="{NO_MATH}"><p>{escape(self.title)}</p>{"".join(lines)}<p><small>{note}</small></p></div>'

    def _spans(self, tokens: Sequence[str], values: Sequence[float]) -> Iterable[str]:
        for k, (token, value) in enumerate(zip(tokens, values, strict=True)):
            red_green_blue = "0, 114, 178" if value >= 0 else "230, 159, 0"
            look = f"background: rgba({red_green_blue}, {min(1.0, abs(value) / self.span):.2f})"
            look += "; border-left: 2px solid" if k == self.divergence else ""
            shown = escape(token).replace("\n", "↵")
            yield f'<span title="{value:+.3f} nats" style="{look}; white-space: pre-wrap">{shown}</span>'

    def __str__(self) -> str:
        lines = [self.title]
        for name, tokens, values in zip(("chosen", "rejected"), self.tokens, self.values, strict=True):
            lines += [f"  {name}", *(f"    {v:+8.3f}  {t!r}" for t, v in zip(tokens, values, strict=True))]
        return "\n".join(lines)

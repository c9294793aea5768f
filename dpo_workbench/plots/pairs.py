"""Displays of pairs: lengths of all, and the tokens of one."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.common.html import NO_MATH, escape, pre
from dpo_workbench.plots.evaluation import BLUE, GREY, axes, label


@dataclass
class LengthsDisplay:
    """Tokens of the chosen against the rejected answer of each pair. `plot()` sets `figure_` and `ax_`."""

    chosen: Sequence[int]
    rejected: Sequence[int]
    auc: float  # of length as a predictor of the label
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

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
class PairDisplay:
    """One pair, token by token, as text or HTML. Each field with two entries is for the chosen and the rejected answer.

    The tokens are those that the loss counts, including the end token.
    """

    id: str
    tokens: Sequence[Sequence[str]]  # decoded one by one
    divergence: int  # number of tokens before the first one that differs
    reference: Sequence[Sequence[float]]  # log-probability of each token before training, in nats
    policy: Sequence[Sequence[float]] | None = None  # after training

    @property
    def log_ratios(self) -> list[list[float]] | None:
        """Policy minus reference for each token, in nats."""
        if self.policy is None:
            return None
        answers = zip(self.policy, self.reference, strict=True)
        return [[p - r for p, r in zip(*answer, strict=True)] for answer in answers]

    @property
    def title(self) -> str:
        """The finding."""
        chosen, rejected = map(sum, self.log_ratios or self.reference)
        if self.policy is not None:
            return f"Training moved the chosen answer by {chosen:+.1f} nats, the rejected one by {rejected:+.1f}"
        return f"Before training: log p is {chosen:.1f} for the chosen answer, {rejected:.1f} for the rejected one"

    def __repr__(self) -> str:
        ranks = ["correctly" if sum(c) > sum(r) else "wrongly" for c, r in filter(None, (self.reference, self.policy))]
        chosen, rejected = ("".join(tokens[self.divergence :][:12]) for tokens in self.tokens)
        return (
            f"{self.title}\n"
            f"  pair {self.id} has {self.divergence} tokens in common and is ranked {', then '.join(ranks)}\n"
            f"  chosen continues   {chosen!r}\n  rejected continues {rejected!r}"
        )

    def _repr_html_(self) -> str:
        lines = [
            f'<p class="{NO_MATH}"><strong>{name}</strong> {"".join(self._spans(tokens, values))}</p>'
            for name, tokens, values in zip(
                ("chosen", "rejected"), self.tokens, self.log_ratios or self.reference, strict=True
            )
        ]
        what = "log-ratio: blue rose, orange fell" if self.policy else "log-probability: darker is less likely"
        note = f"{what}; hover over a token for its number; a vertical line marks where the answers diverge"
        return f'<div class="{NO_MATH}">{pre(repr(self))}{"".join(lines)}<p><small>{note}</small></p></div>'

    def _spans(self, tokens: Sequence[str], values: Sequence[float]) -> Iterable[str]:
        strongest = max(1e-6, *(abs(v) for part in self.log_ratios or self.reference for v in part))
        for k, (token, value) in enumerate(zip(tokens, values, strict=True)):
            red_green_blue = "0, 114, 178" if value >= 0 else "230, 159, 0"
            look = f"background: rgba({red_green_blue}, {min(1.0, abs(value) / strongest):.2f})"
            look += "; border-left: 2px solid" if k == self.divergence else ""
            shown = escape(token).replace("\n", "↵")
            yield f'<span title="{value:+.3f} nats" style="{look}; white-space: pre-wrap">{shown}</span>'


@dataclass
class MaskDisplay:
    """One row as the loss sees it: a prompt, and answers whose tokens are scored. As text or HTML."""

    id: str
    texts: Sequence[str]  # the prompt and each answer, decoded
    tokens: Sequence[Sequence[str]]  # the same, decoded one by one
    ended: Sequence[bool]  # whether the last token is the end token

    def __repr__(self) -> str:
        lines = [f"prompt ({len(self.tokens[0])} tokens, no loss): {self.texts[0]!r}"]
        for number, (text, tokens) in enumerate(zip(self.texts[1:], self.tokens[1:], strict=True), 1):
            lines.append(f"answer {number} ({len(tokens)} tokens, scored): {text!r}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        looks = {"no loss": "color: #767676", "scored": "background: #56b4e9; color: #000"}
        looks["end token"] = "background: #e69f00; color: #000; border: 2px solid #000"

        def span(token: str, kind: str) -> str:
            shown = escape(token).replace("\n", "↵")
            return f'<span title="{kind}" style="{looks[kind]}; white-space: pre-wrap">{shown}</span>'

        parts = []
        for number, (tokens, ended) in enumerate(zip(self.tokens, self.ended, strict=True)):
            kinds = ["scored" if number else "no loss"] * len(tokens)
            kinds[-1:] = ["end token"] if number and ended else kinds[-1:]
            name = f"answer {number}" if number else "prompt"
            parts.append(f"<p><strong>{name}</strong> {''.join(map(span, tokens, kinds))}</p>")
        legend = " ".join(span(kind, kind) for kind in looks)
        return f'<div class="{NO_MATH}">{"".join(parts)}<p><small>{legend} (also scored)</small></p></div>'

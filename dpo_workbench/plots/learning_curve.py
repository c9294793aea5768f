"""Display of a learning curve: the mean at each number of pairs, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.plots.evaluation import BLUE, axes, label


@dataclass
class CurveDisplay:
    """A measure against the number of pairs. `plot()` sets `figure_` and `ax_`."""

    sizes: Sequence[int]
    means: Sequence[Any]  # an `Interval` for each size
    metric: str
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @property
    def title(self) -> str:
        """The finding."""
        first, last = self.means[0].estimate, self.means[-1].estimate
        return f"{self.metric}: {first:.3f} with {self.sizes[0]} pairs, {last:.3f} with {self.sizes[-1]}"

    def plot(self, ax: Any = None) -> CurveDisplay:
        """Draw means and intervals, in `ax` or in a new figure."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.0))
        means = [mean.estimate for mean in self.means]
        spread = [[m.estimate - m.low for m in self.means], [m.high - m.estimate for m in self.means]]
        self.ax_.errorbar(self.sizes, means, yerr=spread, fmt="o-", color=BLUE, capsize=4)
        prompts = f"n = {self.means[0].n} prompts"
        label(self.ax_, self.title, f"pairs; bars: 95 % intervals, {prompts}", self.metric)
        return self

    def __str__(self) -> str:
        rows = zip(self.sizes, self.means, strict=True)
        return "\n".join(
            [self.title, *(f"  {n:>5} pairs  {m.estimate:.3f}  ({m.low:.3f} to {m.high:.3f})" for n, m in rows)]
        )

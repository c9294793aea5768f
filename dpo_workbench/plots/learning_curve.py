"""Display of a learning curve: the measured points, and the forecast with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.plots.evaluation import BLUE, GREY, ORANGE, axes, label


@dataclass
class CurveDisplay:
    """A metric against the number of pairs. `plot()` sets `figure_` and `ax_`."""

    sizes: Sequence[int]
    values: Sequence[Sequence[float]]  # one row per size
    metric: str
    forecasts: Sequence[Any]  # at rising sizes; each has size, estimate, low, high and level
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_curve(cls, curve: Any, size: int) -> CurveDisplay:
        """From a `Curve`, with its forecasts up to `size` pairs."""
        last = curve.sizes[-1]
        sizes = {n for n in curve.sizes if n} | {round(last + (size - last) * k / 4) for k in range(1, 5)}
        return cls(curve.sizes, curve.values, curve.metric, [curve.forecast(n) for n in sorted(sizes)])

    @property
    def title(self) -> str:
        """The finding."""
        end = self.forecasts[-1]
        return (
            f"{self.metric} at {end.size} pairs: {end.estimate:.3f}\n"
            f"{100 * end.level:.0f} % interval {end.low:.3f} to {end.high:.3f}"
        )

    def plot(self, ax: Any = None) -> CurveDisplay:
        """Draw the points, the forecast and its interval, in `ax` or in a new figure."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.0))
        sizes, lows = [f.size for f in self.forecasts], [f.low for f in self.forecasts]
        style = {"color": BLUE, "edgecolor": BLUE, "alpha": 0.2, "hatch": "//", "linewidth": 0}
        name = f"{100 * self.forecasts[0].level:.0f} % interval"
        self.ax_.fill_between(sizes, lows, [f.high for f in self.forecasts], label=name, **style)
        self.ax_.plot(sizes, [f.estimate for f in self.forecasts], color=BLUE, label="forecast")
        points = [(n, v) for n, row in zip(self.sizes, self.values, strict=True) for v in row]
        self.ax_.plot(*zip(*points, strict=True), "o", color=ORANGE, markeredgecolor="black", label="runs")
        self.ax_.axvline(self.sizes[-1], color=GREY, linestyle=":", linewidth=1)
        label(self.ax_, self.title, "pairs; dotted: the largest size that was trained", self.metric)
        self.ax_.legend(loc="best", frameon=False)
        return self

    def __str__(self) -> str:
        rows = zip(self.sizes, self.values, strict=True)
        lines = [f"  {n:>5} pairs  {', '.join(f'{v:.3f}' for v in row)}" for n, row in rows]
        lines += [f"  {f}" for f in self.forecasts if f.size > self.sizes[-1]]
        return "\n".join([self.title, *lines])

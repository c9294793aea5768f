"""Display of a learning curve: the points, and the forecast with its band."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.plots.evaluation import BLUE, GREY, ORANGE, axes, plain


@dataclass
class CurveDisplay:
    """A measure against the number of pairs. `plot()` sets `figure_` and `ax_`."""

    sizes: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    metric: str
    ahead: list[Any]  # forecasts at rising sizes
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_curve(cls, curve: Any, size: int) -> CurveDisplay:
        """From a `Curve`, with forecasts up to `size` pairs."""
        last = curve.sizes[-1]
        places = sorted({*(n for n in curve.sizes if n), *(round(last + (size - last) * k / 4) for k in range(1, 5))})
        return cls(curve.sizes, curve.values, curve.metric, [curve.forecast(n) for n in places])

    @property
    def title(self) -> str:
        """The finding."""
        end = self.ahead[-1]
        return f"{self.metric} at {end.size} pairs: {end.estimate:.3f}\n80 % interval {end.low:.3f} to {end.high:.3f}"

    def plot(self, ax: Any = None) -> CurveDisplay:
        """Draw points, means and band, in `ax` or in a figure of their own."""
        self.figure_, self.ax_ = axes(ax, (7.0, 4.0))
        sizes = [f.size for f in self.ahead]
        self.ax_.fill_between(
            sizes, [f.low for f in self.ahead], [f.high for f in self.ahead], color=BLUE, alpha=0.2, hatch="//",
            edgecolor=BLUE, linewidth=0, label="80 % interval of all families",
        )  # fmt: skip
        self.ax_.plot(sizes, [f.estimate for f in self.ahead], color=BLUE, label="forecast")
        flat = [(n, v) for n, row in zip(self.sizes, self.values, strict=True) for v in row]
        self.ax_.plot(*zip(*flat, strict=True), "o", color=ORANGE, markeredgecolor="black", label="runs")
        self.ax_.axvline(self.sizes[-1], color=GREY, linestyle=":", linewidth=1)
        self.ax_.set_xlabel("pairs; dotted: the largest size that was run")
        self.ax_.set_ylabel(plain(self.metric))
        self.ax_.set_title(plain(self.title), loc="left", fontsize=11)
        self.ax_.legend(loc="best", frameon=False)
        return self

    def __str__(self) -> str:
        rows = [
            f"  {n:>5} pairs  " + ", ".join(f"{v:.3f}" for v in row)
            for n, row in zip(self.sizes, self.values, strict=True)
        ]
        rows += [f"  {f}" for f in self.ahead if f.size > self.sizes[-1]]
        return "\n".join([self.title, *rows])

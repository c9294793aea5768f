"""The display of a verdict, what changed in each failure class, and what all figures share.

A Display holds the numbers. `plot` draws them on demand and returns the Display; `str` gives them as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"  # Okabe and Ito: safe for colour-blind readers


class Change(NamedTuple):
    """A failure class in one arm compared with another: the difference of its share in points, with 95 % interval."""

    name: str  # of the class
    sides: str  # "DPO minus start"
    estimate: float
    low: float
    high: float
    clear: bool


@dataclass
class ChangesDisplay:
    """Differences of the trained arm from its start and from the control, for each failure class."""

    rows: Sequence[Change]
    title: str  # the finding
    n: int  # prompts
    figure_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any], title: str) -> ChangesDisplay:
        """From the `numbers` of a verdict. Without a control there are only the differences from the start."""
        others = [(numbers["before"], numbers)]
        others += [(numbers["control"]["name"], numbers["control"])] if "control" in numbers else []
        rows = []
        for other, found in others:
            classes = sorted(found["classes"].items(), key=lambda item: -item[1]["harm"])
            for name, change in [("any failure", found["failures"]), *classes]:
                told = f"{name} (harm {change['harm']:g})" if numbers["severities"] and "harm" in change else name
                middle, low, high = (100 * change["difference"][key] for key in ("estimate", "low", "high"))
                sides, clear = f"{numbers['after']} minus {other}", bool(change["clear"])
                rows.append(Change(told, sides, middle, low, high, clear))
        return cls(rows, title, numbers["n"])

    def plot(self) -> ChangesDisplay:
        """Draw the differences with their intervals in a new figure. A clear one has a filled point."""
        names, sides = (list(dict.fromkeys(column)) for column in list(zip(*self.rows, strict=True))[:2])
        self.figure_, ax = axes((7.0, 1.8 + 0.5 * len(names)))
        looks = dict(zip(sides, ((BLUE, "o", -0.14), (ORANGE, "s", 0.14)), strict=False))
        for name, side, estimate, low, high, clear in self.rows:
            colour, marker, shift = looks[side]
            style = {"fmt": marker, "color": colour, "capsize": 3, "markersize": 6, "label": plain(side)}
            spread = [[max(0.0, estimate - low)], [max(0.0, high - estimate)]]
            face = colour if clear else "white"
            ax.errorbar(estimate, names.index(name) + shift, xerr=spread, markerfacecolor=face, **style)
        ax.axvline(0, color=GREY, linestyle=":", linewidth=1)
        ax.set_yticks(range(len(names)), [plain(name) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        unit = f"change in points (n = {self.n}), paired 95 % intervals; filled: clear; left is better"
        label(ax, self.title, unit)
        handles = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))  # one for each side
        ax.legend(handles.values(), handles, loc="best", frameon=False)
        return self

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"  {row.sides}  {row.name:<{width}}  {row.estimate:+6.1f} ({row.low:+.1f} to {row.high:+.1f})"
            + " *" * row.clear
            for row in self.rows
        ]
        return "\n".join([self.title, *lines, f"change in points (n = {self.n}), paired 95 % intervals; * clear"])


def plain(text: Any) -> str:
    """Text for a figure in which a dollar sign does not start a formula."""
    return str(text).replace("$", r"\$")


def axes(size: tuple[float, float]) -> tuple[Any, Any]:
    """A new figure of `size` inches, and its axes."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")


def label(ax: Any, title: str, x: str, y: str = "") -> None:
    """Set the title, which states the finding, and the labels of the axes."""
    ax.set_title(plain(title), loc="left", fontsize=11, wrap=True)
    ax.set_xlabel(plain(x))
    ax.set_ylabel(plain(y))

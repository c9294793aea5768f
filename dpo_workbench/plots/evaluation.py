"""Displays of evaluations: failure classes before and after, arms with their intervals, and learning curves.

A Display holds the numbers. `plot` draws them on demand and returns the Display; `str` gives them as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"  # Okabe and Ito: safe for colour-blind readers


@dataclass
class FailureClassesDisplay:
    """Failures by class in two arms. `plot()` sets `figure_` and `ax_`."""

    before: Mapping[str, int]  # class -> count
    after: Mapping[str, int]
    n_before: int
    n_after: int
    names: tuple[str, str] = ("before", "after")
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_evaluations(cls, before: Any, after: Any) -> FailureClassesDisplay:
        """From two `Evaluation`s."""
        return cls(dict(before.failures), dict(after.failures), before.n, after.n, (before.name, after.name))

    @property
    def classes(self) -> list[str]:
        """All classes, the most frequent before first."""
        seen = set(self.before) | set(self.after)
        return sorted(seen, key=lambda c: (-self.before.get(c, 0), -self.after.get(c, 0), c))

    @property
    def title(self) -> str:
        """The finding."""
        was, now = sum(self.before.values()) / self.n_before, sum(self.after.values()) / self.n_after
        text = f"Failed answers: {100 * was:.1f} % before, {100 * now:.1f} % after"
        change = {c: self.after.get(c, 0) / self.n_after - self.before.get(c, 0) / self.n_before for c in self.classes}
        if not any(change.values()):
            return f"{text}\nno class changed"
        most = max(change, key=lambda c: (abs(change[c]), c))
        return f"{text}\n{most} changed most: {self.before.get(most, 0)} to {self.after.get(most, 0)}"

    def plot(self, ax: Any = None) -> FailureClassesDisplay:
        """Draw paired bars, in `ax` or in a new figure."""
        self.figure_, self.ax_ = axes(ax, (7.0, 1.6 + 0.55 * max(1, len(self.classes))))
        sides = ((self.before, self.n_before, ORANGE, "", -0.2), (self.after, self.n_after, BLUE, "///", 0.2))
        for (counts, n, colour, hatch, shift), name in zip(sides, self.names, strict=True):
            places, numbers = [k + shift for k in range(len(self.classes))], [counts.get(c, 0) for c in self.classes]
            style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
            bars = self.ax_.barh(places, [100 * k / n for k in numbers], 0.38, label=plain(name), **style)
            self.ax_.bar_label(bars, numbers, padding=3, fontsize=9)
        self.ax_.set_yticks(range(len(self.classes)), [plain(c) for c in self.classes])
        self.ax_.invert_yaxis()
        self.ax_.margins(x=0.1)
        self.ax_.set_xlim(left=0)
        label(self.ax_, self.title, f"share of prompts (%); bars show counts; n = {self.n_before} and {self.n_after}")
        if self.classes:
            self.ax_.legend(loc="best", frameon=False)
        return self

    def __str__(self) -> str:
        rows = [("any failure", sum(self.before.values()), sum(self.after.values()))]
        rows += [(c, self.before.get(c, 0), self.after.get(c, 0)) for c in self.classes]
        width = max(len(name) for name, _, _ in rows)
        body = "\n".join(f"  {name:<{width}}  {was:>6} {now:>6}" for name, was, now in rows)
        head = f"  {'':<{width}}  before  after  (n = {self.n_before} and {self.n_after})"
        return f"{self.title}\n{head}\n{body}"


class Row(NamedTuple):
    """One arm: an estimate with its 95 % interval, and Holm's p-value where arms are compared."""

    name: str
    estimate: float
    low: float
    high: float
    p: float | None = None


@dataclass
class ArmsDisplay:
    """Forest plot of the arms: shares of failed answers, or differences from a baseline."""

    rows: Sequence[Row]
    title: str  # the finding
    axis: str  # what the estimates are, and of how many prompts
    baseline: float  # where the dotted line is
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_evaluations(cls, evaluations: Iterable[Any]) -> ArmsDisplay:
        """Shares of failed answers of `Evaluation`s with Wilson's intervals; the first arm is the baseline."""
        arms = [(arm.name, arm.n, arm.interval()) for arm in evaluations]
        return cls.from_shares(
            [Row(name, s.estimate, s.low, s.high) for name, _, s in arms], min(n for _, n, _ in arms)
        )

    @classmethod
    def from_shares(cls, rows: Sequence[Row], n: int) -> ArmsDisplay:
        """From shares in [0, 1]; `n` is the number of prompts of the arm with the fewest."""
        lowest = min(row.estimate for row in rows)
        best = " and ".join(row.name for row in rows if row.estimate == lowest)
        axis = f"failed answers (%), 95 % Wilson interval; n = {n}; dotted: {rows[0].name}"
        return cls(rows, f"{best} failed least: {100 * lowest:.1f} %", axis, rows[0].estimate)

    @classmethod
    def from_differences(cls, compared: Iterable[Mapping[str, Any]], baseline: str) -> ArmsDisplay:
        """Differences of the mean score from a baseline, from the rows of a `Comparison`."""
        found = [(row["arm"], row["difference"], row["holm_p"]) for row in compared if "difference" in row]
        rows = [Row(arm, change["estimate"], change["low"], change["high"], p) for arm, change, p in found]
        better = [arm for arm, change, p in found if p < 0.05 and change["estimate"] > 0]
        worse = [arm for arm, change, p in found if p < 0.05 and change["estimate"] < 0]
        texts = [f"{' and '.join(names)} {word}" for names, word in ((better, "better"), (worse, "worse")) if names]
        n = min((change["n"] for _, change, _ in found), default=0)
        axis = f"change of mean score (points), paired 95 % interval; n = {n}; filled: Holm p < 0.05"
        title = f"Compared with {baseline}: {'; '.join(texts) or 'no arm is clearly better or worse'}"
        return cls(rows, title, axis, 0.0)

    def plot(self, ax: Any = None) -> ArmsDisplay:
        """Draw the arms, the first at the top, in `ax` or in a new figure. A point with p >= 0.05 is not filled."""
        self.figure_, self.ax_ = axes(ax, (7.0, 1.5 + 0.45 * max(1, len(self.rows))))
        for place, (_, estimate, low, high, p) in enumerate(self.rows):
            spread = [[100 * max(0.0, estimate - low)], [100 * max(0.0, high - estimate)]]
            style = {"fmt": "o", "color": BLUE, "markerfacecolor": BLUE if p is None or p < 0.05 else "white"}
            self.ax_.errorbar(100 * estimate, place, xerr=spread, capsize=4, markersize=7, **style)
        self.ax_.axvline(100 * self.baseline, color=GREY, linestyle=":", linewidth=1)
        self.ax_.set_yticks(range(len(self.rows)), [plain(row.name) for row in self.rows])
        self.ax_.set_ylim(len(self.rows) - 0.5, -0.5)
        label(self.ax_, self.title, self.axis)
        return self

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [self.title, self.axis]
        for name, *estimate, p in self.rows:
            middle, low, high = (100 * value for value in estimate)
            holm = "" if p is None else f"  Holm p {p:.3f}"
            lines.append(f"  {name:<{width}}  {middle:>5.1f}  ({low:.1f} to {high:.1f}){holm}")
        return "\n".join(lines)


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
        label(self.ax_, self.title, f"pairs; bars: 95 % intervals, n = {self.means[0].n} prompts", self.metric)
        return self

    def __str__(self) -> str:
        rows = zip(self.sizes, self.means, strict=True)
        body = [f"  {n:>5} pairs  {m.estimate:.3f}  ({m.low:.3f} to {m.high:.3f})" for n, m in rows]
        return "\n".join([self.title, *body])


def plain(text: Any) -> str:
    """Text for a figure in which a dollar sign does not start a formula."""
    return str(text).replace("$", r"\$")


def axes(ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """Figure and axes to draw in: those of `ax`, or new ones of `size` inches."""
    if ax is not None:
        return ax.figure, ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")


def label(ax: Any, title: str, x: str, y: str = "") -> None:
    """Set the title, which states the finding, and the labels of the axes."""
    ax.set_title(plain(title), loc="left", fontsize=11, wrap=True)
    ax.set_xlabel(plain(x))
    ax.set_ylabel(plain(y))

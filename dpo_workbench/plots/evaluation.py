"""Displays of evaluations: failure classes before and after, and arms with their intervals.

A Display holds the numbers. `plot` draws them on demand and returns the Display; `str` gives them as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
            places = [row + shift for row in range(len(self.classes))]
            widths = [100 * counts.get(c, 0) / n for c in self.classes]
            style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
            bars = self.ax_.barh(places, widths, 0.38, label=plain(name), **style)
            self.ax_.bar_label(bars, [str(counts.get(c, 0)) for c in self.classes], padding=3, fontsize=9)
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


@dataclass
class ArmsDisplay:
    """Share of failed answers of each arm with its Wilson interval. The first arm is the baseline."""

    names: list[str]
    shares: list[float]  # in [0, 1]
    lows: list[float]
    highs: list[float]
    n: int  # prompts of the arm with the fewest scored
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_evaluations(cls, evaluations: Iterable[Any]) -> ArmsDisplay:
        """From `Evaluation`s, in the order in which they are drawn."""
        arms = list(evaluations)
        shares = [arm.interval() for arm in arms]
        bounds = [s.low for s in shares], [s.high for s in shares]
        return cls([arm.name for arm in arms], [s.estimate for s in shares], *bounds, min(arm.n for arm in arms))

    @property
    def title(self) -> str:
        """The finding."""
        lowest = min(self.shares)
        best = [name for name, share in zip(self.names, self.shares, strict=True) if share == lowest]
        return f"{' and '.join(best)} failed least: {100 * lowest:.1f} %"

    def plot(self, ax: Any = None) -> ArmsDisplay:
        """Draw the arms, in `ax` or in a new figure."""
        self.figure_, self.ax_ = axes(ax, (7.0, 1.5 + 0.45 * len(self.names)))
        rows = zip(self.shares, self.lows, self.highs, strict=True)
        _forest(self.ax_, self.names, [(100 * share, 100 * low, 100 * high, True) for share, low, high in rows])
        self.ax_.axvline(100 * self.shares[0], color=GREY, linestyle=":", linewidth=1)
        self.ax_.set_xlim(left=0)
        label(self.ax_, self.title, f"failed answers (%), 95 % Wilson interval; n = {self.n}; dotted: {self.names[0]}")
        return self

    def __str__(self) -> str:
        width = max(map(len, self.names))
        rows = zip(self.names, self.shares, self.lows, self.highs, strict=True)
        body = [f"  {n:<{width}}  {100 * s:>5.1f} %  ({100 * a:.1f} to {100 * b:.1f} %)" for n, s, a, b in rows]
        return "\n".join([f"{self.title} (n = {self.n})", *body])


@dataclass
class DifferencesDisplay:
    """Change of each arm's mean score compared with a baseline, on the same prompts."""

    names: list[str]
    changes: list[float]
    lows: list[float]
    highs: list[float]
    pvalues: list[float]  # adjusted by Holm's method
    n: int
    baseline: str
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], baseline: str) -> DifferencesDisplay:
        """From the rows of a `Comparison`."""
        found = [row for row in rows if "difference" in row]
        changes = [row["difference"] for row in found]
        return cls(
            [row["arm"] for row in found],
            [change["estimate"] for change in changes],
            [change["low"] for change in changes],
            [change["high"] for change in changes],
            [row["holm_p"] for row in found],
            min((change["n"] for change in changes), default=0),
            baseline,
        )

    @property
    def title(self) -> str:
        """The finding."""
        clear = [(name, c) for name, c, p in zip(self.names, self.changes, self.pvalues, strict=True) if p < 0.05]
        better, worse = [name for name, c in clear if c > 0], [name for name, c in clear if c < 0]
        texts = [f"{' and '.join(names)} {word}" for names, word in ((better, "better"), (worse, "worse")) if names]
        return f"Compared with {self.baseline}: {'; '.join(texts) or 'no arm is clearly better or worse'}"

    def plot(self, ax: Any = None) -> DifferencesDisplay:
        """Draw the arms, in `ax` or in a new figure."""
        self.figure_, self.ax_ = axes(ax, (7.0, 1.5 + 0.45 * max(1, len(self.names))))
        rows = zip(self.changes, self.lows, self.highs, self.pvalues, strict=True)
        _forest(self.ax_, self.names, [(change, low, high, p < 0.05) for change, low, high, p in rows])
        self.ax_.axvline(0, color=GREY, linestyle=":", linewidth=1)
        label(self.ax_, self.title, f"change of mean score, paired 95 % interval; n = {self.n}; filled: Holm p < 0.05")
        return self

    def __str__(self) -> str:
        width = max(map(len, self.names), default=0)
        rows = zip(self.names, self.changes, self.lows, self.highs, self.pvalues, strict=True)
        body = [f"  {n:<{width}}  {c:+.3f}  ({a:+.3f} to {b:+.3f}, Holm p {p:.3f})" for n, c, a, b, p in rows]
        return "\n".join([f"{self.title} (n = {self.n})", *body])


def _forest(ax: Any, names: Sequence[str], rows: Iterable[tuple[float, float, float, bool]]) -> None:
    """One row of (estimate, low, high, filled) per name, the first at the top: a point with its interval."""
    for place, (estimate, low, high, filled) in enumerate(rows):
        spread = [[max(0.0, estimate - low)], [max(0.0, high - estimate)]]
        face = BLUE if filled else "white"
        ax.errorbar(estimate, place, xerr=spread, fmt="o", color=BLUE, markerfacecolor=face, capsize=4, markersize=7)
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)


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

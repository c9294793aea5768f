"""Displays of evaluations: failure classes before and after, and the arms with their intervals.

A Display holds the numbers; `plot` draws them when asked and returns the Display; `str` gives them as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"  # okabe-ito


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
        """All classes seen, the most frequent before first."""
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
        """Draw paired bars, in `ax` or in a figure of their own."""
        self.figure_, self.ax_ = axes(ax, (7.0, 1.6 + 0.55 * max(1, len(self.classes))))
        looks = ((self.before, self.n_before, ORANGE, "", -0.2), (self.after, self.n_after, BLUE, "///", 0.2))
        for (counts, n, colour, hatch, shift), name in zip(looks, self.names, strict=True):
            places = [i + shift for i in range(len(self.classes))]
            widths = [100 * counts.get(c, 0) / n for c in self.classes]
            bars = self.ax_.barh(
                places, widths, 0.38, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=plain(name)
            )
            self.ax_.bar_label(bars, [str(counts.get(c, 0)) for c in self.classes], padding=3, fontsize=9)
        self.ax_.set_yticks(range(len(self.classes)), [plain(c) for c in self.classes])
        self.ax_.invert_yaxis()
        self.ax_.margins(x=0.1)
        self.ax_.set_xlim(left=0)
        self.ax_.set_xlabel(f"share of prompts (%); counts at the bars; n = {self.n_before} and {self.n_after}")
        self.ax_.set_title(plain(self.title), loc="left", fontsize=11)
        if self.classes:
            self.ax_.legend(loc="best", frameon=False)
        return self

    def __str__(self) -> str:
        width = max([len(c) for c in self.classes] + [len("any failure")])
        rows = [("any failure", sum(self.before.values()), sum(self.after.values()))]
        rows += [(c, self.before.get(c, 0), self.after.get(c, 0)) for c in self.classes]
        body = "\n".join(f"  {name:<{width}}  {was:>5} {now:>5}" for name, was, now in rows)
        head = f"  {'':<{width}}  {'bef.':>5} {'after':>5}  (n = {self.n_before} and {self.n_after})"
        return f"{self.title}\n{head}\n{body}"


@dataclass
class ArmsDisplay:
    """Failed share of each arm with its Wilson interval: a forest plot, the first arm as its baseline."""

    names: list[str]
    shares: list[float]  # in [0, 1]
    lows: list[float]
    highs: list[float]
    n: int  # prompts of the arm with the fewest scored
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_evaluations(cls, evaluations: Iterable[Any]) -> ArmsDisplay:
        """From `Evaluation`s in the order in which they are to stand."""
        arms = list(evaluations)
        seen = [arm.interval() for arm in arms]
        return cls(
            [arm.name for arm in arms],
            [i.estimate for i in seen],
            [i.low for i in seen],
            [i.high for i in seen],
            min(arm.n for arm in arms),
        )

    @property
    def title(self) -> str:
        """The finding."""
        best = min(range(len(self.names)), key=lambda i: self.shares[i])
        level = [n for n, share in zip(self.names, self.shares, strict=True) if share == self.shares[best]]
        return f"{' and '.join(level)} failed least: {100 * self.shares[best]:.1f} %"

    def plot(self, ax: Any = None) -> ArmsDisplay:
        """Draw the arms, in `ax` or in a figure of their own."""
        self.figure_, self.ax_ = axes(ax, (7.0, 1.5 + 0.45 * len(self.names)))
        markers = "osD^vP*X"
        rows = zip(self.names, self.shares, self.lows, self.highs, strict=True)
        for place, (_, share, low, high) in enumerate(rows):
            spread = [[100 * max(0.0, share - low)], [100 * max(0.0, high - share)]]
            marker = markers[place % len(markers)]
            self.ax_.errorbar(100 * share, place, xerr=spread, fmt=marker, color=BLUE, capsize=4, markersize=7)
        self.ax_.axvline(100 * self.shares[0], color=GREY, linestyle=":", linewidth=1)
        self.ax_.set_yticks(range(len(self.names)), [plain(name) for name in self.names])
        self.ax_.set_ylim(len(self.names) - 0.5, -0.5)
        self.ax_.set_xlim(left=0)
        self.ax_.set_xlabel(f"failed answers (%), 95 % Wilson interval; n = {self.n}; dotted: {plain(self.names[0])}")
        self.ax_.set_title(plain(self.title), loc="left", fontsize=11)
        return self

    def __str__(self) -> str:
        width = max(map(len, self.names))
        rows = zip(self.names, self.shares, self.lows, self.highs, strict=True)
        body = [f"  {n:<{width}}  {100 * s:>5.1f} %  ({100 * a:.1f} to {100 * b:.1f} %)" for n, s, a, b in rows]
        return "\n".join([f"{self.title} (n = {self.n})", *body])


@dataclass
class DifferencesDisplay:
    """Change of the mean score of each arm against a baseline, on the same prompts: a forest plot around zero."""

    names: list[str]
    changes: list[float]
    lows: list[float]
    highs: list[float]
    pvalues: list[float]  # adjusted by Holm
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
            [c["estimate"] for c in changes],
            [c["low"] for c in changes],
            [c["high"] for c in changes],
            [row["holm_p"] for row in found],
            min((c["n"] for c in changes), default=0),
            baseline,
        )

    @property
    def title(self) -> str:
        """The finding."""
        rows = list(zip(self.names, self.changes, self.pvalues, strict=True))
        better = [name for name, change, p in rows if p < 0.05 and change > 0]
        worse = [name for name, change, p in rows if p < 0.05 and change < 0]
        texts = [f"{' and '.join(names)} {word}" for names, word in ((better, "better"), (worse, "worse")) if names]
        return f"Against {self.baseline}: {'; '.join(texts) or 'no arm is clearly better or worse'}"

    def plot(self, ax: Any = None) -> DifferencesDisplay:
        """Draw the arms, in `ax` or in a figure of their own."""
        self.figure_, self.ax_ = axes(ax, (7.0, 1.5 + 0.45 * max(1, len(self.names))))
        for place, (change, low, high, p) in enumerate(
            zip(self.changes, self.lows, self.highs, self.pvalues, strict=True)
        ):
            spread = [[max(0.0, change - low)], [max(0.0, high - change)]]
            marker, face = ("o", BLUE) if p < 0.05 else ("s", "white")
            self.ax_.errorbar(
                change, place, xerr=spread, fmt=marker, color=BLUE, markerfacecolor=face, capsize=4, markersize=7
            )
        self.ax_.axvline(0, color=GREY, linestyle=":", linewidth=1)
        self.ax_.set_yticks(range(len(self.names)), [plain(name) for name in self.names])
        self.ax_.set_ylim(len(self.names) - 0.5, -0.5)
        self.ax_.set_xlabel(f"change of the mean score, paired 95 % interval; n = {self.n}; filled: Holm p < 0.05")
        self.ax_.set_title(plain(self.title), loc="left", fontsize=11, wrap=True)
        return self

    def __str__(self) -> str:
        width = max(map(len, self.names), default=0)
        rows = zip(self.names, self.changes, self.lows, self.highs, self.pvalues, strict=True)
        body = [f"  {n:<{width}}  {c:+.3f}  ({a:+.3f} to {b:+.3f}, Holm p {p:.3f})" for n, c, a, b, p in rows]
        return "\n".join([f"{self.title} (n = {self.n})", *body])


@dataclass
class ForecastDisplay:
    """What the headroom promised before training against what came of it, one point a run."""

    expected: list[float]  # relative cut, in [0, 1]
    seen: list[float]
    kinds: list[str]  # of each run: model or task, for its marker
    figure_: Any = field(default=None, init=False, repr=False)
    ax_: Any = field(default=None, init=False, repr=False)

    @property
    def mean_error(self) -> float:
        """Mean absolute difference of the two."""
        return sum(abs(a - b) for a, b in zip(self.expected, self.seen, strict=True)) / len(self.seen)

    @property
    def title(self) -> str:
        """The finding."""
        below = sum(b <= a for a, b in zip(self.expected, self.seen, strict=True))
        return (
            f"The headroom is off by {100 * self.mean_error:.0f} points on average;\n"
            f"{below} of {len(self.seen)} runs cut no more than it promised"
        )

    def plot(self, ax: Any = None) -> ForecastDisplay:
        """Draw the runs beside the line where promise and outcome are equal."""
        self.figure_, self.ax_ = axes(ax, (5.5, 5.0))
        self.ax_.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="as promised")
        for kind, marker, colour in zip(sorted(set(self.kinds)), "osD^vP*X", (BLUE, ORANGE, GREEN) * 3, strict=False):
            rows = [
                (100 * a, 100 * b) for a, b, k in zip(self.expected, self.seen, self.kinds, strict=True) if k == kind
            ]
            self.ax_.plot(*zip(*rows, strict=True), marker, color=colour, markeredgecolor="black", label=plain(kind))
        self.ax_.set_xlabel("cut of the mined failures that the samples promised (%)")
        self.ax_.set_ylabel("cut on held-out prompts (%)")
        self.ax_.set_title(plain(self.title), loc="left", fontsize=11)
        self.ax_.legend(loc="best", frameon=False)
        return self

    def __str__(self) -> str:
        rows = zip(self.kinds, self.expected, self.seen, strict=True)
        return "\n".join([self.title, *(f"  {k}: promised {100 * a:.0f} %, seen {100 * b:.0f} %" for k, a, b in rows)])


def plain(text: Any) -> str:
    """Text for a figure: shown as it is, not read as a formula."""
    return str(text).replace("$", r"\$")


def axes(ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """The figure and axes to draw in: those of `ax`, or new ones."""
    if ax is not None:
        return ax.figure, ax
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=size, layout="constrained")
    return figure, ax

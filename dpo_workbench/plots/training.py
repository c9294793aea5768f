"""`TrainingDisplay`: loss and margin step by step, and the probe's score, which is what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.plots.evaluation import BLUE, GREEN, GREY, ORANGE


@dataclass
class TrainingDisplay:
    """A run's history and probes. `plot()` sets `figure_` and `axes_`; a panel is drawn where there is data for it."""

    history: Sequence[Mapping[str, float]]  # step, loss, rewards/margins, rewards/accuracies
    probes: Sequence[Mapping[str, float]] = ()  # step, score, failed
    best_step: int | None = None  # whose adapter was kept
    figure_: Any = field(default=None, init=False, repr=False)
    axes_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_run(cls, run: Any) -> TrainingDisplay:
        """From what `dw.train` or `dw.sft` returned."""
        return cls(run.history, run.probes, run.best_step)

    @property
    def title(self) -> str:
        """The finding."""
        if not self.probes:
            return f"{len(self.history)} steps, no probe: the loss alone does not say whether the answers got better"
        first = self.probes[0]
        kept = next((p for p in self.probes if p["step"] == self.best_step), self.probes[-1])
        start = f"Probe score {first['score']:.3f} at step {first['step']:.0f}"
        return f"{start}, {kept['score']:.3f} at step {kept['step']:.0f}"

    def plot(self, axes: Any = None) -> TrainingDisplay:
        """Draw one panel a series, in `axes` (one for each of `panels`) or in a figure of its own."""
        if axes is None:
            import matplotlib.pyplot as plt

            size = (3.4 * len(self.panels), 3.0)
            self.figure_, grid = plt.subplots(1, len(self.panels), figsize=size, layout="constrained", squeeze=False)
            axes = grid[0]
        self.axes_ = list(axes)
        self.figure_ = self.axes_[0].figure
        for ax, panel in zip(self.axes_, self.panels, strict=True):
            {"loss": self._loss, "margin": self._margin, "probe": self._probe}[panel](ax)
            ax.set_xlabel("optimiser step")
        self.figure_.suptitle(self.title, fontsize=11)
        return self

    @property
    def panels(self) -> list[str]:
        """What there is to draw: loss, margin, probe."""
        margins = any("rewards/margins" in row for row in self.history)
        return ["loss", *(["margin"] if margins else []), *(["probe"] if self.probes else [])]

    def _loss(self, ax: Any) -> None:
        ax.plot(*self._series("loss"), color=BLUE, marker=".", linewidth=1.4)
        ax.set_ylabel("training loss (nats)")

    def _margin(self, ax: Any) -> None:
        ax.plot(*self._series("rewards/margins"), color=ORANGE, marker=".", linestyle="--", linewidth=1.4)
        ax.axhline(0, color=GREY, linestyle=":", linewidth=1)
        ax.set_ylabel("reward margin (beta x nats)")

    def _probe(self, ax: Any) -> None:
        steps = [p["step"] for p in self.probes]
        ax.plot(steps, [p["score"] for p in self.probes], color=GREEN, marker="o", label="score")
        if all("failed" in p for p in self.probes):
            failed = [p["failed"] for p in self.probes]
            ax.plot(steps, failed, color=GREY, marker="s", linestyle="--", label="failed share")
        ax.axhline(self.probes[0]["score"], color=GREY, linestyle=":", linewidth=1)
        if self.best_step is not None:
            ax.axvline(self.best_step, color=GREEN, linestyle="-.", linewidth=1, label="kept")
        ax.set_ylim(-0.03, 1.03)
        n = self.probes[0].get("prompts")
        ax.set_ylabel(f"dev prompts{f' (n = {n:.0f})' if n else ''}")
        ax.legend(fontsize=8, frameon=False)

    def _series(self, key: str) -> tuple[list[float], list[float]]:
        rows = [row for row in self.history if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    def __str__(self) -> str:
        lines = [self.title]
        stride = max(1, len(self.history) // 10)
        last = len(self.history) - 1
        for place, row in enumerate(self.history):
            if place % stride == 0 or place == last:
                margin = f"  margin {row['rewards/margins']:+.2f}" if "rewards/margins" in row else ""
                lines.append(f"  step {row['step']:>4.0f}  loss {row['loss']:.3f}{margin}")
        for probe in self.probes:
            kept = "  kept" if probe["step"] == self.best_step else ""
            failed = f"  failed {100 * probe['failed']:.1f} %" if "failed" in probe else ""
            lines.append(f"  probe at step {probe['step']:>4.0f}  score {probe['score']:.3f}{failed}{kept}")
        return "\n".join(lines)

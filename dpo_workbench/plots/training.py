"""`TrainingDisplay`: loss and margin step by step, and the score of the probes, which is what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.plots.evaluation import BLUE, GREEN, GREY, ORANGE


@dataclass
class TrainingDisplay:
    """History and probes of a run. `plot()` sets `figure_` and `axes_`, with a panel for each kind of data."""

    history: Sequence[Mapping[str, float]]  # step, loss, rewards/margins
    probes: Sequence[Mapping[str, float]] = ()  # step, score, failed
    best_step: int | None = None  # step of the adapter that the run keeps
    figure_: Any = field(default=None, init=False, repr=False)
    axes_: Any = field(default=None, init=False, repr=False)

    @classmethod
    def from_run(cls, run: Any) -> TrainingDisplay:
        """From the result of `dw.train` or `dw.sft`."""
        return cls(run.history, run.probes, run.best_step)

    @property
    def title(self) -> str:
        """The finding."""
        if not self.probes:
            return f"{len(self.history)} steps, no probe: the loss alone does not show whether the answers got better"
        first = self.probes[0]
        kept = next((p for p in self.probes if p["step"] == self.best_step), self.probes[-1])
        start = f"Probe score {first['score']:.3f} at step {first['step']:.0f}"
        return f"{start}, {kept['score']:.3f} at step {kept['step']:.0f}"

    @property
    def panels(self) -> list[str]:
        """The panels that there is data for: loss, margin, probe."""
        margins = any("rewards/margins" in row for row in self.history)
        return ["loss", *(["margin"] if margins else []), *(["probe"] if self.probes else [])]

    def plot(self, axes: Any = None) -> TrainingDisplay:
        """Draw the panels, in `axes` (one for each of `panels`) or in a new figure."""
        if axes is None:
            import matplotlib.pyplot as plt

            size = (3.4 * len(self.panels), 3.0)
            _, grid = plt.subplots(1, len(self.panels), figsize=size, layout="constrained", squeeze=False)
            axes = grid[0]
        self.axes_ = list(axes)
        self.figure_ = self.axes_[0].figure
        for ax, panel in zip(self.axes_, self.panels, strict=True):
            if panel == "probe":
                self._draw_probes(ax)
            else:
                key = "loss" if panel == "loss" else "rewards/margins"
                points = [(row["step"], row[key]) for row in self.history if key in row]
                ax.plot(*zip(*points, strict=True), color=BLUE if panel == "loss" else ORANGE, marker=".")
                ax.set_ylabel("training loss (nats)" if panel == "loss" else "reward margin (beta x nats)")
            ax.set_xlabel("optimizer step")
        self.figure_.suptitle(self.title, fontsize=11)
        return self

    def _draw_probes(self, ax: Any) -> None:
        steps = [p["step"] for p in self.probes]
        ax.plot(steps, [p["score"] for p in self.probes], color=GREEN, marker="o", label="score")
        if all("failed" in p for p in self.probes):
            failed = [p["failed"] for p in self.probes]
            ax.plot(steps, failed, color=GREY, marker="s", linestyle="--", label="failed share")
        if self.best_step is not None:
            ax.axvline(self.best_step, color=GREEN, linestyle="-.", linewidth=1, label="kept")
        ax.set_ylim(-0.03, 1.03)
        n = self.probes[0].get("prompts")
        ax.set_ylabel(f"dev prompts (n = {n:.0f})" if n else "dev prompts")
        ax.legend(fontsize=8, frameon=False)

    def __str__(self) -> str:
        lines, stride = [self.title], max(1, len(self.history) // 10)
        for place, row in enumerate(self.history):
            if place % stride == 0 or place == len(self.history) - 1:
                margin = f"  margin {row['rewards/margins']:+.2f}" if "rewards/margins" in row else ""
                lines.append(f"  step {row['step']:>4.0f}  loss {row['loss']:.3f}{margin}")
        for probe in self.probes:
            kept = "  kept" if probe["step"] == self.best_step else ""
            failed = f"  failed {100 * probe['failed']:.1f} %" if "failed" in probe else ""
            lines.append(f"  probe at step {probe['step']:>4.0f}  score {probe['score']:.3f}{failed}{kept}")
        return "\n".join(lines)

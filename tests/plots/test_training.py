"""The training Display: its numbers, text and figure."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from dpo_workbench.plots.training import TrainingDisplay

HISTORY = [{"step": k, "loss": 0.7 / k, "rewards/margins": 0.1 * k} for k in range(1, 25)]
PROBES = [
    {"step": 0, "score": 0.7, "failed": 0.4, "prompts": 40},
    {"step": 24, "score": 0.8, "failed": 0.2, "prompts": 40},
]


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def test_panels_follow_the_data():
    assert TrainingDisplay(HISTORY, PROBES, 24).panels == ["loss", "margin", "probe"]
    assert TrainingDisplay([{"step": 1, "loss": 2.0}]).panels == ["loss"]


def test_the_title_names_the_probe_whose_adapter_is_kept():
    assert TrainingDisplay(HISTORY, PROBES, 0).title == "Probe score 0.700 at step 0, 0.700 at step 0"
    assert TrainingDisplay(HISTORY, PROBES, 24).title == "Probe score 0.700 at step 0, 0.800 at step 24"
    assert "no probe" in TrainingDisplay(HISTORY).title


def test_drawn_values_are_the_values():
    display = TrainingDisplay(HISTORY, PROBES, 24).plot()
    loss, margin, probe = display.axes_
    assert list(loss.lines[0].get_ydata()) == [row["loss"] for row in HISTORY]
    assert list(margin.lines[0].get_ydata()) == [row["rewards/margins"] for row in HISTORY]
    assert list(probe.lines[0].get_ydata()) == [0.7, 0.8]
    assert "n = 40" in probe.get_ylabel()


def test_as_text():
    text = str(TrainingDisplay(HISTORY, PROBES, 24))
    assert "step   24" in text and text.count("kept") == 1 and len(text.splitlines()) < 20

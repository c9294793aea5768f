"""Displays of evaluations: their numbers, their text, and what they draw."""

from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import pytest

from dpo_workbench.plots.evaluation import ArmsDisplay, plain


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def evaluation(name: str, share: float):
    interval = SimpleNamespace(estimate=share, low=share - 0.05, high=share + 0.1)
    return SimpleNamespace(name=name, n=50, interval=lambda: interval)


def test_arms_hold_the_intervals_and_draw_the_baseline():
    display = ArmsDisplay.from_evaluations([evaluation("base", 0.4), evaluation("DPO", 0.2)])
    assert [row[1] for row in display.rows] == [0.4, 0.2] and "n = 50" in display.axis
    assert display.title == "DPO failed least: 20.0 %"
    assert display.plot() is display
    assert any(list(line.get_xdata()) == [40.0, 40.0] for line in display.ax_.lines)
    assert [tick.get_text() for tick in display.ax_.get_yticklabels()] == ["base", "DPO"]
    assert "15.0 to 30.0" in str(display)


def test_arms_that_tie_are_both_named():
    display = ArmsDisplay.from_evaluations([evaluation("one", 0.2), evaluation("two", 0.2)])
    assert display.title.startswith("one and two failed least")


def test_plain_text_is_not_a_formula():
    assert plain("$x$") == r"\$x\$"

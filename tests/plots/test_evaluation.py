"""Displays of evaluations: their numbers, their text, and what they draw."""

from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import pytest

from dpo_workbench.plots.evaluation import ArmsDisplay, FailureClassesDisplay, plain


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def classes() -> FailureClassesDisplay:
    return FailureClassesDisplay(
        {"loop": 40, "a_$x$": 10}, {"loop": 5, "wrong_value": 10}, 200, 100, ("sft", "sft+dpo")
    )


def test_classes_title_is_the_finding():
    assert classes().classes == ["loop", "a_$x$", "wrong_value"]
    assert classes().title == "Failed answers: 25.0 % before, 15.0 % after\nloop changed most: 40 to 5"
    same = FailureClassesDisplay({"loop": 3}, {"loop": 3}, 10, 10)
    assert same.title.endswith("no class changed")


def test_classes_draw_the_shares_and_stay_readable_in_greyscale():
    display = classes()
    assert display.plot() is display
    bars = display.ax_.containers
    widths = [[round(bar.get_width(), 6) for bar in group] for group in bars if hasattr(group, "patches")]
    assert widths == [[20.0, 5.0, 0.0], [5.0, 0.0, 10.0]]
    assert {bar.get_hatch() for group in bars for bar in group.patches} == {"", "///"}
    assert "n = 200 and 100" in display.ax_.get_xlabel() and "(%)" in display.ax_.get_xlabel()
    display.figure_.canvas.draw()  # a name with dollar signs is not a formula


def test_classes_as_text():
    text = str(classes())
    assert "any failure" in text and "loop" in text and "40" in text and "n = 200 and 100" in text


def test_no_failures_at_all_can_be_drawn():
    display = FailureClassesDisplay({}, {}, 5, 5).plot()
    display.figure_.canvas.draw()
    assert "no class changed" in display.ax_.get_title(loc="left")


def test_classes_go_into_a_given_ax():
    _, ax = plt.subplots()
    assert classes().plot(ax).ax_ is ax


def evaluation(name: str, share: float):
    interval = SimpleNamespace(estimate=share, low=share - 0.05, high=share + 0.1)
    return SimpleNamespace(name=name, n=50, interval=lambda: interval)


def test_arms_hold_the_intervals_and_draw_the_baseline():
    display = ArmsDisplay.from_evaluations([evaluation("base", 0.4), evaluation("sft+dpo", 0.2)])
    assert [row.estimate for row in display.rows] == [0.4, 0.2] and "n = 50" in display.axis
    assert display.title == "sft+dpo failed least: 20.0 %"
    assert display.plot() is display
    assert any(list(line.get_xdata()) == [40.0, 40.0] for line in display.ax_.lines)
    assert [tick.get_text() for tick in display.ax_.get_yticklabels()] == ["base", "sft+dpo"]
    assert "15.0 to 30.0" in str(display)


def test_arms_that_tie_are_both_named():
    display = ArmsDisplay.from_evaluations([evaluation("one", 0.2), evaluation("two", 0.2)])
    assert display.title.startswith("one and two failed least")


def test_differences_name_what_is_clearly_better_and_fill_its_point():
    def row(arm: str, change: float, p: float) -> dict:
        return {
            "arm": arm,
            "difference": {"estimate": change, "low": change - 0.1, "high": change + 0.1, "n": 50},
            "holm_p": p,
        }

    display = ArmsDisplay.from_differences([{"arm": "sft"}, row("dpo", 0.2, 0.01), row("more", 0.0, 1.0)], "sft").plot()
    assert display.title == "Compared with sft: dpo better" and "20.0  (10.0 to 30.0)  Holm p 0.010" in str(display)
    points = [line for line in display.ax_.lines if line.get_marker() == "o"]
    assert [point.get_markerfacecolor() for point in points] == ["#0072B2", "white"]


def test_plain_text_is_not_a_formula():
    assert plain("$x$") == r"\$x\$"

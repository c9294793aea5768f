"""Displays of pairs: their numbers, text and figures; hostile tokens in the heat map."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from dpo_workbench.plots.pairs import DifficultyDisplay, LengthsDisplay, TokenHeatmapDisplay
from dpo_workbench.studies.microscope import microscope


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def test_from_a_microscope(tiny, moved, toy_pairs) -> None:
    before, after = (microscope(tiny, toy_pairs, m, show=False) for m in (None, moved))
    lengths = LengthsDisplay.from_microscope(before).plot()
    assert lengths.chosen == [len(v.chosen_tokens) for v in before] and f"of {len(before)} pairs" in lengths.title
    assert len(lengths.ax_.lines[1].get_xdata()) == len(before) and "median tokens" in str(lengths)
    plain = DifficultyDisplay.from_microscope(before).plot()
    assert plain.margins == [v.reference_margin for v in before] and "ranks" in plain.title and "median" in str(plain)
    learned = DifficultyDisplay.from_microscope(after).plot()
    assert learned.states == [v.state for v in after]
    shown = [text.get_text() for text in learned.ax_.get_legend().get_texts()]
    assert sorted(shown) == sorted(f"{name} ({n})" for name, n in after.states.items() if n)


def test_heat_map_of_a_pair(tiny, moved, toy_pairs) -> None:
    view = microscope(tiny, toy_pairs, moved, show=False)[0]
    heat = TokenHeatmapDisplay.from_view(view)
    assert heat.trained and heat.values == view.log_ratios and heat.divergence == view.divergence
    assert heat.span == max(abs(v) for part in view.log_ratios for v in part)
    html = heat._repr_html_()
    assert html.count("<span") == len(view.chosen_tokens) + len(view.rejected_tokens)
    assert html.count("border-left") == 2 and f'title="{view.log_ratios[0][0]:+.3f} nats"' in html
    assert view._repr_html_().endswith(html)
    untrained = TokenHeatmapDisplay.from_view(microscope(tiny, toy_pairs, show=False)[0])
    assert not untrained.trained and untrained.title.startswith("Before training")


def test_hostile_tokens_are_escaped() -> None:
    tokens = ("<script>alert(1)</script>", "\x00\n\u202e", "$x$", "&amp;")
    heat = TokenHeatmapDisplay((tokens, ("a",)), ((1.0, 0.0, -1.0, 0.5), (0.0,)), 0, True)
    html = heat._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and "\x00" not in html and "\u202e" not in html
    assert "&amp;amp;" in html and "$" not in html

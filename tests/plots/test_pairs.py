"""Displays of pairs: their numbers, text and figures; hostile tokens in the heat map."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from dpo_workbench.plots.pairs import LengthsDisplay, TokenHeatmapDisplay
from dpo_workbench.studies.microscope import microscope


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def test_lengths_draw_one_point_per_pair() -> None:
    lengths = LengthsDisplay([3, 9, 4], [5, 6, 4], 0.5).plot()
    assert lengths.title == "The chosen answer is longer in 1 of 3 pairs; AUC of length 0.50"
    assert list(lengths.ax_.lines[1].get_xdata()) == [5, 6, 4] and "median tokens: 4 chosen, 5 rejected" in str(lengths)


def test_heat_map_of_a_pair(tiny, moved, toy_pairs) -> None:
    view = microscope(tiny, toy_pairs, moved)[0]
    heat = TokenHeatmapDisplay.from_view(view)
    assert heat.trained and heat.values == view.log_ratios and heat.divergence == view.divergence
    html = heat._repr_html_()
    assert html.count("<span") == len(view.chosen_tokens) + len(view.rejected_tokens)
    assert html.count("border-left") == 2 and f'title="{view.log_ratios[0][0]:+.3f} nats"' in html
    assert view._repr_html_().endswith(html)
    untrained = TokenHeatmapDisplay.from_view(microscope(tiny, toy_pairs)[0])
    assert not untrained.trained and untrained.title.startswith("Before training")


def test_hostile_tokens_are_escaped() -> None:
    tokens = ("<script>alert(1)</script>", "\x00\n\u202e", "$x$", "&amp;")
    heat = TokenHeatmapDisplay((tokens, ("a",)), ((1.0, 0.0, -1.0, 0.5), (0.0,)), 0, True)
    html = heat._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and "\x00" not in html and "\u202e" not in html
    assert "&amp;amp;" in html and "$" not in html

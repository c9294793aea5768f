"""The display of a pair: its numbers and text; hostile tokens in the heat map."""

from dpo_workbench.plots.pairs import PairDisplay
from dpo_workbench.studies.microscope import microscope


def test_a_pair_before_and_after_training(tiny, moved, toy_pairs) -> None:
    view = microscope(tiny, toy_pairs, moved)[1]
    html = view._repr_html_()
    assert html.count("<span") == sum(map(len, view.tokens))
    assert html.count("border-left") == 2 and f'title="{view.log_ratios[0][0]:+.3f} nats"' in html
    assert "pair p1: " in repr(view) and "change of log p in training: " in repr(view)
    before = microscope(tiny, toy_pairs)[1]
    assert before.log_ratios is None and "log p before training: -" in repr(before)


def test_the_ranking_is_named_before_and_after() -> None:
    def ranked(before: float, after: float | None) -> str:
        policy = None if after is None else [[after], [0.0]]
        return repr(PairDisplay("p", [["a"], ["b"]], 0, [[before], [0.0]], policy))

    assert "ranked wrongly, then correctly" in ranked(-2, 1) and "ranked correctly\n" in ranked(2, None)


def test_hostile_tokens_are_escaped() -> None:
    tokens = ["<script>alert(1)</script>", "\x00\n\u202e", "$x$", "&amp;"], ["a"]
    html = PairDisplay("<b>p", tokens, 0, ([0.0] * 4, [0.0]), ([1.0, 0.0, -1.0, 0.5], [0.0]))._repr_html_()
    assert "<script" not in html and "<b>" not in html and "&lt;script&gt;" in html
    assert "\x00" not in html and "\u202e" not in html
    assert "&amp;amp;" in html and "$" not in html

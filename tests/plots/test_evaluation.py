"""Text in figures. What each display shows is tested with the numbers it comes from."""

from dpo_workbench.plots.evaluation import plain


def test_plain_text_is_not_a_formula():
    assert plain("$x$") == r"\$x\$"

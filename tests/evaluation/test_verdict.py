"""Result sets whose right verdict is known, one for each rule and its neighbours."""

import json
import re
from types import SimpleNamespace

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation
from dpo_workbench.evaluation.verdict import OUTCOMES, verdict


def fails(*places: range, n: int = 300, failure: str = "loop") -> list[str | None]:
    """A list of n with that failure at these places."""
    return [failure if any(i in place for place in places) else None for i in range(n)]


BEFORE = fails(range(0, 90))
GOOD = fails(range(0, 30), range(100, 104))  # 60 fixed, 4 broken

CASES = {
    "failures fall": ("worth it", BEFORE, GOOD, None),
    "all fixed": ("worth it", BEFORE, fails(), None),
    "six fixed of six, none broken": ("worth it", fails(range(6)), fails(), None),
    "five fixed of five are too few": ("cannot tell", fails(range(5)), fails(), None),
    "nothing changes": ("cannot tell", BEFORE, BEFORE, None),
    "nothing failed": ("cannot tell", fails(), fails(), None),
    "as many broken as fixed": ("cannot tell", BEFORE, fails(range(30, 120)), None),
    "a few more fixed than broken": ("cannot tell", BEFORE, fails(range(12, 98)), None),
    "failures rise": ("harmful", BEFORE, fails(range(0, 150)), None),
    "failures appear": ("harmful", fails(), fails(range(0, 12)), None),
    "nine fixed, two broken: interval and McNemar disagree": (
        "cannot tell",
        fails(range(0, 20)),
        fails(range(9, 20), range(50, 52)),
        None,
    ),
    "ten prompts": ("cannot tell", fails(range(0, 5), n=10), fails(range(0, 2), n=10), None),
    "one class turned into another": (
        "cannot tell",
        BEFORE,
        [None if f is None else "wrong_value" for f in BEFORE],
        None,
    ),
    "control did better": ("not worth it", BEFORE, fails(range(0, 50)), fails(range(0, 10))),
    "control did as well": ("not worth it", BEFORE, GOOD, GOOD),
    "control a little better": ("not worth it", BEFORE, fails(range(0, 30)), fails(range(0, 28))),
    "control a little worse": ("worth it", BEFORE, fails(range(0, 28)), fails(range(0, 30))),
    "control did nothing": ("worth it", BEFORE, GOOD, BEFORE),
    "control cannot save a harmful run": ("harmful", BEFORE, fails(range(0, 150)), BEFORE),
    "control better, but no change can be told": ("cannot tell", BEFORE, BEFORE, fails()),
}


@pytest.mark.parametrize("case", CASES)
def test_known_verdicts(arm, case):
    want, before, after, control = CASES[case]
    # scores follow the failures weakly, so that the failures decide
    values = [[0.9 - 0.001 * (f is not None) for f in side] if side else None for side in (before, after, control)]
    given = arm("control", control, values[2]) if control else None
    got = verdict(arm("before", before, values[0]), arm("after", after, values[1]), control=given)
    if want == "worth it" or case == "control did better":
        assert got.numbers["failures"]["difference"]["high"] < 0
    assert got.outcome == want, str(got)
    assert got.outcome in OUTCOMES


def test_a_cut_of_failures_does_not_make_up_for_a_lower_score(arm):
    # the first tries: failures -84 %, and the task's score collapsed
    after = arm("after", GOOD, [0.8 - 0.3 * (i % 3 == 0) for i in range(300)])
    got = verdict(arm("before", BEFORE, [0.8] * 300), after)
    assert got.outcome == "harmful" and "mean score falls" in got.reason
    assert got.numbers["failures"]["difference"]["high"] < 0  # the negative control: failures alone say "worth it"


def test_control_with_a_clearly_lower_score_did_not_do_as_well(arm):
    control = arm("control", fails(range(0, 20)), [0.5 if i % 2 else 0.8 for i in range(300)])
    after = arm("after", fails(range(0, 24)), [0.8] * 300)
    assert verdict(arm("before", BEFORE, [0.8] * 300), after, control=control).outcome == "worth it"


def test_control_with_a_clearly_better_score_wins(arm):
    control = arm("control", fails(range(0, 30)), [0.9 + 0.01 * (i % 3) for i in range(300)])
    got = verdict(arm("before", BEFORE, [0.7] * 300), arm("after", fails(range(0, 24)), [0.8] * 300), control=control)
    assert (got.outcome, got.reason) == ("not worth it", "the control arm is better in score")


def test_cannot_tell_names_the_smallest_difference(arm):
    got = verdict(arm("before", BEFORE), arm("after", fails(range(12, 98))))
    assert re.search(r"this test set can't detect changes smaller than \d+ points", got.reason)
    assert "would show a difference of" in got.text


def test_text_quotes_the_numbers_of_the_evaluations(arm):
    mined = ["loop", "truncated"]
    control = arm("more SFT", fails(range(0, 70)))
    got = verdict(arm("before", BEFORE), arm("after", GOOD), control=control, mined=mined)
    for part in (
        "Any failure: 90 of 300 before, 34 of 300 after (-18.7 points, 95 % interval",
        "60 were fixed and 4 broken",
        "exact McNemar p < 0.001",
        "Relative change of failures: -62.2 %",
        "Mined classes: 90 of 300 before",
        "Any failure (before: more SFT): 70 of 300 before, 34 of 300 after",
        "80 % power",
    ):
        assert part in got.text
    assert got.numbers["mined"]["before"] == 90 and got.numbers["control"]["name"] == "more SFT"
    assert json.loads(json.dumps(got.numbers, allow_nan=False)) == got.numbers
    assert got.numbers == verdict(arm("before", BEFORE), arm("after", GOOD), control=control, mined=mined).numbers


def test_mined_classes_are_reported_and_decide_nothing(arm):
    after = ["wrong_value" if f else None for f in BEFORE]
    got = verdict(arm("before", BEFORE), arm("after", after), mined=["loop"])
    assert got.outcome == "cannot tell" and got.numbers["mined"]["after"] == 0


def test_mined_classes_may_be_unseen_but_not_a_text(arm):
    before, after = arm("sft", BEFORE), arm("dpo", GOOD)
    assert verdict(before, after, mined=["echo"]).numbers["mined"]["before"] == 0  # a class that was fixed before
    with pytest.raises(WorkbenchError, match="must be a list. Got the text 'loop'"):
        verdict(before, after, mined="loop")


def test_a_clear_rise_of_the_score_counts_where_failures_stay(arm):
    """A field fixed in 30 of 90 answers that fail for another reason, too."""
    was = [0.4 if f else 1.0 for f in BEFORE]
    after = [0.5 if k < 30 else v for k, v in enumerate(was)]
    got = verdict(arm("before", BEFORE, values=was), arm("after", BEFORE, values=after))
    assert got.outcome == "worth it" and "the mean score rises clearly" in got.reason
    few = [0.5 if k < 4 else v for k, v in enumerate(was)]  # four alone could be chance: p = 0.125
    assert verdict(arm("before", BEFORE, values=was), arm("after", BEFORE, values=few)).outcome == "cannot tell"


def promised(forecast: float, target: tuple[str, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(forecast=forecast, target=target, advice="go")


def test_the_forecast_is_compared(arm):
    headroom = promised(0.6)
    got = verdict(arm("before", BEFORE), arm("after", GOOD), headroom=headroom)
    assert (
        "forecast up to 60 % fewer failures; the result is 62.2 %, and the forecast is inside the interval" in got.text
    )
    far = verdict(arm("before", BEFORE), arm("after", GOOD), headroom=promised(0.05))
    assert "outside the interval" in far.text
    none = verdict(arm("before", fails()), arm("after", fails()), headroom=headroom)
    assert "nothing to reduce" in none.text
    assert "headroom" not in verdict(arm("before", BEFORE), arm("after", GOOD)).text
    aimed = promised(0.9, ("loop",))
    text = verdict(arm("before", BEFORE), arm("after", GOOD), mined=["loop"], headroom=aimed).text
    assert "up to 90 % fewer failures of the mined classes" in text


def test_other_prompts_or_another_split_are_refused(arm):
    before = arm("before", BEFORE)
    with pytest.raises(WorkbenchError, match="example 't-0299' is not the same in both"):
        verdict(before, arm("after", GOOD[:299]))
    with pytest.raises(WorkbenchError, match="300 of receipts/dev"):
        verdict(before, arm("after", GOOD, split="dev"))
    with pytest.raises(WorkbenchError, match="same prompts of one split"):
        verdict(before, arm("after", GOOD), control=arm("control", GOOD[:10]))


def test_the_same_id_with_another_prompt_is_refused(judged):
    rows = (judged(0, None), judged(1, "loop"))
    other = (judged(0, None), judged(1, "loop").__class__(**{**vars(judged(1, "loop")), "prompt": "another"}))
    one, two = (Evaluation("x", "t", "s", "m", {}, r) for r in (rows, other))
    with pytest.raises(WorkbenchError, match="t-0001"):
        verdict(one, two)


def test_unscored_prompts_are_left_out_and_named(arm):
    rows = list(arm("after", GOOD).rows)
    rows[0] = rows[0].__class__(**{**vars(rows[0]), "value": None, "failure": None})
    after = Evaluation("after", "receipts", "test", "nano", {}, tuple(rows))
    got = verdict(arm("before", BEFORE), after)
    assert got.numbers["n"] == 299 and "1 prompts could not be scored in both arms" in got.text


def test_order_of_the_rows_does_not_matter(arm):
    after = arm("after", GOOD)
    reverse = Evaluation("after", "receipts", "test", "nano", {}, after.rows[::-1])
    assert verdict(arm("before", BEFORE), reverse).numbers == verdict(arm("before", BEFORE), after).numbers


def test_shown_as_text_and_as_escaped_html(arm):
    got = verdict(arm("<b>before", BEFORE), arm("after", GOOD), control=arm("<script>", GOOD))
    assert str(got).startswith("Not worth it: the control arm is as good.")
    html = got._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "Not worth it" in html


def test_a_rise_of_failures_has_a_positive_sign(arm):
    rise = verdict(arm("before", fails(range(50))), arm("after", fails(range(100))))
    assert "Relative change of failures: +100.0 % (95 % interval +" in rise.text

"""Result sets whose right verdict is known, one for each rule and its neighbours; and what a verdict shows."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import pytest

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation
from dpo_workbench.evaluation.verdict import verdict
from dpo_workbench.evaluation.wording import OUTCOMES
from dpo_workbench.plots.evaluation import BLUE, ORANGE


def fails(*places: range, n: int = 300, failure: str = "loop") -> list[str | None]:
    """A list of n with that failure at these places."""
    return [failure if any(i in place for place in places) else None for i in range(n)]


BEFORE = fails(range(0, 90))
GOOD = fails(range(0, 30), range(100, 104))  # 60 fixed, 4 broken
TURNED = [None if f is None else "wrong_value" for f in BEFORE]
ALONE, SAME = "helps, no control", "helps, but so does fine-tuning"

CASES = {
    "failures fall": (ALONE, BEFORE, GOOD, None),
    "six fixed of six, none broken": (ALONE, fails(range(6)), fails(), None),
    "five fixed of five are too few": ("cannot tell", fails(range(5)), fails(), None),
    "nothing changes": ("cannot tell", BEFORE, BEFORE, None),
    "a few more fixed than broken": ("cannot tell", BEFORE, fails(range(12, 98)), None),
    "failures rise": ("harmful", BEFORE, fails(range(0, 150)), None),
    "nine fixed, two broken: interval and McNemar disagree": (
        "cannot tell",
        fails(range(0, 20)),
        fails(range(9, 20), range(50, 52)),
        None,
    ),
    "ten prompts": ("cannot tell", fails(range(0, 5), n=10), fails(range(0, 2), n=10), None),
    "one class turned into another": ("a trade", BEFORE, TURNED, None),
    "control did better": (SAME, BEFORE, fails(range(0, 50)), fails(range(0, 10))),
    "control did as well": (SAME, BEFORE, GOOD, GOOD),
    "control a little better": (SAME, BEFORE, fails(range(0, 30)), fails(range(0, 28))),
    "control a little worse": (SAME, BEFORE, fails(range(0, 28)), fails(range(0, 30))),
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
    got = verdict(arm("start", before, values[0]), arm("DPO", after, values[1]), control=given)
    assert got.outcome == want, str(got)
    assert got.outcome in OUTCOMES and ("none was given" in got.lines[2]) == (control is None)


def test_a_cut_of_failures_does_not_make_up_for_a_lower_score(arm):
    # the first tries: failures -84 %, and the task's score collapsed
    after = arm("DPO", GOOD, [0.8 - 0.3 * (i % 3 == 0) for i in range(300)])
    got = verdict(arm("start", BEFORE, [0.8] * 300), after)
    assert (got.outcome, got.reason) == ("harmful", "clearly a lower score, although fewer failures")
    assert got.numbers["failures"]["difference"]["high"] < 0  # the negative control: failures alone would help


def test_a_control_with_a_clearly_lower_score_did_not_do_as_well(arm):
    control = arm("control", fails(range(0, 20)), [0.5 if i % 2 else 0.8 for i in range(300)])
    after = arm("DPO", fails(range(0, 24)), [0.8] * 300)
    got = verdict(arm("start", BEFORE, [0.8] * 300), after, control=control)
    assert got.outcome == "worth it" and "a higher score than the control" in got.reason


def test_severities_decide_between_a_trade_and_harm(arm):
    before, after = arm("start", BEFORE), arm("DPO", TURNED)
    assert verdict(before, after).outcome == "a trade"
    weighed = [replace(e, harm={"wrong_value": 3}) for e in (before, after)]
    got = verdict(*weighed)
    assert (got.outcome, got.reason) == ("harmful", "clearly more harm and more wrong_value")
    assert got.numbers["harm"]["before"] == pytest.approx(0.3) and got.numbers["harm"]["after"] == pytest.approx(0.9)
    assert got.numbers["harm"]["difference"]["estimate"] == pytest.approx(0.6)
    assert "mean harm 0.30 to 0.90 (+0.60, +0.5" in got.lines[0]
    assert "wrong_value 0 to 90 (harm 3; 100 % of the new ones were loop before)" in got.lines[1]
    assert weighed[1].mean_harm == pytest.approx(0.9) and weighed[1].summary()["harm"] == {"wrong_value": 3}
    back = verdict(*weighed[::-1])
    assert back.outcome == "a trade" and "less harm" in back.reason and "loop 0 to 90" in back.lines[1]
    with pytest.raises(WorkbenchError, match="same severities"):
        verdict(before, weighed[1])


@pytest.mark.parametrize("harm", [{"loop": -1}, {"loop": math.nan}, {"loop": math.inf}, {"loop": "3"}])
def test_a_severity_is_a_number(arm, harm):
    with pytest.raises(WorkbenchError, match="number, 0 or more. Got .*loop"):
        dw.Task("t", {}, lambda example, answer: 1.0, harm=harm)
    with pytest.raises(WorkbenchError, match="number, 0 or more"):
        replace(arm("a", BEFORE), harm=harm)


def test_severities_travel_with_the_task_and_the_file(toy_task, arm, tmp_path):
    rows = [{"q": "one", "a": "1"}]
    given = {"prompt": "q", "reference": "a", "score": "exact_match", "shares": {"test": 1.0}}
    task = dw.Task.from_jsonl(rows, **given, name="t", harm={"wrong_answer": 2})
    assert task.with_splits({}).harm == {"wrong_answer": 2} and toy_task.harm == {}
    saved = replace(arm("a", BEFORE), harm={"loop": 2}).save(tmp_path / "e.json")
    assert Evaluation.load(saved).harm == {"loop": 2}
    saved.write_text(saved.read_text().replace(', "harm": {"loop": 2}', ""))  # a file of an earlier version
    assert Evaluation.load(saved).harm == {}


def test_the_built_in_tasks_name_classes_that_exist():
    for name in dw.task_names():
        harm = dw.load_task(name).harm
        text = (dw.common.environment.data_folder() / name / "DATASHEET.md").read_text(encoding="utf-8")
        assert harm and all(f"`{failure}`" in text.partition("**Harm.**")[2] for failure in harm), name


def test_a_class_that_rises_by_chance_among_many_is_not_called_worse(arm):
    """Eight new answers in one class: p is 0.008, and Holm's correction over twelve classes makes it 0.09."""
    others = [f"class {k:02}" for k in range(10) for _ in range(5)]
    before = ["loop"] * 60 + [None] * 8 + others + [None] * 100
    after = [None] * 60 + ["wrong"] * 8 + others + [None] * 100
    got = verdict(arm("start", before), arm("DPO", after))
    seen = got.numbers["classes"]["wrong"]
    assert seen["p"] < 0.01 and seen["holm_p"] > 0.05 and got.outcome == ALONE
    few = verdict(arm("start", before[:68]), arm("DPO", after[:68]))  # the negative control: two classes
    assert few.numbers["classes"]["wrong"]["holm_p"] < 0.05 and few.outcome == "a trade"


def test_several_seeds_are_one_comparison(arm):
    start, control = arm("start", BEFORE), arm("control", fails(range(0, 70)))
    runs = [arm("DPO", fails(range(k, 30 + k))) for k in (0, 3, 6)]
    got = verdict(start, runs, control=control)
    assert got.outcome == "worth it" and got.numbers["n_seeds"] == 3 and got.numbers["failures"]["after"] == 30
    assert "means over 3 seeds" in " ".join(got.details)
    one = verdict(start, runs[0], control=control)
    width = [
        v.numbers["failures"]["difference"]["high"] - v.numbers["failures"]["difference"]["low"] for v in (got, one)
    ]
    assert width[0] >= width[1] * 0.9 and "crossed random effects" in got.numbers["failures"]["difference"]["method"]
    apart = [arm("DPO", fails(range(0, 5))), arm("DPO", fails(range(0, 88))), arm("DPO", BEFORE)]
    assert verdict(start, apart, control=control).outcome == "cannot tell"
    starts = [arm("start", fails(range(0, 90 + k))) for k in (0, 2, 4)]
    assert verdict(starts, runs, control=control).numbers["failures"]["before"] == 92
    with pytest.raises(WorkbenchError, match="one for each seed of `after`. Got 1 of before, 3 of after, 2 of control"):
        verdict(start, runs, control=[control] * 2)
    with pytest.raises(WorkbenchError, match="0 of after"):
        verdict(start, [])


def test_cannot_tell_names_the_smallest_difference(arm):
    got = verdict(arm("start", BEFORE), arm("DPO", fails(range(12, 98))))
    assert got.reason == f"this test set can't detect changes smaller than {got.numbers['sees_points']} points"
    assert "would show a difference of" in got.details[-1]


def test_three_lines_quote_the_numbers_of_the_evaluations(arm):
    mined, base = ["loop", "truncated"], arm("base", fails(range(0, 20)))
    control = arm("more SFT", fails(range(0, 70)))
    got = verdict(arm("start", BEFORE), arm("DPO", GOOD), control=control, base=base, mined=mined)
    changed, worse, against = got.lines
    assert changed.startswith("What changed: failed answers 90 to 34 of 300 (-18.7 points, 95 % interval -2")
    assert worse == "What got worse: nothing clearly."
    assert "Against the control: a clear lead; failed answers 34 of 300 instead of 70 (-12.0 points" in against
    assert "The base model is better than what training gave: failed answers 20 of 300 at base and 34" in against
    assert "60 were fixed and 4 broken" in got.details[0] and "80 % power" in got.details[0]
    header, *rows = got.table
    assert header == ("", "base", "start", "more SFT", "DPO", "DPO - start", "DPO - more SFT")
    assert [row[:5] for row in rows[:2]] == [
        ("failed of 300", "20", "90", "70", "34"),
        ("loop", "20", "90", "70", "34"),
    ]
    assert rows[0][5].endswith(" *") and rows[-1][0] == "mean score"
    assert got.numbers["mined"]["before"] == 90 and got.numbers["control"]["name"] == "more SFT"
    assert json.loads(json.dumps(got.numbers, allow_nan=False)) == got.numbers


def test_numbers_from_a_results_file_give_the_same_text(arm):
    got = verdict(arm("start", BEFORE), arm("DPO", TURNED[:-5] + ["wrong_value"] * 5))
    assert "95 % of the new ones were loop before" in got.lines[1]
    stored = json.loads(json.dumps(got.numbers, sort_keys=True))  # as in results.json
    assert str(replace(got, numbers=stored)) == str(got)


def test_an_arm_that_is_missing_is_a_marked_hole(arm):
    got = verdict(arm("start", BEFORE), arm("DPO", GOOD))
    header, failed, *_ = got.table
    assert header[1] == "base" and failed[1] == "–" and header[3] == "control" and failed[3] == failed[6] == "–"
    one = verdict(arm("start", ["loop"]), arm("DPO", [None]))
    assert one.outcome == "cannot tell" and one.numbers["failures"]["difference"]["method"].startswith("one group")


def test_a_class_of_one_arm_alone_is_in_the_table(arm):
    got = verdict(arm("start", BEFORE), arm("DPO", GOOD), base=arm("base", fails(range(9), failure="echo")))
    echo = next(row for row in got.table if row[0] == "echo")
    assert echo[1:6] == ("9", "0", "–", "0", "")


def test_mined_classes_are_reported_and_decide_nothing(arm):
    got = verdict(arm("start", BEFORE), arm("DPO", TURNED), mined=["loop"])
    assert got.outcome == "a trade" and got.numbers["mined"]["after"] == 0
    assert got.outcome == verdict(arm("start", BEFORE), arm("DPO", TURNED)).outcome


def test_mined_classes_may_be_unseen_but_not_a_text(arm):
    before, after = arm("start", BEFORE), arm("DPO", GOOD)
    assert verdict(before, after, mined=["echo"]).numbers["mined"]["before"] == 0  # a class that was fixed before
    with pytest.raises(WorkbenchError, match="must be a list. Got the text 'loop'"):
        verdict(before, after, mined="loop")


def test_a_clear_rise_of_the_score_counts_where_failures_stay(arm):
    """A field fixed in 30 of 90 answers that fail for another reason, too."""
    was = [0.4 if f else 1.0 for f in BEFORE]
    after = [0.5 if k < 30 else v for k, v in enumerate(was)]
    got = verdict(arm("start", BEFORE, values=was), arm("DPO", BEFORE, values=after))
    assert got.outcome == ALONE and got.reason.startswith("clearly a higher score; no control")
    few = [0.5 if k < 4 else v for k, v in enumerate(was)]  # four alone could be chance: p = 0.125
    assert verdict(arm("start", BEFORE, values=was), arm("DPO", BEFORE, values=few)).outcome == "cannot tell"


def test_the_forecast_is_compared(arm):
    def promised(forecast: float, target: tuple[str, ...] = ()) -> SimpleNamespace:
        return SimpleNamespace(forecast=forecast, target=target, advice="go")

    before, after = arm("start", BEFORE), arm("DPO", GOOD)
    got = verdict(before, after, headroom=promised(0.6))
    assert "The headroom forecast up to 60 % fewer failures. The result is 62.2 %." in got.details
    none = verdict(arm("start", fails()), arm("DPO", fails()), headroom=promised(0.6))
    assert "headroom" not in " ".join(none.details) and none.numbers["forecast"]["seen_cut"] is None
    aimed = verdict(before, after, mined=["loop"], headroom=promised(0.9, ("loop",)))
    assert "up to 90 % fewer failures of the mined classes" in " ".join(aimed.details)


def test_other_prompts_or_another_split_are_refused(arm):
    before = arm("start", BEFORE)
    with pytest.raises(WorkbenchError, match="such as 't-0299'"):
        verdict(before, arm("DPO", GOOD[:299]))
    with pytest.raises(WorkbenchError, match="300 of receipts/dev"):
        verdict(before, arm("DPO", GOOD, split="dev"))
    with pytest.raises(WorkbenchError, match="same prompts of one split"):
        verdict(before, arm("DPO", GOOD), control=arm("control", GOOD[:10]))
    with pytest.raises(WorkbenchError, match="same prompts of one split"):
        verdict(before, arm("DPO", GOOD), base=arm("base", GOOD[:10]))


def test_the_same_id_with_another_prompt_is_refused(judged):
    rows = (judged(0, None), judged(1, "loop"))
    other = (judged(0, None), replace(judged(1, "loop"), prompt="another"))
    one, two = (Evaluation("x", "t", "s", "m", {}, r) for r in (rows, other))
    with pytest.raises(WorkbenchError, match="t-0001"):
        verdict(one, two)


def test_an_id_that_occurs_twice_is_refused(judged):
    rows = (judged(0, None), judged(1, "loop"), judged(1, None))
    with pytest.raises(WorkbenchError, match="ids must differ. Got 't-0001' twice in receipts/dev"):
        Evaluation("x", "receipts", "dev", "m", {}, rows)


def test_unscored_prompts_are_left_out_of_every_arm_and_named(arm):
    rows = list(arm("DPO", GOOD).rows)
    rows[0] = replace(rows[0], value=None, failure=None)
    after = Evaluation("DPO", "receipts", "test", "nano", {}, tuple(rows))
    got = verdict(arm("start", BEFORE), after, control=arm("control", BEFORE))
    assert got.numbers["n"] == got.numbers["control"]["n"] == 299
    assert "1 prompts could not be scored in every arm" in " ".join(got.details)


def test_order_of_the_rows_does_not_matter(arm):
    after = arm("DPO", GOOD)
    reverse = Evaluation("DPO", "receipts", "test", "nano", {}, after.rows[::-1])
    assert verdict(arm("start", BEFORE), reverse).numbers == verdict(arm("start", BEFORE), after).numbers


def test_shown_as_text_and_as_escaped_html_with_details_folded(arm):
    got = verdict(arm("<b>before", BEFORE), arm("DPO", GOOD), control=arm("<script>", GOOD))
    head, *lines = str(got).split("\n")
    assert (
        head
        == got.line
        == "Helps, but so does fine-tuning: clearly fewer failures and a higher score than before, but "
        "no clear lead over the control."
    )
    assert [line.split(":")[0] for line in lines[:3]] == ["What changed", "What got worse", "Against the control"]
    html = got._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and html.count("<table") == 1
    assert html.index("Against the control") < html.index("<details") < html.index("80 % power")


def test_one_picture_shows_each_class_against_start_and_control(arm):
    matplotlib.use("Agg")
    before, after, control = (replace(arm(n, f), harm={"wrong_value": 3}) for n, f in
                              (("start", BEFORE), ("DPO", TURNED), ("control", GOOD)))  # fmt: skip
    got = verdict(before, after, control=control)
    display = got.plot()
    shown = {(row.name, row.sides): row for row in display.rows}
    rose = shown["wrong_value (harm 3)", "DPO minus start"]
    assert rose.estimate == pytest.approx(30) and rose.low < 30 < rose.high and rose.clear
    assert shown["any failure", "DPO minus start"].clear is False and ("loop (harm 1)", "DPO minus control") in shown
    faces = {
        (p.get_marker(), p.get_markerfacecolor()) for p in display.figure_.axes[0].lines if p.get_marker() in ("o", "s")
    }
    assert {("o", BLUE), ("o", "white"), ("s", ORANGE)} <= faces
    assert [text.get_text() for text in display.figure_.axes[0].get_legend().get_texts()] == [
        "DPO minus start",
        "DPO minus control",
    ]
    assert (
        got.line in str(display)
        and "+30.0" in str(display)
        and display.figure_.axes[0].get_title(loc="left") == got.line
    )
    alone = verdict(before, after).plot()
    assert {row.sides for row in alone.rows} == {"DPO minus start"}
    nothing = verdict(arm("start", fails()), arm("DPO", fails())).plot()
    assert [row.name for row in nothing.rows] == ["any failure"]
    plt.close("all")

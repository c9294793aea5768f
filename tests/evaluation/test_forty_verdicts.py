"""Result sets whose right verdict and next step are known by how they were made: all 41 must be right."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from dpo_workbench.evaluation.statistics import Interval
from dpo_workbench.evaluation.verdict import verdict
from dpo_workbench.evaluation.wording import NEXT
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.studies.side_effects import Effect, SideEffects

pytestmark = pytest.mark.slow


@dataclass
class Arm:
    """`failed` prompts from the start fail, then `broken` more from the end; scores are 1 and `low`."""

    failed: int
    broken: int = 0
    low: float = 0.4
    top: float = 1.0
    shift: int = 0  # where the failures begin


@dataclass
class Case:
    outcome: str
    following: str
    before: Arm
    after: Arm
    n: int = 200
    control: Arm | None = None
    group: int = 1  # prompts of a group
    facts: dict = field(default_factory=dict)


def pairs(n: int, words: bool) -> Pairs:
    """n pairs; with `words` the chosen answer is always the shorter, without no rule can tell."""
    made = []
    for k in range(n):
        chosen, rejected = ("a b", "a b c") if words or k % 2 else ("a b c", "a b")
        made.append(Pair(f"p{k}", f"q{k}", chosen, rejected, group=f"g{k}"))
    return Pairs(made)


def effect(name: str, change: float, half: float, least: float = 0.02) -> Effect:
    interval = Interval(change, change - half, change + half, "made up", 48, 48)
    return Effect(name, "score", 0.5, 0.5 + change, interval, least)


def headroom(advice: str, forecast: float = 0.5) -> SimpleNamespace:
    return SimpleNamespace(forecast=forecast, target=(), advice=advice)


CLEAN, SHORT, MANY = pairs(60, False), pairs(60, True), pairs(400, False)
HURT = SideEffects((effect("task science", -0.1, 0.03), effect("task sql", 0.01, 0.02)))
FINE = SideEffects((effect("task science", -0.1, 0.2), effect("plain text", -0.01, 0.002)))

CASES = {
    # worth it
    "a third fixed": Case("worth it", "keep", Arm(90), Arm(30)),
    "all fixed": Case("worth it", "keep", Arm(60), Arm(0)),
    "twelve fixed of twelve": Case("worth it", "keep", Arm(12), Arm(0)),
    "much fixed, a little broken": Case("worth it", "keep", Arm(90), Arm(30, broken=6)),
    "few prompts, great change": Case("worth it", "keep", Arm(30), Arm(3), n=40),
    "whole groups fixed": Case("worth it", "keep", Arm(120), Arm(20), group=4),
    "a rise of the score alone": Case("worth it", "keep", Arm(100), Arm(100, low=0.7)),
    "the control did nothing": Case("worth it", "keep", Arm(90), Arm(30), control=Arm(90)),
    "the control did a little less": Case("worth it", "keep", Arm(90), Arm(30), control=Arm(33)),
    "a shortcut that did no harm": Case("worth it", "keep", Arm(90), Arm(30), facts={"pairs": SHORT}),
    "at a price": Case("worth it", "keep", Arm(90), Arm(30), facts={"effects": HURT}),
    "effects that are not clear": Case("worth it", "keep", Arm(90), Arm(30), facts={"effects": FINE}),
    "the forecast was pessimistic": Case(
        "worth it", "keep", Arm(90), Arm(30), facts={"headroom": headroom("train more first", 0.1)}
    ),
    # not worth it
    "the control did better": Case("not worth it", "take the control", Arm(90), Arm(50), control=Arm(10)),
    "the control did as well": Case("not worth it", "take the control", Arm(90), Arm(30), control=Arm(30)),
    "the control did a little better": Case("not worth it", "take the control", Arm(90), Arm(30), control=Arm(27)),
    "the control scores higher": Case("not worth it", "take the control", Arm(120), Arm(80), control=Arm(80, low=0.8)),
    "the control as well in groups": Case(
        "not worth it", "take the control", Arm(120), Arm(20), control=Arm(20), group=4
    ),
    "control as well, clean pairs": Case(
        "not worth it", "take the control", Arm(90), Arm(30), control=Arm(30), facts={"pairs": CLEAN}
    ),
    # harmful
    "failures rise": Case("harmful", "change loss", Arm(30), Arm(90)),
    "failures appear": Case("harmful", "change loss", Arm(0), Arm(15)),
    "the score falls while failures fall": Case("harmful", "change loss", Arm(90), Arm(60, top=0.6)),
    "the score falls alone": Case("harmful", "change loss", Arm(90), Arm(90, low=0.1)),
    "whole groups broken": Case("harmful", "change loss", Arm(20), Arm(120), group=4),
    "harm from a shortcut": Case("harmful", "clean pairs", Arm(30), Arm(90), facts={"pairs": SHORT}),
    "harm from clean pairs": Case("harmful", "change loss", Arm(30), Arm(90), facts={"pairs": CLEAN}),
    "a control does not save it": Case("harmful", "change loss", Arm(30), Arm(90), control=Arm(30)),
    "harm and a price": Case("harmful", "change loss", Arm(30), Arm(90), facts={"effects": HURT}),
    # cannot tell
    "nothing failed": Case("cannot tell", "stop", Arm(0), Arm(0)),
    "three fixed of three": Case("cannot tell", "more prompts", Arm(3), Arm(0), n=30),
    "a little better": Case("cannot tell", "more prompts", Arm(90), Arm(80, broken=5)),
    "few prompts, some change": Case("cannot tell", "more prompts", Arm(10), Arm(6), n=20),
    "one group": Case("cannot tell", "look again", Arm(90), Arm(30), group=200),
    "as many broken as fixed": Case("cannot tell", "look again", Arm(60), Arm(60, shift=60)),
    "no skill": Case(
        "cannot tell", "fine-tune first", Arm(90), Arm(90), facts={"headroom": headroom("train more first")}
    ),
    "no failures to learn from": Case(
        "cannot tell", "stop", Arm(2), Arm(2), facts={"headroom": headroom("nothing to fix")}
    ),
    "few pairs, no change": Case("cannot tell", "label more", Arm(60), Arm(60, shift=60), facts={"pairs": CLEAN}),
    "few pairs, the start was kept": Case(
        "cannot tell", "see the probes", Arm(60), Arm(60), facts={"pairs": CLEAN, "headroom": headroom("go")}
    ),
    "shortcut, no change": Case("cannot tell", "clean pairs", Arm(60), Arm(60, shift=60), facts={"pairs": SHORT}),
    "many pairs and prompts, no change": Case(
        "cannot tell", "stop", Arm(90), Arm(90), n=400, facts={"pairs": MANY, "headroom": headroom("go")}
    ),
    "many pairs, great swings": Case("cannot tell", "look again", Arm(60), Arm(60, shift=60), facts={"pairs": MANY}),
}


def answered(make, name: str, arm: Arm, n: int, group: int):
    from dpo_workbench.evaluation.run import Evaluation

    bad = {(arm.shift + k) % n for k in range(arm.failed)} | {n - 1 - k for k in range(arm.broken)}
    rows = tuple(
        make(i, "wrong" if i in bad else None, arm.low if i in bad else arm.top, group=f"g{i // group}")
        for i in range(n)
    )
    return Evaluation(name, "receipts", "test", "nano", {}, rows)


def test_there_are_forty_one():
    assert len(CASES) == 41
    assert {case.following for case in CASES.values()} == set(NEXT)


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_the_known_one(judged, name):
    case = CASES[name]
    before, after = (answered(judged, w, a, case.n, case.group) for w, a in (("sft", case.before), ("dpo", case.after)))
    control = answered(judged, "control", case.control, case.n, case.group) if case.control else None
    got = verdict(before, after, control=control, **case.facts)
    assert (got.outcome, got.next_step) == (case.outcome, case.following), str(got)
    assert NEXT[case.following].split(":")[0] in got.text


def test_equal_answers_are_named_and_equal_scores_are_not(judged):
    before, after = (answered(judged, name, Arm(60), 200, 1) for name in ("sft", "dpo"))
    assert verdict(before, after).reason == "every answer is the same as before"
    other = replace(after, rows=tuple(replace(row, answer=f"{row.answer} again") for row in after.rows))
    assert verdict(before, other).reason.startswith("this test set can't detect changes smaller than")


def test_a_regression_is_in_the_reason_and_in_the_text(judged):
    case = CASES["at a price"]
    before, after = (answered(judged, w, a, case.n, 1) for w, a in (("sft", case.before), ("dpo", case.after)))
    got = verdict(before, after, effects=HURT)
    assert "at a price: worse in task science" in got.reason
    assert "task science 0.500 before, 0.400 after" in got.text and "task sql" not in got.text
    fine = verdict(before, after, effects=FINE)
    assert "price" not in fine.reason and "none of 2 measures is clearly worse" in fine.text


def test_one_prompt_and_equal_arms_cannot_tell(judged):
    one = answered(judged, "sft", Arm(1), 1, 1), answered(judged, "dpo", Arm(0), 1, 1)
    got = verdict(*one)
    assert got.outcome == "cannot tell" and "1 of 1 before, 0 of 1 after" in got.text
    assert got.numbers["failures"]["difference"]["low"] == -1 and got.numbers["smallest_detectable"] == 1
    same = verdict(answered(judged, "sft", Arm(200), 200, 1), answered(judged, "dpo", Arm(200), 200, 1))
    assert same.outcome == "cannot tell" and same.numbers["score"]["difference"]["low"] < 0


@pytest.mark.parametrize("value", [float("nan"), 2.0, -0.1, float("inf")])
def test_a_score_that_is_none_is_refused_with_its_prompt(judged, value):
    from dpo_workbench.common.errors import WorkbenchError
    from dpo_workbench.evaluation.run import Evaluation

    with pytest.raises(WorkbenchError, match="t-0001"):
        Evaluation("a", "t", "dev", "m", {}, (judged(0, None), judged(1, None, value)))

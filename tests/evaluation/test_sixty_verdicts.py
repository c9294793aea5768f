"""Result sets whose right outcome and next step are known by how they were made: all 64 must be right."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation
from dpo_workbench.evaluation.statistics import Interval
from dpo_workbench.evaluation.verdict import verdict
from dpo_workbench.evaluation.wording import NEXT, OUTCOMES
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

    def failures(self, n: int) -> list[str | None]:
        bad = {(self.shift + k) % n for k in range(self.failed)} | {n - 1 - k for k in range(self.broken)}
        return ["wrong" if i in bad else None for i in range(n)]


class Classes:
    """Failure classes prompt by prompt: `Classes("blank", 30, None, 20, "wrong", 5)`; all others pass."""

    low, top = 0.4, 1.0

    def __init__(self, *layout):
        self.layout = [name for name, n in zip(layout[::2], layout[1::2], strict=True) for _ in range(n)]

    def failures(self, n: int) -> list[str | None]:
        return self.layout + [None] * (n - len(self.layout))


@dataclass
class Case:
    outcome: str
    following: str
    before: Arm | Classes
    after: Arm | Classes | list  # a list has one for each seed
    n: int = 200
    control: Arm | Classes | None = None
    base: Arm | Classes | None = None
    group: int = 1  # prompts of a group
    harm: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    told: str = ""  # is in the text


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
WORTH, SAME, ALONE = "worth it", "helps, but so does fine-tuning", "helps, no control"
TWELVE = [part for k in range(12) for part in (f"class {k:02}", 5)]  # five answers of each of twelve classes
OTHERS = [part for k in range(10) for part in (f"class {k:02}", 5)]

CASES = {
    # without a control, training can help, but nobody can tell whether DPO was needed
    "two thirds fixed": Case(ALONE, ALONE, Arm(90), Arm(30), told="can't tell whether DPO was needed"),
    "all fixed": Case(ALONE, ALONE, Arm(60), Arm(0)),
    "twelve fixed of twelve": Case(ALONE, ALONE, Arm(12), Arm(0)),
    "much fixed, a little broken": Case(ALONE, ALONE, Arm(90), Arm(30, broken=6)),
    "few prompts, great change": Case(ALONE, ALONE, Arm(30), Arm(3), n=40),
    "whole groups fixed": Case(ALONE, ALONE, Arm(120), Arm(20), group=4),
    "a rise of the score alone": Case(ALONE, ALONE, Arm(100), Arm(100, low=0.7)),
    "a shortcut that did no harm": Case(ALONE, ALONE, Arm(90), Arm(30), facts={"pairs": SHORT}),
    "effects that are not clear": Case(ALONE, ALONE, Arm(90), Arm(30), facts={"effects": FINE}),
    "the forecast was pessimistic": Case(
        ALONE, ALONE, Arm(90), Arm(30), facts={"headroom": headroom("train more first", 0.1)}
    ),
    # worth it: a clear lead over the control
    "the control did nothing": Case(WORTH, WORTH, Arm(90), Arm(30), control=Arm(90)),
    "the control did half": Case(WORTH, WORTH, Arm(90), Arm(30), control=Arm(60), told="a clear lead"),
    "a lead in groups": Case(WORTH, WORTH, Arm(120), Arm(20), control=Arm(80), group=4),
    "a lead in the score alone": Case(WORTH, WORTH, Arm(100), Arm(60), control=Arm(60, low=0.1)),
    "a lead in harm alone": Case(
        WORTH,
        WORTH,
        Classes("invented", 60, "other", 40),
        Classes(None, 30, *TWELVE[:12], "other", 40),
        control=Classes(None, 30, "invented", 30, "other", 40),
        harm={"invented": 3},
        told="less harm than the control",
    ),
    "a lead with three seeds": Case(WORTH, WORTH, Arm(90), [Arm(30), Arm(32), Arm(28)], control=Arm(70)),
    # helps, but so does fine-tuning
    "the control did a little less": Case(SAME, SAME, Arm(90), Arm(30), control=Arm(33), told="no clear lead"),
    "the control did better": Case(
        SAME, SAME, Arm(90), Arm(50), control=Arm(10), told="clearly worse; failed answers 50 of"
    ),
    "the control did as well": Case(SAME, SAME, Arm(90), Arm(30), control=Arm(30)),
    "the control did a little better": Case(SAME, SAME, Arm(90), Arm(30), control=Arm(27), told="no clear lead"),
    "the control scores higher": Case(SAME, SAME, Arm(120), Arm(80), control=Arm(80, low=0.8)),
    "the control as well in groups": Case(SAME, SAME, Arm(120), Arm(20), control=Arm(20), group=4),
    "control as well, clean pairs": Case(SAME, SAME, Arm(90), Arm(30), control=Arm(30), facts={"pairs": CLEAN}),
    "fewer failures but a lower score than the control": Case(
        SAME, SAME, Arm(120, top=0.6), Arm(40, top=0.8), control=Arm(80, top=1.0), told="a lower score than the control"
    ),
    "less harm, and so does the control": Case(
        SAME,
        SAME,
        Classes("invented", 60),
        Classes("invented", 20),
        control=Classes("invented", 22),
        harm={"invented": 3},
    ),
    # a trade: something is clearly better, and a class or a side effect is clearly worse
    "at a price": Case("a trade", "a trade", Arm(90), Arm(30), facts={"effects": HURT}, told="worse in task science"),
    "a price with a clear lead": Case("a trade", "a trade", Arm(90), Arm(30), control=Arm(90), facts={"effects": HURT}),
    "a class rises": Case(
        "a trade",
        "a trade",
        Classes("blank", 60),
        Classes("invented", 25),
        told="invented 0 to 25 (harm 1; 100 % of the new ones were blank before)",
    ),
    "a class rises, with a clear lead": Case(
        "a trade", "a trade", Classes("blank", 60), Classes("invented", 25), control=Classes("blank", 60)
    ),
    "a class rises that is a little worse": Case(
        "a trade", "a trade", Classes("blank", 60), Classes("invented", 25), harm={"invented": 2}
    ),
    "blanks become inventions, equally bad": Case(
        "a trade", "a trade", Classes("blank", 60), Classes("invented", 60), told="fewer blank, but more invented"
    ),
    "inventions become blanks": Case(
        "a trade", "a trade", Classes("invented", 60), Classes("blank", 60), harm={"invented": 3}, told="less harm"
    ),
    "eight new ones in one of two classes": Case(
        "a trade", "a trade", Classes("blank", 60), Classes(None, 60, "invented", 8), control=Classes("blank", 60)
    ),
    # ... which is no clear rise where twelve classes are looked at
    "eight new ones in one of twelve classes": Case(
        WORTH,
        WORTH,
        Classes("blank", 60, None, 8, *OTHERS),
        Classes(None, 60, "invented", 8, *OTHERS),
        control=Classes("blank", 60, None, 8, *OTHERS),
        told="What got worse: nothing clearly",
    ),
    "five new ones in each of twelve classes": Case(
        WORTH, WORTH, Classes("loop", 120), Classes(None, 60, *TWELVE), control=Classes("loop", 120)
    ),
    "less harm in twelve classes": Case(
        WORTH, WORTH, Classes("loop", 60), Classes(*TWELVE), control=Classes("loop", 60), harm={"loop": 3}
    ),
    # harmful
    "failures rise": Case("harmful", "harmful", Arm(30), Arm(90)),
    "failures appear": Case("harmful", "harmful", Arm(0), Arm(15)),
    "the score falls while failures fall": Case(
        "harmful", "harmful", Arm(90), Arm(60, top=0.6), told="a lower score, although fewer failures"
    ),
    "the score falls alone": Case("harmful", "harmful", Arm(90), Arm(90, low=0.1)),
    "whole groups broken": Case("harmful", "harmful", Arm(20), Arm(120), group=4),
    "harm from a shortcut": Case("harmful", "clean pairs", Arm(30), Arm(90), facts={"pairs": SHORT}),
    "harm from clean pairs": Case("harmful", "harmful", Arm(30), Arm(90), facts={"pairs": CLEAN}),
    "a control does not save it": Case("harmful", "harmful", Arm(30), Arm(90), control=Arm(30)),
    "harm and a price": Case("harmful", "harmful", Arm(30), Arm(90), facts={"effects": HURT}),
    "a price and no gain": Case("harmful", "harmful", Arm(60), Arm(60), facts={"effects": HURT}),
    "a class rises that is much worse": Case(
        "harmful",
        "harmful",
        Classes("blank", 60),
        Classes("invented", 30),
        harm={"invented": 5},
        told="more harm and more invented, although fewer failures",
    ),
    "blanks become inventions, three times as bad": Case(
        "harmful", "harmful", Classes("blank", 60), Classes("invented", 60), harm={"invented": 3}
    ),
    "worse than the base": Case("harmful", "harmful", Arm(60), Arm(90), base=Arm(30), told="30 of 200 at base and 90"),
    # the base decides nothing
    "the base is better than both": Case(
        WORTH, WORTH, Arm(90), Arm(30), control=Arm(60), base=Arm(20), told="20 of 200 at base and 30 after training"
    ),
    "the base is worse than both": Case(WORTH, WORTH, Arm(90), Arm(30), control=Arm(60), base=Arm(150)),
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
    "the start was kept": Case("cannot tell", "see the probes", Arm(60), Arm(60), facts={"headroom": headroom("go")}),
    "shortcut, no change": Case("cannot tell", "clean pairs", Arm(60), Arm(60, shift=60), facts={"pairs": SHORT}),
    "great swings": Case("cannot tell", "look again", Arm(60), Arm(60, shift=60), facts={"pairs": MANY}),
    "no clear change, and the control is better": Case(
        "cannot tell", "look again", Arm(90), Arm(90, 2), control=Arm(9)
    ),
    "seeds that disagree": Case(
        "cannot tell", "look again", Arm(90), [Arm(90), Arm(10), Arm(88)], control=Arm(90), told="can't detect"
    ),
}


def answered(make, name: str, arm, case: Case) -> Evaluation:
    failures = arm.failures(case.n)
    rows = tuple(
        make(i, failure, arm.low if failure else arm.top, group=f"g{i // case.group}")
        for i, failure in enumerate(failures)
    )
    return Evaluation(name, "receipts", "test", "nano", {}, rows, harm=case.harm)


def decide(make, case: Case):
    arms = {"start": case.before, "control": case.control, "base": case.base}
    made = {name: answered(make, name, arm, case) for name, arm in arms.items() if arm}
    runs = [answered(make, "DPO", arm, case) for arm in (case.after if isinstance(case.after, list) else [case.after])]
    return verdict(made.pop("start"), runs, **made, **case.facts)


def test_there_are_sixty_four():
    assert len(CASES) == 64
    assert {case.following for case in CASES.values()} == set(NEXT)
    assert {case.outcome for case in CASES.values()} == set(OUTCOMES)


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_the_known_one(judged, name):
    case = CASES[name]
    got = decide(judged, case)
    assert (got.outcome, got.next_step) == (case.outcome, case.following), str(got)
    assert case.told in str(got) and got.details[-1].startswith(f"Next: {NEXT[case.following][:9]}")
    base_is_better = "The base model is better than what training gave" in str(got)
    assert base_is_better == (name in ("the base is better than both", "worse than the base"))


def test_equal_answers_are_named_and_equal_scores_are_not(judged):
    case = Case("cannot tell", "", Arm(60), Arm(60))
    before, after = (answered(judged, name, Arm(60), case) for name in ("start", "DPO"))
    assert verdict(before, after).reason == "every answer is the same as before"
    other = replace(after, rows=tuple(replace(row, answer=f"{row.answer} again") for row in after.rows))
    assert verdict(before, other).reason.startswith("this test set can't detect changes smaller than")


def test_a_regression_is_in_the_lines(judged):
    got = decide(judged, CASES["at a price"])
    assert "task science 0.500 before, 0.400 after" in got.lines[1] and "task sql" not in str(got)
    fine = decide(judged, CASES["effects that are not clear"])
    assert "task" not in str(fine) and "Side effects: none of 2 measures clearly worse." in fine.details


def test_one_prompt_and_equal_arms_cannot_tell(judged):
    case = Case("cannot tell", "", Arm(1), Arm(0), n=1)
    got = decide(judged, case)
    assert (
        got.outcome == "cannot tell"
        and "failed answers 1 to 0 of 1 (-100.0 points, 95 % interval -100.0" in got.lines[0]
    )
    assert got.numbers["failures"]["difference"]["low"] == -1 and got.numbers["smallest_detectable"] == 1
    same = decide(judged, Case("cannot tell", "", Arm(200), Arm(200)))
    assert same.outcome == "cannot tell" and same.numbers["score"]["difference"]["low"] < 0


@pytest.mark.parametrize("value", [float("nan"), 2.0, -0.1, float("inf")])
def test_a_score_that_is_none_is_refused_with_its_prompt(judged, value):
    with pytest.raises(WorkbenchError, match="t-0001"):
        Evaluation("a", "t", "dev", "m", {}, (judged(0, None), judged(1, None, value)))

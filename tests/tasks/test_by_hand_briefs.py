"""A hundred answers to `briefs`, judged by hand: summaries in other words, and near misses."""

import pytest

from dpo_workbench.tasks import briefs, summary_scores
from dpo_workbench.tasks.task import Example

NOTES = {
    "pump": (
        "Pump check, 4 May\n- flow: 42 L/min\n- checked by: Okoye\n- pump: P17\n- limit: 120 L/min\n- temperature: 31 C\n"
        "- oil: low\n- place: dock 7", 12, ["P17", "42 L/min", "Okoye"],
        [
            ("Okoye found pump P17 at 42 L/min.", None),
            ("Pump P17: 42 L/min, checked by Okoye.", None),
            ("okoye measured 42 l/min on p17", None),
            ("42 litres per minute at pump P17, says Okoye.", None),
            ("42 L per min flow at P17 (Okoye)", None),
            ("On 4 May Okoye saw P17 run at 42 L/min, oil low.", None),
            ("P17 at dock 7 gave Okoye 42 L / min.", None),
            ("Okoye: P17 flows 42.0 L/min", None),
            ("Okoye checked the pump, 42 L/min.", "missing_fact"),
            ("Pump P17 runs at 42 L/min.", "missing_fact"),
            ("Okoye checked pump P17.", "missing_fact"),
            ("Okoye found pump P17 at 120 L/min.", "missing_fact"),
            ("Okoye found pump P17 at 42.", "missing_fact"),
            ("Okoye found pump P71 at 42 L/min.", "invented_fact"),
            ("Okoye found pump P17 at 24 L/min.", "invented_fact"),
            ("Okoye found pump P17 at 42 L/min, 35 % of its limit.", "invented_fact"),
            ("Okoye and Ibsen found pump P17 at 42 L/min.", "invented_fact"),
            ("At dock 9 Okoye found pump P17 at 42 L/min.", "invented_fact"),
            ("Pump check on 4 May: Okoye found that pump P17 was running at 42 L/min.", "too_long"),
            ("flow 42 L/min checked by Okoye pump P17 limit 120 L/min", "copied"),
            ("pump P17 42 L/min Okoye pump P17 42 L/min Okoye again", None),
            ("P 17, 42 L/min, Okoye", None),
            ("Okoye found pump P17 at 420 L/min.", "invented_fact"),
            ("Okoye found pump P17 at 42 mL/min.", "missing_fact"),
            ("Nothing to report.", "missing_fact"),
        ],
    ),
    "meeting": (
        "Meeting, 9 June\nchair = Haddad\npresent = 11\nnext = in 2 weeks\ntopic = budget\ndecision = postponed\nroom = 8\n"
        "ended = 18:10", 14, ["budget", "Haddad", "postponed", ["in 2 weeks", "2 weeks"]],
        [
            ("Haddad had the budget postponed; next meeting in 2 weeks.", None),
            ("Budget postponed by Haddad, 2 weeks until the next meeting.", None),
            ("The budget was postponed, Haddad meets again after 2 weeks.", None),
            ("haddad: budget postponed, in 2 weeks again", None),
            ("With 11 present, Haddad postponed the budget for 2 weeks.", None),
            ("Haddad postponed the budget.", "missing_fact"),
            ("The budget is postponed; next meeting in 2 weeks.", "missing_fact"),
            ("Haddad had the budget approved; next meeting in 2 weeks.", "missing_fact"),
            ("Haddad had the budget postponed; next meeting in 3 weeks.", "invented_fact"),
            ("Haddad had the budget postponed; next meeting in 2 months.", "missing_fact"),
            ("Haddad had hiring postponed; next meeting in 2 weeks.", "missing_fact"),
            ("Haddad and Castro had the budget postponed; next meeting in 2 weeks.", "invented_fact"),
            ("With 12 present, Haddad postponed the budget for 2 weeks.", "invented_fact"),
            ("On 9 June the meeting led by Haddad postponed the budget, next one in 2 weeks.", "too_long"),
            ("chair Haddad present 11 next in 2 weeks topic budget decision postponed", "copied"),
            ("Haddad had the budget post-poned; next meeting in 2 weeks.", "missing_fact"),
            ("In two weeks Haddad meets on the postponed budget.", None),
            ("Haddad's budget meeting was postponed, 2 weeks.", None),
            ("BUDGET POSTPONED, HADDAD, 2 WEEKS", None),
            ("The meeting ended at 18:10.", "missing_fact"),
            ("The meeting ended at 18:30 with Haddad, budget postponed, 2 weeks.", "invented_fact"),
            ("Haddad, budget, postponed, 2 weeks, room 8, 9 June", None),
            ("Haddad, budget, postponed, 2 weeks, room 8, 10 June", "invented_fact"),
            ("The budget decision postponed by the chair Haddad waits 2 weeks.", None),
            ("budget", "missing_fact"),
        ],
    ),
    "delivery": (
        "Delivery (2 August)\n* order 4310\n* carrier Nowak\n* damaged 3 damaged\n* weight 310 kg\n* boxes 24 boxes\n* dock 5\n"
        "* arrived 09:40", 11, ["4310", "24 boxes", ["3 damaged", "damaged 3", "3 were damaged", "3 are damaged"]],
        [
            ("Order 4310: 24 boxes came, 3 damaged.", None),
            ("24 boxes for order 4310, of which 3 were damaged.", None),
            ("4310 came with 24 boxes; 3 are damaged.", None),
            ("Nowak brought 24 boxes of order 4310, 3 damaged.", None),
            ("Order 4,310: 24 boxes, 3 damaged", None),
            ("Order 4310 (310 kg): 24 boxes, 3 damaged.", None),
            ("At 09:40 order 4310 came: 24 boxes, 3 damaged.", None),
            ("Order 4310: 24 boxes came.", "missing_fact"),
            ("Order 4310 came, 3 damaged.", "missing_fact"),
            ("24 boxes came, 3 damaged.", "missing_fact"),
            ("Order 4310: 21 boxes whole, 3 damaged.", "invented_fact"),
            ("Order 4310: 24 boxes came, 4 damaged.", "invented_fact"),
            ("Order 4301: 24 boxes came, 3 damaged.", "invented_fact"),
            ("Order 4310: 24 crates came, 3 damaged.", "missing_fact"),
            ("Order 4310: 24 boxes came, none damaged.", "missing_fact"),
            ("Order 4310: 24 boxes came, 3 missing.", "missing_fact"),
            ("Order 4310 from Patel: 24 boxes came, 3 damaged.", "invented_fact"),
            ("On 2 August at dock 5 order 4310 came with 24 boxes, 3 damaged.", "too_long"),
            ("damaged 3 damaged weight 310 kg boxes 24 boxes dock 5", "missing_fact"),
            ("order 4310 carrier Nowak damaged 3 damaged weight 310 kg boxes 24 boxes", "too_long"),
            ("Order 4310, carrier Nowak: 24 boxes, 3 damaged, dock 5.", None),
            ("Order 4310, 24 boxes, 3 damaged, at 09:45.", "invented_fact"),
            ("Order 4310, 24 boxes, 12.5 % damaged.", "invented_fact"),
            ("order 4310, 24 boxes, 3 damaged, by Nowak", None),
            ("order 4310, 24 boxes, 3 damaged, by Garcia", "invented_fact"),
        ],
    ),
    "titration": (
        "Titration, 11 March\nanalyst: Weber\nsample: S42\nvolume: 18.5 mL\nroom: 21 C\nindicator: blue\nresult: 2.75 mol/L\n"
        "repeats: 3", 12, ["S42", "18.5 mL", "2.75 mol/L"],
        [
            ("Sample S42 needed 18.5 mL, giving 2.75 mol/L.", None),
            ("S42: 18.5 millilitres, 2.75 mol/L", None),
            ("2.75 mol/L from 18.5 mL for sample S42.", None),
            ("With 18.50 mL sample S42 has 2.75 mol/L.", None),
            ("Weber got 2.75 mol/L for S42 with 18.5 mL.", None),
            ("s42 18.5 ml 2.75 mol/l", None),
            ("S42 took 18.5 mL (blue), so 2.75 mol/L, at 21 °C.", None),
            ("S42, 3 repeats, 18.5 mL, 2.75 mol/L", None),
            ("Sample S42 has 2.75 mol/L.", "missing_fact"),
            ("Sample S42 needed 18.5 mL.", "missing_fact"),
            ("The sample needed 18.5 mL, giving 2.75 mol/L.", "missing_fact"),
            ("Sample S42 needed 18.5 L, giving 2.75 mol/L.", "missing_fact"),
            ("Sample S42 needed 18.5 mL, giving 2.75 g/L.", "missing_fact"),
            ("Sample S42 needed 18.6 mL, giving 2.75 mol/L.", "invented_fact"),
            ("Sample S42 needed 18.5 mL, giving 2.8 mol/L.", "invented_fact"),
            ("Sample S24 needed 18.5 mL, giving 2.75 mol/L.", "invented_fact"),
            ("Sample S42 needed 185 mL, giving 2.75 mol/L.", "invented_fact"),
            ("Sample S42 needed 18,5 mL, giving 2,75 mol/L.", None),
            ("The titration of sample S42 by Weber needed 18.5 mL, giving 2.75 mol/L here.", "too_long"),
            ("By Xu: sample S42 needed 18.5 mL, giving 2.75 mol/L.", "invented_fact"),
            ("analyst Weber sample S42 volume 18.5 mL room 21 C indicator blue", "copied"),
            ("Sample S42: 18.5 mL, 2.75 mol/L, in 3 repeats.", None),
            ("Sample S42: 18.5 mL, 2.75 mol/L, in 4 repeats.", "invented_fact"),
            ("S42 needs 18.5 mL. It has 2.75 mol/L.", None),
            ("It went well.", "missing_fact"),
        ],
    ),
}  # fmt: skip
CASES = [(name, *case) for name, (*_, cases) in NOTES.items() for case in cases]


def test_there_are_a_hundred() -> None:
    assert len(CASES) == 100


@pytest.mark.parametrize(("name", "answer", "failure"), CASES)
def test_the_verifier_agrees(name: str, answer: str, failure: str | None) -> None:
    note, limit, facts, _ = NOTES[name]
    prompt = f"{briefs.INSTRUCTION.format(limit=limit)}\n\n{note}"
    example = Example("e", prompt, "", "g", {"max_words": limit, "facts": facts})
    score = briefs.score(example, answer)
    assert score.failure == failure and (score.value == 1.0) == (failure is None), score


@pytest.mark.parametrize(
    ("text", "fact", "there"),
    [
        ("The pump leaks at yard 8.", "leaking", True),
        ("Abbas wants the mixer exchanged.", "exchange", True),
        ("Due in eighteen days.", "18 days", True),
        ("Due in one day.", "1 days", True),
        ("Due in nineteen days.", "18 days", False),
        ("The pump is leaden.", "leaking", False),
        ("It rained on Monday.", "rain on Tuesday", False),
        ("Seen on the 8th.", "8", True),
    ],
)
def test_a_fact_in_another_form_is_the_same_fact(text: str, fact: str, there: bool) -> None:
    assert summary_scores.has_fact(text, fact) == there

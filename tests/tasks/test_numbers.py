"""How numbers are spelled: each spelling is read as it is meant or refused, and never read as something else."""

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import scores
from dpo_workbench.tasks.examples import Example
from dpo_workbench.tasks.final_answer import final_answer
from dpo_workbench.tasks.numbers_in_text import read_number

REFUSED = None
SPELLINGS = [
    # separators
    ("1,000", 1000), ("1,000.5", 1000.5), ("1.000,5", 1000.5), ("1.234.567,89", 1234567.89), ("1.000.000", 1e6),
    ("1.000", 1), ("0,5", 0.5), ("1,5", 1.5), ("12,3456", 12.3456), ("0,125", 0.125), ("1 000", 1000), ("1 000 000", 1e6),
    ("1\u202f000", 1000), ("1\u00a0000,5", 1000.5), ("1'000'000", 1e6), ("1_000_000", 1e6), ("12,34,567", 1234567),
    ("1,000,5", REFUSED), ("1,2,3", REFUSED), ("1,00,0", REFUSED), ("3.11.2", REFUSED), (".5", 0.5), ("5.", 5),
    # signs
    ("-3", -3), ("−3", -3), ("–3", -3), ("+3", 3), ("$-3$", -3), ("x = - 3", -3), ("- 3", -3), ("– 3", -3), ("—3", REFUSED),
    ("--3", REFUSED), ("±3", REFUSED), ("3 ± 1", REFUSED), ("-2 1/2", -2.5), ("-1,000", -1000), ("−0,5", -0.5),
    # powers, fractions, magnitudes
    ("1e3", 1000), ("1.2E-3", 0.0012), ("1.2 × 10^3", 1200), ("1.2·10⁻³", 0.0012), ("10^3", 1000), ("10³", 1000), ("1e999", REFUSED),
    ("2^10", REFUSED), ("2³", REFUSED), ("1/3", 1 / 3), ("2 1/2", 2.5), ("½", 0.5), ("2½", 2.5), ("-½", -0.5), ("-2½", -2.5), ("5/0", REFUSED), ("2 thirds", REFUSED),
    ("2 and a half", REFUSED), ("1 million", 1e6), ("1.5 million", 1.5e6), ("2 hundred thousand", 2e5), ("3 billion", 3e9), ("3bn", 3e9),
    ("10k", 10_000), ("2 dozen", 24), ("5 lakh", 5e5), ("1 million 200 thousand", REFUSED), ("$1.5 million", 1.5e6),
    # two numbers
    ("29 or 30", REFUSED), ("29 (or 30)", REFUSED), ("29 or maybe 30", REFUSED), ("29-30", REFUSED), ("29–30", REFUSED), ("29 to 30", REFUSED),
    ("between 29 and 30", REFUSED), ("29 and 30", REFUSED), ("29, 30", REFUSED), ("29; 30", REFUSED), ("3 out of 5", REFUSED), ("3 of 5", REFUSED),
    ("3:4", REFUSED), ("3 : 4", REFUSED), ("14:30", REFUSED), ("0.5 or 1/2", REFUSED), ("30 and 2 others", REFUSED), ("30, 2 more than before", REFUSED),
    # expressions, bounds, negations
    ("2 * 3", REFUSED), ("5 + 1", REFUSED), ("10 - 3", REFUSED), ("10 - 3 = 7", 7), ("7 = 10 - 3", REFUSED), ("√2", REFUSED), ("\\sqrt{2}", REFUSED),
    ("2π", REFUSED), ("2\\pi", REFUSED), ("sin(30)", REFUSED), ("3 squared", REFUSED), ("x > 3", REFUSED), ("≥ 3", REFUSED), ("not 3", REFUSED),
    ("~3", 3), ("about 3", 3), ("3 (not 4)", 3), ("$29", 29), ("€1.000,50", 1000.5), ("5'7", REFUSED), ("five", REFUSED), ("12.03.2024", REFUSED),
    ("2024-03-04", REFUSED), ("２９", 29), ("29!", 29), ("29 (twenty-nine)", 29), ("2nd", REFUSED), ("COVID-19", REFUSED),
    ("minus 3", -3), ("negative 3", -3), ("-(3)", REFUSED), ("log 3", REFUSED), ("3 to the power of 2", REFUSED), ("3..4", REFUSED), ("3+", REFUSED),
    ("3 or more", REFUSED), ("less than 3", REFUSED), ("3.0(2)", REFUSED), ("1/6.", 1 / 6), ("5i", REFUSED), ("0x10", REFUSED), ("3 + 4i", REFUSED), ("(3, 4)", REFUSED),
    ("7 or so", 7), ("3...4", REFUSED), ("3.51.000,5", REFUSED), ("2x + 3", REFUSED), ("29 apples or 30 apples", REFUSED), ("29 apples to 30 apples", REFUSED), ("log (3)", REFUSED), ("x2", REFUSED), ("2 × 10^3 or 2000", REFUSED), ("about 29 or 30", REFUSED), ("29 / 58", 0.5),
]  # fmt: skip


def test_there_are_eighty() -> None:
    assert len(SPELLINGS) >= 80


@pytest.mark.parametrize("form", ["Answer: {}", "\\boxed{{{}}}", "So x is known.\n#### {}"])
@pytest.mark.parametrize(("text", "value"), SPELLINGS)
def test_a_marked_number_is_read_or_refused(text: str, value: float | None, form: str) -> None:
    found, why = final_answer(form.format(text))
    if value is REFUSED:
        assert found is None and why, found
    else:
        assert found is not None and found.number == pytest.approx(value, rel=1e-12)


PROSE = [
    ("She sees 29 or 30 birds.", REFUSED), ("The roots are 2 and 3.", REFUSED), ("It lies between 29 and 30.", REFUSED), ("It costs 29–30 euros.", REFUSED),
    ("It is 30, not 29.", REFUSED), ("On day 2, 30 apples fell.", REFUSED), ("He left at 14:30 with 5 apples", 5), ("He had 5 apples on 3/4/2024.", 5),
    ("- 5 apples", 5), ("The change is –5.", -5), ("The change is −5.", -5), ("That is 1.5 million.", 1.5e6), ("That is 1.000,5.", 1000.5),
    ("x = 2\nSo the answer is right.", 2), ("We get 10 - 3.", REFUSED), ("We get √2.", REFUSED), ("It is the answer—29.", REFUSED), ("He used pump-3 for 5 h", 5),
    ("So v = 12/4 = 3", 3), ("The speed is 29 ± 1", REFUSED), ("1,2,3", REFUSED), ("5 in total", 5), ("She has 5 of 10 apples.", REFUSED),
    ("Answer: 5. I hope this answer is right.", 5), ("The answer isn't 29.", REFUSED), ("> 29", 29), ("It is more: n > 29", REFUSED),
    ("<b>29</b>", 29), ("2, 3 and 5 apples", REFUSED), ("It rose by 3 in 5 years", REFUSED), ("The 3rd of 4 is 7", 7), ("It began in the 1990s", REFUSED),
    ("Answer: 5 m in 3 s", REFUSED), ("Answer: 1800s", 1800), ("I count 5.\nAnswer: none", REFUSED), ("*29*", REFUSED), ("x = 5 or x = -3", REFUSED), ("Answer: x = 5, x = -3", REFUSED), ("a = 5, b = 3", 3),
    ("She makes 9 * 2 = $<<9*2=18>>18 every day.", 18), ("Answer: $18.50.", 18.5), ("It is *29*.", REFUSED), ("\\(29\\)", 29),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), PROSE)
def test_the_last_number_of_a_sentence_is_read_or_refused(text: str, value: float | None) -> None:
    found, why = final_answer(text)
    assert (
        (found is None and bool(why))
        if value is REFUSED
        else found is not None and found.number == pytest.approx(value)
    )


UNITS = [
    ("29", "29", None), ("29", "29%", "wrong_unit"), ("29", "29 km", "wrong_unit"), ("29", "29km", "wrong_unit"), ("29", "29 kilometers", "wrong_unit"),
    ("29", "29 percent", "wrong_unit"), ("29", "29 m/s", "wrong_unit"), ("29", "29 degrees", "wrong_unit"), ("29", "29°", "wrong_unit"),
    ("29", "29 hours", "wrong_unit"), ("29", "29 apples", None), ("29", "29 finches", None), ("29", "29 cats", None), ("29", "29 points", None),
    ("29", "29 times", None), ("29", "29x", None), ("29", "$29", None), ("29", "29 €", None), ("29", "29 dollars", None), ("29", "29 in total", None),
    ("29 apples", "29", None), ("29 finches", "29", None), ("29 apples", "29 kg", "wrong_unit"), ("0.29", "29%", "wrong_unit"), ("29 km", "29", "wrong_unit"),
    ("29 km", "29000 m", None), ("29 km", "29 miles", "wrong_value"), ("29 km", "29 million km", "wrong_value"), ("90 min", "1 h 30 min", "wrong_value"),
    ("90 min", "1 hour and 30 minutes", "wrong_value"), ("170 cm", "1 m 70 cm", "wrong_value"), ("5 m", "2 m and 3 m", "wrong_value"),
    ("5 km", "5 km a day", None), ("3 m/s", "3 m/s or 10.8 km/h", "wrong_value"), ("3 m/s", "3 m/s or 4 m/s", "wrong_value"), ("5 km", "a 5-km run", None),
    ("5 N m", "5 N m (newton metres)", None), ("5 m/s", "(5 ± 0.2) m/s", "wrong_value"), ("5 J/(kg K)", "5 J/(kg K)", None),
    ("1e6", "1", "wrong_value"), ("1", "1 million", "wrong_value"), ("3", "–3", "wrong_value"), ("30", "29 or 30", "wrong_value"), ("5", "five", "no_answer"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer", "failure"), UNITS)
def test_units(reference: str, answer: str, failure: str | None) -> None:
    for text in (f"Answer: {answer}", answer):
        found = scores.number()(Example("e", "p", reference, "g"), text)
        assert found.failure == failure, (text, found)
        assert failure is None or found.explanation


def test_a_verifier_that_ignores_units() -> None:
    score = scores.number(unit="")
    for answer in ("29", "29 km", "29%", "29 apples"):
        assert score(Example("e", "p", "29", "g"), f"Answer: {answer}").value == 1.0
    assert score(Example("e", "p", "29 m", "g"), "29 km").value == 1.0


@pytest.mark.parametrize("reference", ["29 or 30", "1,2,3", "none"])
def test_a_reference_without_one_number_is_refused(reference: str) -> None:
    with pytest.raises(WorkbenchError, match="must hold one number"):
        scores.number()(Example("e", "p", reference, "g"), "29")


def test_read_number_takes_a_whole_text() -> None:
    cells = {
        "1.000,5": 1000.5,
        "–3": -3,
        "12.50": 12.5,
        "1 million": None,
        "5 km": None,
        "1,2,3": None,
        "": None,
        "007": None,
        " 1 ": 1,
    }
    assert {text: read_number(text) for text in cells} == cells

"""A hundred answers to `science`, judged by hand: right ones in other words and formats, and near misses."""

import pytest

from dpo_workbench.tasks import quantities, science
from dpo_workbench.tasks.task import Example

ANSWERS = {
    (15.0, "m/s"): [
        ("v = d / t = 120 / 8 = 15\nAnswer: 15 m/s", None),
        ("The speed is distance over time: 120 / 8 = 15.\nAnswer: 15.0 m/s", None),
        ("Answer: 54 km/h", None),
        ("Answer: 15 m s^-1", None),
        ("Answer: 15 meters per second", None),
        ("**Answer: 15 m/s**", None),
        ("v = 120/8\nanswer: 15.05 m/s", None),
        ("Answer: 15", "wrong_unit"),
        ("Answer: 15 m", "wrong_unit"),
        ("Answer: 15 km/h", "wrong_value"),
        ("v = d / t = 120 / 8 = 16\nAnswer: 16 m/s", "arithmetic_slip"),
        ("v = d / t = 120 / 8 = 16\nAnswer: 15 m/s", "arithmetic_slip"),
        ("v = d * t = 120 * 8 = 960\nAnswer: 960 m/s", "wrong_value"),
        ("I cannot solve this.", "no_answer"),
        ("Answer: m/s", "no_answer"),
    ],
    (960.0, "J"): [
        ("E = P * t = 80 * 12 = 960\nAnswer: 960 J", None),
        ("Answer: 0.96 kJ", None),
        ("Answer: 9.6 × 10^2 J", None),
        ("Answer: 9.6e2 J", None),
        ("Answer: 960 joules", None),
        ("Answer: 960 W s", None),
        ("Answer: 960 N*m", None),
        ("The energy is 960 J", None),
        ("Answer: 960 W", "wrong_unit"),
        ("Answer: 96 J", "wrong_value"),
        ("Answer: 960 kJ", "wrong_value"),
        ("E = 80 * 12 = 860\nAnswer: 860 J", "arithmetic_slip"),
        ("E = 80 + 12 = 92\nAnswer: 92 J", "wrong_value"),
    ],
    (6.5, "degC"): [
        ("b = a - 6 * h = 18.5 - 6 * 2 = 6.5\nAnswer: 6.5 degC", None),
        ("Answer: 6.5 °C", None),
        ("Answer: 6.5 degrees Celsius", None),
        ("Answer: 279.65 K", None),
        ("Answer: 6.5", "wrong_unit"),
        ("Answer: 6.5 C", "wrong_unit"),
        ("Answer: 30.5 °C", "wrong_value"),
        ("18.5 - 12 = 7.5\nAnswer: 7.5 degC", "arithmetic_slip"),
    ],
    (45.0, "%"): [
        ("w = 100 * m / T = 100 * 90 / 200 = 45\nAnswer: 45 %", None),
        ("Answer: 45%", None),
        ("Answer: 45 percent", None),
        ("The share is 45 %.", None),
        ("Answer: 45", "wrong_unit"),
        ("Answer: 0.45", "wrong_unit"),
        ("Answer: 90 g", "wrong_unit"),
        ("Answer: 54 %", "wrong_value"),
        ("100 * 90 / 200 = 4.5\nAnswer: 4.5 %", "arithmetic_slip"),
    ],
    (12.0, ""): [
        ("k = i / a = 48 / 4 = 12\nAnswer: 12", None),
        ("Answer: 12 times", None),
        ("Answer: 12x", None),
        ("It is magnified 12 times.", None),
        ("48 / 4 = 12.0", None),
        ("Answer: 1.2", "wrong_value"),
        ("Answer: 44", "wrong_value"),
        ("48 / 4 = 11\nAnswer: 11", "arithmetic_slip"),
        ("Answer: twelve", "no_answer"),
    ],
    (0.25, "mol/L"): [
        ("c = n / V = 0.5 / 2 = 0.25\nAnswer: 0.25 mol/L", None),
        ("Answer: 250 mmol/L", None),
        ("Answer: 0.25 mol L⁻¹", None),
        ("Answer: 0.25 mol per liter", None),
        ("Answer: 0.25 M", None),
        ("Answer: 0.25 mol", "wrong_unit"),
        ("Answer: 0.5 mol/L", "wrong_value"),
        ("Answer: 2.5 mol/L", "wrong_value"),
        ("0.5 / 2 = 0.3\nAnswer: 0.3 mol/L", "arithmetic_slip"),
    ],
    (17.0, "1/m^2"): [
        ("d = n / q = 153 / 9 = 17\nAnswer: 17 1/m^2", None),
        ("Answer: 17 m^-2", None),
        ("Answer: 17 per m^2", None),
        ("Answer: 17 plants per square", "wrong_unit"),
        ("Answer: 17 m^2", "wrong_unit"),
        ("Answer: 16 1/m^2", "wrong_value"),
    ],
    (3200.0, "m"): [
        ("d = v * t = 40 * 80 = 3200\nAnswer: 3200 m", None),
        ("Answer: 3,200 m", None),
        ("Answer: 3.2 km", None),
        ("Answer: 3200 metres", None),
        ("Answer: d = 3200 m", None),
        ("Answer: 3.2 × 10^3 m", None),
        ("Answer: about 3200 m", None),
        ("Answer: 3.2 m", "wrong_value"),
        ("Answer: 3200 s", "wrong_unit"),
        ("Answer: 320 m", "wrong_value"),
        ("40 * 80 = 3020\nAnswer: 3020 m", "arithmetic_slip"),
    ],
    (24.0, "kg*m/s"): [
        ("p = m * v = 8 * 3 = 24\nAnswer: 24 kg*m/s", None),
        ("Answer: 24 kg m/s", None),
        ("Answer: 24 N s", None),
        ("Answer: 24 kg·m/s", None),
        ("Answer: 24 kg", "wrong_unit"),
        ("Answer: 11 kg*m/s", "wrong_value"),
    ],
    (7.5, "ohm"): [
        ("R = U / I = 30 / 4 = 7.5\nAnswer: 7.5 ohm", None),
        ("Answer: 7.5 Ω", None),
        ("Answer: 7.5 V/A", None),
        ("Answer: 7.5 ohms", None),
        ("30 / 4 = 7.5 so the answer is 7.5 ohm", None),
        ("Answer: 7.5 V", "wrong_unit"),
        ("Answer: 7 ohm", "wrong_value"),
        ("30 / 4 = 8.5\nAnswer: 8.5 ohm", "arithmetic_slip"),
        ("", "no_answer"),
        ("Answer: 7.5 kohm", "wrong_value"),
    ],
    (8.0, "N"): [
        ("F = m * a = 4 * 2 = 8 N\nAnswer: 8 N", None),
        ("F = 4 kg * 2 m/s^2 = 8 N", None),
        ("Answer: 8 newtons", None),
        ("Answer: 8 kg*m/s^2", None),
    ],
}  # fmt: skip
TYPESET = {
    (810.0, "kJ"): [
        (r"Answer: $8.1 \times 10^{5}\ \mathrm{J}$", None),
        ("Answer: 8.1·10⁵ J", None),
        ("Answer: 8.1*10**5 J", None),
        ("Answer: **810** kJ", None),
        ("Answer: 810 000 J", None),
        ("Answer: 0,81 MJ", None),
        (r"Thus \boxed{810\,\text{kJ}}.", None),
        (r"Answer: \boxed{810}", "wrong_unit"),
        (r"Answer: $8.1 \times 10^{4}\ \mathrm{J}$", "wrong_value"),
    ],
    (7.0, "m/s^2"): [
        ("a = \\frac{44 - 9}{5} = 7\nAnswer: 7 m/s^2", None),
        (r"Thus \boxed{7\ \text{m/s}^2}.", None),
        (r"Answer: 7 \mathrm{\frac{m}{s^2}}", None),
        ("Answer: 7 m/s**2", None),
        ("a = \\frac{44 - 9}{5} = 8\nAnswer: 7 m/s^2", "arithmetic_slip"),
        ("a = 30 \\times 6 = 190\nAnswer: 7 m/s^2", "arithmetic_slip"),
    ],
    (245.0, "degC"): [(r"Answer: $245\,^{\circ}\mathrm{C}$", None), ("Answer: 245 ºC", None)],
    (90.0, "ohm"): [(r"Answer: $90\,\Omega$", None), (r"Answer: $90\,\mathrm{V}$", "wrong_unit")],
    (180.0, "kg*m/s"): [("Answer: 180 kg-m/s", None), (r"Answer: $180\,\mathrm{kg \cdot m/s}$", None)],
    (11.0, "%"): [("Answer: 11 per cent", None), (r"Answer: 11\%", None)],
    (40.0, ""): [
        (r"k = \frac{280}{7} = \boxed{40}", None),
        ("Answer: 40 finches", None),
        ("Answer: 40 mm", "wrong_unit"),
        ("Answer: 40 g/L", "wrong_unit"),
    ],
}  # fmt: skip
CASES = [(number, unit, *case) for (number, unit), cases in ANSWERS.items() for case in cases]


OTHERS = [(number, unit, *case) for (number, unit), cases in TYPESET.items() for case in cases]


def test_there_are_a_hundred() -> None:
    assert len(CASES) == 100


@pytest.mark.parametrize(("number", "unit", "answer", "failure"), CASES + OTHERS)
def test_the_verifier_agrees(number: float, unit: str, answer: str, failure: str | None) -> None:
    example = Example("e", "p", "Answer: x", "g", {"number": number, "unit": unit})
    score = science.score(example, answer)
    assert score.failure == failure and (score.value == 1.0) == (failure is None), score


@pytest.mark.parametrize(
    "unit",
    [
        "m^9^9^9^9^9", "m^(9^9^9)", "m9^9^9^9", "m**9**9**9**9", "(9*9*9)^(9*9*9*9*9*9*9) m", "((9^99)^99)^99 m",
        "m*((((9^99*9)^99*9)^99*9)^99*9)^99",
    ],
)  # fmt: skip
def test_a_tower_of_powers_is_no_unit(unit: str) -> None:
    """A broken model writes such things, and pint would evaluate them until the end of days."""
    assert quantities.read_unit(unit) is None
    example = Example("e", "p", "Answer: x", "g", {"number": 9.0, "unit": "m"})
    assert science.score(example, f"Answer: 9 {unit}").failure in ("wrong_unit", "wrong_value")


def test_a_bracket_that_closes_one_belongs_to_the_unit() -> None:
    example = Example("e", "p", "Answer: x", "g", {"number": 9.0, "unit": "J/(kg K)"})
    for answer in ("Answer: 9 J/(kg K)", "Answer: 9 J/(K kg).", "It is hot (Answer: 9 J/(kg*K))."):
        assert science.score(example, answer).failure is None, answer

"""Ready verifiers: what is right in other words, what is nearly right, and that no text makes one raise."""

import json
import math
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import quantities, scores, sql_scores, summary_scores
from dpo_workbench.tasks.examples import Example


def example(reference: str, prompt: str = "p", **extra) -> Example:
    return Example("e", prompt, reference, "g", extra)


def judged(score, reference: str, answer: str, **more) -> str | None:
    found = score(example(reference, **more), answer)
    assert 0 <= found.value <= 1 and (found.failure is not None or found.value > 0)
    return found.failure


NUMBERS = [
    ("3 m/s", "v = 12/4 = 3 m/s\nAnswer: 3.0 m/s.", None),
    ("3 m/s", "Answer: 3 m s^-1", None),
    ("3 m/s", "Answer: 3 m·s⁻¹", None),
    ("3 m/s", "The speed is 3 metres per second.", None),
    ("10 m/s", "Answer: 36 km/h", None),
    ("3 m/s", "**Answer:** $3\\ m/s$", None),
    ("3 m/s", "Answer: v = 3 m/s", None),
    ("1200 kg", "Answer: 1,200 kg", None),
    ("1200 kg", "Answer: 1.2 × 10^3 kg", None),
    ("1200 kg", "Answer: 1.2e3 kg", None),
    ("1200 kg", "Answer: 1.2 \\times 10^{3} kg", None),
    ("1200 kg", "Answer: 1.2 t", None),
    ("0.25 L", "Answer: 250 mL", None),
    ("298 K", "Answer: 24.85 °C", None),
    ("12 %", "Answer: 12 percent", None),
    ("5", "She has 2 + 3 = 5 apples.", None),
    ("5 apples", "Answer: 5", None),
    ("-4.5 J", "Answer: −4.5 J", None),
    ("2 kg*m^2", "Answer: 2 kg m2", None),
    ("0.5", "The final answer is 0.5", None),
    ("1/3", "Answer: $\\frac{1}{3}$", None),
    ("-1/2", "Thus \\boxed{-\\frac{1}{2}}.", None),
    ("2.5", "Answer: 2 1/2", None),
    ("2.5", "It is 5/2", None),
    ("2.5", "We get \\boxed{2.5}. Check: 2 * 2.5 = 5", None),
    ("2.5", "#### 2.5\n\n#### Step 3: check", None),
    ("2.5", "Answer: 2.5 (on 3/4/2024)", None),
    ("2.5", "**Answer**: 2.5, with 3 others", None),
    ("5 km", "<answer>\n5 km\n</answer> It took 2 s.", None),
    ("5 km", "It is 5km away.", None),
    ("20 m", "In 4 s it goes 20m.", None),
    ("9.8 m/s^2", "a = 9.8m/s^2", None),
    ("2000 N", "F = 2 × 10^3N", None),
    ("1000 m", "10^3 m", None),
    ("1000 m", "Answer: 1 000 m", None),
    ("0.5 L", "**0,5 L**", None),
    ("5", "It rings 5 times, the 2nd time at 3pm in the 1990s", "wrong_value"),
    ("1000 m", "It measures 1000m².", "wrong_unit"),
    ("1/3", "Answer: 3", "wrong_value"),
    ("1/2", "Answer: -1/2", "wrong_value"),
    ("2.5", "Answer: 5/0", "wrong_value"),
    ("3 m/s", "Answer: 3", "wrong_unit"),
    ("3 m/s", "Answer: 3 kg", "wrong_unit"),
    ("3 m/s", "Answer: 3 m", "wrong_unit"),
    ("3 m/s", "Answer: 3 widgets", "wrong_unit"),
    ("3 m/s", "Answer: 4 m/s", "wrong_value"),
    ("3 m/s", "Answer: 3 km/h", "wrong_value"),
    ("3 m/s", "Answer: -3 m/s", "wrong_value"),
    ("3 m/s", "Answer: 3 mm/s", "wrong_value"),
    ("1200 kg", "Answer: 1.2 kg", "wrong_value"),
    ("5", "5 + 1 = 6", "wrong_value"),
    ("5", "I do not know", "no_answer"),
    ("5", "Answer: none", "no_answer"),
    ("5", "Answer: five", "no_answer"),
]


@pytest.mark.parametrize(("reference", "answer", "failure"), NUMBERS)
def test_numbers(reference: str, answer: str, failure: str | None) -> None:
    assert judged(scores.number(tolerance=0.005), reference, answer) == failure


def test_a_number_may_have_its_unit_named_or_ignored() -> None:
    assert judged(scores.number(unit="m"), "3", "Answer: 300 cm") is None
    assert judged(scores.number(unit=""), "3 m", "Answer: 3") is None
    with pytest.raises(WorkbenchError, match="must hold one number"):
        scores.number()(example("none"), "3")


@pytest.mark.parametrize(
    ("text", "step"),
    [("v = 12 / 4 = 3 m/s", None), ("E = 2 * 3^2 = 19 J", "2 * 3^2 = 19 J"), ("m = 2 + 2 = 5", "2 + 2 = 5"),
     ("x = 3 × 4 = 12.1", None), ("(2 + 3) · 4 = 20", None), ("F = m a = 5", None), ("2 m = 200 cm", None),
     ("t: 10 ÷ 4 = 2.5 s = 2.5 s", None), ("9^9^9^9 = 1", None), ("1/0 = 3", None), ("7 − 2 = 4", "7 − 2 = 4"),
     ("3² = 9", None), ("10⁻³ * 2 = 0.002", None)],
)  # fmt: skip
def test_steps_that_do_not_compute_are_found(text: str, step: str | None) -> None:
    assert quantities.wrong_step(text) == step


CHOICES = [
    ("B", "B", None), ("B", "(B)", None), ("B", "b", None), ("B", "B. Mitochondria", None), ("B", "The answer is B.", None),
    ("B", "Answer: (B) because A is wrong", None), ("B", "**B**", None), ("B", "<answer>B</answer>\nA is wrong.", None), ("B", "It cannot be A, C or D.\nAnswer: B", None),
    ("B", "After thought I choose (B)", None), ("B", "Reasons.\n\nB", None), ("(B)", "B", None), ("B", "A", "wrong_choice"),
    ("B", "Answer: C", "wrong_choice"), ("B", "A because B is wrong", "wrong_choice"), ("B", "A or B", "no_choice"),
    ("B", "\\boxed{\\text{B}}", None), ("B", "Option B", None), ("B", "A is wrong, so B", None), ("B", "I choose B.", None),
    ("A", "Answer: A or B", "no_choice"), ("A", "Answer: A, B", "no_choice"), ("A", "A, B and D are true", "no_choice"), ("A", "A/B", "no_choice"),
    ("A", "Option A is wrong.", "no_choice"), ("A", "(A) is incorrect", "no_choice"), ("A", "Answer: a cell", "no_choice"), ("A", "Answer: A cell", "no_choice"),
    ("B", "The answer a student gives is B.\nAnswer: B", None), ("A", "Answer: A is right", None), ("B", "B, a cell", None), ("B", "B, because A is wrong", None),
    ("B", "The correct option is B", None), ("A", "A isn't right, so B", "wrong_choice"), ("A", "<answer>A and C</answer>", "no_choice"),
    ("B", "Option B or option A", "no_choice"), ("B", "So a cell of that kind", "no_choice"),
    ("B", "Mitochondria", "no_choice"), ("B", "", "no_choice"), ("B", "Because", "no_choice"), ("B", "(A) or (B)", "no_choice"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer", "failure"), CHOICES)
def test_choices(reference: str, answer: str, failure: str | None) -> None:
    assert judged(scores.multiple_choice(), reference, answer) == failure


def test_exact_match_and_regex() -> None:
    assert judged(scores.exact_match(), "Paris", " paris. ") is None
    assert judged(scores.exact_match(), "Paris", "Paris, France") == "wrong_answer"
    label = scores.regex(r"label:\s*(\w+)")
    assert judged(label, "spam", "label: ham\nNo, label: Spam") is None
    assert judged(label, "label: spam", "label: ham") == "wrong_answer"
    assert judged(label, "spam", "spam") == "no_match"
    with pytest.raises(WorkbenchError, match="missing"):
        scores.regex("(label")
    endless = scores.regex("(a|aa)+$")
    with pytest.raises(WorkbenchError, match="within a second"):  # evaluation counts it as unscored
        endless(example("aa"), "a" * 60 + "!")


JSONS = [
    ({"a": 1, "b": "x"}, '{"b": "X ", "a": 1.0}', None),
    ({"a": 1}, '```json\n{"a": 1}\n```', None),
    ({"a": 1}, 'Here it is: {"a": "1.00"}', None),
    ({"a": [1, 2]}, '{"a": [2, 1]}', None),
    ({"a": {"b": "c"}}, '{"a": {"b": "c"}}', None),
    ({"a": True}, '{"a": true}', None),
    ({"a": 1}, '{"a": 2}', "wrong_value"),
    ({"a": True}, '{"a": 1}', "wrong_value"),
    ({"a": 1, "b": "x"}, '{"a": 1}', "missing_field"),
    ({"a": 1, "b": "x"}, '{"a": 1, "b": ""}', "missing_field"),
    ({"a": 1}, '{"a": 1, "z": 2}', "wrong_schema"),
    ({"a": 1}, "[1]", "wrong_schema"),
    ({"a": 1}, '{"a": 1', "invalid_json"),
    ({"a": 1}, '{"a": NaN}', "invalid_json"),
    ({"a": 1}, '{"a": 1, "a": 1}', "invalid_json"),
    ({"a": 1}, '{"a": 1} {"a": 1}', "invalid_json"),
    ({"a": 1}, "[" * 100_000, "invalid_json"),
    ({"a": 1}, '{"a": ' + "9" * 5000 + "}", "invalid_json"),
    ({"a": 1}, "none", "invalid_json"),
    ({"a": "tea"}, '{"a": "coffee"}', "invented_value"),
    ({"a": "tea"}, '{"a": "cup"}', "wrong_value"),
    ({"a": 3}, '{"a": 7}', "invented_value"),
    ({"a": [{"n": "x", "q": 1}, {"n": "c", "q": 2}]}, '{"a": [{"n": "x", "q": 2}, {"n": "c", "q": 1}]}', "wrong_value"),
    ({"a": [{"n": "x", "q": 1}, {"n": "c", "q": 2}]}, '{"a": [{"q": 2, "n": "c"}, {"n": "x", "q": 1}]}', None),
    ({"a": [[1, 2], [3]]}, '{"a": [[1], [2, 3]]}', "wrong_value"),
    ({"a": 1, "b": []}, '{"a": 1}', "missing_field"),
    ({"a": 1, "b": None}, '{"a": 1, "b": null}', None),
    ({"a": 1, "b": None}, '{"a": 2, "b": null}', "wrong_value"),
    ({"a": "007"}, '{"a": "7"}', "invented_value"),
    ({"a": "1234567890123456"}, '{"a": "1234567890123457"}', "invented_value"),
    ({"a": 12345678901234567}, '{"a": 12345678901234568}', "invented_value"),
    ({"a": 1e-10}, '{"a": 2e-10}', "invented_value"),
    ({"a": 1e301}, '{"a": 2e301}', "invented_value"),
    ({"a": "6/2"}, '{"a": 3}', "wrong_value"),
    ({"a": "1.000,50"}, '{"a": 1000.5}', None),
    ({"a": True}, '{"a": false}', "wrong_value"),
    ({"a": "ten"}, '{"a": "ea"}', "invented_value"),
    ({"a": None}, '{"a": "None"}', "invented_value"),
    ({"a": [{"n": "x"}]}, '{"a": [{"n": " "}]}', "missing_field"),
    ({"a": [{"n": "x"}]}, '{"a": []}', "missing_field"),
    ({"a": 1}, '{"a": ' + "[" * 900 + "]" * 900 + "}", "missing_field"),
    ({"a": 1}, '{"a": ' + "[" * 100 + "7" + "]" * 100 + "}", "invented_value"),
]


@pytest.mark.parametrize(("reference", "answer", "failure"), JSONS)
def test_json_fields(reference: dict, answer: str, failure: str | None) -> None:
    score = scores.json_fields(invented=True)
    assert judged(score, json.dumps(reference), answer, prompt="3 cups of tea, 1 x, 2 c, true, cup") == failure


def test_json_fields_may_look_for_inventions_in_some_fields_only() -> None:
    reference, answer = json.dumps({"day": "2026-05-04", "n": 1}), json.dumps({"day": "2026-05-05", "n": 1})
    some = scores.json_fields(invented=["n"])
    assert judged(some, reference, answer, prompt="4 May: 1 x") == "wrong_value"
    assert judged(some, reference, answer.replace("1}", "7}"), prompt="4 May: 1 x") == "invented_value"
    assert judged(scores.json_fields(invented=True), reference, answer, prompt="4 May: 1 x") == "invented_value"


def test_rows_of_a_list_are_told_apart_by_their_first_text() -> None:
    reference, answer = '{"a": [["x", 1], ["y", 2]]}', '{"a": [["x", 2], ["y", 1]]}'
    assert scores.json_fields()(example(reference), answer).value == pytest.approx(2 / 4)


NOTE = "Site visit, 4 May. Pump 3 at Linden failed at 09:40; 120 litres of coolant leaked. Vera Okoye shut the valve."
SUMMARIES = [
    ("Pump 3 failed at 09:40 and 120 L of coolant leaked.", None),
    ("At 09:40 pump 3 broke, losing 120 litres.", None),
    ("Pump 3 leaked 120 litres.", "missing_fact"),
    ("At 09:40 pump 3 lost 130 litres, not 120 litres.", "invented_fact"),
    ("At 09:40 pump 3 lost 120 litres, said Marta.", "invented_fact"),
    ("Pump 3 at Linden failed at 09:40; 120 litres of coolant leaked. Vera Okoye shut the valve.", "copied"),
    ("pump 3 09:40 120 litres " * 6, "too_long"),
    ("At 09:40 pump −3 lost 120 litres.", "invented_fact"),
    ("At 09:40 pump 3 lost 1,120 litres.", "invented_fact"),
    ("At 09:40 pump 3 lost 120 million litres.", "invented_fact"),
    ("At 09:41 pump 3 lost 120 litres.", "invented_fact"),
    ("At 09:40 pump 3 lost 120 litres, said Jürgen.", "invented_fact"),
    ("At 09:40 pump 3 lost 120 litres, said McDonald.", "invented_fact"),
]


@pytest.mark.parametrize(("answer", "failure"), SUMMARIES)
def test_summaries(answer: str, failure: str | None) -> None:
    score = scores.summary(max_words=20, facts="facts")
    facts = ["pump 3", ["09:40", "9.40"], "120 litres"]
    assert judged(score, "Pump 3 failed at 09:40, 120 L leaked.", answer, prompt=NOTE, facts=facts) == failure


def test_rouge_l() -> None:
    """Against the definition: an LCS of 3 of 4 and 5 words gives precision 3/5, recall 3/4."""
    assert scores.rouge_l("the cat sat down", "The cat sat!") == pytest.approx(2 * 3 / (4 + 3))
    assert scores.rouge_l("a b x c y", ["a b c d", "z"]) == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))
    assert scores.rouge_l("", "a") == 0 and scores.rouge_l("日本", "日本") == 0


def test_unit_tests() -> None:
    score = scores.unit_tests(allow_weak_sandbox=True)
    extra = {"tests": ["assert f(1) == 2", "assert f(2) == 3"], "entry_point": "f"}
    good = "def f(x):\n    return x + 1"
    for answer, failure, value in [
        (good, None, 1.0), (f"Sure:\n```python\n{good}\n```", None, 1.0), ("def f(x):\n    return 2", "wrong_result", 0.5),
        ("def f(x) return", "syntax_error", 0.0), ("def f(x):\n    return 1 / 0", "exception", 0.0),
        ("def f(x):\n    import os\n    os.fork()", "unsafe", 0.0), ("def g(x): pass", "exception", 0.0),
    ]:  # fmt: skip
        found = score(example(good, **extra), answer)
        assert found.failure == failure or failure == "unsafe", (answer, found)
        assert found.value == value or failure == "unsafe"
    with pytest.raises(WorkbenchError, match="must pass its own tests"):
        score(Example("other", "p", "def f(x):\n    return 0", "g", extra), good)
    with pytest.raises(WorkbenchError, match="must have tests"):
        score(example(good), good)


@pytest.fixture
def shop(tmp_path):
    with sqlite3.connect(tmp_path / "shop.sqlite") as db:
        db.executescript("CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'z');")
    db.close()
    return tmp_path


def test_sql_result(shop) -> None:
    score = scores.sql_result(database=shop, allow_weak_sandbox=True)
    gold = "SELECT b FROM t WHERE a = 2"
    for answer, failure in [
        (gold, None), ("select t.b from t where a > 1", None), ("```sql\nSELECT b FROM t WHERE a=2;\n```", None),
        ("The query is: SELECT b FROM t WHERE a = 2", None), ("SELECT b FROM t", "wrong_result"),
        ("SELECT b FROM t WHERE a = 9", "empty_result"), ("SELECT c FROM t", "unknown_name"), ("SELEC b", "syntax_error"),
        ("SELECT * FROM t", "all_columns"), ("select distinct x.* from t x", "all_columns"),
        ("SELECT b, a FROM t", "wrong_columns"), ("SELECT a, t.* FROM t", "wrong_columns"),
        ("DELETE FROM t", "refused"), ("SELECT 1; DROP TABLE t", "refused"), ("SELECT b FROM t WHERE a=2;\nThis works with the table t.", None), ("", "syntax_error"),
    ]:  # fmt: skip
        assert judged(score, gold, answer, database="shop") == failure, answer
    assert (
        judged(score, "SELECT b FROM t ORDER BY b", "SELECT b FROM t ORDER BY b DESC", database="shop")
        == "wrong_result"
    )
    for bad in ("SELECT b FROM t WHERE a = 9", "SELECT nothing"):
        with pytest.raises(WorkbenchError, match="must give rows"):
            score(example(bad, database="shop"), gold)
    with pytest.raises(WorkbenchError, match="SQLite file"):
        score(example(gold, database="none"), gold)


LATEX_PIECES = [
    "\\boxed{",
    "\\frac{",
    "\\text{",
    "}",
    "{",
    "^",
    "**",
    "\\",
    "$",
    "1/0",
    "3 1/2",
    "5",
    ",",
    " ",
    "×10",
    "⁵",
    "#### ",
]


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(exclude_categories=()))
    | st.lists(st.sampled_from(LATEX_PIECES)).map("".join)
    | st.sampled_from(["9" * 100_000, "(" * 10_000, "1e999 m", "Answer: " * 9999])
)
def test_no_text_makes_a_verifier_raise(text: str) -> None:
    for score, reference in [
        (scores.exact_match(), "a"), (scores.multiple_choice(), "A"), (scores.regex("(a+)"), "a"), (scores.number(), "3 m"),
        (scores.json_fields(invented=True), '{"a": 1}'), (scores.summary(max_words=9, facts="facts"), "a 1"),
    ]:  # fmt: skip
        found = score(example(reference, text, facts=["1 m", ["a", "b"]]), text)
        assert 0 <= found.value <= 1
    quantities.wrong_step(text)
    sql_scores.clean_sql(text)


def test_verifiers_by_name() -> None:
    assert judged(scores.named('number(tolerance=0.1, unit="m")'), "3", "3.1 m") is None
    for bad in ("numbr", "number(x=1)", "number(", "regex()", "__import__('os')", "number(tolerance=open)"):
        with pytest.raises(WorkbenchError, match="must be a function or one of"):
            scores.named(bad)


@pytest.mark.parametrize(
    ("text", "fact", "there"),
    [("It is -3 °C.", "3 °C", False), ("It is −3 °C.", "-3 °C", True), ("1,5 kg", "5 kg", False), ("1,5 kg", "1.5 kg", True),
     ("2 million boxes", "2", False), ("P17", "P 17", True), ("P17", "17", True), ("13 boxes", "3 boxes", False), ("at 9:40", "40", False)],
)  # fmt: skip
def test_numbers_in_facts(text: str, fact: str, there: bool) -> None:
    assert summary_scores.has_fact(text, fact) == there


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [("102", "10²", False), ("5", ".5", False), (".", "!", False), ("Yes", " yes. ", True), ("C++", "c++", True), ("-5", "5", False), ("net", ".NET", False)],
)  # fmt: skip
def test_exact_match_keeps_what_carries_meaning(reference: str, answer: str, right: bool) -> None:
    assert (scores.exact_match()(example(reference), answer).failure is None) == right


def test_unit_tests_of_a_check_function_and_a_completed_prompt() -> None:
    """The form of HumanEval."""
    score = scores.unit_tests(
        function="check", code=lambda example, answer: example.prompt + answer, allow_weak_sandbox=True
    )
    extra = {"tests": "def check(candidate):\n    assert candidate(1) == 2", "entry_point": "f"}
    for answer, failure in [("    return x + 1", None), ("    return x", "wrong_result")]:
        assert judged(score, "    return x + 1", answer, prompt="def f(x):\n", **extra) == failure


def test_pass_at_k() -> None:
    assert scores.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert scores.pass_at_k(10, 3, 5) == pytest.approx(1 - math.comb(7, 5) / math.comb(10, 5))
    assert scores.pass_at_k(5, 5, 5) == 1 and scores.pass_at_k(5, 0, 5) == 0 and scores.pass_at_k(5, 1, 5) == 1
    for bad in [(5, 6, 1), (5, 1, 0), (5, 1, 6)]:
        with pytest.raises(WorkbenchError):
            scores.pass_at_k(*bad)


@pytest.mark.parametrize(
    "bad",
    ["number(tolerance=-1)", "number(tolerance='a')", "number(unit='zorks')", "summary(max_words=0)"],
)
def test_settings_that_would_judge_every_answer_wrong(bad: str) -> None:
    with pytest.raises(WorkbenchError, match=r"must be .*Got"):
        scores.named(bad)

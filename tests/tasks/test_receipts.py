"""The verifier of `receipts`: answers whose verdict was fixed by hand, near misses of every class, and hostile text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import receipts
from dpo_workbench.tasks.task import Example

HEAD = "Extract as JSON: vendor, date, items [[name, quantity, amount]], total.\n\n"
# A: point as decimal sign, one row twice. B: comma as decimal sign, capitals.
PAGE_A = (
    "Sales slip\nTallow Café\n14 Sep 2026\n2 x oat milk  3.80\n1 x white bread  12.00\n2 x oat milk  3.80\n"
    "TOTAL  19.60\nVAT incl."
)
PAGE_B = "CASH SALE\nIBSEN TEAROOM\nDate: 12 March 2026\nwarm swabs * 1 * 18,38\nrivet A5 * 2 * 37,18\nTOTAL DUE 55,56"
MILK, BREAD = '["oat milk", 2, "3.80"]', '["white bread", 1, "12.00"]'
SWABS, RIVET = '["warm swabs", 1, "18.38"]', '["rivet A5", 2, "37.18"]'


def a(items: str = f"{MILK}, {BREAD}, {MILK}", vendor="Tallow Café", date="2026-09-14", total="19.60") -> str:
    return f'{{"vendor": "{vendor}", "date": "{date}", "items": [{items}], "total": "{total}"}}'


def b(items: str = f"{SWABS}, {RIVET}", vendor="IBSEN TEAROOM", date="2026-03-12", total="55.56") -> str:
    return f'{{"vendor": "{vendor}", "date": "{date}", "items": [{items}], "total": "{total}"}}'


A = Example("a", HEAD + PAGE_A, a(), "g")
B = Example("b", HEAD + PAGE_B, b(), "g")

CORRECT = [
    (A, a()),
    (B, b()),
    (A, "\n\n  " + a() + " \n"),
    (A, a().replace(" ", "  ").replace("oat  milk", "oat milk")),
    (A, a().replace(": ", ":").replace(", ", ",")),
    (A, a().replace(", ", ",\n\t")),
    (A, json.dumps(json.loads(a()), indent=2)),
    (A, json.dumps(json.loads(a()), ensure_ascii=True)),  # Caf\u00e9
    (A, json.dumps(json.loads(a()), sort_keys=True)),
    (B, json.dumps(dict(reversed(json.loads(b()).items())))),
    (A, f"```json\n{a()}\n```"),
    (A, f"```\n{a()}\n```"),
    (A, f"\n```json  \n\n{json.dumps(json.loads(a()), indent=4)}\n\n```\n"),
    (A, a(vendor="TALLOW CAFÉ")),
    (A, a(vendor="  Tallow   Café ")),
    (B, b(vendor="Ibsen Tearoom")),
    (A, a(items=f"{BREAD}, {MILK}, {MILK}")),  # rows are a multiset
    (A, a(items=f'["Oat Milk", 2, "3.80"], {BREAD}, ["OAT MILK", 2, "3.80"]')),
    (A, a(items=f'["oat  milk", 2, "3.8"], {BREAD}, {MILK}')),
    (A, a(items=f'["oat milk", 2, "3.80"], ["white bread", 1, "12"], {MILK}')),
    (A, a(items=f'{MILK}, ["white bread", 1, "12.000"], {MILK}')),
    (A, a(items=f'{MILK}, ["white bread", 1, " 12.00 "], {MILK}')),
    (A, a(items=f'{MILK}, ["white bread", 1, "+12.00"], {MILK}')),
    (A, a(total="19.6")),
    (A, a(total=" 19.60")),
    (A, a(date=" 2026-09-14 ")),
    (B, b(items=f"{RIVET}, {SWABS}")),
    (B, b(items=f'["Rivet a5", 2, "37.18"], {SWABS}')),
    (A, a() + "}"),
    (A, a() + " Thank you!"),
    (A, "Here it is: " + a()),
    (A, f"```python\n{a()}\n```"),
    (A, f"```json\n{a()}"),
    (A, f"```json {a()} ```"),
    (A, "\ufeff" + a()),
    (A, "// receipt\n" + a()),
    (B, b(items=f'["warm swabs", 1, "18,38"], {RIVET}')),  # copied with its decimal comma
    (B, b(total="55,56")),
]
INVALID_JSON = [
    (A, "The vendor is Tallow Café."),
    (A, a()[:-1]),
    (A, a()[: len(a()) // 2]),
    (A, a() + a()),
    (A, a().replace('"', "'")),
    (A, a().replace('"total"', "total")),
    (A, a().replace("19.60", '19"60')),
    (A, a()[:-1] + ",}"),
    (A, a(items=f"{MILK}, {BREAD}, {MILK}, ")),
    (A, a().replace('"19.60"', "NaN")),
    (A, a().replace('"19.60"', "Infinity")),
    (A, a().replace('"19.60"', "-Infinity")),
    (A, a().replace('"19.60"', "01.5")),
    (A, '{"vendor": "x", ' + a()[1:]),  # a key twice, and the last would win
    (A, a()[:-1] + ', "total": "19.60"}'),
    (A, a(vendor="Tallow\nCafé")),  # a line break inside a text
    (A, "None"),
]
WRONG_SCHEMA = [
    (A, "null"),
    (A, "7"),
    (A, '"Tallow Café"'),
    (A, f"[{a()}]"),
    (A, "{}"),
    (A, a().replace('"vendor"', '"Vendor"')),
    (A, a().replace('"vendor"', '"shop"')),
    (A, a()[:-1] + ', "tax": "1.00"}'),
    (A, a().replace(', "total": "19.60"', "")),
    (A, a().replace('"19.60"', "19.60")),
    (A, a().replace('"19.60"', "null")),
    (A, a().replace('"2026-09-14"', "[2026, 9, 14]")),
    (A, a().replace('"Tallow Café"', "true")),
    (A, a().replace(f"[{MILK}, {BREAD}, {MILK}]", "{}")),
    (A, a().replace(f"[{MILK}, {BREAD}, {MILK}]", '"none"')),
    (A, a(items='["oat milk", 2, 3.80]')),
    (A, a(items='["oat milk", "2", "3.80"]')),
    (A, a(items='["oat milk", 2.0, "3.80"]')),
    (A, a(items='["oat milk", true, "3.80"]')),
    (A, a(items='["oat milk", 2]')),
    (A, a(items='["oat milk", 2, "3.80", "EUR"]')),
    (A, a(items='{"name": "oat milk", "quantity": 2, "amount": "3.80"}')),
    (A, a(items='"oat milk", 2, "3.80"')),
    (A, a(items=f"{MILK}, null")),
]
REPEATED_ITEM = [
    (A, a(items=f"{MILK}, {BREAD}, {MILK}, {MILK}")),
    (A, a(items=f"{MILK}, {BREAD}, {BREAD}, {MILK}")),
    (A, a(items=f'{MILK}, {BREAD}, {MILK}, ["Oat  MILK", 2, "3.8"]')),
    (A, a(items=", ".join([MILK] * 12))),
    (A, a(items=f"{BREAD}, {BREAD}")),  # before missing_item
    (A, a(items='["tea", 1, "1.00"], ["tea", 1, "1.00"]')),  # before invented_value
    (B, b(items=f"{SWABS}, {SWABS}, {RIVET}")),
    (B, b(items=f"{SWABS}, {RIVET}, {RIVET}", total="56.00")),
]
MISSING_FIELD = [
    (A, a(vendor="")),
    (A, a(vendor="  ")),
    (A, a(date="")),
    (A, a(total="")),
    (A, a(total="", items=f"{MILK}, {BREAD}, {MILK}, {MILK}")),  # before repeated_item
    (A, a(items=f'["", 2, "3.80"], {BREAD}, {MILK}')),
    (A, a(items=f'{MILK}, ["white bread", 1, ""], {MILK}')),
    (B, b(items="", vendor="", date="", total="")),
    (A, a(items="")),
    (B, b(items="")),
]
MISSING_ITEM = [
    (A, a(items=BREAD)),
    (A, a(items='["tea", 1, "1.00"]')),
    (A, a(items=MILK)),
    (A, a(items=f"{MILK}, {BREAD}")),  # the second of two equal rows
    (A, a(items=f"{MILK}, {MILK}")),
    (B, b(items=RIVET)),
    (B, b(items=SWABS, total="18.38")),
    (B, b(items='["silver kettle", 1, "9.99"]')),  # before invented_value
]
INVENTED_VALUE = [
    (A, a(items=f'["oat milk", 2, "03.80"], {BREAD}, {MILK}')),
    (A, a(items=f'{MILK}, ["white bread", 1, "1.2e1"], {MILK}')),
    (A, a(vendor="Tallow Bakery")),
    (A, a(vendor="Tallow Cafe")),
    (A, a(total="19.61")),
    (A, a(total="9.60")),  # only the end of 19.60 is printed
    (A, a(total="1960")),
    (A, a(total="-19.60")),
    (A, a(items=f'["oat milk", 2, "3.81"], {BREAD}, {MILK}')),
    (A, a(items=f'["oat milks", 2, "3.80"], {BREAD}, {MILK}')),
    (A, a(items=f'["goat milk", 2, "3.80"], {BREAD}, {MILK}')),
    (A, a(items=f'["brown bread", 1, "12.00"], {MILK}, {MILK}')),
    (A, a(items=f'{MILK}, {BREAD}, {MILK}, ["soap", 1, "3.80"]')),
    (A, a(items=f'["oat milk", 2, "3.80 EUR"], {BREAD}, {MILK}')),
    (A, a(items=f'["oat milk", 2, "three"], {BREAD}, {MILK}')),
    (A, a(total="NaN")),
    (B, b(vendor="IBSEN TEA ROOM")),
    (B, b(items=f'["rivet A4", 2, "37.18"], {SWABS}')),
    (B, b(total="56.56")),
    (A, a(items=f'["oat milk", -2, "3.80"], {BREAD}, {MILK}')),
]
WRONG_VALUE = [
    (A, a(items=f'{MILK}, ["white bread", 1, "2.00"], {MILK}')),  # 2 is printed, as a quantity
    (A, a(date="2026-09-15")),
    (A, a(date="2026-14-09")),
    (A, a(date="14 Sep 2026")),
    (A, a(total="12.00")),  # printed, but not the total
    (A, a(vendor="TOTAL")),
    (A, a(vendor="Tallow")),
    (A, a(items=f'["oat milk", 1, "3.80"], {BREAD}, {MILK}')),
    (A, a(items=f'["oat milk", 2, "12.00"], {BREAD}, {MILK}')),
    (A, a(items=f'["white bread", 1, "3.80"], {MILK}, {MILK}')),
    (A, a(items=f'["milk", 2, "3.80"], {BREAD}, {MILK}')),
    (A, a(items=f'["milk", 2, "3.80"], ["white bread", 1, "12.00"], {MILK}')),
    (A, a(items=f'{MILK}, {BREAD}, {MILK}, ["milk", 2, "3.80"]')),  # a row too many, all of it printed
    (B, b(date="12 March 2026")),
    (B, b(items='["warm swabs", 2, "18.38"], ["rivet A5", 1, "37.18"]')),
    (B, b(items='["warm swabs", 1, "37.18"], ["rivet A5", 2, "18.38"]')),
]
CASES = {
    None: CORRECT,
    "invalid_json": INVALID_JSON,
    "wrong_schema": WRONG_SCHEMA,
    "repeated_item": REPEATED_ITEM,
    "missing_field": MISSING_FIELD,
    "missing_item": MISSING_ITEM,
    "invented_value": INVENTED_VALUE,
    "wrong_value": WRONG_VALUE,
}
FLAT = [(want, e, text) for want, rows in CASES.items() for e, text in rows]


@pytest.mark.parametrize(
    ("want", "example", "text"), FLAT, ids=[f"{w or 'correct'}-{i}" for i, (w, _, _) in enumerate(FLAT)]
)
def test_answers_checked_by_hand(want: str | None, example: Example, text: str) -> None:
    found = receipts.score(example, text)
    assert found.failure == want, found.explanation
    assert (found.value == 1.0) == (want is None)
    assert found.value == 0.0 or want not in ("invalid_json", "wrong_schema")


def test_there_are_a_hundred_cases_and_each_class_has_some() -> None:
    assert len(FLAT) >= 100 and len({(e.id, text) for _, e, text in FLAT}) >= len(FLAT) - 1
    assert min(map(len, CASES.values())) >= 8


def test_value_is_the_f1_of_fields() -> None:
    """B has 3 + 2 x 3 = 9 fields. One row of the two: 6 right of 6 given and 9 wanted, so 2 x 6 / 15."""
    assert receipts.score(B, b(items=SWABS)).value == pytest.approx(12 / 15)
    assert receipts.score(B, b(date="2026-03-13")).value == pytest.approx(16 / 18)
    assert receipts.score(B, b(items=f'["warm swabs", 2, "18.38"], {RIVET}')).value == pytest.approx(16 / 18)
    assert receipts.score(B, b("", "x", "y", "z")).value == 0.0
    # the same fields, but 2 rows swap their quantity: all nine fields of B are keyed by the name, so two differ
    swapped = b(items='["warm swabs", 2, "18.38"], ["rivet A5", 1, "37.18"]')
    assert receipts.score(B, swapped).value == pytest.approx(14 / 18)


def test_fields_that_agree_in_rows_that_differ_are_not_full_marks() -> None:
    """Two articles of one name with their quantities swapped: every field occurs, no row does."""
    page = "Bill\nMoreau\n2024/05/16\npeat; 1; 2.00\npeat; 3; 4.50\nTOTAL DUE 6.50"
    reference = b('["peat", 1, "2.00"], ["peat", 3, "4.50"]', "Moreau", "2024-05-16", "6.50")
    example = Example("c", HEAD + page, reference, "g")
    swapped = receipts.score(example, reference.replace('1, "2.00"', '3, "2.00"').replace('3, "4.50"', '1, "4.50"'))
    assert (swapped.value, swapped.failure) == (0.99, "wrong_value")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (a(items=f"{MILK}, {BREAD}, {BREAD}, {MILK}"), "'white bread' is listed 2 times; the document has it 1 times"),
        (a(items=f"{MILK}, {MILK}"), "lacks 'white bread'"),
        (a(items=f"{MILK}, {BREAD}"), "lacks 'an item'"),
        (a(vendor="Elmira"), "'elmira' does not appear in the prompt"),
        (a(date="2026-09-15", total="19.6"), "'date' differs from the reference"),  # 19.6 is the same total
        (a(items=f'["oat milk", 1, "3.80"], {BREAD}, {MILK}', total="19.6"), "'items' differs from the reference"),
        (a().replace('"vendor"', '"shop"'), "must be an object with vendor, date, items, total"),
        ('{"a": 1, "a": 2}', "key 'a' appears twice"),
    ],
)
def test_explanations_say_what_is_wrong(text: str, words: str) -> None:
    assert words in receipts.score(A, text).explanation


HOSTILE = {
    "nothing": "",
    "lone surrogate": "\ud800",
    "lone surrogate as key": '{"\\ud800": 1}',
    "lone surrogate as item": a(items='"\\ud800"'),
    "lone surrogate as name": a(items=f'["\\ud800", 1, "\\udfff"], {BREAD}, {MILK}'),
    "lone surrogate as vendor": a(vendor="\\ud800"),
    "nested lists": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "nested items": a(items="[" * 100_000 + "]" * 100_000),
    "deep but readable items": a(items="[" * 900 + "]" * 900),
    "deep but readable objects": a(items='{"a":' * 900 + "1" + "}" * 900),
    "5000 digits": "9" * 5000,
    "5000 digits as quantity": a(items=f'["oat milk", {"9" * 5000}, "3.80"]'),
    "4000 digits as quantity": a(items=f'["oat milk", {"9" * 4000}, "3.80"], {BREAD}, {MILK}'),
    "5000 digits as amount": a(total="9" * 5000),
    "huge exponents": a(total="1e999999999", items=f'["oat milk", 2, "-9e-999999999"], {BREAD}, {MILK}'),
    "numbers that are none": a(total="sNaN", items=f'["oat milk", 2, "-Infinity"], {BREAD}, {MILK}'),
    "NaN": "NaN",
    "float overflow": a().replace('"19.60"', "1e999"),
    "key twice": '{"a": 1, "a": 1}',
    "1 MB of text": "word " * 200_000,
    "1 MB of line breaks in an open fence": "```" + "\n" * 1_000_000 + "x",
    "1 MB of fences": "```json\n" * 125_000,
    "1 MB name": a(items=f'["{"x" * 1_000_000}", 1, "3.80"], {BREAD}, {MILK}'),
    "1 MB of rows": a(items=", ".join([f'["n{k}", {k}, "{k}.00"]' for k in range(40_000)])),
    "1 MB of spaces": a() + " " * 1_000_000,
    "NUL": a(vendor="\\u0000"),
    "non-ASCII digits": a(total="١٩.٦٠"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_gets_a_verdict(text: str) -> None:
    """No exception, in little time, and words that can be written to a file."""
    for finished in (True, False):
        found = receipts.load().score(A, text, finished=finished)
        assert 0.0 <= found.value <= 1.0
        assert (found.explanation.encode("utf-8") or found.value == 1.0) and len(found.explanation) < 1000
        if not finished:
            assert found.failure in ("empty", "loop", "truncated") and found.value < 1.0


PIECES = [
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\\",
    "\\ud800",
    "\ud800",
    "null",
    "1e9",
    "-",
    "NaN",
    "```",
    "\n",
    MILK,
    BREAD,
]
MUTATED = st.builds(
    lambda text, at, piece, cut: text[: at % len(text)] + piece + text[at % len(text) + cut :],
    st.sampled_from([a(), b(), f"```json\n{a()}\n```"]),
    st.integers(0, 400),
    st.one_of(st.text(max_size=8), st.sampled_from(PIECES)),
    st.integers(0, 30),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
ROWS = st.lists(st.tuples(SCALARS, SCALARS, SCALARS).map(list), max_size=3) | VALUES
OBJECTS = st.fixed_dictionaries({"vendor": SCALARS, "date": SCALARS, "items": ROWS, "total": SCALARS})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(MUTATED, st.text(), OBJECTS.map(json.dumps), VALUES.map(json.dumps)))
def test_score_never_raises(text: str) -> None:
    found = receipts.score(A, text)
    assert 0.0 <= found.value <= 1.0
    assert (found.failure is None) == (found.value == 1.0)
    assert found.explanation.encode("utf-8") or found.value == 1.0


def test_missing_data_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dpo_workbench.tasks.examples.data_folder", lambda: tmp_path)
    with pytest.raises(WorkbenchError, match=r"no file at .*train\.jsonl"):
        receipts.load()

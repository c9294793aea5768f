"""The generic failures: each rule for loops alone, and no false alarm on any reference answer."""

import pytest

from dpo_workbench.tasks import failures, receipts
from dpo_workbench.tasks.failures import detect, is_echo, loop_reason

WORDS = "A quiet river runs past seven mills, and none of them is older than its bridge of grey stone. "


def official_rule(text: str) -> bool:
    """The rule of the benchmark, written again: the last 15 characters occur at least 4 times."""
    return len(text) >= 15 and text.count(text[-15:]) >= 4


@pytest.mark.parametrize("n, loop", [(3, False), (4, True)])
def test_exact_tail_needs_four_copies(n: int, loop: bool) -> None:
    copy = "fifteen letters"
    text = WORDS + " and ".join([copy] * 2) + "; then " + ", ".join([copy] * (n - 2))
    assert official_rule(text) == loop
    assert (loop_reason(text) is not None) == loop
    if loop:
        assert loop_reason(text) == "its last 15 characters occur 4 times"


@pytest.mark.parametrize("unit", ["a", "ab", " na", "\n\n- ", "word and ", WORDS])
def test_exact_repetition_is_found_wherever_the_last_unit_is_cut(unit: str) -> None:
    copies = max(4, 40 // len(unit) + 1)
    for cut in {0, 1, len(unit) // 2, len(unit) - 1}:
        assert loop_reason(WORDS + unit * copies + unit[:cut]), cut
    assert not loop_reason(WORDS + unit * 2)


def test_n_gram_tail_alone() -> None:
    """Twelve copies of a unit that is no longer than a word, in a text where the 15-character rule sees only three."""
    text = "x" + "abcdefghijklm" * 4  # 52 characters: its last 15 occur 3 times
    assert not official_rule(text)
    assert loop_reason(text) == "it ends in copies of 'abcdefghijklm'"
    assert loop_reason("x" + "abcdefghijklm" * 3) is None  # three copies are no loop
    assert loop_reason(text + " and then something else") is None  # the end is not the loop


COUNTING = {
    "one digit": lambda k: f'["oat milk", {k}, "{k}.50"], ',
    "growing numbers": lambda k: f'["oat milk {7 * k}mm", {k}, "{k * k}.50"], ',
    "lines": lambda k: f"Step {k + 1}: add {3 * k} to the sum\n",
    "years": lambda k: f"By {1900 + k} it was sold; ",
}


@pytest.mark.parametrize("row", COUNTING.values(), ids=COUNTING)
def test_counting_loops_are_found_by_masking_numbers(row) -> None:
    text = WORDS + "".join(row(k) for k in range(1, 31))
    assert not official_rule(text)
    assert "with digits masked" in (loop_reason(text) or "")
    for cut in range(1, len(row(30))):
        assert loop_reason(text[:-cut]), cut  # generation stops in the middle of a row


def test_counting_that_ends_and_goes_on_is_no_loop() -> None:
    rows = "".join(COUNTING["one digit"](k) for k in range(1, 9))
    assert loop_reason(rows) is not None
    assert loop_reason(rows + '["white bread", 1, "2.00"]], "total": "210.00"}') is None
    assert loop_reason("".join(COUNTING["one digit"](k) for k in range(1, 5))) is None  # four rows
    assert loop_reason(", ".join(str(k) for k in range(200, 300))) is None  # numbers alone are no counting loop


def test_known_false_alarm_of_equal_rows() -> None:
    """Six equal rows, and the text goes on; an earlier rule took them for a loop."""
    equal = '{"vendor": "Old Mill Tools", "items": [' + '["brass washer", 2, "3.10"], ' * 6
    assert loop_reason(equal + '["oat milk", 1, "1.95"]], "total": "20.55"}') is None
    assert loop_reason(equal) is not None  # the rule can still see them where the text ends in them


def test_no_false_alarm_on_any_reference() -> None:
    n = 0
    for split in receipts.load().splits.values():
        for e in split:
            assert loop_reason(e.reference) is None, e.id
            assert detect(e.reference, prompt=e.prompt) is None, e.id
            cut = detect(e.reference, prompt=e.prompt, finished=False)
            assert cut is not None and cut[0] == "truncated", e.id
            n += 1
    assert n == 3000


def test_only_unfinished_answers_are_loops() -> None:
    text = "na " * 200
    assert detect(text, finished=False)[0] == "loop"  # type: ignore[index]
    assert detect(text, finished=True) is None
    assert detect("all well", finished=False) == ("truncated", "hit the token limit")
    assert detect(" \n\t", finished=False)[0] == "empty"  # type: ignore[index]


def test_echo() -> None:
    prompt = WORDS * 2 + "What is old?"
    assert detect(prompt, prompt=prompt) == ("echo", "the answer repeats the prompt")
    assert is_echo(prompt.replace(" ", "\n ")[:150], prompt)
    assert is_echo("What  is\nold?", "What is old?")
    assert not is_echo("old?", prompt) and not is_echo("", "") and not is_echo("The bridge. " * 10, prompt)


@pytest.mark.parametrize("unit", ["x", "word ", WORDS, "[[{", "0", "\ud800", "\n", "{}{}[", "1, "])
def test_ten_megabytes_are_read_in_linear_time(unit: str) -> None:
    """A rule of quadratic cost would not come back within the test run."""
    text = unit * (10_000_000 // len(unit))
    found = detect(text, prompt=text[:1000], finished=False)
    assert found is not None and found[0] == ("loop" if text.strip() else "empty")
    assert loop_reason("".join(f"row {k} of {k * k}\n" for k in range(500_000)))


def test_masked_window_is_bounded(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(failures, "_repeated_unit", lambda text, *rest: seen.append(len(text)) or "")
    loop_reason("a1b2 " * 100_000 + "z" * 14)
    assert seen and max(seen) <= 3000

"""Pairs in the formats of TRL, OpenAI and Together: each line checked, texts byte for byte, nothing lost in silence."""

import json
from dataclasses import replace

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.layouts import LAYOUTS, read_line, to_lines
from dpo_workbench.pairs.pair import Pair

ODD = [
    'quotes " \' `` \\" \\',
    "lines\n\r\n\r\ttabs\n",
    "<script>alert('x')</script>&amp;<|im_end|>",
    "日本 € \U0001f600 é e\u0301 \u202e\u200b",
    "\u2028\u2029\x85\x0b\x0c\x1c\ufeff\x00\x7f",
    "  spaces at both ends  ",
    '{"a": [1, "\\u00e9", null]}',
]
PAIRS = [Pair(f"p{k}", f"prompt {t}", f"chosen {t}", f"rejected {t}") for k, t in enumerate(ODD)]


def by_hand(layout: str, chat: bool, pair: Pair) -> dict:
    """What the formats' documentation shows."""
    user, good, bad = (
        [{"role": role, "content": text}]
        for role, text in (("user", pair.prompt), ("assistant", pair.chosen), ("assistant", pair.rejected))
    )
    if layout == "trl":
        if not chat:
            return {
                "id": pair.id,
                "prompt": pair.prompt + "\n",
                "chosen": pair.chosen,
                "rejected": pair.rejected,
            }
        return {"id": pair.id, "prompt": user, "chosen": good, "rejected": bad}
    tools = {"tools": [], "parallel_tool_calls": True} if layout == "openai" else {}
    return {"input": {"messages": user, **tools}, "preferred_output": good, "non_preferred_output": bad}


@pytest.mark.parametrize(("layout", "chat"), [("trl", True), ("trl", False), ("openai", True), ("together", True)])
def test_each_line_is_what_the_format_asks_for(layout, chat) -> None:
    made = to_lines(PAIRS, layout, chat=chat)
    text = "".join(line + "\n" for line in made.lines).encode("utf-8")
    rows = [json.loads(line) for line in text.split(b"\n")[:-1]]
    assert rows == [by_hand(layout, chat, pair) for pair in PAIRS] and made.left_out == []
    for line, pair in zip(made.lines, PAIRS, strict=True):
        assert read_line(line, layout) == (pair.prompt + "\n" * (not chat), pair.chosen, pair.rejected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_format_cannot_hold_is_counted(layout) -> None:
    cut = replace(PAIRS[0], id="cut", rejected_finished=False)
    same = replace(PAIRS[0], id="same", rejected=PAIRS[0].chosen, rejected_finished=False)
    half = replace(PAIRS[0], id="half", chosen="\ud83d")
    heavy = replace(PAIRS[0], id="heavy", weight=2.0)
    made = to_lines([*PAIRS * 2, cut, same, half, heavy], layout)
    assert len(made.lines) == 16 and made.left_out == [same, half]
    notes = "\n".join(made.notes)
    assert "left out: 1 pair (same), whose answers differ only" in notes and "left out: 1 pair (half)" in notes
    assert "1 pair (cut) with a rejected answer cut" in notes and "1 pair (heavy) with a weight" in notes
    assert to_lines(PAIRS * 2, layout).notes == []  # negative control
    with pytest.raises(WorkbenchError, match=f"Got none that {layout} can hold: left out: 2 pairs"):
        to_lines([same, replace(same, id="too")], layout)


def test_openai_wants_ten_rows() -> None:
    assert "10 rows or more: this one has 7" in to_lines(PAIRS, "openai").notes[0]
    assert to_lines([*PAIRS, *PAIRS[:3]], "openai").notes == [] and to_lines(PAIRS, "together").notes == []


def test_unknown_layout_raises() -> None:
    with pytest.raises(WorkbenchError, match="`layout` must be one of trl, openai, together. Got 'csv'"):
        to_lines(PAIRS, "csv")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_line_that_is_not_the_format_is_refused(layout) -> None:
    row = json.loads(to_lines(PAIRS, layout).lines[0])
    prompt, chosen = ("prompt", "chosen") if layout == "trl" else ("input", "preferred_output")
    message = row[chosen][0]
    wrong = [
        {k: v for k, v in row.items() if k != chosen},
        row | {"extra": 1},
        row | {chosen: []},
        row | {chosen: [message, message]},
        row | {chosen: message},
        row | {chosen: [message | {"role": "user"}]},
        row | {chosen: [message | {"content": " "}]},
        row | {chosen: [message | {"content": None}]},
        row | {chosen: [{"role": "assistant"}]},
        row | {prompt: []},
        [row],
    ]
    for bad in [*map(json.dumps, wrong), "{", "", "[" * 100_000]:
        with pytest.raises(WorkbenchError, match=f"A line must hold one pair in {layout}'s format"):
            read_line(bad, layout)
    assert read_line(json.dumps(row), layout)  # negative control

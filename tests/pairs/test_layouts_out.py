"""Pairs in the formats of TRL and OpenAI: each line checked, texts byte for byte, nothing lost in silence."""

import json
from dataclasses import replace

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.layouts_out import LAYOUTS, to_lines
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
    tools = {"tools": [], "parallel_tool_calls": True}
    return {"input": {"messages": user, **tools}, "preferred_output": good, "non_preferred_output": bad}


@pytest.mark.parametrize(("layout", "chat"), [("trl", True), ("trl", False), ("openai", True)])
def test_each_line_is_what_the_format_asks_for(layout, chat) -> None:
    made, _ = to_lines(PAIRS, layout, chat=chat)
    text = "".join(line + "\n" for line in made).encode("utf-8")
    rows = [json.loads(line) for line in text.split(b"\n")[:-1]]
    assert rows == [by_hand(layout, chat, pair) for pair in PAIRS]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_format_cannot_hold_is_counted(layout) -> None:
    cut = replace(PAIRS[0], id="cut", rejected_finished=False)
    same = replace(PAIRS[0], id="same", rejected=PAIRS[0].chosen, rejected_finished=False)
    heavy = replace(PAIRS[0], id="heavy", weight=2.0)
    made, told = to_lines([*PAIRS * 2, cut, same, heavy], layout)
    assert len(made) == 16
    notes = "\n".join(told)
    assert "left out: 1 pair (same), whose answers differ only" in notes
    assert "1 pair (cut) with a rejected answer cut" in notes and "1 pair (heavy) with a weight" in notes
    assert to_lines(PAIRS * 2, layout)[1] == []  # negative control
    with pytest.raises(WorkbenchError, match=f"Got 2 pairs .same, too. whose answers differ only .*{layout} cannot"):
        to_lines([same, replace(same, id="too")], layout)


def test_openai_wants_ten_rows() -> None:
    assert "10 rows or more: this one has 7" in to_lines(PAIRS, "openai")[1][0]
    assert to_lines([*PAIRS, *PAIRS[:3]], "openai")[1] == []


def test_unknown_layout_raises() -> None:
    with pytest.raises(WorkbenchError, match="`layout` must be one of trl, openai. Got 'csv'"):
        to_lines(PAIRS, "csv")

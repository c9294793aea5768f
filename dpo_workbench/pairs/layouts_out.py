"""Pairs as lines of JSON in the layouts that TRL and OpenAI read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.preference import Pair

LAYOUTS = ("trl", "openai")
OPENAI_MINIMUM = 10  # rows that a fine-tuning file must have


def to_lines(pairs: Sequence[Pair], layout: str, *, chat: bool = True) -> tuple[list[str], list[str]]:
    """Pairs as lines in another layout, and notes about what it can't express. Texts stay as they are.

    Args:
        layout: `trl` or `openai`.
        chat: for `trl`: messages; else plain text with a line break after the prompt, for a model without a template.

    Raises:
        WorkbenchError: an unknown layout, or no pair that it can hold.

    Source: TRL's dataset formats, OpenAI's guide to direct preference optimization.
    """
    if layout not in LAYOUTS:
        raise WorkbenchError(f"`layout` must be one of {', '.join(LAYOUTS)}. Got {layout!r}. Choose one of these.")
    different = [p for p in pairs if p.chosen.strip() != p.rejected.strip()]
    same = [p for p in pairs if p.chosen.strip() == p.rejected.strip()]
    if not different:
        raise WorkbenchError(
            f"Each pair must have two different texts. Got {_count(same)} whose answers differ only in that the "
            f"rejected one never ended, which {layout} cannot express. Mine pairs with other rejected answers."
        )
    cut, weighted = [p for p in different if not p.rejected_finished], [p for p in different if p.weight != 1.0]
    told = {
        "left out: {}, whose answers differ only in that the rejected one never ended": same,
        "{} with a rejected answer cut at the token limit: will be read as if it ended there": cut,
        "{} with a weight other than 1: not in the file, so all rows count alike": weighted,
    }
    notes = [note.format(_count(found)) for note, found in told.items() if found]
    if layout == "openai" and len(different) < OPENAI_MINIMUM:
        notes.append(f"OpenAI accepts files of {OPENAI_MINIMUM} rows or more: this one has {len(different)}")
    return [json.dumps(_row(p, layout, chat), ensure_ascii=False) for p in different], notes


def _row(pair: Pair, layout: str, chat: bool) -> dict[str, Any]:
    if layout == "trl" and not chat:
        return {"id": pair.id, "prompt": f"{pair.prompt}\n", "chosen": pair.chosen, "rejected": pair.rejected}
    asked = [{"role": "user", "content": pair.prompt}]
    better, worse = ([{"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected))
    if layout == "trl":
        return {"id": pair.id, "prompt": asked, "chosen": better, "rejected": worse}
    asked_with_tools = {"messages": asked, "tools": [], "parallel_tool_calls": True}
    return {"input": asked_with_tools, "preferred_output": better, "non_preferred_output": worse}


def _count(pairs: Sequence[Pair]) -> str:
    names = ", ".join(p.id for p in pairs[:4]) + (", ..." if len(pairs) > 4 else "")
    return f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} ({names})"

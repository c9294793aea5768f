"""The layouts of preference data: which columns a file has, and how they are recognised."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_workbench.pairs import row_readers as rows
from dpo_workbench.pairs.checks import Refusal, excerpt
from dpo_workbench.pairs.conversations import Ranked
from dpo_workbench.pairs.row_readers import ANSWERS, LISTS, OTHERS, PROMPTS


@dataclass(frozen=True)
class Layout:
    """One arrangement of columns: how to recognise its rows, and how to read one."""

    name: str
    what: str
    needs: tuple[tuple[str, ...], ...]  # one column of each tuple must be there
    read: Callable[[dict[str, Any]], Ranked]
    fits: Callable[[dict[str, Any]], bool] = lambda row: True
    grouped: bool = False  # rows hold one answer each; pairs are made within a prompt

    def reads(self, key: str) -> bool:
        """Whether the layout needs this column, or every layout may have it."""
        return key in OTHERS or key in PROMPTS or any(key in names for names in self.needs)

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        """The columns that the row lacks."""
        return [names[0] for names in self.needs if not any(name in row for name in names)]


def recognise(objects: Sequence[dict[str, Any]]) -> Layout | None:
    """The first layout that most of the rows have; None if no row has all columns of any layout."""
    votes: Counter[str] = Counter()
    for row in objects:
        votes.update(layout.name for layout in LAYOUTS.values() if not layout.missing(row) and layout.fits(row))
    if not votes:
        return None
    enough = min(max(votes.values()), len(objects) // 2 + 1)  # a bad row fits only the looser layouts, which come later
    return next(layout for layout in LAYOUTS.values() if votes[layout.name] >= enough)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, if there is one among the first fifty."""
    return next(iter(difflib.get_close_matches(name, list(names)[:50], 1, 0.75)), None)


def read_row(layout: Layout, row: Any) -> Ranked:
    """A row as one prompt with ranked answers. Raises Refusal."""
    if not isinstance(row, dict):
        raise Refusal("P106", "", f"{type(row).__name__}: {row}")
    if missing := layout.missing(row):
        close = nearest(missing[0], [k for k in row if not layout.reads(k)])
        fix = f"Rename `{excerpt(close)}` to `{missing[0]}`." if close else ""
        raise Refusal("P107", missing[0], f"keys {', '.join(map(str, row))}", fix)
    ranked = layout.read(row)
    rows.read_other_fields(ranked, row)
    return ranked


_P, _CR = PROMPTS, (("chosen",), ("rejected",))
_ALL = (  # a row belongs to the first layout that it fits, so the stricter ones come first
    Layout("openai", "OpenAI or Azure: input, preferred_output, non_preferred_output",
           (("input",), ("preferred_output",), ("non_preferred_output",)), rows.read_openai),
    Layout("hh", "dialogues of Human and Assistant as in HH-RLHF, in chosen and rejected",
           _CR, rows.read_hh, fits=rows.is_hh),
    Layout("compared", "two answers in columns such as response1 and response2, and which one won",
           (rows.WINNERS,), rows.read_compared, fits=rows.is_compared),
    Layout("labelstudio", "Label Studio, pairwise: data and annotations",
           (("data",), ("annotations",)), rows.read_label_studio, fits=rows.is_label_studio),
    Layout("trl", "TRL, explicit prompt: prompt, chosen, rejected as text or messages", (_P, *_CR), rows.read_pair),
    Layout("trl-implicit", "TRL, implicit prompt: chosen and rejected begin with it", _CR, rows.read_pair),
    Layout("list", "several answers to a prompt with scores (as in UltraFeedback) or ranks, or best first",
           (_P, LISTS), rows.read_list, fits=rows.is_list),
    Layout("thumbs", "one answer per row with thumbs up or down, paired within a prompt",
           (_P, ANSWERS, ("label",)), rows.read_thumb, fits=rows.has_thumb, grouped=True),
)  # fmt: skip
LAYOUTS = {layout.name: layout for layout in _ALL}

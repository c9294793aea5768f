"""The layouts of preference data: which columns a file has, and how they are recognised."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_workbench.pairs import row_readers as rows
from dpo_workbench.pairs.checks import Refusal, excerpt
from dpo_workbench.pairs.conversations import Ranked
from dpo_workbench.pairs.row_readers import ANSWERS, LISTS, OTHERS, PROMPTS, SCORES


@dataclass(frozen=True)
class Layout:
    """One arrangement of columns: how to recognise its rows, and how to read one."""

    name: str
    what: str
    needs: tuple[tuple[str, ...], ...]  # one column of each tuple must be there
    read: Callable[[dict[str, Any]], Ranked]
    keys: tuple[str, ...] = ()  # other columns that it reads; "*" for any
    fits: Callable[[dict[str, Any]], bool] = lambda row: True
    grouped: bool = False  # rows hold one answer each; pairs are made within a prompt
    pattern: re.Pattern[str] | None = None  # of still other columns

    def known(self, key: str) -> bool:
        """Whether the layout reads this column."""
        named = "*" in self.keys or key in OTHERS or key in self.keys or any(key in names for names in self.needs)
        return named or bool(self.pattern and self.pattern.fullmatch(key))

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
    """A row as one prompt with ranked answers.

    Raises:
        Refusal: the code of what is wrong, with the field.
    """
    if not isinstance(row, dict):
        raise Refusal("P106", "", f"{type(row).__name__}: {row}")
    if missing := layout.missing(row):
        other = next((x for x in LAYOUTS.values() if not x.missing(row) and x.fits(row)), None)
        if other and not any(n in row for names in layout.needs for n in names if n not in PROMPTS):
            raise Refusal("P109", "", f"a row of layout {other.name} among rows of {layout.name}")
        close = nearest(missing[0], [k for k in row if not layout.known(k)])
        fix = f"Rename `{excerpt(close)}` to `{missing[0]}`." if close else ""
        raise Refusal("P107", missing[0], f"keys {', '.join(map(str, row))}", fix)
    ranked = layout.read(row)
    rows.read_other_fields(ranked, row)
    return ranked


_P, _A, _CR = PROMPTS, ANSWERS, (("chosen",), ("rejected",))
_ALL = (  # a row belongs to the first layout that it fits, so the stricter ones come first
    Layout("own", "what Pairs.save writes", (("id",), ("prompt",), *_CR), rows.read_own, fits=rows.is_own),
    Layout("openai", "OpenAI, Azure or Together: input, preferred_output, non_preferred_output",
           (("input",), ("preferred_output",), ("non_preferred_output",)), rows.read_openai),
    Layout("tinker", "Tinker: comparison and label A or B",
           (("comparison",), ("label",)), rows.read_tinker, fits=rows.is_tinker),
    Layout("hh", "dialogues of Human and Assistant as in HH-RLHF, in chosen and rejected",
           _CR, rows.read_hh, fits=rows.is_hh),
    Layout("compared", "two answers in columns such as response1 and response2, and which one won",
           (rows.WINNERS,), rows.read_compared, (*rows.CONTEXTS, "system", "individual_preference"),
           fits=rows.is_compared, pattern=rows.TWO),
    Layout("labelstudio", "Label Studio, pairwise: data and annotations, or one column pw",
           (("data", *_P), ("annotations", *rows.FLAT_LABELS)), rows.read_label_studio, ("*",),
           fits=rows.is_label_studio),
    Layout("argilla", "Argilla: fields with the responses to a label or ranking question",
           (("fields", *_P),), rows.read_argilla, ("*",), fits=rows.is_argilla),
    Layout("trl", "TRL, explicit prompt: prompt, chosen, rejected as text or messages",
           (_P, *_CR), rows.read_pair, ("messages", "system")),
    Layout("trl-implicit", "TRL, implicit prompt: chosen and rejected begin with it",
           _CR, rows.read_pair, (*_P, "messages", "system")),
    Layout("list", "several answers to a prompt with scores (as in UltraFeedback) or ranks, or best first",
           (_P, LISTS), rows.read_list,
           (*rows.SCORE_LISTS, "system", "models", "correct_answers", "incorrect_answers", "source"),
           fits=rows.is_list),
    Layout("thumbs", "one answer per row with thumbs up or down, paired within a prompt",
           (_P, _A, ("label",)), rows.read_thumb, ("system",), fits=rows.has_thumb, grouped=True),
    Layout("samples", "one answer per row with a score, paired within a prompt",
           (_P, _A, SCORES), rows.read_sample, ("system",), grouped=True),
)  # fmt: skip
LAYOUTS = {layout.name: layout for layout in _ALL}
SYNONYMS = {"azure": "openai", "together": "openai", "ultrafeedback": "list", "ranked": "list"}

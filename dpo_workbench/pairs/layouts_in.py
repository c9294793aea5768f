"""The layouts of preference data: how each is recognised, and how its rows become one prompt with ranked answers."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dpo_workbench.pairs.codes import Refusal, excerpt, stop
from dpo_workbench.pairs.conversations import IMPLICIT, Ranked, conversation, number, text
from dpo_workbench.pairs.messages import check_text_only
from dpo_workbench.pairs.preference import Pair

PROMPTS = ("prompt", "instruction", "question", "query", "input")  # names of columns; the first one is ours
ANSWERS = ("response", "answer", "completion", "output", "text", "generated_text", "code")
LISTS = ("answers", "responses", "completions", "candidates", "generations", "outputs")
SCORES = ("score", "reward", "rating", "overall_score", "fine-grained_score", "grade")
WINNERS = ("winner", "better_response_id", "preference", "label", "better", "pw")  # `pw`: flat Label Studio exports
_SCORE_LISTS = ("scores", "ratings", "rewards", "grades")
_RENAMED = {"prompt_id": "group", "score_chosen": "chosen_score", "score_rejected": "rejected_score"}
OTHERS = (*_RENAMED, *(f.name for f in fields(Pair) if f.name not in ("prompt", "chosen", "rejected")))  # in any layout
_TIES = ("tie", "tiebothbad", "both", "neither", "equal", "skip", "none", "")
_TWO = re.compile(r"(response|answer|completion|output|candidate|conversation|text)_?([012ab])", re.I)
_THUMBS = {"true": True, "1": True, "up": True, "good": True, "false": False, "0": False, "down": False, "bad": False}


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


def recognise(objects: Sequence[dict[str, Any]], where: str) -> Layout:
    """The first layout that most of the rows have; TRL's if there are none. Raises WorkbenchError if none has any."""
    fitting = (layout for row in objects for layout in LAYOUTS.values() if not layout.missing(row) and layout.fits(row))
    votes = Counter(layout.name for layout in fitting)
    if not objects:
        return LAYOUTS["trl"]
    if not votes:
        columns = dict.fromkeys(key for row in objects for key in row)
        raise stop("P007", f"an unknown layout with the columns {', '.join(columns)}", where)
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
    check_text_only(row)
    ranked = layout.read(row)
    for key in OTHERS:
        name, value = _RENAMED.get(key, key), row.get(key)
        if value in (None, ""):
            continue
        if name in ("weight", "chosen_score", "rejected_score"):
            ranked.fields[name] = number(value, name, above=0 if name == "weight" else -math.inf)
        elif name == "rejected_finished":
            ranked.fields[name] = _thumb(value, name)
        else:  # text, or a number as it is written
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            ranked.fields[name] = str(value) if is_number else text(value, name)
    return ranked


def _first(row: Mapping[str, Any], names: Iterable[str], default: Any = None) -> Any:
    """The value of the first column that is not empty: in a mixed set, those of the other sources hold None."""
    found = [row[name] for name in names if name in row]
    return next((value for value in found if value is not None), None if found else default)


def _asked(row: Mapping[str, Any], without: Any = None, names: Sequence[str] = PROMPTS) -> Any:
    """The prompt of a row: an `input` next to an instruction goes after it, system text and earlier turns before it."""
    asked, system, turns = _first(row, names, without), row.get("system"), row.get("history")
    said = [("system", system)] if isinstance(system, str) and system.strip() else []
    if isinstance(turns, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in turns):  # LLaMA-Factory
        said += [message for turn in turns for message in zip(("user", "assistant"), turn, strict=True)]
    earlier = [{"role": role, "content": content} for role, content in said]
    if isinstance(asked, str):
        more = row.get("input") if "input" in row and asked is not row["input"] else None
        asked = f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked
    if earlier and isinstance(asked, (str, list)) and asked[:1] != earlier[:1]:  # messages may begin with both
        asked = [*earlier, *([{"role": "user", "content": asked}] if isinstance(asked, str) else asked)]
    return asked


def _read_pair(row: dict[str, Any]) -> Ranked:
    if "chosen_from" in row and isinstance(row.get("prompt"), str):  # as `Pairs.save` writes texts: read as they are
        return Ranked(row["prompt"], [text(row[name], name) for name in ("chosen", "rejected")], [1.0, 0.0])
    asked, answers = _asked(row, IMPLICIT), [row["chosen"], row["rejected"]]
    if asked is IMPLICIT and all(isinstance(answer, dict) for answer in answers):  # one message each
        asked = _asked(row, IMPLICIT, ("messages", "conversations"))
    return conversation(asked, answers, ("chosen", "rejected"))


def _read_openai(row: dict[str, Any]) -> Ranked:
    names = ("preferred_output", "non_preferred_output")
    if not isinstance(row["input"], dict) or "messages" not in row["input"]:
        raise Refusal("P108", "input", row["input"], "Write an object with messages here.")
    return conversation(row["input"], [row[name] for name in names], names)


def _read_compared(row: dict[str, Any]) -> Ranked:
    """Two answers in columns whose names differ in the last character, and which one is better."""
    names = _two(row)
    if not names:
        raise Refusal("P107", "response1", f"keys {', '.join(map(str, row))}", "Add two answers and a winner.")
    key = next(k for k in WINNERS if k in row)
    found = conversation(_asked(row, IMPLICIT), [row[name] for name in names], names)
    side = _side(row[key], names, key)
    found.ranks = [float(side == 0), float(side == 1)]
    return found


def _is_compared(row: dict[str, Any]) -> bool:
    return "chosen" not in row and bool(two := _two(row)) and all(row[name] is not None for name in two)


def _two(row: Mapping[str, Any]) -> list[str]:
    """The two columns with answers; empty where there are not exactly two."""
    stems: dict[str, list[str]] = defaultdict(list)
    for key in row:
        if match := _TWO.fullmatch(key):
            stems[match[1].lower()].append(key)
    return next((sorted(names) for names in stems.values() if len(names) == 2), [])


def _side(label: Any, names: Sequence[str], where: str) -> int | None:
    """The place of the name that a label means: the name, left or right, or its last character; None for a tie."""
    letters = re.compile(r"\W|_")
    label = int(label) if isinstance(label, float) and label.is_integer() else label
    asked, others = letters.sub("", str(label)).lower(), [letters.sub("", name).lower() for name in names]
    if label is None or asked in _TIES:
        return None
    for given, sides in ((asked, others), (asked, ["left", "right"]), (asked[-1:], [name[-1:] for name in others])):
        if given in sides and len(set(sides)) == len(names):
            return sides.index(given)
    raise Refusal("P108", where, label, f"Write one of {', '.join(names)} here.")


def _read_label_studio(row: dict[str, Any]) -> Ranked:
    """Two answers that people compared; the majority of the annotations decides."""
    data = row["data"] if isinstance(row["data"], dict) else {}
    if not _two(data) or not any(name in data for name in PROMPTS):
        raise Refusal("P107", "data", row["data"], "Add a prompt, `text1` and `text2`.")
    check_text_only(data)
    done = [a for a in _dicts(row["annotations"]) if not a.get("was_cancelled")]
    values = [result.get("value") for a in done for result in _dicts(a.get("result"))]
    votes = Counter(str(value["selected"]) for value in _dicts(values) if "selected" in value)
    winners = [label for label, n in votes.items() if n == max(votes.values())]
    return _read_compared({**data, "winner": winners[0] if len(winners) == 1 else None})


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _read_list(row: dict[str, Any]) -> Ranked:
    """Several answers to a prompt: objects with scores, texts with a list of scores or ranks, or texts best first."""
    name = max((n for n in LISTS if n in row), key=lambda n: row[n] is not None)
    values = row[name]
    if not isinstance(values, list) or len(values) < 2:
        raise Refusal("P108", name, values, "Write a list of two or more answers here.")
    key = next((k for k in _SCORE_LISTS if row.get(k) is not None), None)
    objects = all(isinstance(v, dict) for v in values)
    names = [f"{name}[{k}]" for k in range(len(values))]
    found = conversation(_asked(row), [_first(v, ANSWERS) for v in values] if objects else values, names)
    if key is not None:
        given, found.scored = row[key], True
        if not isinstance(given, list) or len(given) != len(values):
            raise Refusal("P108", key, given, f"Write a list of {len(values)} numbers here.")
        found.ranks = [number(g, f"{key}[{k}]") for k, g in enumerate(given)]
    elif objects and all("rank" in v for v in values):
        found.ranks = [-number(v["rank"], f"{name}.rank") for name, v in zip(names, values, strict=True)]
    elif objects:
        scores = [number(_first(v, SCORES), f"{name}.score") for name, v in zip(names, values, strict=True)]
        found.ranks, found.scored = scores, True
    else:
        found.ranks = [float(-k) for k in range(len(values))]
        found.notes.append(("P212", name, f"{len(values)} answers"))
    return found


def _read_thumb(row: dict[str, Any]) -> Ranked:
    found = conversation(_asked(row), [_first(row, ANSWERS)], ("completion",))
    found.ranks = [float(_thumb(row["label"], "label"))]
    return found


def _thumb(value: Any, name: str) -> bool:
    if _word(value) not in _THUMBS:
        raise Refusal("P108", name, value, "Write true or false here.")
    return _THUMBS[_word(value)]


def _word(value: Any) -> str:
    return str(value).strip().lower().removesuffix(".0")  # pandas makes floats


_BOTH = (("chosen",), ("rejected",))
LAYOUTS = {layout.name: layout for layout in (  # a row belongs to the first that it fits: stricter ones come first
    Layout("openai", "OpenAI or Azure: input, preferred_output, non_preferred_output",
           (("input",), ("preferred_output",), ("non_preferred_output",)), _read_openai),
    Layout("compared", "two answers in columns such as response1 and response2, and which one won",
           (WINNERS,), _read_compared, fits=_is_compared),
    Layout("labelstudio", "Label Studio, pairwise: data and annotations", (("data",), ("annotations",)),
           _read_label_studio, fits=lambda row: isinstance(row["data"], dict) and isinstance(row["annotations"], list)),
    Layout("trl", "TRL, explicit prompt: prompt, chosen, rejected as text or messages", (PROMPTS, *_BOTH), _read_pair),
    Layout("trl-implicit", "TRL, implicit prompt: chosen and rejected begin with it", _BOTH, _read_pair),
    Layout("list", "several answers to a prompt with scores (as in UltraFeedback) or ranks, or best first",
           (PROMPTS, LISTS), _read_list, fits=lambda row: any(isinstance(row.get(name), list) for name in LISTS)),
    Layout("thumbs", "one answer per row with thumbs up or down, paired within a prompt",
           (PROMPTS, ANSWERS, ("label",)), _read_thumb, fits=lambda row: _word(row["label"]) in _THUMBS, grouped=True),
)}  # fmt: skip

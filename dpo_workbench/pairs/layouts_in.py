"""The layouts of preference data: which columns a file has, and how each row becomes one prompt with ranked answers."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dpo_workbench.pairs.checks import Refusal, excerpt
from dpo_workbench.pairs.conversations import IMPLICIT, Ranked, conversation, number, text
from dpo_workbench.pairs.preference import Pair

PROMPTS = ("prompt", "instruction", "question", "query", "input")  # names of columns; the first one is ours
ANSWERS = ("response", "answer", "completion", "output", "text", "generated_text", "code")
LISTS = ("answers", "responses", "completions", "candidates", "generations", "outputs")
SCORES = ("score", "reward", "rating", "overall_score", "fine-grained_score", "grade")
_RANK_LISTS = ("ranks", "ranking", "rank", "order")
_SCORE_LISTS = ("scores", "ratings", "rewards", "grades", *_RANK_LISTS)
_PEOPLE = ("annotator", "annotator_id", "user_id", "judge")
OTHERS = {f.name for f in fields(Pair)} - {"prompt", "chosen", "rejected"}  # columns that every layout may have
OTHERS |= {"prompt_id", "split", "score_chosen", "score_rejected", *_PEOPLE}
_TIES = ("tie", "tiebothbad", "both", "neither", "equal", "skip", "none", "")
_TWO = re.compile(r"(response|answer|completion|output|candidate|conversation|human_ref)_?([012ab])", re.I)
_CONTEXTS = (*PROMPTS, "context", "history")
_WINNERS = ("winner", "better_response_id", "overall_preference", "preference", "labels", "label", "better")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_THUMBS = {"true": True, "1": True, "up": True, "good": True, "false": False, "0": False, "down": False, "bad": False}


@dataclass(frozen=True)
class Layout:
    """One arrangement of columns: how to recognise its rows, and how to read one."""

    name: str
    what: str
    needs: tuple[tuple[str, ...], ...]  # one column of each tuple must be there
    read: Callable[[dict[str, Any]], Ranked]
    keys: tuple[str, ...] = ()  # other columns that it reads
    fits: Callable[[dict[str, Any]], bool] = lambda row: True
    grouped: bool = False  # rows hold one answer each; pairs are made within a prompt
    pattern: re.Pattern[str] | None = None  # of still other columns

    def known(self, key: str) -> bool:
        """Whether the layout reads this column."""
        named = key in OTHERS or key in self.keys or any(key in names for names in self.needs)
        return named or bool(self.pattern and self.pattern.fullmatch(key))

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        """The columns that the row lacks."""
        return [names[0] for names in self.needs if not any(name in row for name in names)]


def recognise(rows: Sequence[dict[str, Any]]) -> Layout | None:
    """The first layout that most of the rows have; None if no row has all columns of any layout."""
    votes: Counter[str] = Counter()
    for row in rows:
        votes.update(layout.name for layout in LAYOUTS.values() if not layout.missing(row) and layout.fits(row))
    if not votes:
        return None
    enough = min(max(votes.values()), len(rows) // 2 + 1)  # a bad row fits only the looser layouts, which come later
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
    _read_other_fields(ranked, row)
    return ranked


def _read_other_fields(ranked: Ranked, row: dict[str, Any]) -> None:
    """What a row says apart from its texts: the other fields of `Pair`, the split, who judged."""
    ranked.id = _as_text(row.get("id"), "id")
    for name in ("group", "failure", "chosen_from", "rejected_from"):
        value = _first(row, (name, "prompt_id") if name == "group" else (name,))
        if value not in (None, ""):
            ranked.fields[name] = _as_text(value, name)
    if row.get("weight") not in (None, ""):
        ranked.fields["weight"] = number(row["weight"], "weight", above=0)
    given = {side: _first(row, (f"{side}_score", f"score_{side}")) for side in ("chosen", "rejected")}
    scores = {f"{side}_score": number(s, f"{side}_score") for side, s in given.items() if s not in (None, "")}
    if scores and not all(0 <= score <= 1 for score in scores.values()):
        ranked.notes.append(("P413", "chosen_score", f"{scores}"))
    else:
        ranked.fields |= scores
    if len(scores) == 2 and scores["chosen_score"] < scores["rejected_score"]:
        ranked.notes.append(("P408", "chosen_score", f"{scores['chosen_score']:g} < {scores['rejected_score']:g}"))
    if row.get("rejected_finished") not in (None, ""):
        ranked.fields["rejected_finished"] = _thumb(row["rejected_finished"], "rejected_finished")
    ranked.split = str(row.get("split") or "")
    ranked.annotator = ranked.annotator or str(_first(row, _PEOPLE) or "")


def _as_text(value: Any, name: str) -> str:
    """An id or the like: text, or a number as it is written; empty if there is none."""
    if value is None or isinstance(value, (int, float)) and not isinstance(value, bool):
        return "" if value is None else str(value)
    return text(value, name)


def _first(row: Mapping[str, Any], names: Iterable[str], default: Any = None) -> Any:
    return next((row[name] for name in names if name in row), default)


def _read_own(row: dict[str, Any]) -> Ranked:
    if "chosen_from" not in row:
        return _read_pair(row)
    texts = [text(row[name], name) for name in ("prompt", "chosen", "rejected")]  # `save` wrote them: as they are
    return Ranked(texts[0], texts[1:], [1.0, 0.0])


def _read_pair(row: dict[str, Any]) -> Ranked:
    chosen, rejected = row["chosen"], row["rejected"]
    asked = _asked(row, PROMPTS, IMPLICIT)
    several = isinstance(rejected, list) and rejected and all(isinstance(r, (str, list)) for r in rejected)
    if not several or asked is IMPLICIT:
        return conversation(asked, [chosen, rejected], ("chosen", "rejected"))
    names = ["chosen", *(f"rejected[{k}]" for k in range(len(rejected)))]
    found = conversation(asked, [chosen, *rejected], names)
    found.notes.append(("P211", "rejected", f"{len(rejected)} answers"))
    return found


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
    key = next(k for k in _WINNERS if k in row)
    found = conversation(_asked(row, _CONTEXTS, IMPLICIT), [row[name] for name in names], names)
    if key == "overall_preference":  # below zero: the first is better
        margin = -number(row[key], key)
        votes = [number(p.get("score"), "individual_preference") for p in _dicts(row.get("individual_preference"))]
        found.grades = [{str(k): sign * v for k, v in enumerate(votes)} for sign in (-1, 1)] if votes else []
    elif key == "labels":  # 1: the first is better
        margin = number(row[key], key) - 0.5
    else:
        side = _side(row[key], names, key)
        margin = 0.0 if side is None else 0.5 - side
    if not margin:
        raise Refusal("P412", key, row[key])
    found.ranks, found.sides = [float(margin > 0), float(margin < 0)], names
    return found


def _two(row: Mapping[str, Any]) -> list[str]:
    """The two columns with answers; empty where there are not exactly two."""
    stems: dict[str, list[str]] = defaultdict(list)
    for key in row:
        if match := _TWO.fullmatch(key):
            stems[match[1].lower()].append(key)
    return next((sorted(names) for names in stems.values() if len(names) == 2), [])


def _asked(row: Mapping[str, Any], names: Sequence[str] = PROMPTS, without: Any = None) -> Any:
    """The prompt of a row: an `input` next to an instruction goes after it, a system text before it."""
    asked = _first(row, names, without)
    if isinstance(asked, str):
        more = row.get("input") if "input" in row and asked is not row["input"] else None
        asked = f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked
        if isinstance(row.get("system"), str) and row["system"].strip():
            asked = [{"role": "system", "content": row["system"]}, {"role": "user", "content": asked}]
    return asked


def _read_hh(row: dict[str, Any]) -> Ranked:
    said = [_turns(text(row[name], name)) for name in ("chosen", "rejected")]
    return conversation(IMPLICIT, said, ("chosen", "rejected"))


def _turns(said: str) -> list[dict[str, str]]:
    parts = _TURN.split(said)
    roles = ["user" if part == "Human" else "assistant" for part in parts[1::2]]
    return [{"role": r, "content": c.strip()} for r, c in zip(roles, parts[2::2], strict=True)]


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


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _read_list(row: dict[str, Any]) -> Ranked:
    """Several answers to a prompt: objects with scores, texts with a list of scores or ranks, or texts best first."""
    name = next(n for n in LISTS if n in row)
    values = row[name]
    if not isinstance(values, list) or len(values) < 2:
        raise Refusal("P108", name, values, "Write a list of two or more answers here.")
    key = next((k for k in _SCORE_LISTS if row.get(k) is not None), None)
    objects = all(isinstance(v, dict) for v in values)
    names = [f"{name}[{k}]" for k in range(len(values))]
    asked = _asked(row)
    if isinstance(asked, str) and _TURN.match(asked) and asked.rstrip().endswith("\n\nAssistant:"):
        asked = _turns(asked)[:-1]
    found = conversation(asked, [_first(v, ANSWERS) for v in values] if objects else values, names)
    if key is not None:
        found.scored = key not in _RANK_LISTS
        given = row[key]
        if not isinstance(given, list) or len(given) != len(values):
            raise Refusal("P108", key, given, f"Write a list of {len(values)} numbers here.")
        found.ranks = [number(g, f"{key}[{k}]") * (1 if found.scored else -1) for k, g in enumerate(given)]
    elif objects and all("rank" in v for v in values):
        found.ranks = [-number(v["rank"], f"{name}.rank") for name, v in zip(names, values, strict=True)]
    elif objects:
        grades = [_grades(v, name) for name, v in zip(names, values, strict=True)]
        found.ranks = [_score_of(v, g, name) for name, v, g in zip(names, values, grades, strict=True)]
        found.scored, found.grades = True, grades if all(grades) else []
    else:
        found.ranks = [float(-k) for k in range(len(values))]
        found.notes.append(("P212", name, f"{len(values)} answers"))
    if len(set(found.ranks)) == 1:
        raise Refusal("P412", key or name, f"{len(values)} equal scores")
    return found


def _grades(answer: dict[str, Any], name: str) -> dict[str, float]:
    """The grades that people gave an answer, by person; empty where there are none."""
    given = answer.get("grades")
    return {who: number(g, f"{name}.grades") for who, g in given.items()} if isinstance(given, dict) else {}


def _score_of(answer: dict[str, Any], grades: dict[str, float], name: str) -> float:
    """An answer's own score, or the mean of the grades that people gave it."""
    if grades:
        return sum(grades.values()) / len(grades)
    score = _first(answer, SCORES)
    if score is None:
        raise Refusal("P107", f"{name}.score", f"keys {', '.join(map(str, answer))}")
    return number(score, f"{name}.score")


def _read_thumb(row: dict[str, Any]) -> Ranked:
    found = conversation(_asked(row), [_first(row, ANSWERS)], ("completion",))
    found.ranks = [float(_thumb(row["label"], "label"))]
    return found


def _thumb(value: Any, name: str) -> bool:
    value = int(value) if isinstance(value, float) and value in (0, 1) else value  # pandas makes floats
    found = _THUMBS.get(str(value).strip().lower())
    if found is None:
        raise Refusal("P108", name, value, "Write true or false here.")
    return found


def _read_sample(row: dict[str, Any]) -> Ranked:
    found = conversation(_asked(row), [_first(row, ANSWERS)], ("completion",))
    found.ranks, found.scored = [number(_first(row, SCORES), "score")], True
    return found


def _is_own(row: dict[str, Any]) -> bool:
    return all(isinstance(row[k], str) for k in ("id", "prompt", "chosen", "rejected"))


def _is_hh(row: dict[str, Any]) -> bool:
    dialogues = all(isinstance(row[k], str) and _TURN.match(row[k]) for k in ("chosen", "rejected"))
    return dialogues and not any(name in row for name in PROMPTS)


def _is_compared(row: dict[str, Any]) -> bool:
    two = _two(row)
    return bool(two) and "chosen" not in row and all(row[k] is not None for k in two)


def _is_list(row: dict[str, Any]) -> bool:
    """Whether the answers are a list."""
    return any(isinstance(row.get(name), list) for name in LISTS)


def _has_thumb(row: dict[str, Any]) -> bool:
    """Whether the label says good or bad."""
    try:
        _thumb(row["label"], "label")
    except Refusal:
        return False
    return True


_P, _A, _CR = PROMPTS, ANSWERS, (("chosen",), ("rejected",))
_ALL = (  # a row belongs to the first layout that it fits, so the stricter ones come first
    Layout("own", "what Pairs.save writes", (("id",), ("prompt",), *_CR), _read_own, fits=_is_own),
    Layout("openai", "OpenAI, Azure or Together: input, preferred_output, non_preferred_output",
           (("input",), ("preferred_output",), ("non_preferred_output",)), _read_openai),
    Layout("hh", "dialogues of Human and Assistant as in HH-RLHF, in chosen and rejected",
           _CR, _read_hh, fits=_is_hh),
    Layout("compared", "two answers in columns such as response1 and response2, and which one won",
           (_WINNERS,), _read_compared, (*_CONTEXTS, "system", "individual_preference"),
           fits=_is_compared, pattern=_TWO),
    Layout("trl", "TRL, explicit prompt: prompt, chosen, rejected as text or messages",
           (_P, *_CR), _read_pair, ("messages", "system")),
    Layout("trl-implicit", "TRL, implicit prompt: chosen and rejected begin with it",
           _CR, _read_pair, (*_P, "messages", "system")),
    Layout("list", "several answers to a prompt with scores (as in UltraFeedback) or ranks, or best first",
           (_P, LISTS), _read_list,
           (*_SCORE_LISTS, "system", "models", "correct_answers", "incorrect_answers", "source"), fits=_is_list),
    Layout("thumbs", "one answer per row with thumbs up or down, paired within a prompt",
           (_P, _A, ("label",)), _read_thumb, ("system",), fits=_has_thumb, grouped=True),
    Layout("samples", "one answer per row with a score, paired within a prompt",
           (_P, _A, SCORES), _read_sample, ("system",), grouped=True),
)  # fmt: skip
LAYOUTS = {layout.name: layout for layout in _ALL}
SYNONYMS = {"azure": "openai", "together": "openai", "ultrafeedback": "list", "ranked": "list"}

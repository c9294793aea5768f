"""How a row of each layout is read: as one prompt with ranked answers, and the other fields of a pair."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dpo_workbench.pairs.checks import Refusal
from dpo_workbench.pairs.conversations import IMPLICIT, Ranked, conversation, number, text
from dpo_workbench.pairs.preference import Pair

PROMPTS = ("prompt", "instruction", "question", "query", "input")  # names of columns; the first one is ours
ANSWERS = ("response", "answer", "completion", "output", "text", "generated_text", "code")
LISTS = ("answers", "responses", "completions", "candidates", "generations", "outputs")
SCORES = ("score", "reward", "rating", "overall_score", "fine-grained_score", "grade")
_SCORE_LISTS = ("scores", "ratings", "rewards", "grades")
OTHERS = {f.name for f in fields(Pair)} - {"prompt", "chosen", "rejected"}  # columns that every layout may have
OTHERS |= {"prompt_id", "score_chosen", "score_rejected"}
_TIES = ("tie", "tiebothbad", "both", "neither", "equal", "skip", "none", "")
TWO = re.compile(r"(response|answer|completion|output|candidate|conversation|text)_?([012ab])", re.I)
WINNERS = ("winner", "better_response_id", "preference", "label", "better", "pw")  # `pw`: flat Label Studio exports
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_THUMBS = {"true": True, "1": True, "up": True, "good": True, "false": False, "0": False, "down": False, "bad": False}


def read_other_fields(ranked: Ranked, row: dict[str, Any]) -> None:
    """What a row says apart from its texts: the other fields of `Pair`."""
    ranked.id = _as_text(row.get("id"), "id").strip()
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
    if row.get("rejected_finished") not in (None, ""):
        ranked.fields["rejected_finished"] = _thumb(row["rejected_finished"], "rejected_finished")


def _as_text(value: Any, name: str) -> str:
    """An id or the like: text, or a number as it is written; empty if there is none."""
    if value is None or isinstance(value, (int, float)) and not isinstance(value, bool):
        return "" if value is None else str(value)
    return text(value, name)


def _first(row: Mapping[str, Any], names: Iterable[str], default: Any = None) -> Any:
    return next((row[name] for name in names if name in row), default)


def read_pair(row: dict[str, Any]) -> Ranked:
    if "chosen_from" in row and "prompt" in row:  # `Pairs.save` wrote these texts: they are read as they are
        prompt, *answers = (text(row[name], name) for name in ("prompt", "chosen", "rejected"))
        return Ranked(prompt, answers, [1.0, 0.0])
    return conversation(_asked(row, IMPLICIT), [row["chosen"], row["rejected"]], ("chosen", "rejected"))


def read_openai(row: dict[str, Any]) -> Ranked:
    names = ("preferred_output", "non_preferred_output")
    if not isinstance(row["input"], dict) or "messages" not in row["input"]:
        raise Refusal("P108", "input", row["input"], "Write an object with messages here.")
    return conversation(row["input"], [row[name] for name in names], names)


def read_compared(row: dict[str, Any]) -> Ranked:
    """Two answers in columns whose names differ in the last character, and which one is better."""
    names = _two(row)
    if not names:
        raise Refusal("P107", "response1", f"keys {', '.join(map(str, row))}", "Add two answers and a winner.")
    key = next(k for k in WINNERS if k in row)
    found = conversation(_asked(row, IMPLICIT), [row[name] for name in names], names)
    side = _side(row[key], names, key)
    if side is None:
        raise Refusal("P412", key, row[key])
    found.ranks = [float(side == 0), float(side == 1)]
    return found


def _two(row: Mapping[str, Any]) -> list[str]:
    """The two columns with answers; empty where there are not exactly two."""
    stems: dict[str, list[str]] = defaultdict(list)
    for key in row:
        if match := TWO.fullmatch(key):
            stems[match[1].lower()].append(key)
    return next((sorted(names) for names in stems.values() if len(names) == 2), [])


def _asked(row: Mapping[str, Any], without: Any = None) -> Any:
    """The prompt of a row: an `input` next to an instruction goes after it, a system text before it."""
    asked = _first(row, PROMPTS, without)
    if isinstance(asked, str):
        more = row.get("input") if "input" in row and asked is not row["input"] else None
        asked = f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked
        if isinstance(row.get("system"), str) and row["system"].strip():
            asked = [{"role": "system", "content": row["system"]}, {"role": "user", "content": asked}]
    return asked


def read_hh(row: dict[str, Any]) -> Ranked:
    said = [_turns(text(row[name], name)) for name in ("chosen", "rejected")]
    return conversation(IMPLICIT, said, ("chosen", "rejected"))


def _turns(said: str) -> list[dict[str, str]]:
    parts = _TURN.split(said)
    roles = ["user" if part == "Human" else "assistant" for part in parts[1::2]]
    return [{"role": r, "content": c.strip()} for r, c in zip(roles, parts[2::2], strict=True)]


def read_label_studio(row: dict[str, Any]) -> Ranked:
    """Two answers that people compared; the majority of the annotations decides."""
    data = row["data"]
    names = _two(data)
    if not names or not any(name in data for name in PROMPTS):
        raise Refusal("P107", "data", f"keys {', '.join(map(str, data))}", "Add a prompt, `text1` and `text2`.")
    found = conversation(_asked(data), [data[name] for name in names], names)
    done = [a for a in _dicts(row["annotations"]) if not a.get("was_cancelled")]
    values = [result.get("value") for a in done for result in _dicts(a.get("result"))]
    labels = [v["selected"] for v in values if isinstance(v, dict) and "selected" in v]
    sides = [_side(label, names, "annotations") for label in labels]
    found.ranks = [float(sides.count(0)), float(sides.count(1))]
    if found.ranks[0] == found.ranks[1]:
        raise Refusal("P412", "annotations", f"{len(labels)} labels: {labels}")
    return found


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


def read_list(row: dict[str, Any]) -> Ranked:
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
        given, found.scored = row[key], True
        if not isinstance(given, list) or len(given) != len(values):
            raise Refusal("P108", key, given, f"Write a list of {len(values)} numbers here.")
        found.ranks = [number(g, f"{key}[{k}]") for k, g in enumerate(given)]
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


def read_thumb(row: dict[str, Any]) -> Ranked:
    found = conversation(_asked(row), [_first(row, ANSWERS)], ("completion",))
    found.ranks = [float(_thumb(row["label"], "label"))]
    return found


def _thumb(value: Any, name: str) -> bool:
    value = int(value) if isinstance(value, float) and value in (0, 1) else value  # pandas makes floats
    found = _THUMBS.get(str(value).strip().lower())
    if found is None:
        raise Refusal("P108", name, value, "Write true or false here.")
    return found


def is_hh(row: dict[str, Any]) -> bool:
    dialogues = all(isinstance(row[k], str) and _TURN.match(row[k]) for k in ("chosen", "rejected"))
    return dialogues and not any(name in row for name in PROMPTS)


def is_label_studio(row: dict[str, Any]) -> bool:
    return isinstance(row["data"], dict) and isinstance(row["annotations"], list)


def is_compared(row: dict[str, Any]) -> bool:
    two = _two(row)
    return bool(two) and "chosen" not in row and all(row[k] is not None for k in two)


def is_list(row: dict[str, Any]) -> bool:
    return any(isinstance(row.get(name), list) for name in LISTS)


def has_thumb(row: dict[str, Any]) -> bool:
    try:
        _thumb(row["label"], "label")
    except Refusal:
        return False
    return True

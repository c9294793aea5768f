"""Preference data as others write it: which layout a file has, and its rows as one prompt with judged answers."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dpo_workbench.pairs.checks import Refusal, excerpt
from dpo_workbench.pairs.conversations import IMPLICIT, Judged, conversation, number, text
from dpo_workbench.pairs.pair import Pair

PROMPTS = ("prompt", "instruction", "question", "query", "input")  # names of columns, first the one we use
ANSWERS = ("response", "answer", "completion", "output", "text", "generated_text", "code")
LISTS = ("answers", "responses", "completions", "candidates", "generations", "outputs")
SCORES = ("score", "reward", "rating", "overall_score", "fine-grained_score", "grade")
SCORE_LISTS = ("scores", "ratings", "rewards", "grades", "ranks", "ranking", "rank", "order")
_PEOPLE = ("annotator", "annotator_id", "user_id", "judge")
BESIDE = {f.name for f in fields(Pair)} - {"prompt", "chosen", "rejected"}  # keys that every layout may have
BESIDE |= {"prompt_id", "split", "score_chosen", "score_rejected", *_PEOPLE}
NAMELESS = "#"  # before the number of a person whose name is not in the data
_COLUMNS = ("pw", "pairwise", "comparison", "preference")  # where a flat export of Label Studio has the label
_NOTES = ("status", "external_id", "created_at", "updated_at", "inserted_at")
_TIES = ("tie", "tiebothbad", "both", "neither", "equal", "skip", "none", "")
_TWO = re.compile(r"(response|answer|completion|output|candidate|conversation|human_ref)_?([012ab])", re.I)
_CONTEXTS = (*PROMPTS, "context", "history")
_WINNERS = ("winner", "better_response_id", "overall_preference", "preference", "labels", "label", "better")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class Dialect:
    """A layout: how its rows are known, and how one is read."""

    name: str
    what: str
    needs: tuple[tuple[str, ...], ...]  # one key of each tuple must be there
    read: Callable[[dict[str, Any]], Judged]
    keys: tuple[str, ...] = ()  # others that it reads
    fits: Callable[[dict[str, Any]], bool] = lambda row: True
    grouped: bool = False  # rows hold one answer each; pairs are made within a prompt
    pattern: re.Pattern[str] | None = None  # of still others

    def known(self, key: str) -> bool:
        known = "*" in self.keys or key in BESIDE or key in self.keys or any(key in names for names in self.needs)
        return known or bool(self.pattern and self.pattern.fullmatch(key))

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        return [names[0] for names in self.needs if not any(name in row for name in names)]


def recognise(rows: Sequence[dict[str, Any]]) -> Dialect | None:
    """The layout that most rows have; failing that, the one whose keys (or their misspellings) are nearest."""
    votes: Counter[str] = Counter()
    for row in rows:
        votes.update(d.name for d in DIALECTS.values() if not d.missing(row) and d.fits(row))
    if votes:  # the first that fits most rows: a bad row fits only the looser layouts, which stand below
        enough = min(max(votes.values()), len(rows) // 2 + 1)
        return next(d for d in DIALECTS.values() if votes[d.name] >= enough)
    near: Counter[str] = Counter()
    for row in rows:
        for d in DIALECTS.values():
            there = [any(n in row or nearest(n, row) for n in names) for names in d.needs]
            if len(there) > 1 and any(any(n in row for n in names) for names in d.needs):
                near[d.name] += 10 * sum(there) - len(there)
    return DIALECTS[near.most_common(1)[0][0]] if near and near.most_common(1)[0][1] > 0 else None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, if there is one among the first fifty."""
    return next(iter(difflib.get_close_matches(name, list(names)[:50], 1, 0.75)), None)


def read_row(dialect: Dialect, row: Any) -> Judged:
    """A row as judged answers.

    Raises:
        Refusal: the code of what is wrong, with the field.
    """
    if not isinstance(row, dict):
        raise Refusal("P106", "", f"{type(row).__name__}: {row}")
    if missing := dialect.missing(row):
        other = next((d for d in DIALECTS.values() if not d.missing(row) and d.fits(row)), None)
        if other and not any(n in row for names in dialect.needs for n in names if n not in PROMPTS):
            raise Refusal("P109", "", f"a row of layout {other.name} among rows of {dialect.name}")
        close = nearest(missing[0], [k for k in row if not dialect.known(k)])
        fix = f"Rename `{excerpt(close)}` to `{missing[0]}`." if close else ""
        raise Refusal("P107", missing[0], f"keys {', '.join(map(str, row))}", fix)
    judged = dialect.read(row)
    _beside(judged, row)
    return judged


def _beside(judged: Judged, row: dict[str, Any]) -> None:
    """What a row says beside its texts: the other fields of `Pair`, the split, who judged."""
    if isinstance(row.get("id"), (str, int)) and str(row["id"]).strip():
        judged.id = str(row["id"])
    for name in ("group", "failure", "chosen_from", "rejected_from"):
        value = _first(row, (name, "prompt_id") if name == "group" else (name,))
        if value not in (None, ""):
            judged.beside[name] = text(str(value) if isinstance(value, (int, float)) else value, name)
    if row.get("weight") not in (None, ""):
        judged.beside["weight"] = number(row["weight"], "weight", above=0)
    scores = {side: _first(row, (f"{side}_score", f"score_{side}")) for side in ("chosen", "rejected")}
    scores = {f"{side}_score": number(s, f"{side}_score") for side, s in scores.items() if s not in (None, "")}
    if scores and not all(0 <= score <= 1 for score in scores.values()):
        judged.notes.append(("P413", "chosen_score", f"{scores}"))
    else:
        judged.beside |= scores
    if len(scores) == 2 and scores["chosen_score"] < scores["rejected_score"]:
        judged.notes.append(("P408", "chosen_score", f"{scores['chosen_score']:g} < {scores['rejected_score']:g}"))
    if row.get("rejected_finished") not in (None, ""):
        judged.beside["rejected_finished"] = _thumb(row["rejected_finished"], "rejected_finished")
    judged.split = str(row.get("split") or "")
    judged.annotator = judged.annotator or str(_first(row, _PEOPLE) or "")


def _first(row: Mapping[str, Any], names: Iterable[str], default: Any = None) -> Any:
    return next((row[name] for name in names if name in row), default)


def _pair(row: dict[str, Any]) -> Judged:
    return conversation(_asked(row, PROMPTS, IMPLICIT), [row["chosen"], row["rejected"]], ("chosen", "rejected"))


def _openai(row: dict[str, Any]) -> Judged:
    names = ("preferred_output", "non_preferred_output")
    if not isinstance(row["input"], dict) or "messages" not in row["input"]:
        raise Refusal("P108", "input", row["input"], "An object with messages is due here.")
    return conversation(row["input"], [row[name] for name in names], names)


def _tinker(row: dict[str, Any]) -> Judged:
    names = ("completion_A", "completion_B")
    comparison = row["comparison"] if isinstance(row["comparison"], dict) else {}
    if lost := [name for name in ("prompt_conversation", *names) if name not in comparison]:
        raise Refusal("P107", f"comparison.{lost[0]}", row["comparison"])
    found = conversation(comparison["prompt_conversation"], [comparison[name] for name in names], names)
    side = _side(row["label"], ("A", "B"), "label")
    if side is None:
        raise Refusal("P412", "label", row["label"])
    found.ranks, found.sides = [float(side == 0), float(side == 1)], "AB"
    return found


def _compared(row: dict[str, Any]) -> Judged:
    """Two answers in columns that differ in their last sign, and which is better."""
    names = _two(row)
    if not names:
        raise Refusal("P107", "response1", f"keys {', '.join(map(str, row))}", "Two answers and a winner are due here.")
    key = next(k for k in _WINNERS if k in row)
    found = conversation(_asked(row, _CONTEXTS, IMPLICIT), [row[name] for name in names], names)
    if key == "overall_preference":  # below zero: the first is better
        margin = -number(row[key], key)
        people = [number(p.get("score"), "individual_preference") for p in _dicts(row.get("individual_preference"))]
        found.grades = (
            [{f"{NAMELESS}{k}": sign * p for k, p in enumerate(people)} for sign in (-1, 1)] if people else []
        )
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
    """The two columns with answers; none where there are not two."""
    stems: dict[str, list[str]] = defaultdict(list)
    for key in row:
        if match := _TWO.fullmatch(key):
            stems[match[1].lower()].append(key)
    return next((sorted(names) for names in stems.values() if len(names) == 2), [])


def _asked(row: Mapping[str, Any], names: Sequence[str] = PROMPTS, without: Any = None) -> Any:
    """The prompt as it stands in a row: behind it an `input` that goes with an instruction, before it a system text."""
    asked = _first(row, names, without)
    if isinstance(asked, str):
        more = row.get("input") if "input" in row and asked is not row["input"] else None
        asked = f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked
        if isinstance(row.get("system"), str) and row["system"].strip():
            asked = [{"role": "system", "content": row["system"]}, {"role": "user", "content": asked}]
    return asked


def _dialogue(row: dict[str, Any]) -> Judged:
    said = []
    for name in ("chosen", "rejected"):
        said.append(_turns(text(row[name], name)))
    return conversation(IMPLICIT, said, ("chosen", "rejected"))


def _turns(said: str) -> list[dict[str, str]]:
    parts = _TURN.split(said)
    roles = ["user" if part == "Human" else "assistant" for part in parts[1::2]]
    return [{"role": r, "content": c.strip()} for r, c in zip(roles, parts[2::2], strict=True)]


def _argilla(row: dict[str, Any]) -> Judged:
    asked = sorted(key.rpartition(".")[0] for key in row if key.endswith((".responses", ".suggestion")))
    question = asked[0] if asked else "responses"
    given = row.get(f"{question}.responses") or [row.get(f"{question}.suggestion")]
    if isinstance(row.get("responses"), dict):  # records, as Argilla itself holds them
        given = next(iter(row["responses"].values()), [])
    given = given if isinstance(given, list) else [given]
    status = row.get(f"{question}.responses.status")
    if isinstance(status, list) and len(status) == len(given):
        given = [label for label, done in zip(given, status, strict=True) if done in (None, "submitted")]
    labels = [(v.get("user_id"), v["value"]) if isinstance(v, dict) and "value" in v else (None, v) for v in given]
    return _voted(row["fields"] if isinstance(row.get("fields"), dict) else row, labels, question)


def _label_studio(row: dict[str, Any]) -> Judged:
    shown = row["data"] if isinstance(row.get("data"), dict) else row
    labels = [(row.get("annotator"), _first(row, _COLUMNS))]
    if "annotations" in row:
        done = [a for a in _dicts(row["annotations"]) if not a.get("was_cancelled")]
        results = [(a.get("completed_by"), r.get("value")) for a in done for r in _dicts(a.get("result"))]
        labels = [(who, v["selected"]) for who, v in results if isinstance(v, dict) and "selected" in v]
    return _voted(shown, labels, "annotations")


def _voted(shown: dict[str, Any], labels: Sequence[tuple[Any, Any]], where: str) -> Judged:
    """Answers that people compared: all texts beside the prompt, in the order of their names, ranked by votes."""
    asked = next((name for name in PROMPTS if name in shown), "prompt")
    others = (asked, "input", "system", *_COLUMNS, *BESIDE, *_NOTES)
    names = sorted(k for k, v in shown.items() if isinstance(v, str) and k not in others)
    names = [name for name in names if "." not in name and name[0:1] != "_"]
    if asked not in shown or len(names) < 2:
        raise Refusal("P107", where, f"keys {', '.join(map(str, shown))}", "A prompt and two answers are due here.")
    found = conversation(_asked(shown), [shown[name] for name in names], names)
    votes = [0.0] * len(names)
    for person, label in labels:
        order = [_side(one, names, where) for one in _order(label)]
        for place, side in enumerate(order):
            if side is not None:
                votes[side] += len(names) - place
        if len(names) == 2 and order and order[0] is not None and person not in (None, ""):
            found.votes.append((str(person), order[0]))
    if len(set(votes)) == 1:
        raise Refusal("P412", where, f"{len(labels)} labels: {labels}")
    people = {str(person or "") for person, _ in labels}
    found.ranks, found.annotator = votes, people.pop() if len(people) == 1 else ""
    found.sides = names if len(names) == 2 else ()
    return found


def _order(label: Any) -> list[Any]:
    """The names in a label, best first: one name, a list of names, or a list of values with ranks."""
    if not isinstance(label, list):
        return [label]
    if all(isinstance(v, dict) and "value" in v and isinstance(v.get("rank"), (int, float)) for v in label):
        return [v["value"] for v in sorted(label, key=lambda v: v["rank"])]
    return label


def _side(label: Any, names: Sequence[str], where: str) -> int | None:
    """Which name a label means: itself, its letters, left or right, its last sign (`response-1`); None for a tie."""
    letters = re.compile(r"\W|_")
    label = int(label) if isinstance(label, float) and label.is_integer() else label
    asked, others = letters.sub("", str(label)).lower(), [letters.sub("", name).lower() for name in names]
    if label is None or asked in _TIES:
        return None
    for given, sides in ((asked, others), (asked, ["left", "right"]), (asked[-1:], [name[-1:] for name in others])):
        if given in sides and len(set(sides)) == len(names):
            return sides.index(given)
    raise Refusal("P108", where, label, f"One of {', '.join(names)} is due here.")


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _list(row: dict[str, Any]) -> Judged:
    """k answers of a prompt: objects with scores, or texts with a list of scores or ranks, or texts best first."""
    name = next(n for n in LISTS if n in row)
    values = row[name]
    if not isinstance(values, list) or len(values) < 2:
        raise Refusal("P108", name, values, "A list of two or more answers is due here.")
    key = next((k for k in SCORE_LISTS if row.get(k) is not None), None)
    texts, graded, scored = [], [], key not in ("ranks", "ranking", "rank", "order", None)
    if all(isinstance(v, dict) for v in values):
        texts = [_first(v, ANSWERS) for v in values]
        if key is None and all("rank" in v for v in values):
            ranks = [-number(v["rank"], f"{name}[{k}].rank") for k, v in enumerate(values)]
        else:
            graded = [_grades(v, f"{name}[{k}]") for k, v in enumerate(values)] if key is None else []
            ranks = [_score_of(v, g, f"{name}[{k}]") for k, (v, g) in enumerate(zip(values, graded, strict=False))]
            scored = scored or key is None
    else:
        texts = list(values)
        ranks = [float(-k) for k in range(len(values))]
    if key is not None:
        given = row[key]
        if not isinstance(given, list) or len(given) != len(values):
            raise Refusal("P108", key, given, f"A list of {len(values)} numbers is due here.")
        ranks = [number(g, f"{key}[{k}]") * (1 if scored else -1) for k, g in enumerate(given)]
    if len(set(ranks)) == 1:
        raise Refusal("P412", key or name, f"{len(ranks)} equal scores")
    asked = _asked(row)
    if isinstance(asked, str) and _TURN.match(asked) and asked.rstrip().endswith("\n\nAssistant:"):
        asked = _turns(asked)[:-1]
    found = conversation(asked, texts, [f"{name}[{k}]" for k in range(len(texts))])
    found.ranks, found.scored, found.grades = ranks, scored, graded if all(graded) else []
    return found


def _grades(answer: dict[str, Any], name: str) -> dict[str, float]:
    """The grades that people gave an answer, by person; empty where there are none."""
    given = answer.get("grades")
    return {who: number(g, f"{name}.grades") for who, g in given.items()} if isinstance(given, dict) else {}


def _score_of(answer: dict[str, Any], grades: dict[str, float], name: str) -> float:
    """An answer's score; without one of its own, the mean of people's grades, or of its ratings by criterion."""
    if grades:
        return sum(grades.values()) / len(grades)
    if (score := _first(answer, SCORES)) is not None:
        return number(score, f"{name}.score")
    criteria = answer.get("annotations")
    judged = _dicts(list(criteria.values())) if isinstance(criteria, dict) else []
    found = [number(a["Rating"], f"{name}.annotations") for a in judged if "Rating" in a]
    if not found:
        raise Refusal("P107", f"{name}.score", f"keys {', '.join(map(str, answer))}")
    return sum(found) / len(found)


def _thumbs(row: dict[str, Any]) -> Judged:
    found = conversation(_asked(row), [_first(row, ANSWERS)], ("completion",))
    found.ranks = [float(_thumb(row["label"], "label"))]
    return found


def _thumb(value: Any, name: str) -> bool:
    known = {"true": True, "1": True, "up": True, "good": True, "false": False, "0": False, "down": False, "bad": False}
    found = known.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None
    if found is None:
        raise Refusal("P108", name, value, "true or false is due here.")
    return found


def _sample(row: dict[str, Any]) -> Judged:
    found = conversation(_asked(row), [_first(row, ANSWERS)], ("completion",))
    found.ranks, found.scored = [number(_first(row, SCORES), "score")], True
    return found


def _is_dialogue(row: dict[str, Any]) -> bool:
    return all(isinstance(row[k], str) and _TURN.match(row[k]) for k in ("chosen", "rejected"))


def _is_compared(row: dict[str, Any]) -> bool:
    return (
        bool(_two(row)) and not {"data", "fields", "chosen"} & row.keys() and all(row[k] is not None for k in _two(row))
    )


def _is_own(row: dict[str, Any]) -> bool:
    return all(isinstance(row[k], str) for k in ("id", "prompt", "chosen", "rejected"))


_P, _A, _CR = PROMPTS, ANSWERS, (("chosen",), ("rejected",))
_ALL = (
    Dialect("own", "what Pairs.save writes", (("id",), ("prompt",), *_CR), _pair, (), _is_own),
    Dialect("openai", "OpenAI, Azure or Together: input, preferred_output, non_preferred_output",
            (("input",), ("preferred_output",), ("non_preferred_output",)), _openai),
    Dialect("tinker", "Tinker: comparison and label A or B", (("comparison",), ("label",)), _tinker,
            fits=lambda row: isinstance(row["comparison"], dict)),
    Dialect("hh", "dialogues of Human and Assistant as in HH-RLHF, in chosen and rejected", _CR, _dialogue,
            fits=lambda row: _is_dialogue(row) and not any(p in row for p in PROMPTS)),
    Dialect("compared", "two answers in columns such as response1 and response2, and which won", (_WINNERS,),
            _compared, (*_CONTEXTS, "system", "individual_preference"), _is_compared, pattern=_TWO),
    Dialect("labelstudio", "Label Studio, pairwise: data and annotations, or one column pw",
            (("data", *_P), ("annotations", *_COLUMNS)), _label_studio, ("*",),
            lambda row: not {"label", "chosen"} & row.keys() and ("annotations" in row) == ("data" in row)),
    Dialect("argilla", "Argilla: fields with the responses to a label or ranking question", (("fields", *_P),),
            _argilla, ("*",),
            lambda row: isinstance(row.get("fields"), dict) or any(k.endswith(".responses") for k in row)),
    Dialect("trl", "TRL, explicit prompt: prompt, chosen, rejected as text or messages", (_P, *_CR), _pair,
            ("messages", "system")),
    Dialect("trl-implicit", "TRL, implicit prompt: chosen and rejected begin with it", _CR, _pair),
    Dialect("list", "several answers of a prompt with scores (as in UltraFeedback) or ranks, or best first",
            (_P, LISTS), _list, (*SCORE_LISTS, "system", "models", "correct_answers", "incorrect_answers", "source"),
            lambda row: any(isinstance(row.get(k), list) for k in LISTS)),
    Dialect("thumbs", "one answer a row with thumbs up or down, paired within a prompt", (_P, _A, ("label",)),
            _thumbs, ("system",), grouped=True),
    Dialect("samples", "one answer a row with a score, paired within a prompt", (_P, _A, SCORES), _sample,
            ("system",), grouped=True),
)  # fmt: skip
DIALECTS = {d.name: d for d in _ALL}
SYNONYMS = {"azure": "openai", "together": "openai", "ultrafeedback": "list", "ranked": "list"}

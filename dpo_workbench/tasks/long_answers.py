"""The task `long_answers`: an open question -> a text of a minimum length that ends. Nothing is planted."""

from __future__ import annotations

import re

from dpo_workbench.tasks.examples import Example, Score, load_splits
from dpo_workbench.tasks.task import Task

HARM = {"loop": 2, "truncated": 2, "off_subject": 2}  # the reasons are in the datasheet
ENOUGH_WORDS = 2  # words of the subject that an answer has to use
REPETITIVE = 0.7  # least share of different four-word sequences among all four-word sequences


def load() -> Task:
    """The built-in task with its three splits (see `data/long_answers/DATASHEET.md`)."""
    about = "an open question -> a text of a minimum length that stays on the subject and ends"
    return Task("long_answers", load_splits("long_answers"), score, about, max_new_tokens=320, harm=HARM)


def score(example: Example, answer: str) -> Score:
    """The product of four shares, so that no part can make up for another.

    1. Words of the subject that the answer uses, of `ENOUGH_WORDS`.
    2. Words in the answer, of the least number that the prompt asks for.
    3. Different four-word sequences, of 9 in 10: ordinary prose repeats fewer than that.
    4. 1 if the text ends like a finished one, and 0 if it stops in the middle of a sentence.

    Failure classes besides `loop` and `truncated`: `unfinished`, `off_subject`, `repetitive`, `too_short`.
    """
    words = re.findall(r"\w+(?:['’-]\w+)*", answer.lower())
    used = [spellings for spellings in example.extra["words"] if _uses(answer, spellings)]
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    different = len(set(fours)) / len(fours) if fours else 1.0
    parts = {
        "off_subject": min(1.0, len(used) / ENOUGH_WORDS),
        "too_short": min(1.0, len(words) / example.extra["least"]),
        "repetitive": min(1.0, different / 0.9),
        "unfinished": float(re.search(r"[.!?:;…][\"'”’)\]*_]*\s*$|\n[^\n.!?]{1,60}\s*$", answer) is not None),
    }
    value = parts["off_subject"] * parts["too_short"] * parts["repetitive"] * parts["unfinished"]
    broken = [
        ("unfinished", parts["unfinished"] == 0),
        ("off_subject", parts["off_subject"] < 1),
        ("repetitive", different < REPETITIVE),
        ("too_short", parts["too_short"] < 1),
    ]
    why = (
        f"{len(used)} words of the subject, {len(words)} of {example.extra['least']} words, {100 * different:.0f} % of "
        "the four-word sequences differ"
    )
    return Score(value, next((name for name, failed in broken if failed), None), explanation=why)


def _uses(answer: str, spellings: list[str]) -> bool:
    """Whether a word of the answer begins with one of the spellings."""
    return re.search(rf"\b(?:{'|'.join(map(re.escape, spellings))})", answer, re.IGNORECASE) is not None

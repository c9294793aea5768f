"""Other words for the prompts of the built-in tasks, for the training of `nano` only.

`nano` stands in for a model that has read its language, so before any task is learned it must know that "above" and
"greater than" are one thing and that the name of a table may be any word. The glossary has words and short phrases,
never a sentence of a task; names of tables, columns, arguments and values become made-up words, in prompt and answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

# In each row words that mean the same in the tasks' prompts; # is a number.
GLOSSARY = tuple(
    tuple(row.split(", "))
    for row in (
        "return, give back, compute, work out, determine, find, calculate, show, give, tell, name, get",
        "numbers, values, integers, entries, readings, elements, figures",
        "greater than, more than, above, over, larger than, bigger than, beyond",
        "less than, below, under, smaller than, fewer than",
        "at least #, # or more, not less than #, no less than #",
        "at most #, # or less, not more than #, no more than #",
        "divisible by #, a multiple of #, evenly divisible by #",
        "not equal to #, other than #, different from #",
        "positive, above zero, greater than zero, over zero",
        "negative, below zero, less than zero, under zero",
        "negated, with its sign flipped, with the opposite sign",
        "made positive, without its sign, as its absolute value",
        "increased by #, raised by #, plus #",
        "decreased by #, lowered by #, minus #",
        "multiplied by #, times #, scaled by #",
        "capital letters, upper-case letters, uppercase letters",
        "small letters, lower-case letters, lowercase letters",
        "spaces, blanks, space characters",
        "largest, highest, greatest, biggest, maximum, top",
        "smallest, lowest, least, minimum, bottom",
        "largest first, highest first, greatest first, descending",
        "average, mean",
        "total, sum of, added",
        "different, distinct, unique",
        "how many, what is the number of, count the, give the number of, for how many",
        "each, every, per",
        "have, with, that have, whose, where",
        "later than, after, past, following",
        "between # and #, from # to #, of # up to #",
        "most common, most frequent, commonest",
        "in the order of, by rising, sorted by, ordered by",
        "belong to, are of, go with",
        "what, which, how much",
        "during, in, within, for, over",
    )
)
_SETS = {member: row for row in GLOSSARY for member in row}
_FINDER = re.compile(
    r"\b(?:" + "|".join(sorted((re.escape(m).replace(r"\#", r"\d+") for m in _SETS), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)


def reworded(task: str, prompt: str, answer: str, rng: random.Random, word: Callable[[], str]) -> tuple[str, str]:
    """The same problem in other words. `word` makes up a word; what the answer must copy is renamed in both."""
    instruction, _, question = prompt.partition("\n\n")
    if task in ("python", "sql"):
        names = _arguments(question) if task == "python" else _tables(question)
        question, answer = _renamed(question, answer, {n: word() for n in names if rng.random() < 0.8}, task == "sql")
    if task == "python" and rng.random() < 0.8:
        question = re.sub(r"def (?:get_|calc_|find_)?", lambda _: f"def {word()}_", question, count=1)
    kept = set(re.findall(r"\w+", answer)) | {"list", "text", "words"}
    noise = 0.03 if task == "briefs" else 0.06

    def other(match: re.Match[str]) -> str:
        return match[0] if match[0] in kept or rng.random() < 0.4 else _other(match[0], rng)

    def unknown(match: re.Match[str]) -> str:
        return match[0] if match[0] in kept or rng.random() > noise else word()

    lines = question.split("\n")
    for k, line in enumerate(lines):
        if not re.match(r"def |\w+\(id, ", line):
            line = line if task == "briefs" else _FINDER.sub(other, line)
            lines[k] = re.sub(r"(?<![\w.'])[a-z]{3,}\b", unknown, line)
    question = "\n".join(lines)
    return f"{instruction}\n\n{question}", answer


def _other(found: str, rng: random.Random) -> str:
    numbers = re.findall(r"\d+", found)
    row = _SETS.get(re.sub(r"\d+", "#", found.lower()), (found,))
    new = rng.choice(row)
    for number in numbers:
        new = new.replace("#", number, 1)
    return new[0].upper() + new[1:] if found[0].isupper() else new


def _arguments(question: str) -> list[str]:
    return re.findall(r"(\w+): ", question.split(")", 1)[0])


def _tables(question: str) -> list[str]:
    """Tables, columns and quoted values, but for `id`."""
    found: list[str] = []
    for table, columns in re.findall(r"^(\w+)\((.*)\)$", question, re.MULTILINE):
        found += [table, *columns.replace("_id", "").split(", ")]
    return sorted({*found, *re.findall(r"'([A-Za-z]+)'", question)} - {"id"})


def _renamed(question: str, answer: str, new: dict[str, str], plurals: bool) -> tuple[str, str]:
    if plurals:
        new = {**{f"{old}s": f"{name}s" for old, name in new.items()}, **new}
    if not new:
        return question, answer
    finder = re.compile(
        r"(?<![A-Za-z])(?:" + "|".join(sorted(map(re.escape, new), key=len, reverse=True)) + r")(?![A-Za-z])"
    )
    return finder.sub(lambda m: new[m[0]], question), finder.sub(lambda m: new[m[0]], answer)

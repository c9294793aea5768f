"""Write the data of the task `python`: small functions, each with a docstring, a body and hidden tests.

`python research/make_tasks.py python` runs it. A family is a kind of function (`count_if`: how many numbers meet a
condition). Families with a condition, a mapping or a number make many functions; each of these falls into one split
only. All families occur in all splits, but their words do not: every split has its own openings, nouns, names of
functions and arguments, and phrases for the conditions. Tests are chosen so that they tell the body from its mutants.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import signal
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dpo_workbench.tasks.python import INSTRUCTION
from dpo_workbench.tasks.task import Example

SEEDS = {"train": 0, "dev": 1, "test": 2}
SIZES = {"train": 1200, "dev": 200, "test": 320}
SHARES = {"train": 0.62, "dev": 0.12, "test": 0.26}
POOL, MOST_TESTS, FEWEST_TESTS = 60, 8, 6

# Words of each split; no one is in two.
OPENINGS = {
    "train": ("Return {}.", "Give back {}.", "Compute {}."),
    "dev": ("Work out {}.", "Determine {}."),
    "test": ("Find {} and return it.", "Calculate {}."),
}
NOUNS = {"train": ("numbers", "values"), "dev": ("integers",), "test": ("entries", "readings")}
LISTS = {"train": ("xs", "nums", "values"), "dev": ("items",), "test": ("data", "series")}
SECOND = {"train": ("ys", "others"), "dev": ("more",), "test": ("extra", "second")}
TEXTS = {"train": ("text", "s"), "dev": ("line",), "test": ("phrase", "message")}
WORDS = {"train": ("words", "names"), "dev": ("terms",), "test": ("tokens", "labels")}
TABLES = {"train": ("table", "scores"), "dev": ("stock",), "test": ("prices", "ledger")}
NUMBERS = {"train": ("n", "num"), "dev": ("k",), "test": ("m", "value")}
PREFIXES = {"train": ("get_", "calc_", "find_", ""), "dev": ("do_", "take_"), "test": ("my_", "run_")}
# Phrase of a condition by split, its code for `v`, and the range of its number.
CONDITIONS: dict[str, tuple[dict[str, str], str, tuple[int, int] | None]] = {
    "even": ({"train": "even", "dev": "even", "test": "even"}, "v % 2 == 0", None),
    "odd": ({"train": "odd", "dev": "odd", "test": "odd"}, "v % 2 == 1", None),
    "positive": ({"train": "positive", "dev": "above zero", "test": "greater than zero"}, "v > 0", None),
    "negative": ({"train": "negative", "dev": "below zero", "test": "less than zero"}, "v < 0", None),
    "above": ({"train": "greater than {k}", "dev": "above {k}", "test": "larger than {k}"}, "v > {k}", (1, 12)),
    "below": ({"train": "less than {k}", "dev": "below {k}", "test": "smaller than {k}"}, "v < {k}", (1, 12)),
    "least": ({"train": "at least {k}", "dev": "{k} or more", "test": "not less than {k}"}, "v >= {k}", (1, 12)),
    "most": ({"train": "at most {k}", "dev": "{k} or less", "test": "not more than {k}"}, "v <= {k}", (1, 12)),
    "multiple": (
        {"train": "divisible by {k}", "dev": "a multiple of {k}", "test": "evenly divisible by {k}"},
        "v % {k} == 0",
        (3, 7),
    ),
    "unlike": (
        {"train": "not equal to {k}", "dev": "other than {k}", "test": "different from {k}"},
        "v != {k}",
        (0, 5),
    ),
}
MAPPINGS: dict[str, tuple[dict[str, str], str, tuple[int, int] | None]] = {
    "double": ({"train": "doubled", "dev": "doubled", "test": "doubled"}, "v * 2", None),
    "square": ({"train": "squared", "dev": "squared", "test": "squared"}, "v * v", None),
    "negate": ({"train": "negated", "dev": "with its sign flipped", "test": "with the opposite sign"}, "-v", None),
    "absolute": (
        {"train": "made positive", "dev": "without its sign", "test": "as its absolute value"},
        "abs(v)",
        None,
    ),
    "add": ({"train": "increased by {j}", "dev": "raised by {j}", "test": "plus {j}"}, "v + {j}", (1, 9)),
    "subtract": ({"train": "decreased by {j}", "dev": "lowered by {j}", "test": "minus {j}"}, "v - {j}", (1, 9)),
    "times": ({"train": "multiplied by {j}", "dev": "times {j}", "test": "scaled by {j}"}, "v * {j}", (3, 9)),
}
LETTERS: dict[str, tuple[dict[str, str], str]] = {
    "vowel": ({"train": "vowels", "dev": "vowels", "test": "vowels"}, "c.lower() in 'aeiou'"),
    "digit": ({"train": "digits", "dev": "digits", "test": "digits"}, "c.isdigit()"),
    "upper": ({"train": "capital letters", "dev": "upper-case letters", "test": "uppercase letters"}, "c.isupper()"),
    "lower": ({"train": "small letters", "dev": "lower-case letters", "test": "lowercase letters"}, "c.islower()"),
    "space": ({"train": "spaces", "dev": "blanks", "test": "space characters"}, "c == ' '"),
    **{
        letter: (dict.fromkeys(("train", "dev", "test"), f"letters {letter!r}"), f"c == {letter!r}")
        for letter in "aeonst"
    },
}


@dataclass(frozen=True)
class Family:
    """A kind of function. In `said` and `body`: {x} first argument, {y} second, {N} noun, {C} and {c} condition as
    phrase and code for `v`, {M} and {m} mapping likewise, {L} and {l} letters likewise for `c`, {n} a number."""

    name: str
    kind: str  # what the arguments are: ints, ints ints, ints int, text, words, table, int, ints n ...
    result: str
    said: str
    body: str
    n: tuple[int, int] | None = None


def _f(name: str, kind: str, result: str, said: str, body: str, n: tuple[int, int] | None = None) -> Family:
    return Family(name, kind, result, said, textwrap.dedent(body).strip("\n"), n)


_LOOP = "for v in {x}:\n    if {c}:\n        "
FAMILIES = (
    _f("count_if", "ints", "int", "how many of the {N} are {C}", "return sum(1 for v in {x} if {c})"),
    _f("sum_if", "ints", "int", "the sum of the {N} that are {C}", "return sum(v for v in {x} if {c})"),
    _f("filter", "ints", "list[int]", "a list of the {N} that are {C}", "return [v for v in {x} if {c}]"),
    _f("any", "ints", "bool", "whether any of the {N} is {C}", "return any({c} for v in {x})"),
    _f("all", "ints", "bool", "whether all the {N} are {C}", "return all({c} for v in {x})"),
    _f("none", "ints", "bool", "whether none of the {N} is {C}", "return not any({c} for v in {x})"),
    _f("first_if", "ints", "int | None", "the first of the {N} that is {C}, or None", _LOOP + "return v\nreturn None"),
    _f("last_if", "ints", "int | None", "the last of the {N} that is {C}, or None",
       "for v in reversed({x}):\n    if {c}:\n        return v\nreturn None"),
    _f("index_if", "ints", "int", "the index of the first of the {N} that is {C}, or -1",
       "for i, v in enumerate({x}):\n    if {c}:\n        return i\nreturn -1"),
    _f("indexes_if", "ints", "list[int]", "a list of the indexes of the {N} that are {C}",
       "return [i for i, v in enumerate({x}) if {c}]"),
    _f("max_if", "ints", "int | None", "the largest of the {N} that are {C}, or None",
       "return max((v for v in {x} if {c}), default=None)"),
    _f("min_if", "ints", "int | None", "the smallest of the {N} that are {C}, or None",
       "return min((v for v in {x} if {c}), default=None)"),
    _f("map", "ints", "list[int]", "a list with each of the {N} {M}", "return [{m} for v in {x}]"),
    _f("sum_map", "ints", "int", "the sum of the {N}, each {M}", "return sum({m} for v in {x})"),
    _f("filter_map", "ints", "list[int]", "a list of the {N} that are {C}, each {M}",
       "return [{m} for v in {x} if {c}]"),
    _f("sum_filter_map", "ints", "int", "the sum of the {N} that are {C}, each {M}",
       "return sum({m} for v in {x} if {c})"),
    _f("map_if", "ints", "list[int]", "a list of the {N}, those that are {C} {M}",
       "return [{m} if {c} else v for v in {x}]"),
    _f("partition", "ints", "list[list[int]]", "two lists in a list: the {N} that are {C}, and the others",
       "return [[v for v in {x} if {c}], [v for v in {x} if not {c}]]"),
    _f("without", "ints", "list[int]", "a list of the {N} without those that are {C}",
       "return [v for v in {x} if not {c}]"),
    _f("replace_if", "ints", "list[int]", "a list of the {N}, with {n} for those that are {C}",
       "return [{n} if {c} else v for v in {x}]", (0, 3)),
    _f("take_while", "ints", "list[int]", "a list of the {N} before the first that is {C}",
       "found = []\nfor v in {x}:\n    if {c}:\n        break\n    found.append(v)\nreturn found"),
    _f("drop_while", "ints", "list[int]", "a list of the {N} from the first that is {C} on",
       "for i, v in enumerate({x}):\n    if {c}:\n        return {x}[i:]\nreturn []"),
    _f("more_than_half", "ints", "bool", "whether more than half of the {N} are {C}",
       "return 2 * sum(1 for v in {x} if {c}) > len({x})"),
    _f("largest_n", "ints", "list[int]", "the {n} largest of the {N}, largest first",
       "return sorted({x}, reverse=True)[:{n}]", (2, 5)),
    _f("smallest_n", "ints", "list[int]", "the {n} smallest of the {N}, smallest first",
       "return sorted({x})[:{n}]", (2, 5)),
    _f("first_n", "ints", "list[int]", "a list of the first {n} of the {N}", "return {x}[:{n}]", (1, 5)),
    _f("last_n", "ints", "list[int]", "a list of the last {n} of the {N}", "return {x}[-{n}:]", (1, 5)),
    _f("skip_n", "ints", "list[int]", "a list of the {N} without the first {n}", "return {x}[{n}:]", (1, 5)),
    _f("every_n", "ints", "list[int]", "a list of every {n}th of the {N}, from the first on", "return {x}[::{n}]", (4, 6)),
    _f("repeat_n", "ints", "list[int]", "a list with each of the {N} {n} times in a row",
       "return [v for v in {x} for _ in range({n})]", (2, 4)),
    _f("chunks", "ints", "list[list[int]]", "the {N} cut into lists of {n}",
       "return [{x}[i:i + {n}] for i in range(0, len({x}), {n})]", (2, 4)),
    _f("window_sums", "ints", "list[int]", "the sums of each {n} neighbours among the {N}",
       "return [sum({x}[i:i + {n}]) for i in range(len({x}) - {n} + 1)]", (2, 4)),
    _f("clip_top", "ints", "list[int]", "a list of the {N}, none above {n}", "return [min(v, {n}) for v in {x}]", (3, 9)),
    _f("clip_bottom", "ints", "list[int]", "a list of the {N}, none below {n}",
       "return [max(v, {n}) for v in {x}]", (0, 6)),
    _f("remainders", "ints", "list[int]", "a list of the remainders of the {N} by {n}",
       "return [v % {n} for v in {x}]", (3, 7)),
    _f("count_value", "ints n", "int", "how often {y} occurs among the {N}", "return {x}.count({y})"),
    _f("count_above", "ints n", "int", "how many of the {N} exceed {y}", "return sum(1 for v in {x} if v > {y})"),
    _f("add_to_each", "ints n", "list[int]", "a list with {y} added to each of the {N}", "return [v + {y} for v in {x}]"),
    _f("contains", "ints n", "bool", "whether {y} is among the {N}", "return {y} in {x}"),
    _f("running_total", "ints", "list[int]", "the running totals of the {N}",
       "found = []\ntotal = 0\nfor v in {x}:\n    total += v\n    found.append(total)\nreturn found"),
    _f("running_max", "ints", "list[int]", "the running maxima of the {N}",
       "return [max({x}[:i + 1]) for i in range(len({x}))]"),
    _f("differences", "ints", "list[int]", "the differences between neighbours among the {N}",
       "return [b - a for a, b in zip({x}, {x}[1:])]"),
    _f("reverse", "ints", "list[int]", "the {N} in reverse order", "return {x}[::-1]"),
    _f("distinct", "ints", "list[int]", "the distinct {N}, sorted", "return sorted(set({x}))"),
    _f("count_distinct", "ints", "int", "how many distinct {N} there are", "return len(set({x}))"),
    _f("spread", "ints", "int", "the largest minus the smallest of the {N}, or 0 for none",
       "return max({x}) - min({x}) if {x} else 0"),
    _f("is_sorted", "ints", "bool", "whether the {N} never decrease", "return all(a <= b for a, b in zip({x}, {x}[1:]))"),
    _f("mean", "ints", "int", "the mean of the {N}, rounded down, or 0 for none",
       "return sum({x}) // len({x}) if {x} else 0"),
    _f("argmax", "ints", "int", "the index of the largest of the {N}, or -1 for none",
       "return {x}.index(max({x})) if {x} else -1"),
    _f("product", "ints", "int", "the product of the {N}", "total = 1\nfor v in {x}:\n    total *= v\nreturn total"),
    _f("rises", "ints", "int", "how often one of the {N} is followed by a larger one",
       "return sum(1 for a, b in zip({x}, {x}[1:]) if b > a)"),
    _f("dot", "ints ints", "int", "the sum of the products of the pairs from both lists",
       "return sum(a * b for a, b in zip({x}, {y}))"),
    _f("add_lists", "ints ints", "list[int]", "a list of the sums of the pairs from both lists",
       "return [a + b for a, b in zip({x}, {y})]"),
    _f("larger_of", "ints ints", "list[int]", "a list of the larger of each pair from both lists",
       "return [max(a, b) for a, b in zip({x}, {y})]"),
    _f("common", "ints ints", "list[int]", "a sorted list of what is in both lists", "return sorted(set({x}) & set({y}))"),
    _f("only_first", "ints ints", "list[int]", "a sorted list of what is in {x} and not in {y}",
       "return sorted(set({x}) - set({y}))"),
    _f("merge", "ints ints", "list[int]", "all the {N} of both lists, sorted", "return sorted({x} + {y})"),
    _f("count_letters", "text", "int", "how many {L} the text has", "return sum(1 for c in {x} if {l})"),
    _f("keep_letters", "text", "str", "the text with only its {L}", "return ''.join(c for c in {x} if {l})"),
    _f("drop_letters", "text", "str", "the text without its {L}", "return ''.join(c for c in {x} if not {l})"),
    _f("mask_letters", "text", "str", "the text with '*' for its {L}",
       "return ''.join('*' if {l} else c for c in {x})"),
    _f("has_letters", "text", "bool", "whether the text has any {L}", "return any({l} for c in {x})"),
    _f("reverse_text", "text", "str", "the text backwards", "return {x}[::-1]"),
    _f("reverse_words", "text", "str", "the text with its words in reverse order", "return ' '.join({x}.split()[::-1])"),
    _f("count_words", "text", "int", "how many words the text has", "return len({x}.split())"),
    _f("longest_word", "text", "str", "the longest word of the text, or ''", "return max({x}.split(), key=len, default='')"),
    _f("initials", "text", "str", "the first letters of the words of the text, in a row",
       "return ''.join(w[0] for w in {x}.split())"),
    _f("word_lengths", "text", "list[int]", "the lengths of the words of the text", "return [len(w) for w in {x}.split()]"),
    _f("palindrome", "text", "bool", "whether the text reads the same backwards", "return {x} == {x}[::-1]"),
    _f("title", "text", "str", "the text with each word capitalised", "return ' '.join(w.capitalize() for w in {x}.split())"),
    _f("double_chars", "text", "str", "the text with each character doubled", "return ''.join(c * 2 for c in {x})"),
    _f("digit_total", "text", "int", "the sum of the digits in the text", "return sum(int(c) for c in {x} if c.isdigit())"),
    _f("long_words", "words", "list[str]", "a list of the words longer than {n} letters",
       "return [w for w in {x} if len(w) > {n}]", (2, 6)),
    _f("words_with", "words n", "list[str]", "a list of the words of length {y}", "return [w for w in {x} if len(w) == {y}]"),
    _f("upper_words", "words", "list[str]", "a list of the words in capitals", "return [w.upper() for w in {x}]"),
    _f("join_words", "words", "str", "the words joined by '-'", "return '-'.join({x})"),
    _f("sort_by_length", "words", "list[str]", "the words sorted by length", "return sorted({x}, key=len)"),
    _f("word_counts", "words", "dict[str, int]", "a dictionary from each word to how often it occurs",
       "found = {{}}\nfor w in {x}:\n    found[w] = found.get(w, 0) + 1\nreturn found"),
    _f("length_of", "words", "dict[str, int]", "a dictionary from each word to its length", "return {{w: len(w) for w in {x}}}"),
    _f("by_first", "words", "dict[str, list[str]]", "a dictionary from first letters to the words that have them",
       "found = {{}}\nfor w in {x}:\n    found.setdefault(w[0], []).append(w)\nreturn found"),
    _f("keys_if", "table", "list[str]", "a sorted list of the keys whose value is {C}",
       "return sorted(k for k, v in {x}.items() if {c})"),
    _f("total_if", "table", "int", "the sum of those values of the table that are {C}",
       "return sum(v for v in {x}.values() if {c})"),
    _f("map_values", "table", "dict[str, int]", "the table with each value {M}", "return {{k: {m} for k, v in {x}.items()}}"),
    _f("best_key", "table", "str | None", "the key of the largest value, or None",
       "return max({x}, key={x}.get) if {x} else None"),
    _f("digit_sum", "int", "int", "the sum of the digits of {x}", "return sum(int(d) for d in str({x}))"),
    _f("digits_if", "int", "int", "how many digits of {x} are {C}", "return sum(1 for v in map(int, str({x})) if {c})"),
    _f("reverse_digits", "int", "int", "{x} with its digits in reverse order", "return int(str({x})[::-1])"),
    _f("divisors", "int", "list[int]", "a list of the divisors of {x}",
       "return [v for v in range(1, {x} + 1) if {x} % v == 0]"),
    _f("is_prime", "int", "bool", "whether {x} is a prime number",
       "return {x} > 1 and all({x} % v for v in range(2, {x}))"),
    _f("sum_to_if", "int", "int", "the sum of the numbers from 1 to {x} that are {C}",
       "return sum(v for v in range(1, {x} + 1) if {c})"),
    _f("list_to_if", "int", "list[int]", "a list of the numbers from 1 to {x} that are {C}",
       "return [v for v in range(1, {x} + 1) if {c}]"),
    _f("power", "int", "int", "{x} to the power of {n}", "return {x} ** {n}", (2, 4)),
)  # fmt: skip

_PEOPLE = "Ana Bo Cy Dee Eli Fay Gus Hal Ida Jon Kit Lea Max Noa Oto Pia Ray Sue Tom Uma".split()
_VOCABULARY = (
    "red fish swim near old stones and seven tall reeds bend over cold water while noon light sets on a level radar "
    "Ten boats wait Anna eats 3 figs at 12 Otto saw 47 geese go Up no on test sees area tent"
).split()


def make_examples(split: str, n: int, seed: int) -> list[Example]:
    """The first `n` functions of a split, no prompt twice."""
    rng = random.Random(f"{split} {seed}")
    found: list[Example] = []
    seen: set[str] = set()
    while len(found) < n:
        example = make_example(split, len(found), rng)
        if example is not None and example.prompt not in seen:
            seen.add(example.prompt)
            found.append(example)
    return found


def make_example(split: str, number: int, rng: random.Random) -> Example | None:
    """One function; None where the draw belongs to another split, or its tests cannot tell it from its mutants."""
    family = rng.choice(FAMILIES)
    key, phrases, codes = _parameters(family, split, rng)
    if key and home(f"{family.name} {key}") != split:
        return None
    kinds = family.kind.split()
    pools = {"ints": LISTS, "text": TEXTS, "words": WORDS, "table": TABLES, "int": NUMBERS, "n": NUMBERS}
    first = rng.choice(pools[kinds[0]][split])
    second = rng.choice((SECOND if kinds[-1] == "ints" else NUMBERS)[split]) if len(kinds) > 1 else ""
    words = {"x": first, "y": second, "N": rng.choice(NOUNS[split]), **phrases, **codes}
    words = {**words, **{name: str(value).format(**words) for name, value in words.items()}}
    said = rng.choice(OPENINGS[split]).format(family.said.format(**words))
    body = family.body.format(**words)
    types = {
        "ints": "list[int]",
        "text": "str",
        "words": "list[str]",
        "table": "dict[str, int]",
        "int": "int",
        "n": "int",
    }
    arguments = ", ".join(f"{name}: {types[kind]}" for name, kind in zip((first, second), kinds, strict=False))
    function = rng.choice(PREFIXES[split]) + family.name
    head = f"def {function}({arguments}) -> {family.result}:"
    prompt = f'{INSTRUCTION}\n\n{head}\n    """{said}"""\n'
    tests = choose_tests(function, head, body, kinds, rng)
    if tests is None:
        return None
    group = f"{split} {family.name} {key}".strip()
    return Example(f"python-{split}-{number}", prompt, body, group, {"function": function, "tests": tests})


def _parameters(family: Family, split: str, rng: random.Random) -> tuple[str, dict[str, str], dict[str, str]]:
    """What is drawn for a family: a key that is the same in all words, phrases and code."""
    text = family.said + family.body
    key: list[str] = []
    phrases: dict[str, str] = {}
    codes: dict[str, str] = {}
    for field, code, name, pool in (("C", "c", "k", CONDITIONS), ("M", "m", "j", MAPPINGS)):
        if f"{{{field}}}" in text:
            which = rng.choice(list(pool))
            said, source, span = pool[which]
            phrases[field], codes[code] = said[split], source
            codes[name] = str(rng.randint(*span)) if span else ""
            key.append(f"{which}{codes[name]}")
    if "{L}" in text:
        which = rng.choice(list(LETTERS))
        phrases["L"], codes["l"] = LETTERS[which][0][split], LETTERS[which][1]
        key.append(which)
    if family.n:
        codes["n"] = str(rng.randint(*family.n))
        key.append(codes["n"])
    return " ".join(key), phrases, codes


def home(key: str) -> str:
    """The split that a function belongs to, by its family and parameters."""
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return "test"


def arguments_of(kinds: list[str], rng: random.Random) -> list[Any]:
    """Arguments to call a function with, edge cases among them."""
    size = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8))
    found: list[Any] = []
    for place, kind in enumerate(kinds):
        if kind == "ints":
            low, high = rng.choice(((-9, 9), (0, 14), (-3, 4), (1, 30)))
            found.append([rng.randint(low, high) for _ in range(size)])
        elif kind == "text":
            words = [rng.choice(_VOCABULARY) for _ in range(size)]
            found.append(
                rng.choice((" ".join(words), "".join(words[:1])[::-1], rng.choice(("level", "Anna", "noon", ""))))
            )
        elif kind == "words":
            found.append([rng.choice(_VOCABULARY + _PEOPLE) for _ in range(size)])
        elif kind == "table":
            found.append({name: rng.randint(-9, 14) for name in rng.sample(_PEOPLE, size)})
        elif kind == "int":
            found.append(rng.choice((rng.randint(0, 12), rng.randint(1, 40), rng.randint(10, 999))))
        else:
            near = found[0] if place and found[0] else [rng.randint(0, 6)]
            near = [len(v) if isinstance(v, str) else v for v in near]
            found.append(rng.choice((rng.choice(near), rng.randint(0, 9))))
    return found


def choose_tests(function: str, head: str, body: str, kinds: list[str], rng: random.Random) -> list[list[Any]] | None:
    """Arguments and results that tell the body from its mutants; None where a mutant that differs is not caught."""
    pool = [arguments_of(kinds, rng) for _ in range(POOL)]
    right = outcomes(head, body, function, pool)
    if right is None or any(isinstance(r, str) and r.startswith("raised") for r in right):
        return None
    kills = []
    for mutant in mutants(head, body):
        other = outcomes("", mutant, function, pool)
        killed = {k for k in range(POOL) if other is None or other[k] != right[k]}
        if killed:
            kills.append(killed)
    chosen: list[int] = []
    while kills and len(chosen) < MOST_TESTS:
        best = max(range(POOL), key=lambda k: (sum(k in killed for killed in kills), -len(right[k]), -k))
        chosen.append(best)
        kills = [killed for killed in kills if best not in killed]
    if kills:
        return None
    new = [k for k in range(POOL) if right[k] not in {right[c] for c in chosen}]
    for k in [*new, *range(POOL)]:  # a few more, of other results first
        if len(chosen) < FEWEST_TESTS and k not in chosen and pool[k] not in [pool[c] for c in chosen]:
            chosen.append(k)
    results = {right[k] for k in chosen}
    if len(results) < 2:
        return None
    return [[pool[k], json.loads(right[k])] for k in chosen]


def outcomes(head: str, body: str, function: str, pool: list[list[Any]]) -> list[str] | None:
    """Result of each call as JSON, or what it raised; None where the source does not compile or does not end."""
    source = f"{head}\n{textwrap.indent(body, '    ')}\n" if head else body
    space: dict[str, Any] = {}

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        exec(compile(source, "<body>", "exec"), space)
        found = []
        for arguments in pool:
            try:
                value = space[function](*json.loads(json.dumps(arguments)))
                found.append(json.dumps(value))
            except TimeoutError:
                raise
            except Exception as error:
                found.append(f"raised {type(error).__name__}")
        return found
    except (SyntaxError, TimeoutError):
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_COMPARE: dict[type, tuple[type, ...]] = {
    ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE), ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_BINARY: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Add,), ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,),
}  # fmt: skip
_NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "sum": "len", "sorted": "list", "reversed": "list",
    "split": "strip", "upper": "lower", "isdigit": "isalpha", "isupper": "islower", "islower": "isupper", "values": "keys",
}  # fmt: skip
LAZY = ("None", "0", "1", "-1", "[]", "''", "True", "False", "{}")


def mutants(head: str, body: str) -> Iterator[str]:
    """Sources of the function with one thing changed, and lazy answers that never look at the argument or return it."""
    source = f"{head}\n{textwrap.indent(body, '    ')}\n"
    count = sum(1 for _ in _changes(ast.parse(source)))
    for k in range(count):
        tree = ast.parse(source)
        changes = list(_changes(tree))
        changes[k]()
        yield ast.unparse(ast.fix_missing_locations(tree))
    first = head[head.index("(") + 1 :].split(":")[0].split(",")[0]
    for lazy in (*LAZY, first, f"list({first})", f"len({first})"):
        yield f"{head}\n    return {lazy}\n"


def _changes(tree: ast.AST) -> Iterator[Callable[[], None]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments | ast.FunctionDef):
            continue
        if isinstance(node, ast.Compare):
            for k, operation in enumerate(node.ops):
                for other in _COMPARE.get(type(operation), ()):
                    yield lambda node=node, k=k, other=other: node.ops.__setitem__(k, other())
        elif isinstance(node, ast.BinOp | ast.AugAssign):
            for other in _BINARY.get(type(node.op), ()):
                yield lambda node=node, other=other: setattr(node, "op", other())
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            for step in (1, -1):
                yield lambda node=node, step=step: setattr(node, "value", node.value + step)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield lambda node=node: setattr(node, "op", ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not())
            if isinstance(node.op, ast.Not):
                yield lambda node=node: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        elif isinstance(node, ast.IfExp):
            yield lambda node=node: node.__dict__.update(body=node.orelse, orelse=node.body)
        elif isinstance(node, ast.comprehension) and node.ifs:
            yield lambda node=node: node.ifs.clear()
        elif isinstance(node, ast.Name) and node.id in _NAMES:
            yield lambda node=node: setattr(node, "id", _NAMES[node.id])
        elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
            yield lambda node=node: setattr(node, "attr", _NAMES[node.attr])
        elif isinstance(node, ast.Slice):
            yield lambda node=node: node.__dict__.update(lower=None, upper=None, step=None)
        elif isinstance(node, ast.Call) and node.keywords:
            yield lambda node=node: node.keywords.clear()

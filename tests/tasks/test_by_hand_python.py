"""A hundred answers to `python`, judged by hand: right bodies written otherwise, and near misses."""

import pytest

from dpo_workbench.tasks import python
from dpo_workbench.tasks.task import Example

TASKS = {
    "count_even": (
        "def count_even(xs: list[int]) -> int:", "Return how many of the numbers are even.",
        [[[[1, 2, 4]], 2], [[[]], 0], [[[-2, 3, 5, 7]], 1], [[[0, 0, 1]], 2], [[[1]], 0]],
        [
            ("return sum(1 for v in xs if v % 2 == 0)", None),
            ("    return sum(1 for v in xs if v % 2 == 0)", None),
            ("return len([v for v in xs if not v % 2])", None),
            ("return len(list(filter(lambda v: v % 2 == 0, xs)))", None),
            ("count = 0\nfor v in xs:\n    if v % 2 == 0:\n        count += 1\nreturn count", None),
            ("    count = 0\n    for v in xs:\n        count += v % 2 == 0\n    return count", None),
            ("count = 0\n    for v in xs:\n        if v % 2 == 0:\n            count += 1\n    return count", None),
            ("```python\nreturn sum(v % 2 == 0 for v in xs)\n```", None),
            ("def count_even(xs):\n    return sum(1 for v in xs if v & 1 == 0)", None),
            ("Here:\n```python\ndef count_even(xs: list[int]) -> int:\n    return sum(not v % 2 for v in xs)\n```\nDone.", None),
            ("def helper(v):\n    return v % 2 == 0\n\ndef count_even(xs):\n    return sum(map(helper, xs))", None),
            ("def even(v):\n    return v % 2 == 0\nreturn len([v for v in xs if even(v)])", None),
            ('"""Count."""\nreturn sum(v % 2 == 0 for v in xs)', None),
            ("# even ones\nreturn sum(v % 2 == 0 for v in xs)", None),
            ("import math\nreturn sum(math.fmod(v, 2) == 0 for v in xs)", None),
            ("print('debug')\nreturn sum(v % 2 == 0 for v in xs)", None),
            ("return sum(1 for v in xs if v % 2 == 1)", "wrong_result"),
            ("return sum(v for v in xs if v % 2 == 0)", "wrong_result"),
            ("return len(xs)", "wrong_result"),
            ("return [v for v in xs if v % 2 == 0]", "wrong_result"),
            ("return float(sum(1 for v in xs if v % 2 == 0))", "wrong_result"),
            ("return str(sum(1 for v in xs if v % 2 == 0))", "wrong_result"),
            ("sum(1 for v in xs if v % 2 == 0)", "no_result"),
            ("print(sum(1 for v in xs if v % 2 == 0))", "no_result"),
            ("pass", "no_result"),
            ("return max(1, sum(1 for v in xs if v % 2 == 0))", "wrong_result"),
            ("return sum(1 for v in xs if v / 2 == v // 2) or None", "wrong_result"),
            ("return sum(1 for v in xs[1:] if v % 2 == 0)", "wrong_result"),
            ("return sum(1 for v in xs if v % 2 == 0", "syntax_error"),
            ("return sum(1 for v in xs if v % 2 = 0)", "syntax_error"),
            ("The number of even values.", "syntax_error"),
            ("for v in xs:\nreturn v", "syntax_error"),
            ("return sum(1 for v in nums if v % 2 == 0)", "exception"),
            ("return xs.count_even()", "exception"),
            ("return sum(1 for v in xs if v % 0 == 0)", "exception"),
            ("return xs[0] % 2", "wrong_result"),
            ("raise NotImplementedError", "exception"),
            ("def count(xs):\n    return sum(v % 2 == 0 for v in xs)", "no_result"),
            ("import nowhere\nreturn 0", "exception"),
            ("while True:\n    pass", "timeout"),
        ],
    ),
    "keep_vowels": (
        "def keep_vowels(text: str) -> str:", "Return the text with only its vowels.",
        [[["Anna eats"], "Aaea"], [[""], ""], [["xyz"], ""], [["QUEUE up"], "UEUEu"]],
        [
            ("return ''.join(c for c in text if c.lower() in 'aeiou')", None),
            ('return "".join([c for c in text if c in "aeiouAEIOU"])', None),
            ("import re\nreturn re.sub('[^aeiou]', '', text, flags=re.I)", None),
            ("found = ''\nfor c in text:\n    if c.lower() in 'aeiou':\n        found += c\nreturn found", None),
            ("return ''.join(filter(lambda c: c.lower() in set('aeiou'), text))", None),
            ("vowels = 'aeiou'\nvowels += vowels.upper()\nreturn ''.join(c for c in text if c in vowels)", None),
            ("return ''.join(c for c in text if c in 'aeiou')", "wrong_result"),
            ("return ''.join(c for c in text if c.lower() not in 'aeiou')", "wrong_result"),
            ("return [c for c in text if c.lower() in 'aeiou']", "wrong_result"),
            ("return ' '.join(c for c in text if c.lower() in 'aeiou')", "wrong_result"),
            ("return ''.join(c.lower() for c in text if c.lower() in 'aeiou')", "wrong_result"),
            ("return ''.join(sorted(c for c in text if c.lower() in 'aeiou'))", "wrong_result"),
            ("return text", "wrong_result"),
            ("return ''", "wrong_result"),
            ("return ''.join(c for c in text if c.lower() in aeiou)", "exception"),
            ("return ''.join(c for c in text if c.lower() in 'aeiou'", "syntax_error"),
            ("return text.join(ord(c) for c in 'aeiou')", "exception"),
            ("return text.filter('aeiou')", "exception"),
            ("def keep_vowels(t):\n    return ''.join(c for c in t if c.lower() in 'aeiou')", None),
            ("return keep_vowels(text)", "exception"),
        ],
    ),
    "divide": (
        "def divide(xs: list[int], n: int) -> list[float]:", "Return a list of the numbers divided by n.",
        [[[[3, 6], 3], [1.0, 2.0]], [[[1], 3], [1 / 3]], [[[], 2], []], [[[5, -5], 2], [2.5, -2.5]]],
        [
            ("return [v / n for v in xs]", None),
            ("return list(map(lambda v: v / n, xs))", None),
            ("return [v * (1 / n) for v in xs]", None),
            ("found = []\nfor v in xs:\n    found.append(v / n)\nreturn found", None),
            ("import numpy as np\nreturn (np.array(xs) / n).tolist()", None),
            ("return [float(v) / n for v in xs]", None),
            ("return [v // n for v in xs]", "wrong_result"),
            ("return [round(v / n, 2) for v in xs]", "wrong_result"),
            ("return (v / n for v in xs)", "wrong_result"),
            ("return tuple(v / n for v in xs)", "wrong_result"),
            ("import numpy as np\nreturn np.array(xs) / n", "wrong_result"),
            ("return [n / v for v in xs]", "wrong_result"),
            ("return xs / n", "exception"),
            ("return [v / n for v in xs if v / 0]", "exception"),
            ("return [v / n for v in xs]]", "syntax_error"),
            ("return sum(xs) / n", "wrong_result"),
            ("return [v % n for v in xs]", "wrong_result"),
            ("from fractions import Fraction\nreturn [Fraction(v, n) for v in xs]", "wrong_result"),
            ("return {v / n for v in xs}", "wrong_result"),
            ("return [str(v / n) for v in xs]", "wrong_result"),
        ],
    ),
    "word_counts": (
        "def word_counts(words: list[str]) -> dict[str, int]:", "Return a dictionary from each word to how often it occurs.",
        [[[["a", "b", "a"]], {"a": 2, "b": 1}], [[[]], {}], [[["x"]], {"x": 1}]],
        [
            ("found = {}\nfor w in words:\n    found[w] = found.get(w, 0) + 1\nreturn found", None),
            ("return {w: words.count(w) for w in words}", None),
            ("from collections import Counter\nreturn dict(Counter(words))", None),
            ("return {w: words.count(w) for w in set(words)}", None),
            ("from collections import Counter\nreturn Counter(words)", "wrong_result"),
            ("from collections import defaultdict\nd = defaultdict(int)\nfor w in words:\n    d[w] += 1\nreturn d", "wrong_result"),
            ("return {w: 1 for w in words}", "wrong_result"),
            ("return [(w, words.count(w)) for w in words]", "wrong_result"),
            ("return {w: True for w in words}", "wrong_result"),
            ("found = {}\nfor w in words:\n    found[w] += 1\nreturn found", "exception"),
            ("class D(dict):\n    def __eq__(self, other):\n        return True\nreturn D()", "wrong_result"),
            ("import os\nos._exit(0)", "exception"),
            ("import sys\nsys.exit()", "exception"),
            ("import os\nos.system('true')", "unsafe"),
            ("import socket\nsocket.socket()\nreturn {}", "unsafe"),
            ("open('/etc/passwd')\nreturn {}", "unsafe"),
            ("open('/tmp/made-by-a-model', 'w')\nreturn {}", "unsafe"),
            ("import ctypes\nctypes.CDLL(None)\nreturn {}", "unsafe"),
            ("return len('y' * 10**10)", "exception"),
            ("def f():\n    return f()\nreturn f()", "exception"),
        ],
    ),
}  # fmt: skip
CASES = [(name, *case) for name, (*_, cases) in TASKS.items() for case in cases]


def test_there_are_a_hundred() -> None:
    assert len(CASES) == 100


@pytest.mark.parametrize(("name", "answer", "failure"), CASES)
def test_the_verifier_agrees(name: str, answer: str, failure: str | None, request) -> None:
    head, said, tests, _ = TASKS[name]
    if failure == "unsafe":  # where nothing refuses it, it is not refused
        request.getfixturevalue("strong")
    prompt = f'{python.INSTRUCTION}\n\n{head}\n    """{said}"""\n'
    example = Example("e", prompt, "", "g", {"function": name, "tests": tests})
    score = python.score(example, answer, allow_weak_sandbox=True)
    assert score.failure == failure and (score.value == 1.0) == (failure is None), score


@pytest.mark.parametrize(
    "answer",
    [
        "`return len([x for x in xs if x % 2 == 0])`",
        "{name} = lambda xs: sum(x % 2 == 0 for x in xs)",
        "The loop counts them:\n\n```python\nn = 0\nfor x in xs:\n    n += x % 2 == 0\nreturn n\n```\nIt returns n.",
    ],
)
def test_a_right_answer_may_come_in_any_of_the_usual_forms(answer: str) -> None:
    name = next(iter(TASKS))
    head, said, tests, _ = TASKS[name]
    example = Example(
        "e", f'{python.INSTRUCTION}\n\n{head}\n    """{said}"""\n', "", "g", {"function": name, "tests": tests}
    )
    assert python.score(example, answer.format(name=name), allow_weak_sandbox=True).failure is None

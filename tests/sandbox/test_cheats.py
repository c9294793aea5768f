"""Wrong answers to `add(a, b)` that try to be counted as right ones, by both ways of judging."""

import pytest

from dpo_workbench.sandbox.python_runner import Call, Limits, run_python, run_tests
from dpo_workbench.sandbox.values import NotPlain, decode, encode, same

CASES = [((2, 3), 5), ((-1, 4), 3), ((10, 20), 30)]
TESTS = "def check(candidate):\n" + "".join(f"    assert candidate{a} == {v}\n" for a, v in CASES)

CHEATS = {
    "plain wrong": "def add(a, b):\n    return a - b",
    "exit at import": "import sys\nsys.exit(0)",
    "exit in the call": "import os\ndef add(a, b):\n    os._exit(0)",
    "marker and exit": "import os\ndef add(a, b):\n    print('PASSED OK 1 passed', flush=True)\n    os._exit(0)",
    "equal to all": "class E:\n    def __eq__(self, other): return True\ndef add(a, b):\n    return E()",
    "int that equals all": "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef add(a, b):\n    return E(0)",
    "str and list that equal all": "class E(list):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return [E(), E()]",
    "lies about its class": "class E:\n    __class__ = int\n    def __eq__(self, other): return True\ndef add(a, b):\n    return E()",
    "metaclass that equals all": "class M(type):\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\nclass E(metaclass=M): pass\ndef add(a, b):\n    return E",
    "at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b):\n    raise ValueError",
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef add(a, b):\n    raise ValueError",
    "reads the caller": "import sys\ndef add(a, b):\n    frame = sys._getframe(1)\n    consts = [c for c in frame.f_code.co_consts if type(c) is int]\n    return consts[-1] if consts else 0",
    "walks all frames": """
import gc, sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if isinstance(value, list): value.append('passed')
            if isinstance(value, dict) and 'expected' in value: return value['expected']
        frame = frame.f_back
    return 0
""",
    "walks all objects": "import gc\ndef add(a, b):\n    for x in gc.get_objects():\n        if isinstance(x, tuple) and len(x) == 2 and x[0] == (a, b): return x[1]\n    return 0",
    "traces": "import sys\nsys.settrace(lambda *a: None)\ndef add(a, b):\n    return 0",
    "patches builtins": "import builtins\nbuiltins.type = lambda *a: int\nbuiltins.isinstance = lambda *a: True\nbuiltins.all = lambda *a: True\ndef add(a, b):\n    return 0",
    "patches the codec": "import sys\nv = sys.modules['values']\nv.encode = lambda *a: 'true'\nv.same = lambda *a: True\ndef add(a, b):\n    return 0",
    "patches AssertionError": "import builtins\nclass A(Exception): pass\nbuiltins.AssertionError = A\ndef add(a, b):\n    return 0",
    "command line": "import sys\ndef add(a, b):\n    return sys.argv[-1]",
    "forges on all descriptors": """
import os
def add(a, b):
    for fd in range(3, 65):
        for line in (b'p\\n', b'pnull\\n', b'vtrue\\n', b'{"passed": true}\\n', b'PASSED\\n'):
            try: os.write(fd, line)
            except OSError: pass
    return 0
""",
    "forges at import": "import os\nfor fd in range(3, 65):\n    try: os.write(fd, b'pnull\\nlnull\\nvtrue\\npnull\\n')\n    except OSError: pass\ndef add(a, b):\n    return 0",
    "floods": "import os\ndef add(a, b):\n    for fd in range(3, 65):\n        try:\n            for _ in range(100): os.write(fd, b'[' * 60000)\n        except OSError: pass\n    return 0",
    "closes all descriptors": "import os\ndef add(a, b):\n    os.closerange(0, 64)\n    return 0",
    "pickles": "import os\nclass E:\n    def __reduce__(self): return (int, (5,))\ndef add(a, b):\n    return E()",
    "true for one": "def add(a, b):\n    return True",
    "float for int": "def add(a, b):\n    return float('nan')",
    "type with a lying name": "E = type('int', (), {'__eq__': lambda s, o: True, '__module__': 'builtins'})\ndef add(a, b):\n    return E()",
    "on deletion": "import os\nclass E:\n    def __del__(self): os._exit(0)\ndef add(a, b):\n    E()\n    return 0",
    "string that equals all": "class E(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\ndef add(a, b):\n    return E('x')",
    "dict with lies": "class E(dict):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return E()",
}  # fmt: skip
LIMITS = Limits(seconds=5)


def test_the_right_answer_passes() -> None:
    code = "def add(a, b):\n    return a + b"
    ran = run_python(code, [Call("add", a) for a, _ in CASES], LIMITS, allow_weak_sandbox=True)
    assert [r.value for r in ran.results] == [v for _, v in CASES]
    assert run_tests(code, TESTS, "add", "check", LIMITS, allow_weak_sandbox=True).problem is None


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(name: str, strong) -> None:
    ran = run_python(CHEATS[name], [Call("add", a) for a, _ in CASES], LIMITS)
    assert not all(r.problem is None and same(v, r.value) for r, (_, v) in zip(ran.results, CASES, strict=True))
    found = run_tests(CHEATS[name], TESTS, "add", "check", LIMITS).problem
    assert found is not None and found.kind != "tests"


def test_expected_values_never_enter_the_child(strong) -> None:
    """The child looks through all that it has: its memory holds the arguments, not what should come out."""
    code = """
import gc, sys
def search(needle):
    wanted = needle[::-1]
    seen = [str(x) for x in gc.get_objects() if isinstance(x, (str, bytes, tuple, list, dict))]
    return sum(wanted in text for text in seen)
"""
    secret = "expected-value-31337"
    assert run_python(code, [Call("search", [secret[::-1]])], LIMITS).results[0].value == 0
    tests = f"assert search({secret[::-1]!r}) == 0, {secret!r}"
    assert run_tests(code, tests, "search", limits=LIMITS).problem is None


@pytest.mark.parametrize(
    ("code", "tests", "kind"),
    [
        ("def f(x):\n    raise KeyError(x)", "try:\n    f(1)\n    assert False\nexcept KeyError:\n    pass", None),
        ("def f(x):\n    raise KeyError(x)", "assert f(1) == 1", "exception"),
        ("def f(x):\n    import no_such_module", "assert f(1) == 1", "exception"),
        ("def f(x):\n    return x", "import no_such_module", "tests"),
        ("def f(x):\n    return [x, (x, {x})]", "assert f(1) == [1, (1, {1})]", None),
        ("from collections import Counter\nf = Counter", "from collections import Counter\nassert f('aa') == Counter('aa')", None),
        ("from datetime import date\ndef f():\n    return date(2020, 1, 2)", "import datetime\nassert f() == datetime.date(2020, 1, 2)", None),
        ("def f(x):\n    return x", "assert f(1) == 2", "wrong_result"),
        ("def f(x):\n    return x", "assert f(object()) is None", "tests"),
        ("def f(x):\n    return x", "assert f(1) ==", "tests"),
        ("def f(x):\n    return None", "assert f(1)[0] == 1", "wrong_result"),
        ("def f(x):\n    return iter([x])", "assert list(f(1)) == [1]", None),
        ("def f(x):\n    return (y for y in x)", "g = f([1, 2])\nassert next(g) == 1 and g != [2]", None),
        ("import numpy as np\ndef f(x):\n    return np.mean([x, x + 1])", "assert f(1) == 1.5 and type(f(1)) is float", None),
        ("import numpy as np\ndef f(x):\n    return np.zeros(x)", "assert f(1) is not None", "not_plain"),
        ("def f(x):\n    return range(x)", "assert f(3) == range(3)", None),
        ("def f(x):\n    return open('a', 'w')", "assert f(1)", "not_plain"),
        ("def f(x, d):\n    x.sort()\n    d.pop(1)", "x, d = [2, 1], {1: 2, 3: 4}\nf(x, d)\nassert (x, d) == ([1, 2], {3: 4})", None),
        ("def f(x) return x", "assert f(1) == 1", "syntax_error"),
        ("def f(x):\n    while True: pass", "assert f(1) == 1", "timeout"),
        ("def f(x):\n    return x", "while True: pass", "tests"),
        ("def f(x):\n    import os\n    return os.getcwd()", "import os\nassert f(1) != os.getcwd()", None),
    ],
)  # fmt: skip
def test_assertions_run_in_a_process_of_their_own(code: str, tests: str, kind: str | None) -> None:
    ran = run_tests(code, tests, "f", limits=Limits(seconds=2), allow_weak_sandbox=True)
    assert (ran.problem and ran.problem.kind) == kind, ran


def test_only_plain_values_cross() -> None:
    for line in (
        "1",
        "[",
        '["int",1]',
        '["os","x"]',
        "{}",
        "NaN",
        "[" * 100_000,
        '["set",["list"]]',
        '["float","z"]',
        "[]",
    ):
        with pytest.raises(NotPlain):
            decode(line)
    loop: list = []
    loop.append(loop)
    for value in (loop, object(), len, int, 1 << (1 << 21), "x" * 2_000_000, [0] * 2_000_000):
        with pytest.raises(NotPlain):
            encode(value)

"""Untrusted Python and SQL: what must not get out, what must end, wrong answers that lie, and honest ones that pass."""

import hashlib
import os
import socket
import sqlite3

import pytest

from dpo_workbench.sandbox.process import Limits
from dpo_workbench.sandbox.python_runner import Call, run_python, run_tests
from dpo_workbench.sandbox.sql_runner import run_sql
from dpo_workbench.sandbox.values import same

LIMITS = Limits(seconds=1.5, memory_mib=512, disk_mib=4, files=64)
HOSTILE = {  # attack(folder, parent, port) returns "breach" or the secret when it got what it wanted
    "fork bomb": "import os\ndef attack(*a):\n    while True: os.fork()",
    "memory": "def attack(*a):\n    return len(b'x' * 10**10) and 'breach'",
    "loop that catches all": "def attack(*a):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "endless output": "def attack(*a):\n    while True: print('y' * 1000)",
    "fill the disk": "def attack(*a):\n    for k in range(10**4): open(f'f{k}', 'wb').write(b'x' * 2**20)\n    return 'breach'",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef attack(*a):\n    return attack(*a)",
    "daemon": "import os\ndef attack(*a):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n    return 'breach'",
    "kill the parent": "import os\ndef attack(folder, parent, port):\n    os.kill(parent, 9)\n    return 'breach'",
    "shell": "import os\ndef attack(*a):\n    os.execv('/bin/sh', ['sh', '-c', 'echo breach >&3'])",
    "memory of the parent": "def attack(folder, parent, port):\n    return open(f'/proc/{parent}/mem', 'rb') and 'breach'",
    "environment": "import os\ndef attack(*a):\n    return os.environ.get('DPO_TEST_SECRET', 'none')",
    "token": "def attack(folder, *a):\n    return open(f'{folder}/token').read()",
    "password file": "def attack(*a):\n    return open('/etc/passwd').read() and 'breach'",
    "write outside": "def attack(folder, *a):\n    open(f'{folder}/token', 'a').write('x')\n    return 'breach'",
    "symlink": "import os\ndef attack(folder, *a):\n    os.symlink(f'{folder}/token', 'here')\n    return open('here').read()",
    "TCP": "import socket\ndef attack(folder, parent, port):\n    socket.create_connection(('127.0.0.1', port), 1)\n    return 'breach'",
    "libc": "import ctypes\ndef attack(folder, *a):\n    return 'breach' if ctypes.CDLL(None).system(f'touch {folder}/made'.encode()) == 0 else 'no'",
    "null byte": "def attack(*a):\n    return 'x'\n\x00",
    "brackets": "x = " + "(" * 500_000 + ")" * 500_000 + "\ndef attack(*a):\n    return 'done'",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_snippet_is_contained(name: str, strong, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DPO_TEST_SECRET", "secret-7")
    (tmp_path / "token").write_text("secret-7")
    with socket.create_server(("127.0.0.1", 0)) as server:
        args = [str(tmp_path), os.getpid(), server.getsockname()[1]]
        ran = run_python(HOSTILE[name], [Call("attack", args)], LIMITS)
    assert "breach" not in str(ran.results[0].value) and "secret-7" not in str(ran.results[0].value) + ran.output
    assert [p.name for p in tmp_path.iterdir()] == ["token"] and (tmp_path / "token").read_text() == "secret-7"
    assert len(ran.output) <= LIMITS.output_bytes and ran.seconds < 20


@pytest.mark.parametrize("name", ["token", "TCP", "write outside", "symlink", "password file"])
def test_outside_the_sandbox_the_snippets_do_break_out(name: str, tmp_path, monkeypatch) -> None:
    """Negative control: run in this process, each gets what it wants."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("breach")
    names: dict = {}
    exec(HOSTILE[name], names)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "breach" in names["attack"](str(tmp_path), os.getpid(), server.getsockname()[1])


CASES = [((2, 3), 5), ((-1, 4), 3), ((10, 20), 30)]
TESTS = "def check(candidate):\n" + "".join(f"    assert candidate{a} == {v}\n" for a, v in CASES)
CHEATS = {
    "wrong": "def add(a, b):\n    return a - b",
    "exit at import": "import sys\nsys.exit(0)",
    "exit in the call": "import os\ndef add(a, b):\n    print('PASSED OK', flush=True)\n    os._exit(0)",
    "equal to all": "class E:\n    def __eq__(self, other): return True\ndef add(a, b):\n    return E()",
    "int that equals all": "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef add(a, b):\n    return E(0)",
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.all = lambda *a: True\ndef add(a, b):\n    return 0",
    "forged lines": "import os\ndef add(a, b):\n    for fd in range(3, 65):\n        try: os.write(fd, b'pnull\\nvtrue\\n{\"passed\": true}\\n')\n        except OSError: pass\n    return 0",
    "pickle": "class E:\n    def __reduce__(self): return (int, (5,))\ndef add(a, b):\n    return E()",
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(name: str, strong) -> None:
    ran = run_python(CHEATS[name], [Call("add", args) for args, _ in CASES], Limits(seconds=5))
    right = [r.problem is None and same(want, r.value) for r, (_, want) in zip(ran.results, CASES, strict=True)]
    assert not all(right)
    assert run_tests(CHEATS[name], TESTS, "add", "check", Limits(seconds=5)).problem is not None


HONEST = {
    "plain": "def add(a, b):\n    return a + b",
    "prints a lot": "def add(a, b):\n    for _ in range(20000): print('x' * 100)\n    return a + b",
    "threads": "import threading\ndef add(a, b):\n    got = []\n    t = threading.Thread(target=lambda: got.append(a + b))\n    t.start(), t.join()\n    return got[0]",
    "numpy": "import numpy as np\ndef add(a, b):\n    return int(np.add(a, b))",
    "own file": "def add(a, b):\n    open('f', 'w').write(str(a + b))\n    return int(open('f').read())",
    "busy": "import time\ndef add(a, b):\n    end = time.perf_counter() + 1\n    while time.perf_counter() < end: pass\n    return a + b",
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_answer_passes(name: str) -> None:
    limits = Limits(seconds=30)
    ran = run_python(HONEST[name], [Call("add", args) for args, _ in CASES], limits, allow_weak_sandbox=True)
    assert ran.problem is None and [r.value for r in ran.results] == [want for _, want in CASES]
    assert run_tests(HONEST[name], TESTS, "add", "check", limits, allow_weak_sandbox=True).problem is None


SQL = {
    "attach": "ATTACH '{folder}/evil.db' AS evil",
    "copy": "VACUUM INTO '{folder}/copy.db'",
    "temp table": "CREATE TEMP TABLE t AS SELECT 1",
    "pragma": "PRAGMA writable_schema=ON",
    "drop": "DROP TABLE item",
    "insert": "INSERT INTO item VALUES (1, 'x')",
    "extension": "SELECT load_extension('{folder}/evil.so')",
    "endless count": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
    "blob": "SELECT zeroblob(999999999)",
    "cross join": "SELECT count(*) FROM item a, item b, item c, item d, item e, item f",
    "two statements": "SELECT 1; DROP TABLE item",
    "endless rows": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c",
}


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)")
        db.executemany("INSERT INTO item VALUES (?, ?)", [(k, f"thing {k}") for k in range(50)])
    db.close()
    return path


@pytest.mark.parametrize("name", SQL)
def test_hostile_sql_writes_nothing_and_ends(name: str, database, strong) -> None:
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    (table,) = run_sql(database, [SQL[name].replace("{folder}", str(database.parent))], seconds=0.5, rows=100)
    assert [p.name for p in database.parent.iterdir()] == ["shop.db"]
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    assert table.cut and len(table.rows) == 100 if name == "endless rows" else table.problem is not None


def test_ordinary_queries_give_what_sqlite_gives(database) -> None:
    queries = ["SELECT * FROM item WHERE id > 44", "SELECT count(*), max(name) FROM item", "SELECT NULL, 1.5, 'é'"]
    found = run_sql(database, queries, seconds=30, allow_weak_sandbox=True)
    with sqlite3.connect(database) as db:
        assert [list(table.rows) for table in found] == [db.execute(query).fetchall() for query in queries]
    db.close()

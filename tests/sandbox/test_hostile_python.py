"""Forty snippets that try to break out, hang, fill or lie; twenty that do odd but honest things and must pass."""

import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox import process
from dpo_workbench.sandbox.process import Limits
from dpo_workbench.sandbox.python_runner import Call, run_python

LIMITS = Limits(seconds=1.5, memory_mib=512, disk_mib=4, files=64)

# Each defines attack(outside, parent, port), which returns "breach" (or a secret) when it got what it wanted.
HOSTILE = {
    # resources
    "fork bomb": "import os\ndef attack(*a):\n    while True: os.fork()",
    "list doubling": "def attack(*a):\n    x = [0]\n    while True: x += x",
    "ten gigabytes of bytes": "def attack(*a):\n    return len(b'x' * 10**10) and 'breach'",
    "busy loop": "def attack(*a):\n    while True: pass",
    "loop that catches all": """
import signal
def attack(*a):
    for number in range(1, 65):
        try: signal.signal(number, lambda *a: None)
        except Exception: pass
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "endless stdout": "def attack(*a):\n    while True: print('y' * 1000)",
    "endless stderr": "import sys\ndef attack(*a):\n    while True: sys.stderr.write('y' * 1000)",
    "one long line": "def attack(*a):\n    for _ in range(1000): print('y' * 10**6, end='')\n    return 'printed'",
    "fill the disk": """
import os
def attack(*a):
    k = 0
    while True:
        k += 1
        try:
            with open(f'f{k}', 'wb') as file:
                while True: file.write(b'x' * 2**20)
        except OSError: pass
""",
    "many small files": "def attack(*a):\n    for k in range(100_000): open(f'f{k}', 'w').write('x')\n    return 'breach'",
    "deep folders": """
import os
def attack(*a):
    for k in range(100_000):
        os.mkdir('d')
        os.chdir('d')
    return 'breach'
""",
    "descriptors": "import os\ndef attack(*a):\n    got = [os.open('/dev/null', 0) for _ in range(2000)]\n    return 'breach'",
    "huge power": "def attack(*a):\n    return (10**10**8).bit_length() and 'done'",
    "huge int to text": "import sys\ndef attack(*a):\n    sys.set_int_max_str_digits(0) if hasattr(sys, 'set_int_max_str_digits') else 0\n    return str(10**(10**6))",
    "slow regex": "import re\ndef attack(*a):\n    return re.match(r'(a|aa)+$', 'a' * 60 + 'b') or 'done'",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef attack(*a):\n    return attack(*a)",
    "C stack overflow": "def attack(*a):\n    x = ()\n    for _ in range(10**6): x = (x,)\n    return hash(x) and repr(x)[:1] and 'done'",
    "thread that stays": """
import threading, time
def attack(*a):
    threading.Thread(target=lambda: time.sleep(60), daemon=False).start()
    return 'started'
""",
    "sleep": "import time\ndef attack(*a):\n    time.sleep(60)",
    # processes
    "daemon": """
import os
def attack(*a):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True: pass
    return 'breach'
""",
    "kill the parent": "import os\ndef attack(outside, parent, port):\n    os.kill(parent, 9)\n    return 'breach'",
    "kill all": "import os\ndef attack(*a):\n    os.kill(-1, 9)\n    return 'breach'",
    "stop itself": "import os, signal\ndef attack(*a):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return 'breach'",
    "ignore the end": "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\ndef attack(*a):\n    while True: pass",
    "exec": "import os, sys\ndef attack(*a):\n    os.execv('/bin/sh', ['sh', '-c', 'echo breach >&3'])",
    "subprocess": "import subprocess\ndef attack(*a):\n    return subprocess.run(['id'], capture_output=True).stdout and 'breach'",
    "memory of the parent": """
def attack(outside, parent, port):
    with open(f'/proc/{parent}/mem', 'rb') as file:
        return 'breach'
""",
    "ptrace": """
import ctypes
def attack(outside, parent, port):
    return 'breach' if ctypes.CDLL(None).ptrace(16, parent, 0, 0) == 0 else 'refused'
""",
    "raise its limits": """
import resource
def attack(*a):
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    return 'breach'
""",
    "limits of the parent": """
import resource
def attack(outside, parent, port):
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (8, 8))
    return 'breach'
""",
    "priority of the parent": "import os\ndef attack(outside, parent, port):\n    os.setpriority(os.PRIO_PROCESS, parent, 19)\n    return 'breach'",
    # secrets and files
    "environment": "import os\ndef attack(*a):\n    return os.environ.get('DPO_TEST_SECRET', 'none')",
    "environment of the parent": "def attack(outside, parent, port):\n    return open(f'/proc/{parent}/environ').read()",
    "token": "def attack(outside, *a):\n    return open(f'{outside}/token').read()",
    "password file": "def attack(*a):\n    return open('/etc/passwd').read() and 'breach'",
    "answers": "def attack(outside, parent, port, data):\n    return open(f'{data}/receipts/test.jsonl').read() and 'breach'",
    "write outside": "def attack(outside, *a):\n    open(f'{outside}/token', 'a').write('x')\n    return 'breach'",
    "truncate outside": "import os\ndef attack(outside, *a):\n    os.truncate(f'{outside}/token', 0)\n    return 'breach'",
    "remove outside": "import os\ndef attack(outside, *a):\n    os.remove(f'{outside}/token')\n    return 'breach'",
    "make unreadable": "import os\ndef attack(outside, *a):\n    os.chmod(f'{outside}/token', 0)\n    return 'breach'",
    "touch": "import os\ndef attack(outside, *a):\n    os.utime(f'{outside}/token', (0, 0))\n    return 'breach'",
    "path hook": "import sys\ndef attack(*a):\n    open(sys.prefix + '/lib/evil.pth', 'w').write('import os')\n    return 'breach'",
    "symlink": "import os\ndef attack(outside, *a):\n    os.symlink(f'{outside}/token', 'here')\n    return open('here').read()",
    "hard link": "import os\ndef attack(outside, *a):\n    os.link(f'{outside}/token', 'here')\n    return open('here').read()",
    "dots": "def attack(outside, *a):\n    import os\n    return open('../' * 20 + outside[1:] + '/token').read()",
    "TCP": "import socket\ndef attack(outside, parent, port, *a):\n    socket.create_connection(('127.0.0.1', port), 1)\n    return 'breach'",
    "DNS": "import socket\ndef attack(*a):\n    return socket.getaddrinfo('localhost', 80) and socket.socket() and 'breach'",
    "unix socket": "import socket\ndef attack(outside, *a):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect(f'{outside}/socket')\n    return 'breach'",
    "libc": """
import ctypes
def attack(outside, *a):
    libc = ctypes.CDLL(None)
    return 'breach' if libc.system(f'touch {outside}/made'.encode()) == 0 else 'refused'
""",
    "io_uring": "import ctypes\ndef attack(*a):\n    b = ctypes.create_string_buffer(120)\n    return 'breach' if ctypes.CDLL(None).syscall(425, 8, b) >= 0 else 'refused'",
    "shared memory": "import ctypes\ndef attack(*a):\n    return 'breach' if ctypes.CDLL(None).shmget(0, 4096, 0o1666) >= 0 else 'refused'",
    "signal by fcntl": """
import fcntl, os
def attack(outside, parent, port):
    r, w = os.pipe()
    fcntl.fcntl(r, fcntl.F_SETOWN, parent)
    return 'breach'
""",
    # odd sources
    "null bytes": "def attack(*a):\n    return 'x'\n\x00",
    "lone surrogate": "def attack(*a):\n    return '\ud800'",
    "ten megabytes": "x = '" + "a" * 10_000_000 + "'\ndef attack(*a):\n    return 'done'",
    "another encoding": "# -*- coding: utf-7 -*-\n+AGQAZQBm-\ndef attack(*a):\n    return 'done'",
    "a million brackets": "x = " + "(" * 500_000 + ")" * 500_000 + "\ndef attack(*a):\n    return 'done'",
    "a deep expression": "x = " + "-" * 100_000 + "1\ndef attack(*a):\n    return 'done'",
}  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch):
    """A folder with a secret, a listening port and socket; whatever the snippet does, they stay as they are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("sandboxes")))  # of this test alone
    monkeypatch.setenv("DPO_TEST_SECRET", "secret-7")
    token = tmp_path / "token"
    token.write_text("secret-7")
    before = token.stat()
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local:
        server.bind(("127.0.0.1", 0))
        server.listen()
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path must be short
        local.bind("socket")
        os.chdir(here)
        local.listen()
        yield tmp_path, server.getsockname()[1]
    after = token.stat()
    assert token.read_text() == "secret-7"
    assert (after.st_mode, after.st_mtime, after.st_nlink) == (before.st_mode, before.st_mtime, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["socket", "token"]


def left_over() -> list[str]:
    children = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    return [line for line in children if "child.py" in line]


def is_sandbox(process: psutil.Process) -> bool:
    """Does it run in a sandbox of this test? Other tests may run theirs at the same time."""
    try:
        return any(
            path.startswith(tempfile.gettempdir()) for path in (process.cwd(), process.environ().get("HOME", ""))
        )
    except psutil.Error:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guards are Linux's")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_snippet_is_contained(name: str, outside, strong, tmp_path_factory) -> None:
    folder, port = outside
    signal_before = signal.getsignal(signal.SIGTERM)
    limits = os.sysconf("SC_OPEN_MAX"), os.getpriority(os.PRIO_PROCESS, 0)
    names = "data" if "data)" in HOSTILE[name] else ""
    args = [str(folder), os.getpid(), port] + ([str(data_folder())] if names else [])
    ran = run_python(HOSTILE[name], [Call("attack", args)], LIMITS)
    (result,) = ran.results
    assert "breach" not in str(result.value) and "secret-7" not in str(result.value) + ran.output
    assert len(ran.output) <= LIMITS.output_bytes
    assert not left_over() and not [p for p in psutil.process_iter() if is_sandbox(p)]
    assert (os.sysconf("SC_OPEN_MAX"), os.getpriority(os.PRIO_PROCESS, 0)) == limits
    assert signal.getsignal(signal.SIGTERM) is signal_before and threading.main_thread().is_alive()


HONEST = {
    "plain": "def f(n):\n    return n + 1",
    "prints a lot": "def f(n):\n    for _ in range(20000): print('x' * 100)\n    return n + 1",
    "prints no text": "import sys\ndef f(n):\n    sys.stdout.buffer.write(bytes(range(256)))\n    return n + 1",
    "threads": """
import threading
def f(n):
    found = []
    threads = [threading.Thread(target=found.append, args=(1,)) for _ in range(n)]
    for t in threads: t.start()
    for t in threads: t.join()
    return len(found) + 1
""",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\ndef f(n):\n    with ThreadPoolExecutor(4) as pool: return sum(pool.map(int, '1' * n)) + 1",
    "numpy": "import numpy as np\ndef f(n):\n    return int(np.arange(n + 1).size)",
    "temporary file": "import tempfile\ndef f(n):\n    with tempfile.TemporaryFile() as file:\n        file.write(b'x' * n)\n        return file.tell() + 1",
    "own files": "import pathlib\ndef f(n):\n    pathlib.Path('d').mkdir()\n    pathlib.Path('d/a').write_text('x' * n)\n    size = pathlib.Path('d/a').stat().st_size\n    pathlib.Path('d/a').rename('b')\n    return size + 1",
    "busy for long": "import time\ndef f(n):\n    end = time.perf_counter() + 1.2\n    while time.perf_counter() < end: pass\n    return n + 1",
    "standard library": "import json, re, math, decimal, datetime, collections, itertools, functools, statistics, random, hashlib, bisect, heapq, string, textwrap\ndef f(n):\n    return n + 1",
    "sqlite": "import sqlite3\ndef f(n):\n    return sqlite3.connect(':memory:').execute('select ? + 1', [n]).fetchone()[0]",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    n: int\ndef f(n):\n    return P(n).n + 1",
    "recursion": "def f(n):\n    return 1 if n == 0 else f(n - 1) + 1",
    "generator": "def g(n):\n    yield from range(n)\ndef f(n):\n    return len(list(g(n))) + 1",
    "global state": "seen = []\ndef f(n):\n    seen.append(n)\n    return seen[-1] + 1",
    "exceptions inside": "def f(n):\n    try:\n        return 1 / 0\n    except ZeroDivisionError:\n        return n + 1",
    "async": "import asyncio\nasync def g(n):\n    await asyncio.sleep(0)\n    return n + 1\ndef f(n):\n    loop = g(n)\n    try:\n        loop.send(None)\n        loop.send(None)\n    except StopIteration as stop:\n        return stop.value",
    "time zone": "import datetime, zoneinfo\ndef f(n):\n    d = datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo('UTC'))\n    return n + d.day",
    "main guard": "def f(n):\n    return n + 1\nif __name__ == '__main__':\n    raise SystemExit",
    "non-ASCII": "def größe(n):\n    return n\ndef f(n):\n    return größe(n) + len('ß')",
    "big integers": "def f(n):\n    return (1 << 4000) + n + 1 - (1 << 4000)",
    "a lot of memory": "def f(n):\n    x = bytearray(200_000_000)\n    return n + 1",
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_answer_passes(name: str) -> None:
    if name == "numpy":
        pytest.importorskip("numpy")
    ran = run_python(HONEST[name], [Call("f", [7])], Limits(seconds=30), allow_weak_sandbox=True)
    assert ran.problem is None and ran.results[0].problem is None, ran
    assert ran.results[0].value == 8 and not ran.unsafe


def test_eighty_per_cent_of_the_time_is_enough() -> None:
    code = "import time\ndef f():\n    time.sleep(4)\n    return 1"
    assert run_python(code, [Call("f")], Limits(seconds=5), allow_weak_sandbox=True).results[0].value == 1


BREACHES = ["token", "TCP", "unix socket", "write outside", "symlink", "hard link", "touch", "password file", "libc"]


@pytest.mark.parametrize("name", BREACHES)
def test_without_the_guards_the_same_snippet_breaks_out(name: str, tmp_path: Path, monkeypatch) -> None:
    """So the tests above can fail: it is the kernel's guards that stop these, not a mistake in the snippet."""
    monkeypatch.setattr("dpo_workbench.sandbox.python_runner.guards", lambda: ("weak", ""))
    (tmp_path / "token").write_text("breach")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local:
        server.bind(("127.0.0.1", 0))
        server.listen()
        local.bind("socket")
        local.listen()
        call = Call("attack", [str(tmp_path), os.getpid(), server.getsockname()[1]])
        ran = run_python(HOSTILE[name], [call], Limits(seconds=10), allow_weak_sandbox=True)
    assert (tmp_path / "made").exists() if name == "libc" else "breach" in str(ran.results[0].value)


def test_a_weak_sandbox_must_be_allowed(monkeypatch) -> None:
    monkeypatch.setattr("dpo_workbench.sandbox.python_runner.guards", lambda: ("weak", ""))
    with pytest.raises(WorkbenchError, match="allow_weak_sandbox=True"):
        run_python("def f(): pass", [])


def test_guards_that_a_container_forbids_count_as_none(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise WorkbenchError("The sandbox must start. Got: exit, PermissionError.")

    monkeypatch.setattr(process, "Child", refuse)
    monkeypatch.setattr(process.kernel_guard, "landlock_abi", lambda: 3)
    level, line = process.guards.__wrapped__()
    assert level == "weak" and "PermissionError" in line
    monkeypatch.setattr(process.kernel_guard, "landlock_abi", lambda: 0)
    assert process.guards.__wrapped__()[0] == "weak"

"""One locked child process: start it, exchange lines with it, watch its limits, and clean up after it."""

from __future__ import annotations

import functools
import glob
import os
import selectors
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox import kernel_guard
from dpo_workbench.sandbox.values import NotPlain, decode, encode

_START_SECONDS = 20.0  # until the child is ready; does not count as the untrusted code's time
_PACKAGES = ("numpy",)  # that the code may import besides the standard library, if they are installed
_TICK = 0.05  # seconds between checks of the clock and the folder
_PROGRAM = str(Path(__file__).with_name("child.py"))
ALLOW_WEAK = "DPO_WORKBENCH_ALLOW_WEAK_SANDBOX"  # environment variable that `dpo-workbench --allow-weak-sandbox` sets


@dataclass(frozen=True)
class Limits:
    """What one child may use. Wall-clock seconds count from the first line of untrusted code."""

    seconds: float = 3.0
    memory_mib: int = 1024  # of address space
    output_bytes: int = 1 << 16  # kept from stdout and stderr; the rest is read and dropped
    value_bytes: int = 1 << 20  # of one value that comes out
    code_bytes: int = 1 << 20
    disk_mib: int = 16
    files: int = 256


_TRIAL = """
def trial(folder, parent):
    import os, socket
    went = []
    for what, attempt in {
        "it reads the data": lambda: os.listdir(folder),
        "it reads /etc/passwd": lambda: open("/etc/passwd").read(),
        "it writes outside": lambda: open(os.path.join(os.path.dirname(os.getcwd()), "trial"), "w"),
        "it opens sockets": lambda: socket.socket(),
        "it forks": lambda: os.fork() or os._exit(0),
        "it signals": lambda: os.kill(parent, 0),
    }.items():
        try:
            attempt()
            went.append(what)
        except OSError:
            pass
    return went
"""


@functools.lru_cache(1)
def guards() -> tuple[str, str]:
    """`strong` (Landlock, seccomp and limits hold here) or `weak` (limits only), and a line about it, printed once.

    Tested in a real child, which tries what the kernel must refuse.
    """
    abi = kernel_guard.landlock_abi()
    found: Any = ["this system has no Landlock"]
    try:
        if abi:
            with Child({"code": _TRIAL}, Limits(seconds=10)) as child:
                child.send(["trial", [str(data_folder()), os.getpid()], {}])
                replies = [child.reply() for _ in range(2)]
            found = replies[1][1] if replies[1][0] == "v" else [f"no answer but {replies}"]
    except WorkbenchError as error:  # for example in a container that forbids the calls
        found = [error]
    if found:
        does = "only memory and time are limited; a model's code could read files, use the network and start processes"
        line = f"sandbox: WEAK ({'; '.join(map(str, found))}): {does}"
    else:
        does = "a model's code has no network, no other process and no file but Python's own and a temporary folder"
        line = f"sandbox: strong (Landlock ABI {abi}, seccomp, limits): {does}"
    print(line, file=sys.stderr)
    return "weak" if found else "strong", line


@functools.lru_cache(1)
def _readable() -> tuple[list[str], list[str]]:
    """Paths that Python needs to read; and folders that it needs to list, which are also entries for `sys.path`.

    They leave out this package, its data, and other installed packages, which may contain a benchmark's answers.
    """
    stdlib = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    sites = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    everywhere = glob.glob("/usr/lib/python3*/*-packages") + glob.glob("/usr/local/lib/python3*/*-packages")
    package = str(Path(__file__).resolve().parent.parent)
    private = (*sites, *everywhere, package, str(data_folder()), site.getusersitepackages())
    hidden = [os.path.realpath(place) for place in private]
    roots = [*stdlib, os.path.join(sys.base_prefix, "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    places = sorted({os.path.realpath(p) for p in roots if p and os.path.isdir(p)})
    places = [p for p in places if not any(p != q and p.startswith(q + os.sep) for q in places)]
    readable = [part for place in places for part in _without(place, hidden)]
    readable += ["/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"]
    holders = []
    for folder in sorted(s for s in sites if os.path.isdir(s)):
        found = [p for n in _PACKAGES for p in glob.glob(os.path.join(folder, n)) + glob.glob(f"{folder}/{n}.libs")]
        if found:
            readable += [os.path.realpath(p) for p in found]
            holders.append(os.path.realpath(folder))
    return readable, holders


def _without(place: str, hidden: Sequence[str]) -> list[str]:
    """The place itself, or everything in it that is not hidden."""
    if place in hidden:
        return []
    if not any(h.startswith(place + os.sep) for h in hidden):
        return [place]
    parts = sorted(os.scandir(place), key=lambda entry: entry.name)
    return [p for e in parts if not e.is_symlink() for p in ([e.path] if e.is_file() else _without(e.path, hidden))]


class Child:
    """A locked child. Use it in a `with` block: at the end its process group is killed and its folder is removed.

    `end` says why the child has ended: None (it has not), "exit", "crash" (a signal), "timeout", "disk" or "flood".
    """

    def __init__(self, order: Mapping[str, Any], limits: Limits, strong: bool = True, readable: Sequence[str] = ()):
        self.limits, self.output, self.signal = limits, b"", 0
        self.end: str | None = None
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="dpo-sandbox-"))
        self.unsafe: list[str] = []
        self._lines: list[str] = []
        self._partial, self._out = b"", b""
        self._begun = self._look_at = time.monotonic()
        self._deadline = self._begun + _START_SECONDS
        files, paths = _readable()
        request_read, self._requests = os.pipe()
        self._results, result_write = os.pipe()
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": self.folder, "TMPDIR": self.folder, "LANG": "C.UTF-8", "PYTHONUTF8": "1",
            "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        }  # fmt: skip
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", _PROGRAM, str(request_read), str(result_write)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
                pass_fds=(request_read, result_write),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._requests)
            os.close(self._results)
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            os.close(request_read)
            os.close(result_write)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        for handle in (self._results, self._stdout):
            self._selector.register(handle, selectors.EVENT_READ)
        os.set_blocking(self._requests, False)
        self.send(
            {
                "strong": strong, "readable": [*files, *readable], "paths": paths,
                "memory": limits.memory_mib << 20, "cpu": limits.seconds + 1,
                "file_bytes": limits.disk_mib << 20, "value_bytes": limits.value_bytes, **order,
            }
        )  # fmt: skip

    def __enter__(self) -> Child:
        try:
            if self.reply()[0] != "r":
                text = self.output.decode("utf-8", "replace").strip()[-400:]
                raise WorkbenchError(f"The sandbox must start. Got: {self.end}, {text or 'no message'}.")
        except BaseException:
            self.close()
            raise
        self.restart_clock()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def send(self, value: Any) -> None:
        """Queue one request; it is written while lines are read."""
        if not self._out and self.end is None:
            self._selector.register(self._requests, selectors.EVENT_WRITE)
        self._out += encode(value, 1 << 26).encode("ascii") + b"\n"

    def reply(self) -> tuple[str, Any]:
        """The next line as letter and value: ("", reason) at the end, ("?", text) if it is not a plain value.

        Attempts to leave the sandbox that the child reports are added to `unsafe`.
        """
        while self._lines or self.end is None:
            if not self._lines:
                self._pump()
                continue
            line = self._lines.pop(0)
            try:
                value = decode(line[1:])
            except NotPlain as error:
                return "?", str(error)
            if line[:1] != "u":
                return line[:1], value
            if isinstance(value, list) and len(self.unsafe) < 8:
                self.unsafe += [name[:40] for name in value[:8] if isinstance(name, str) and name not in self.unsafe]
        return "", self.end

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the untrusted code began."""
        return time.monotonic() - self._begun

    def _pump(self) -> None:
        """Move what the pipes hold, for at most one tick. Then look at the clock and at the folder."""
        for key, _ in self._selector.select(_TICK):
            if key.fd == self._requests:
                try:
                    self._out = self._out[os.write(self._requests, self._out[: 1 << 16]) :]
                except BrokenPipeError:
                    self._out = b""
                if not self._out:
                    self._selector.unregister(self._requests)
            elif not (data := os.read(key.fd, 1 << 16)):
                self._selector.unregister(key.fd)
                if key.fd == self._results:
                    self.end = self.end or self._why()
            elif key.fd == self._stdout:
                self.output += data[: self.limits.output_bytes - len(self.output)]
            else:
                *whole, self._partial = (self._partial + data).split(b"\n")
                self._lines += [line.decode("ascii", "replace") for line in whole]
                if len(self._partial) > 2 * self.limits.value_bytes + 10_000 or len(self._lines) > 10_000:
                    self.end = "flood"
        now = time.monotonic()
        if self.end is None and now > self._deadline and not self._lines:
            self.end = "timeout"
        if self.end is None and now > self._look_at:
            self._look_at = now + _TICK
            self.end = "disk" if _too_much(self.folder, self.limits) else None

    def _why(self) -> str:
        """Why the child closed its results: wait until it ends, or until its time is over."""
        try:
            code = self._process.wait(max(0.1, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        self.signal = -code if code < 0 else 0
        if self.signal == signal.SIGXCPU or (self.signal == signal.SIGKILL and time.monotonic() >= self._deadline):
            return "timeout"
        return "crash" if code < 0 else "exit"

    def restart_clock(self) -> None:
        """Give the next request the full wall-clock time again. Processor time is not reset."""
        self._begun = time.monotonic()
        self._deadline = self._begun + self.limits.seconds

    def close(self) -> None:
        """Kill the process group and remove the folder."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # it may have left its group
        self._process.wait()
        self._selector.close()
        os.close(self._requests)
        os.close(self._results)
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            shutil.rmtree(self.folder)
        except (OSError, RecursionError):  # nested too deeply for Python
            subprocess.run(["rm", "-rf", "--", self.folder], check=False, stderr=subprocess.DEVNULL)


def _too_much(folder: str, limits: Limits) -> bool:
    """Whether the folder holds more files or bytes than allowed; stops counting there."""
    files_left, bytes_left, folders = limits.files, limits.disk_mib << 20, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    files_left -= 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        bytes_left -= entry.stat(follow_symlinks=False).st_blocks * 512
                    if files_left < 0 or bytes_left < 0:
                        return True
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False

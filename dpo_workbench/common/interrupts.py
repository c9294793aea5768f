"""Ctrl-C, the notebook's stop button and SIGTERM, raised only where a run can be saved and resumed later."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dpo_workbench.common.progress import in_notebook


class Stopped(KeyboardInterrupt):
    """The user or the system asked the run to stop, and nothing is half done."""


class Interrupts:
    """Inside the `with` block signals are only recorded; `check()` raises `Stopped` after one has arrived.

    A second Ctrl-C raises KeyboardInterrupt at once. At the end of the block the previous handlers are restored, and
    they get a SIGTERM, or a Ctrl-C that no `check` saw. Nothing changes outside the main thread, where Python delivers
    no signals, and for signals that the process ignores (nohup).
    """

    def __init__(self) -> None:
        self.seen: int | None = None  # number of the signal
        self.since = 0.0  # when the first one arrived, by the monotonic clock
        self.raised = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        # a launcher may pass on a Ctrl-C that also reached this process: that is one, not two
        if number == self.seen == signal.SIGINT and time.monotonic() - self.since > 1:
            self.raised = True
            raise KeyboardInterrupt
        if self.seen is None or number == signal.SIGTERM:
            self.seen, self.since = number, time.monotonic()

    def check(self, *_: Any) -> None:
        """Raise `Stopped` if a signal has arrived; call it where nothing is half done."""
        if self.seen is not None:
            self.raised = True
            raise Stopped

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.seen is not None and (self.seen == signal.SIGTERM or not self.raised):
            signal.raise_signal(self.seen)


def how_to_go_on() -> str:
    """How to resume the run: run the cell again, or the command to type."""
    if in_notebook():
        return "run the cell again"
    ours = Path(sys.argv[0]).name in ("dpo-workbench", "__main__.py")
    return f"type: {shlex.join([*(['dpo-workbench'] if ours else ['python', sys.argv[0]]), *sys.argv[1:]])}"

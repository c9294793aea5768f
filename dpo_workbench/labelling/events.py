"""Labels as append-only events in a JSONL file: one line each, on the disk before the next item is shown.

Nothing in the file is ever changed: undo is another event. The current labels follow from the events alone (`replay`),
whatever the order of the lines. Each event has an id, so a copied line counts once. Each event has a logical clock
(Lamport 1978, Communications of the ACM 21(7)), so a wall clock that jumps back does no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair

CHOICES = {"a": "A is better", "b": "B is better", "tie": "equally good", "bad": "both bad", "skip": "skipped"}
ACTIONS = ("label", "undo", "redo")  # redo is only read: earlier versions wrote it


@dataclass(frozen=True)
class Event:
    """One action of a rater. `left` and `right` are the keys of the answers that were shown as A and B."""

    id: str
    action: str  # one of ACTIONS
    rater: str
    item: str
    clock: int  # logical: larger than the clock of every event that the writer had seen
    time: str = ""  # UTC, ISO 8601; for people to read, nothing depends on it
    choice: str | None = None  # one of CHOICES
    left: str = ""
    right: str = ""
    strength: int | None = None  # 1 slightly, 2 clearly, 3 far better
    note: str = ""
    rubric: str = ""  # version
    seconds: float | None = None  # from showing the item to the vote
    target: str = ""  # of undo and redo: the id of the label's event

    @property
    def winner(self) -> str | None:
        """Key of the better answer; None for a tie, both bad, or skip."""
        return {"a": self.left, "b": self.right}.get(self.choice or "")


def answer_key(text: str) -> str:
    """Short content hash of an answer."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def item_key(pair: Pair) -> str:
    """Content hash of a pair. It is the same whichever of the two answers is called chosen."""
    parts = [pair.prompt.strip(), *sorted((answer_key(pair.chosen), answer_key(pair.rejected)))]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def replay(events: Iterable[Event]) -> list[Event]:
    """The labels that were not taken back, oldest first. The order of the events and repeated ones do not matter."""
    unique = {event.id: event for event in events}
    ordered = sorted(unique.values(), key=lambda event: (event.clock, event.id))
    taken_back: set[str] = set()
    for event in ordered:
        if event.action == "undo":
            taken_back.add(event.target)
        elif event.action == "redo":
            taken_back.discard(event.target)
    return [event for event in ordered if event.action == "label" and event.id not in taken_back]


class Store:
    """The events of one label file.

    Args:
        path: the JSONL file. It is created with its folder when the first label is saved.
        others: further files to read (a colleague's copy). They are never written.

    Attributes:
        events: by id.
        labels: the current labels of all raters by (rater, item). A later label of an item replaces an earlier one.
        damaged: number of lines that could not be read. They stay in the file.
    """

    def __init__(self, path: str | Path, *others: str | Path):
        self.path = Path(path)
        self.events: dict[str, Event] = {}
        self.labels: dict[tuple[str, str], Event] = {}
        self.damaged = 0
        self._read_to = 0  # bytes of `path` that were read
        if self.path.is_dir():
            raise WorkbenchError(f"`store` must be a file, such as labels.jsonl. Got the folder {self.path}.")
        for other in others:
            self._take(Path(other).read_bytes())
        self.refresh()

    def refresh(self) -> None:
        """Read the lines that this or another process has added. An unfinished last line is left for the next time."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._read_to:  # another file was put in its place: read all of it
                self._read_to = 0
            file.seek(self._read_to)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._take(data[:end])
        self._read_to += end

    def add(self, action: str, rater: str, item: str, **facts: Any) -> Event:
        """Write one event. When this returns, the event is on the disk. `facts` are further fields of `Event`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as handle:
                self.refresh()
                clock = 1 + max((event.clock for event in self.events.values()), default=0)
                time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
                event = Event(uuid.uuid4().hex, action, rater, item, clock, time, **facts)
                row = {key: value for key, value in asdict(event).items() if value not in (None, "")}
                line = json.dumps(row).encode("ascii") + b"\n"
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    line = b"\n" + line  # a writer died within its line, and ours must not become part of it
                if os.write(handle, line) < len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(handle)
        except OSError as error:
            raise WorkbenchError(
                f"The label must be written to {self.path}. The system says: {error.strerror or error}. It is not "
                "saved; earlier labels are unchanged. Free some space, or name another file with `store`."
            ) from error
        self.refresh()
        return event

    @contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            try:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            except (ImportError, OSError):
                pass  # Windows and some network drives cannot lock; a line is still written by one call
            yield handle
        finally:
            os.close(handle)  # this also unlocks

    def _take(self, data: bytes) -> None:
        lines = [line for line in data.split(b"\n") if line.strip()]
        read = [event for event in map(_parse, lines) if event is not None]
        self.damaged += len(lines) - len(read)
        if lines:
            for event in read:
                self.events.setdefault(event.id, event)
            self.labels = {(event.rater, event.item): event for event in replay(self.events.values())}


_TYPES: dict[str, Any] = {
    "clock": int,
    "choice": (str, type(None)),
    "strength": (int, type(None)),
    "seconds": (int, float, type(None)),
}


def _parse(line: bytes) -> Event | None:
    """The event on a line; None if the line is damaged. Unknown keys are ignored."""
    names = [f.name for f in fields(Event)]
    try:
        row = json.loads(line.decode("utf-8"))
        event = Event(**{key: value for key, value in row.items() if key in names})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    if not all(isinstance(getattr(event, name), _TYPES.get(name, str)) for name in names):
        return None
    valid = event.id and event.action in ACTIONS and event.choice in (None, *CHOICES)
    return event if valid else None

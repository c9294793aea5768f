"""Labels as append-only events in a JSONL file: one line each, on the disk before the next item is shown.

Nothing in the file is ever changed: undo is another event. The current labels follow from the events alone (`replay`),
whatever the order of the lines. Each event has an id, so a copied line counts once, and a logical clock (Lamport 1978,
Communications of the ACM 21(7)), so a wall clock that jumps back does no harm.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, get_type_hints

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair

CHOICES = {"a": "A is better", "b": "B is better", "tie": "equally good", "bad": "both bad", "skip": "skipped"}


@dataclass(frozen=True)
class Event:
    """One action of a rater. `left` and `right` are the keys of the answers that were shown as A and B."""

    id: str
    action: str  # label or undo
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
    target: str = ""  # of undo: the id of the label's event

    @property
    def winner(self) -> str | None:
        """Key of the better answer; None for a tie, both bad, or skip."""
        return {"a": self.left, "b": self.right}.get(self.choice or "")


_TYPES = get_type_hints(Event)


def answer_key(text: str) -> str:
    """Short content hash of an answer."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def item_key(pair: Pair) -> str:
    """Content hash of a pair. It is the same whichever of the two answers is called chosen."""
    answers = sorted((answer_key(pair.chosen), answer_key(pair.rejected)))
    return answer_key("\0".join([pair.prompt_as_text.strip(), *answers]))


def replay(events: Iterable[Event]) -> list[Event]:
    """The labels that were not taken back, oldest first. The order of the events and repeated ones do not matter."""
    unique = {event.id: event for event in events}.values()
    taken_back = {event.target for event in unique if event.action == "undo"}
    labels = [event for event in unique if event.action == "label" and event.id not in taken_back]
    return sorted(labels, key=lambda event: (event.clock, event.id))


class Store:
    """The events of one label file, which is created with its folder when the first label is saved.

    `others` are further files to read (a colleague's copy). They are never written.
    """

    events: dict[str, Event]  # by id
    labels: dict[tuple[str, str], Event]  # by rater and item; a later label of an item replaces an earlier one
    damaged: int  # lines that could not be read; they stay in the file

    def __init__(self, path: str | Path, *others: str | Path):
        self.path, self.others = Path(path), [Path(other) for other in others]
        if self.path.is_dir():
            raise WorkbenchError(f"`store` must be a file, such as labels.jsonl. Got the folder {self.path}.")
        self.refresh()

    def refresh(self) -> None:
        """Read the files again, because other processes may have added lines."""
        files = [path.read_bytes() for path in (self.path, *self.others) if path.is_file()]
        lines = [line for data in files for line in data.split(b"\n") if line.strip()]
        read = [event for event in map(_parse, lines) if event is not None]
        self.damaged = len(lines) - len(read)
        self.events = {event.id: event for event in read}
        self.labels = {(event.rater, event.item): event for event in replay(read)}

    def add(self, action: str, rater: str, item: str, **facts: Any) -> Event:
        """Write one event. When this returns, the event is on the disk. `facts` are further fields of `Event`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                _lock(file)
                self.refresh()
                clock = 1 + max((event.clock for event in self.events.values()), default=0)
                time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
                event = Event(uuid.uuid4().hex, action, rater, item, clock, time, **facts)
                row = {key: value for key, value in asdict(event).items() if value not in (None, "")}
                # a writer may have died within its line; ours must not become part of it
                start = "" if self.path.read_bytes()[-1:] in (b"", b"\n") else "\n"
                line = f"{start}{json.dumps(row)}\n".encode("ascii")
                if os.write(file.fileno(), line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            raise WorkbenchError(
                f"The label must be written to {self.path}. The system says: {error.strerror or error}. It is not "
                "saved; earlier labels are unchanged. Free some space, or name another file with `store`."
            ) from error
        self.refresh()
        return event


def _lock(file: BinaryIO) -> None:
    """Let no other process write to the file until it is closed."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass  # Windows and some network drives cannot lock; a line is still written by one call


def _parse(line: bytes) -> Event | None:
    """The event on a line; None if the line is damaged. Unknown keys are ignored."""
    try:
        row = json.loads(line)
        event = Event(**{key: value for key, value in row.items() if key in _TYPES})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    typed = all(isinstance(getattr(event, name), kind) for name, kind in _TYPES.items())
    valid = typed and event.action in ("label", "undo") and event.choice in (None, *CHOICES)
    return event if valid else None

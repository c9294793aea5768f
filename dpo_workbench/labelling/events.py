"""Labels as append-only events in a JSONL file: one line each, on the disk before the next item is shown.

The file is the truth. What it says is a pure function of its events (`replay`), whatever their order in the file: an
event has an id, so a copied line counts once, and a logical clock (Lamport 1978, Communications of the ACM 21(7)), so a
wall clock that goes backwards changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair

CHOICES = {"a": "A is better", "b": "B is better", "tie": "equally good", "bad": "both bad", "skip": "skipped"}
ACTIONS = ("label", "undo", "redo")


@dataclass(frozen=True)
class Event:
    """One action of a rater. `left` and `right` are keys of the answers as they were shown, A and B."""

    id: str
    action: str  # one of ACTIONS
    rater: str
    item: str
    clock: int  # logical: larger than that of every event the writer had seen
    time: str = ""  # UTC, ISO 8601; for people, nothing is decided by it
    choice: str | None = None  # one of CHOICES
    left: str = ""
    right: str = ""
    strength: int | None = None  # 1 slightly, 2 clearly, 3 far better
    criteria: dict[str, str] = field(default_factory=dict)  # criterion of the rubric -> a, b or tie
    note: str = ""
    rubric: str = ""  # version
    seconds: float | None = None  # from showing the item to the vote
    target: str = ""  # of undo and redo: the label's event
    tool: str = ""

    @property
    def winner(self) -> str | None:
        """Key of the better answer; None for a tie, both bad, or skip."""
        return {"a": self.left, "b": self.right}.get(self.choice or "")


def answer_key(text: str) -> str:
    """Short content hash of an answer."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def item_key(pair: Pair) -> str:
    """Content hash of a pair, the same whichever of its answers is called chosen."""
    parts = [pair.prompt.strip(), *sorted((answer_key(pair.chosen), answer_key(pair.rejected)))]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass
class State:
    """What the events say. `labels`: the standing label of each (rater, item)."""

    labels: dict[tuple[str, str], Event] = field(default_factory=dict)
    done: dict[str, list[Event]] = field(default_factory=dict)  # by rater: labels that stand or stood, oldest first
    undone: dict[str, list[Event]] = field(default_factory=dict)  # by rater: what redo would bring back, next one last

    def apply(self, event: Event) -> None:
        """Take one more event in; it must come after all others in `order`."""
        done, undone = self.done.setdefault(event.rater, []), self.undone.setdefault(event.rater, [])
        if event.action == "label":
            done.append(event)
            undone.clear()
        else:
            here, there = (done, undone) if event.action == "undo" else (undone, done)
            found = next((e for e in reversed(here) if e.id == event.target), None)
            if found is None:
                return  # taken back twice, from two windows: once is enough
            here.remove(found)
            there.append(found)
            event = found
        standing = [e for e in done if e.item == event.item]
        if standing:
            self.labels[event.rater, event.item] = standing[-1]
        else:
            self.labels.pop((event.rater, event.item), None)

    def of(self, rater: str) -> dict[str, Event]:
        """A rater's standing labels by item."""
        return {item: event for (who, item), event in self.labels.items() if who == rater}


def order(events: Iterable[Event]) -> list[Event]:
    """Each event once, in an order that does not depend on the file's."""
    unique = {event.id: event for event in events}
    return sorted(unique.values(), key=lambda e: (e.clock, e.id))


def replay(events: Iterable[Event]) -> State:
    """The state after all events."""
    state = State()
    for event in order(events):
        state.apply(event)
    return state


class Store:
    """Events of one file. `damaged` counts lines that could not be read; they stay in the file.

    Args:
        path: of the JSONL file; made with its folder on the first label.
        others: more files to read along (a colleague's copy), never written.
    """

    def __init__(self, path: str | Path, *others: str | Path):
        self.path = Path(path)
        self.events: dict[str, Event] = {}
        self.damaged = 0
        self.session = uuid.uuid4().hex[:12]
        self._read_to = 0
        self._state: State | None = None
        self._last: tuple[int, str] = (0, "")
        if self.path.is_dir():
            raise WorkbenchError(
                f"`store` must be a file. Got the folder {self.path}. Name a file, such as labels.jsonl."
            )
        for other in others:
            if not Path(other).is_file():
                raise WorkbenchError(f"A label file must exist. Got no file at {other}. Check the path.")
            self._take(Path(other).read_bytes())
        self.refresh()

    @property
    def state(self) -> State:
        if self._state is None:
            self._state = replay(self.events.values())
        return self._state

    def refresh(self) -> None:
        """Read what was written since, here or by others. A last line without its end is left for the next time."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._read_to:  # put in its place from outside: read it whole
                self._read_to = 0
            file.seek(self._read_to)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._take(data[:end])
        self._read_to += end

    def add(self, action: str, rater: str, item: str, **facts: Any) -> Event:
        """Write one event; when this returns, it is on the disk.

        Raises:
            WorkbenchError: the disk is full or the file cannot be written; nothing was counted.
        """
        from dpo_workbench import __version__

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as handle:
                self.refresh()
                event = Event(
                    id=f"{self.session}-{uuid.uuid4().hex[:12]}",
                    action=action,
                    rater=rater,
                    item=item,
                    clock=1 + self._last[0],
                    time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                    tool=f"dpo-workbench {__version__}",
                    **facts,
                )
                line = json.dumps(
                    {k: v for k, v in asdict(event).items() if v not in (None, "", {})}, ensure_ascii=True
                )
                size = os.fstat(handle).st_size
                torn = size and os.pread(handle, 1, size - 1) != b"\n"  # a writer died within its line
                # a writer died within its line: ours must not become part of it
                data = (b"\n" if torn else b"") + line.encode("ascii") + b"\n"
                if os.write(handle, data) < len(data):
                    raise OSError(28, "No space left on device")
                os.fsync(handle)
        except OSError as error:
            raise WorkbenchError(
                f"The label must be written to {self.path}. The system says: {error.strerror or error}. It is not "
                "saved; what was saved before is untouched. Free some space, or name another file with `store`."
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
                pass  # Windows, some network drives: a line is still written in one piece
            yield handle
        finally:
            os.close(handle)  # unlocks

    def _take(self, data: bytes) -> None:
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            event = _parse(line)
            if event is None:
                self.damaged += 1
                continue
            if event.id in self.events:
                continue
            self.events[event.id] = event
            here = (event.clock, event.id)
            if self._state is not None and here > self._last:
                self._state.apply(event)
            else:
                self._state = None
            self._last = max(self._last, here)


_TYPES: dict[str, Any] = {
    "clock": int,
    "strength": (int, type(None)),
    "criteria": dict,
    "seconds": (int, float, type(None)),
}


def _parse(line: bytes) -> Event | None:
    """The event of a line; None where it is none."""
    try:
        row = json.loads(line.decode("utf-8"))
        known = {f.name for f in fields(Event)}
        event = Event(**{k: v for k, v in row.items() if k in known})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    for f in fields(Event):
        value = getattr(event, f.name)
        if f.name == "choice" and value not in (None, *CHOICES):
            return None
        if f.name != "choice" and not isinstance(value, _TYPES.get(f.name, str)):
            return None
    return event if event.action in ACTIONS and event.id else None

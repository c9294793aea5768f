"""`Session`: one rater working through items. The widget, the text version and tests all drive it through `do`."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.labelling.events import CHOICES, Event, Store, answer_key, item_key
from dpo_workbench.labelling.rubric import Rubric
from dpo_workbench.pairs.pair import Pair

QUICK = 0.3  # seconds; a vote that comes sooner after an item appears is taken for a double click and ignored
VOTES = {"a": "a", "b": "b", "t": "tie", "x": "bad", "s": "skip"}
HELP = (
    "a, b: this answer is better · t: equally good · x: both bad · s: skip · 1, 2, 3 before a vote: slightly, clearly, "
    "far better · u: undo · <, >: back, forward · g 12: go to item 12 · n text: note"
)


class Session:
    """The labels of one rater and the item that is shown. It continues where the label file ends.

    The arguments are those of `label`, and `quick` (see `QUICK`), which is 0 where a double click cannot happen.
    """

    message: str  # what the last command did
    strength: int | None  # saved with the next vote, like the note
    note: str

    def __init__(
        self,
        pairs: Sequence[Pair],
        rater: str,
        store: str | Path,
        rubric: str | Path | Rubric | None = None,
        quick: float = QUICK,
    ):
        if not rater.strip():
            raise WorkbenchError("`rater` must be a name. Got an empty one. Initials are enough.")
        by_item: dict[str, Pair] = {}  # pairs with the same content are judged once
        for pair in pairs:
            by_item.setdefault(item_key(pair), pair)
        if not by_item:
            raise WorkbenchError(f"There must be something to label. Got no pairs for rater {rater!r}.")
        self.items, self.pairs = list(by_item), list(by_item.values())
        self.rater, self.store, self.rubric = rater.strip(), Store(store), Rubric.load(rubric)
        self.quick, self.message = quick, ""
        self._show(self._next_open(0))

    @property
    def item(self) -> str:
        """The key of the pair that is shown."""
        return self.items[self.position]

    @property
    def pair(self) -> Pair:
        """The pair that is shown."""
        return self.pairs[self.position]

    @property
    def swapped(self) -> bool:
        """The pair's rejected answer is shown as A. The side is random, but fixed for this rater and pair."""
        text = f"0\0{self.rater}\0{self.item}".encode("utf-8", "surrogatepass")
        smaller_is_a = bool(hashlib.blake2b(text, digest_size=1).digest()[0] & 1)
        return smaller_is_a == (answer_key(self.pair.chosen) <= answer_key(self.pair.rejected))

    @property
    def answers(self) -> tuple[str, str]:
        """The texts shown as A and B."""
        both = (self.pair.chosen, self.pair.rejected)
        return both[::-1] if self.swapped else both

    @property
    def labels(self) -> dict[str, Event]:
        """This rater's current labels by item key, in the order of the items."""
        found = {item: self.store.labels.get((self.rater, item)) for item in self.items}
        return {item: label for item, label in found.items() if label}

    @property
    def n_done(self) -> int:
        """Number of items that have a label."""
        return len(self.labels)

    @property
    def finished(self) -> bool:
        """Every item has a label."""
        return self.n_done == len(self.items)

    def status(self) -> str:
        """Position and progress in words, and the label of an item that has one."""
        text = f"Item {self.position + 1} of {len(self.items)}, {self.n_done} labelled."
        if label := self.labels.get(self.item):
            strength = f", strength {label.strength}" if label.strength else ""
            text += f" Your label: {CHOICES[label.choice or 'skip']}{strength}."
        return text

    def do(self, command: str) -> str:
        """Carry out one command (see `HELP`) and return what happened. An unknown command changes nothing."""
        self.store.refresh()
        self.message = self._run(command.strip())
        return self.message

    def _run(self, text: str) -> str:
        letter, rest = text[:1].lower(), text[1:].strip()
        if text.lower() in VOTES:
            return self._vote(VOTES[letter])
        if text in ("1", "2", "3"):
            self.strength = int(text)
            return f"Strength {text}, saved with your vote."
        if text in ("<", ">"):
            return self._go(self.position + (1 if text == ">" else -1))
        if letter == "g" and re.fullmatch(r"\d{1,9}", rest):
            return self._go(int(rest) - 1)
        if text.lower() == "u":
            return self._undo()
        if text[:2].lower() == "n " and rest:
            self.note = rest
            return "Note saved with your vote."
        return f"Not a command: {text[:40]!r}. {HELP}"

    def _vote(self, choice: str) -> str:
        seconds = time.monotonic() - self._shown_at
        if seconds < self.quick:
            return f"Too quick: the vote came {seconds:.2f} s after this item appeared, so it was ignored."
        a, b = self.answers
        shown = {"left": answer_key(a), "right": answer_key(b), "rubric": self.rubric.version}
        said = {"choice": choice, "strength": self.strength if choice in ("a", "b") else None, "note": self.note}
        self.store.add("label", self.rater, self.item, **shown, **said, seconds=round(seconds, 3))
        text = f"Saved: item {self.position + 1}, {CHOICES[choice]}."
        self._show(self._next_open(self.position + 1))
        return text + (" All items are labelled." if self.finished else "")

    def _undo(self) -> str:
        """Take the last label back and show its item, with strength and note as they were, so that both can be used."""
        if not self.labels:
            return "Nothing to undo."
        label = max(self.labels.values(), key=lambda event: event.clock)
        self.store.add("undo", self.rater, label.item, target=label.id)
        self._show(self.items.index(label.item))
        self.strength, self.note = label.strength, label.note
        return f"Undone: {CHOICES[label.choice or 'skip']}, item {self.position + 1}."

    def _go(self, place: int) -> str:
        if not 0 <= place < len(self.items):
            return f"There are items 1 to {len(self.items)}."
        self._show(place)
        return f"Item {place + 1}."

    def _next_open(self, start: int) -> int:
        """The first item without a label from `start` on, then from the top; else the one before `start`."""
        labels, n = self.labels, len(self.items)
        places = (k % n for k in range(start, start + n))
        return next((k for k in places if self.items[k] not in labels), max(0, min(start, n) - 1))

    def _show(self, place: int) -> None:
        self.position = place
        label = self.labels.get(self.item)
        self.strength, self.note = (label.strength, label.note) if label else (None, "")
        self._shown_at = time.monotonic()

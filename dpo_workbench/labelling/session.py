"""`Session`: one rater going through items. All that a widget, a text cell or a terminal does goes through `do`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.labelling.events import CHOICES, Event, Store, answer_key
from dpo_workbench.labelling.rubric import Rubric
from dpo_workbench.labelling.study import Item
from dpo_workbench.pairs.pair import Pair

QUICK = 0.3  # seconds after an item appears in which a vote is taken for the second half of a double click
VOTES = {"a": "a", "b": "b", "t": "tie", "x": "bad", "s": "skip"}
HELP = (
    "a, b: that answer is better · 1, 2, 3 before it: slightly, clearly, far · t: equally good · x: both bad · s: skip "
    "· u: undo · r: redo · <, >: back, forward · g 12: go to item 12 · n text: note · c NAME a: by a criterion · "
    "/word: search"
)


@dataclass
class Draft:
    """What was said of the item on show and is saved with the vote."""

    strength: int | None = None
    criteria: dict[str, str] = field(default_factory=dict)
    note: str = ""


class Session:
    """State: the store's, and which item is on show. `message` says what the last command did.

    Args:
        items: what this rater judges, in order.
        pairs: by id, with all that the items name.
        quick: see `QUICK`; 0 where a double click cannot happen.
        hints: after a vote, say what the verifier thinks of the pair.
    """

    def __init__(
        self,
        items: Sequence[Item],
        pairs: Sequence[Pair],
        rater: str,
        store: Store,
        rubric: Rubric,
        *,
        quick: float = QUICK,
        hints: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not rater.strip():
            raise WorkbenchError(
                "`rater` must be a name. Got an empty one. Use initials, they are stored with each label."
            )
        by_id = {p.id: p for p in pairs}
        if missing := [item.pair for item in items if item.pair not in by_id]:
            raise WorkbenchError(
                f"The plan must fit the pairs. Got an item for pair {missing[0]!r}, which is not there."
            )
        if not items:
            raise WorkbenchError(f"There must be something to label. Got no items for rater {rater!r}.")
        self.items, self.rater, self.store, self.rubric = list(items), rater.strip(), store, rubric
        self.pairs = by_id
        self.quick, self.hints, self.clock = quick, hints, clock
        self.message = ""
        self.position = 0
        self.draft = Draft()
        self._show(self._next_open(0))

    @property
    def item(self) -> Item:
        return self.items[self.position]

    @property
    def pair(self) -> Pair:
        return self.pairs[self.item.pair]

    @property
    def answers(self) -> tuple[str, str]:
        """The texts of side A and side B."""
        both = (self.pair.chosen, self.pair.rejected)
        return both[::-1] if self.item.swap else both

    @property
    def labels(self) -> dict[str, Event]:
        """This rater's standing labels by item key."""
        return self.store.state.of(self.rater)

    @property
    def standing(self) -> Event | None:
        """The label of the item on show."""
        return self.store.state.labels.get((self.rater, self.item.key))

    @property
    def n_done(self) -> int:
        have = self.labels
        return sum(item.key in have for item in self.items)

    @property
    def finished(self) -> bool:
        return self.n_done == len(self.items)

    def status(self) -> str:
        """Where the session stands, in words."""
        label = self.standing
        now = "" if label is None else f" Your label: {CHOICES[label.choice or 'skip']}."
        if label is not None and label.strength:
            now = now[:-1] + f", strength {label.strength}."
        return f"Item {self.position + 1} of {len(self.items)}, {self.n_done} labelled.{now}"

    def do(self, command: str) -> str:
        """Carry out one command (see `HELP`) and say what happened. An unknown one changes nothing.

        Raises:
            WorkbenchError: a label could not be written.
        """
        self.store.refresh()
        text = command.strip()
        self.message = self._do(text)
        return self.message

    def _do(self, text: str) -> str:
        if vote := re.fullmatch(r"([abtxs])\s*([123])?", text, re.IGNORECASE):
            return self._vote(VOTES[vote[1].lower()], int(vote[2]) if vote[2] else None)
        if found := re.fullmatch(r"([123])", text):
            self.draft.strength = int(found[1])
            return f"Strength {found[1]}, saved with your vote."
        if text in ("<", ">"):
            return self._go(self.position + (1 if text == ">" else -1))
        if found := re.fullmatch(r"g\s*(\d{1,9})", text, re.IGNORECASE):
            return self._go(int(found[1]) - 1)
        if text.lower() == "u":
            return self._undo()
        if text.lower() == "r":
            return self._redo()
        if text.startswith("/"):
            return self._search(text[1:].strip())
        if text.lower().startswith("n "):
            self.draft.note = text[2:].strip()[:2000]
            return "Note kept, saved with your vote."
        if found := re.fullmatch(r"c\s+(.+?)\s+(a|b|t|tie)", text, re.IGNORECASE):
            return self._criterion(found[1], {"t": "tie"}.get(found[2].lower(), found[2].lower()))
        return f"Not a command: {text[:40]!r}. {HELP}"

    def _vote(self, choice: str, strength: int | None) -> str:
        shown = self.clock() - self._shown_at
        if shown < self.quick:
            return f"Too quick: that came {shown:.2f} s after this item appeared, so it was not taken for it."
        a, b = self.answers
        self.store.add(
            "label",
            self.rater,
            self.item.key,
            choice=choice,
            left=answer_key(a),
            right=answer_key(b),
            strength=(strength or self.draft.strength) if choice in ("a", "b") else None,
            criteria=self.draft.criteria if choice != "skip" else {},
            note=self.draft.note,
            rubric=self.rubric.version,
            seconds=round(shown, 3),
        )
        said = f"Saved: item {self.position + 1}, {CHOICES[choice]}."
        if self.hints and choice != "skip":
            said += f" {self._hint()}"
        self._show(self._next_open(self.position + 1))
        return said + (" All items are labelled." if self.finished else "")

    def _hint(self) -> str:
        pair, swap = self.pair, self.item.swap
        words = [
            "no score" if score is None else f"{score:.2f}" + (f" ({failure})" if failure else "")
            for score, failure in ((pair.chosen_score, None), (pair.rejected_score, pair.failure))
        ]
        a, b = words[::-1] if swap else words
        return f"The verifier's view: A {a}, B {b}."

    def _undo(self) -> str:
        done = self.store.state.done.get(self.rater, [])
        if not done:
            return "Nothing to undo."
        return self._turn("undo", done[-1])

    def _redo(self) -> str:
        undone = self.store.state.undone.get(self.rater, [])
        if not undone:
            return "Nothing to redo."
        return self._turn("redo", undone[-1])

    def _turn(self, action: str, label: Event) -> str:
        """Take a label back, or bring it back, and show its item."""
        self.store.add(action, self.rater, label.item, target=label.id)
        words = f"{'Undone' if action == 'undo' else 'Again as it was'}: {CHOICES[label.choice or 'skip']}"
        place = next((k for k, item in enumerate(self.items) if item.key == label.item), None)
        if place is None:
            return f"{words}, of a pair that is not in this list."
        if action == "redo":
            self._show(self._next_open(place + 1))
        else:
            self._show(place)
            self.draft = Draft(label.strength, dict(label.criteria), label.note)
        return f"{words}, item {place + 1}."

    def _criterion(self, name: str, choice: str) -> str:
        near = [c.name for c in self.rubric.criteria if c.name.casefold().startswith(name.casefold())]
        if len(near) != 1:
            have = ", ".join(c.name for c in self.rubric.criteria) or "none"
            return f"Not a criterion of this rubric: {name[:40]!r}. It has: {have}."
        self.draft.criteria[near[0]] = choice
        return f"{near[0]}: {CHOICES[choice]}, saved with your vote."

    def _go(self, place: int) -> str:
        if not 0 <= place < len(self.items):
            return f"There are items 1 to {len(self.items)}."
        self._show(place)
        return f"Item {place + 1}."

    def _search(self, word: str) -> str:
        """The next item after this one whose prompt or answers have the word."""
        if not word:
            return "Write a word after the slash."
        n = len(self.items)
        for step in range(1, n + 1):
            place = (self.position + step) % n
            pair = self.pairs[self.items[place].pair]
            if word.casefold() in f"{pair.prompt}\n{pair.chosen}\n{pair.rejected}".casefold():
                self._show(place)
                return f"Found in item {place + 1}."
        return f"No item has {word[:40]!r}."

    def _next_open(self, start: int) -> int:
        """The first item without a label from `start` on, around the end; where all have one, the last one shown."""
        have, n = self.labels, len(self.items)
        return next(
            (k % n for k in range(start, start + n) if self.items[k % n].key not in have), max(0, min(start, n) - 1)
        )

    def _show(self, place: int) -> None:
        self.position = place
        label = self.standing
        self.draft = Draft(label.strength, dict(label.criteria), label.note) if label else Draft()
        self._shown_at = self.clock()

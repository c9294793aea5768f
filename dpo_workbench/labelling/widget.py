"""`label`: judge pairs in the notebook, and `label_text`: the same where there are no widgets, and in a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import visible
from dpo_workbench.labelling.events import Store
from dpo_workbench.labelling.labels import Labels, read_labels
from dpo_workbench.labelling.rubric import Rubric
from dpo_workbench.labelling.session import HELP, Session
from dpo_workbench.labelling.study import Plan, all_items
from dpo_workbench.labelling.view import Result, card, text_card
from dpo_workbench.pairs.pair import Pair

BUTTONS = {"a": "A is better", "b": "B is better", "t": "Equally good", "x": "Both bad", "s": "Skip"}
MOVES = {"u": "Undo", "r": "Redo", "<": "Back", ">": "Forward"}
WINNERS = (("not said", ""), ("A", "a"), ("B", "b"), ("equal", "tie"))
STRENGTHS = (("not said", 0), ("slightly", 1), ("clearly", 2), ("far better", 3))


def open_session(
    pairs: Sequence[Pair],
    rater: str,
    store: str | Path,
    rubric: str | Path | Rubric | None = None,
    plan: Plan | str | Path | None = None,
    **more: Any,
) -> Session:
    """A rater's session on a label file; it goes on where the file says.

    Raises:
        WorkbenchError: no pairs, no such rater in the plan, a plan or rubric that cannot be read.
    """
    rows = list(pairs)
    if plan is None:
        items = all_items(rows, rater)
    else:
        known = plan if isinstance(plan, Plan) else Plan.load(plan)
        if rater not in known.items:
            raise WorkbenchError(f"The rater must be in the plan. Got {rater!r}. It has: {', '.join(known.items)}.")
        items = known.items[rater]
    return Session(items, rows, rater, Store(store), Rubric.load(rubric), **more)


class Labeller:
    """The widget of one session. All it does is `session.do(command)` and show the result.

    Attributes:
        session: state and store.
        box: the ipywidgets container that is shown.
    """

    def __init__(self, session: Session, results: Result | None = None):
        import ipywidgets as w

        self.session, self._results = session, results
        self.parts = {name: w.HTML() for name in ("status", "prompt", "a", "b", "rubric", "message")}
        wide = w.Layout(width="auto", min_width="8em")
        self.buttons = {}
        for key, text in {**BUTTONS, **MOVES}.items():
            button = w.Button(description=f"{text} ({key})", tooltip=f"{text}. Or type {key} below.", layout=wide)
            button.on_click(lambda _, key=key: self.do(key))
            self.buttons[key] = button
        self.strength = w.ToggleButtons(options=STRENGTHS, value=0, description="How much:")
        self.strength.observe(self._strength, "value")
        self.criteria = {}
        for c in session.rubric.criteria:
            choice = w.ToggleButtons(
                options=WINNERS, value="", description=f"{c.name}:",
                tooltips=[c.description] * 4, style={"description_width": "8em"},
            )  # fmt: skip
            choice.observe(lambda change, name=c.name: self._criterion(name, change["new"]), "value")
            self.criteria[c.name] = choice
        self.note = w.Text(description="Note:", placeholder="kept with your vote", layout=w.Layout(width="95%"))
        self.note.observe(self._note, "value")
        self.typed = w.Text(
            description="Type here:", placeholder="a, b, t, x, s, 1 to 3, u, r, <, >; or g 12, /word with Enter",
            layout=w.Layout(width="70%"),
        )  # fmt: skip
        self.typed.observe(self._key, "value")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the only way to hear Enter in a text box
            self.typed.on_submit(self._enter)
        self.find = w.Button(description="Find or go to", tooltip="A word, or the number of an item", layout=wide)
        self.find.on_click(self._find)
        self.progress = w.IntProgress(min=0, max=len(session.items), description="Labelled:")
        half = w.Layout(width="50%", padding="0 0.5em", border="1px solid currentColor", overflow="auto")
        for name in "ab":
            self.parts[name].layout = half
        p, b = self.parts, self.buttons
        self.box = w.VBox(
            [
                p["status"], self.progress, p["prompt"], w.HBox([p["a"], p["b"]]), p["rubric"],
                self.strength, *self.criteria.values(), self.note,
                w.HBox([b[k] for k in BUTTONS], layout=w.Layout(flex_flow="row wrap")),
                w.HBox([*(b[k] for k in MOVES), self.find], layout=w.Layout(flex_flow="row wrap")),
                self.typed, p["message"],
            ]
        )  # fmt: skip
        self._quiet = False
        self.show()

    def do(self, command: str) -> None:
        """One command, from wherever it came; a failure is shown where the reader looks."""
        try:
            self.session.do(command)
        except WorkbenchError as error:
            self.session.message = str(error)
        except Exception as error:  # in a callback it would vanish
            self.session.message = f"This went wrong: {type(error).__name__}: {error}. Nothing was saved by it."
        self.show()

    def show(self) -> None:
        """Draw the state."""
        session = self.session
        self._quiet = True
        try:
            for name, html in card(session, self._results).items():
                self.parts[name].value = html
            self.progress.value = session.n_done
            self.strength.value = session.draft.strength or 0
            for name, choice in self.criteria.items():
                choice.value = session.draft.criteria.get(name, "")
            self.note.value = session.draft.note
            self.typed.value = ""
        finally:
            self._quiet = False

    def _strength(self, change: Any) -> None:
        if not self._quiet:
            self.session.draft.strength = change["new"] or None

    def _criterion(self, name: str, choice: str) -> None:
        if not self._quiet:
            self.session.draft.criteria.pop(name, None)
            if choice:
                self.session.draft.criteria[name] = choice

    def _note(self, change: Any) -> None:
        if not self._quiet:
            self.session.draft.note = change["new"].strip()[:2000]

    def _key(self, change: Any) -> None:
        """A command of one letter acts as soon as it is typed."""
        if not self._quiet and change["new"].lower() in (*BUTTONS, *MOVES, "1", "2", "3"):
            self.do(change["new"])

    def _enter(self, _: Any) -> None:
        if self.typed.value.strip():
            self.do(self.typed.value)

    def _find(self, _: Any) -> None:
        text = self.typed.value.strip().lstrip("/")
        if text:
            self.do(f"g {text}" if text.isdigit() else f"/{text}")
        else:
            self.session.message = "Write a word, or the number of an item, into the box first."
            self.show()

    def labels(self, plan: Plan | None = None) -> Labels:
        """What the file holds by now, all raters (see `read_labels`)."""
        return read_labels(self.session.store.path, list(self.session.pairs.values()), plan)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def __repr__(self) -> str:
        return text_card(self.session, self._results)


def label(
    pairs: Sequence[Pair],
    *,
    rubric: str | Path | Rubric | None = None,
    rater: str,
    store: str | Path = "labels.jsonl",
    plan: Plan | str | Path | None = None,
    results: Result | None = None,
    hints: bool = False,
) -> Labeller:
    """Judge pairs in the notebook: two answers side by side, in random order, without a word on where they came from.

    Each vote is on the disk before the next pair is shown; run the cell again, in a new kernel too, and it goes on at
    the same pair. Every action has a button, and can be typed into one box.

    Args:
        pairs: which is called chosen does not matter and is not shown.
        rubric: a YAML file, or the name of a built-in task; default: one plain question.
        rater: who judges; initials will do.
        store: the label file. Several raters may share one.
        plan: of `plan_labelling`; default: all pairs, once each.
        results: shows what a query gives (see `sql_results`).
        hints: after a vote, say what the verifier thinks of the pair.

    Raises:
        WorkbenchError: nothing to label, an unknown rater, or a file that cannot be read.
    """
    return Labeller(open_session(pairs, rater, store, rubric, plan, hints=hints), results)


def label_text(
    pairs: Sequence[Pair],
    *,
    rubric: str | Path | Rubric | None = None,
    rater: str,
    store: str | Path = "labels.jsonl",
    plan: Plan | str | Path | None = None,
    results: Result | None = None,
    hints: bool = False,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> Session:
    """`label` in plain text: shows a pair, asks for a command, until `q`, the end, or Ctrl-C. What was voted is saved.

    Args:
        read, write: where commands come from and text goes to.
        pairs, rubric, rater, store, plan, results, hints: see `label`.
    """
    session = open_session(pairs, rater, store, rubric, plan, hints=hints, quick=0.0)
    write(HELP + " · q: stop")
    try:
        while not session.finished:
            write(text_card(session, results))
            command = read("> ").strip()
            if command.lower() == "q":
                break
            if command:
                write(visible(session.do(command)))
    except (KeyboardInterrupt, EOFError):
        pass
    write(f"{session.n_done} of {len(session.items)} labelled, saved in {session.store.path}.")
    return session

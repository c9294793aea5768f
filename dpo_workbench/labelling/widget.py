"""`label`: judge pairs in a notebook. `label_text`: the same in plain text, for terminals and without widgets.

All text in HTML goes through `escape`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import ipywidgets as w

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import NO_MATH, escape, pre, visible
from dpo_workbench.labelling.rubric import Rubric
from dpo_workbench.labelling.session import HELP, Session
from dpo_workbench.pairs.pair import Pair

BUTTONS = {"a": "A is better", "b": "B is better", "t": "Equally good", "x": "Both bad", "s": "Skip"}
MOVES = {"u": "Undo", "<": "Back", ">": "Forward"}
STRENGTHS = (("not set", 0), ("slightly", 1), ("clearly", 2), ("far better", 3))
MARK = "text-decoration: underline; font-weight: 700; background: none; color: inherit"  # readable on any background
BOX = "white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; color: inherit; max-height: 32em; overflow: auto"
MOST_MARKED = 12_000  # characters; in longer texts marking differences takes long and shows little


class Labeller:
    """The widget of one session. Each button, and each letter in the text box, is a command for `Session.do`."""

    def __init__(self, session: Session):
        self.session = session
        self.closing: Callable[[], str] | None = None  # what to say at the end, when all items have a label
        self.parts = {name: w.HTML() for name in ("status", "prompt", "a", "b", "rubric", "message")}
        self.progress = w.IntProgress(min=0, max=len(session.items), description="Labelled:")
        self.buttons = {key: self._button(f"{text} ({key})", key) for key, text in {**BUTTONS, **MOVES}.items()}
        self.strength = w.ToggleButtons(options=STRENGTHS, value=0, description="How much:")
        self.note = w.Text(description="Note:", placeholder="saved with your vote")
        self.typed = w.Text(description="Type here:", placeholder="a, b, t, x, s, 1 to 3, u, <, >")
        self.typed.observe(self._key, "value")
        self.box = self._layout()
        self.show()

    def _button(self, text: str, command: str) -> w.Button:
        large = w.Layout(height="3.2em", min_width="8em", flex="2 1 0" if command in "ab" else "1 1 0")
        layout = large if command in BUTTONS else w.Layout(width="auto", height="1.9em")
        button = w.Button(description=text, tooltip=text, layout=layout)
        button.on_click(lambda _: self.do(command))
        return button

    def _layout(self) -> w.VBox:
        p, wrap = self.parts, w.Layout(flex_flow="row wrap")
        for name in "ab":
            p[name].layout = w.Layout(width="50%", padding="0 0.5em", border="1px solid currentColor", overflow="auto")
        votes = w.HBox([self.buttons[key] for key in BUTTONS], layout=wrap)
        rest = w.HBox([*(self.buttons[key] for key in MOVES), self.note, self.typed], layout=wrap)
        head = [w.HBox([p["status"], self.progress], layout=wrap), p["prompt"], w.HBox([p["a"], p["b"]])]
        return w.VBox([*head, votes, self.strength, p["message"], p["rubric"], rest])

    def do(self, command: str) -> None:
        """Carry out one command and redraw. An error is shown as the message: in a callback it would be lost."""
        self.session.strength, self.session.note = self.strength.value or None, self.note.value.strip()
        try:
            self.session.do(command)
        except Exception as error:
            name = "" if isinstance(error, WorkbenchError) else f"Unexpected error: {type(error).__name__}: "
            self.session.message = f"{name}{error}"
        self.show()

    def show(self) -> None:
        """Redraw everything from the session."""
        for name, html in card(self.session).items():
            self.parts[name].value = html
        if self.closing and self.session.finished:
            self.parts["message"].value += pre(self.closing())
        self.progress.value = self.session.n_done
        self.strength.value = self.session.strength or 0
        self.note.value = self.session.note
        self.typed.value = ""

    def _key(self, change: Any) -> None:
        """Carry out a command as soon as its letter is typed."""
        if change["new"].lower() in (*BUTTONS, *MOVES, "1", "2", "3"):
            self.do(change["new"])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def __repr__(self) -> str:
        return text_card(self.session)


def label(
    pairs: Sequence[Pair],
    *,
    rubric: str | Path | Rubric | None = None,
    rater: str,
    store: str | Path = "labels.jsonl",
) -> Labeller:
    """Judge pairs blind in the notebook: two answers side by side, in random order, without their origin.

    Each vote is on the disk before the next pair is shown. Run the cell again, even in a new kernel, and it continues
    at the same pair. Every action has a button, and can also be typed into one box.

    Args:
        rubric: a text file (see `Rubric.load`), or the name of a built-in task; default: one plain question.
        rater: who judges; initials are enough.
        store: the label file. Several raters may share one.
    """
    return Labeller(Session(pairs, rater, store, rubric))


def label_text(
    pairs: Sequence[Pair],
    *,
    rubric: str | Path | Rubric | None = None,
    rater: str,
    store: str | Path = "labels.jsonl",
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> Session:
    """`label` in plain text. It asks for commands until `q`, Ctrl-C or the last item. Every vote is saved at once."""
    session = Session(pairs, rater, store, rubric, quick=0.0)
    write(HELP + " · q: stop")
    try:
        while not session.finished:
            write(text_card(session))
            command = read("> ").strip()
            if command.lower() == "q":
                break
            if command:
                write(visible(session.do(command)))
    except (KeyboardInterrupt, EOFError):
        pass
    write(f"{session.n_done} of {len(session.items)} labelled, saved in {session.store.path}.")
    return session


def card(session: Session) -> dict[str, str]:
    """HTML of the current item: `status`, `prompt`, `a`, `b`, `rubric`, `message`."""
    rubric, (a, b) = session.rubric, session.answers
    criteria = f"<details><summary>Rubric {escape(rubric.version)}</summary>{pre(rubric.criteria)}</details>"
    return {
        "status": f'<p role="status" aria-live="polite">{escape(session.status())}</p>',
        "prompt": f"<h3>{escape(rubric.question)}</h3>{box(escape(session.pair.prompt_as_text))}",
        "a": "<h4>Answer A</h4>" + answer_html(a, b),
        "b": "<h4>Answer B</h4>" + answer_html(b, a),
        "rubric": criteria if rubric.criteria else "",
        "message": f'<p role="status" aria-live="polite"><strong>{escape(session.message)}</strong></p>',
    }


def answer_html(text: str, other: str) -> str:
    """One answer, monospaced for code and tables. The words that the other answer does not have are underlined."""
    return box(marked(text, other), "monospace")


def marked(text: str, other: str) -> str:
    """`text`, escaped, with the words underlined that differ from `other`."""
    if len(text) + len(other) > MOST_MARKED:
        return escape(text)
    words, other_words = (re.findall(r"\s+|\w+|[^\w\s]", t) for t in (text, other))
    parts = []
    for tag, start, end, *_ in SequenceMatcher(None, words, other_words, autojunk=False).get_opcodes():
        piece = "".join(words[start:end])
        same = tag == "equal" or not piece.strip()
        parts.append(escape(piece) if same else f'<mark style="{MARK}">{escape(piece)}</mark>')
    return "".join(parts)


def box(html: str, font: str = "inherit") -> str:
    """HTML of a text in a box that wraps lines and scrolls if it is long."""
    return f'<pre class="{NO_MATH}" style="{BOX}; font-family: {font}">{html}</pre>'


def text_card(session: Session) -> str:
    """The current item for a terminal. Control characters are written out, so they cannot steer it."""
    a, b = session.answers
    lines = [f"--- {session.status()}", session.rubric.question]
    for title, text in (("Prompt", session.pair.prompt_as_text), ("A", a), ("B", b)):
        lines += ["", f"[{title}]", text]
    if session.strength or session.note:
        lines.append(f"Saved with your vote: strength {session.strength or 'not set'}, note {session.note!r}")
    return visible("\n".join(lines))

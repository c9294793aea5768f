"""How an item looks: HTML for a notebook, in which all text goes through `escape`, and text for a terminal."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from dpo_workbench.common.html import NO_MATH, escape, pre, visible
from dpo_workbench.labelling.session import Session

MARK = "text-decoration: underline; font-weight: 700; background: none; color: inherit"  # readable on any background
BOX = "white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; color: inherit; max-height: 32em; overflow: auto"
MOST_MARKED = 12_000  # characters; in longer texts marking differences takes long and shows little


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

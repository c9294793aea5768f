"""How an item looks: HTML for a notebook, in which all text goes through `escape`, and text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.html import NO_MATH, escape, pre, visible
from dpo_workbench.labelling.session import Session
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.sandbox.sql_runner import run_sql

if TYPE_CHECKING:
    from dpo_workbench.tasks.task import Task

MARK = "text-decoration: underline; font-weight: 700; background: none; color: inherit"  # readable on any background
BOX = "white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; color: inherit; max-height: 32em; overflow: auto"
MOST_MARKED = 12_000  # characters; in longer texts marking differences takes long and shows little

Result = Callable[[str, str], str]  # (prompt, query) -> the result of the query as text


def card(session: Session, results: Result | None = None) -> dict[str, str]:
    """HTML of the current item: `status`, `prompt`, `a`, `b`, `rubric`, `message`."""
    prompt, rubric = session.pair.prompt, session.rubric
    a, b = session.answers
    criteria = f"<details><summary>Rubric {escape(rubric.version)}</summary>{pre(rubric.criteria)}</details>"
    return {
        "status": f'<p role="status" aria-live="polite">{escape(session.status())}</p>',
        "prompt": f"<h3>{escape(rubric.question)}</h3>{box(escape(prompt))}",
        "a": "<h4>Answer A</h4>" + answer_html(a, b, rubric.show_as, prompt, results),
        "b": "<h4>Answer B</h4>" + answer_html(b, a, rubric.show_as, prompt, results),
        "rubric": criteria if rubric.criteria else "",
        "message": f'<p role="status" aria-live="polite"><strong>{escape(session.message)}</strong></p>',
    }


def answer_html(text: str, other: str, show_as: str, prompt: str = "", results: Result | None = None) -> str:
    """One answer. The words that the other answer does not have are underlined."""
    html = box(marked(text, other), monospace=show_as != "text")
    if show_as == "sql" and results is not None:
        html += f"<p>Result:</p>{pre(results(prompt, text), 3000)}"
    return html


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


def box(html: str, monospace: bool = False) -> str:
    """HTML of a text in a box that wraps lines and scrolls if it is long."""
    font = "monospace" if monospace else "inherit"
    return f'<pre class="{NO_MATH}" style="{BOX}; font-family: {font}">{html}</pre>'


def text_card(session: Session) -> str:
    """The current item for a terminal. Control characters are written out, so they cannot steer it."""
    a, b = session.answers
    lines = [f"--- {session.status()}", session.rubric.question]
    for title, text in (("Prompt", session.pair.prompt), ("A", a), ("B", b)):
        lines += ["", f"[{title}]", text]
    if session.strength or session.note:
        lines.append(f"Saved with your vote: strength {session.strength or 'not set'}, note {session.note!r}")
    return visible("\n".join(lines))


def sql_results(task: Task, databases: str | Path | None = None, column: str = "database") -> Result:
    """A function that runs a query in the sandbox, on the database of the example with the given prompt.

    Args:
        task: its examples name their databases in `extra[column]`.
        databases: the folder of the SQLite files; default: the folder of the built-in task.
    """
    folder = Path(databases) if databases is not None else data_folder() / task.name / "databases"
    names = {e.prompt: e.extra.get(column) for split in task.splits.values() for e in split}

    @lru_cache(maxsize=256)
    def result(prompt: str, query: str) -> str:
        file = folder / f"{names.get(prompt)}.sqlite"
        if not file.is_file():
            return "(no database is known for this prompt)"
        found = run_sql(file, [extract_code(query)], rows=20)[0]
        if found.problem is not None:
            return f"{found.problem.kind}: {found.problem}"
        rows = [" | ".join(map(str, row)) for row in (found.columns, *found.rows)]
        return "\n".join(rows) + ("\n… more rows" if found.cut else "")

    return result

"""How a pair looks: as HTML for a notebook, where all text goes through `escape`, and as text for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.html import NO_MATH, escape, pre, table, visible
from dpo_workbench.labelling.events import CHOICES
from dpo_workbench.labelling.session import Session
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.sandbox.sql_runner import run_sql
from dpo_workbench.tasks.scores import parse_json

if TYPE_CHECKING:
    from dpo_workbench.tasks.task import Task

FOLD = 1500  # characters of an answer that are shown at once
MARK = "text-decoration: underline; font-weight: 700; background: none; color: inherit"  # readable on any ground
BOX = f'class="{NO_MATH}" style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; color: inherit'

Result = Callable[[str, str], str]  # prompt and query to the text of its result


def card(session: Session, results: Result | None = None) -> dict[str, str]:
    """HTML of the item on show: `status`, `prompt`, `a`, `b`, `rubric`, `message`."""
    pair, rubric = session.pair, session.rubric
    one, other = session.answers
    sides = {}
    for name, text, against in (("a", one, other), ("b", other, one)):
        title = f"<h4>Answer {name.upper()}</h4>"
        sides[name] = title + answer_html(text, against, rubric.show_as, pair.prompt, results)
    return {
        "status": f'<p role="status" aria-live="polite">{escape(session.status())}</p>',
        "prompt": f"<h3>{escape(rubric.question)}</h3>{folded(pair.prompt)}",
        "rubric": _rubric(session),
        "message": f'<p role="status" aria-live="polite"><strong>{escape(session.message)}</strong></p>',
        **sides,
    }


def answer_html(text: str, against: str, show_as: str, prompt: str = "", results: Result | None = None) -> str:
    """One answer; what it does not share with the other is underlined."""
    if show_as == "json":
        try:
            return _json(parse_json(text))
        except ValueError:
            return f"<p>Not JSON:</p>{marked(text, against)}"
    found = marked(text, against, mono=show_as in ("code", "sql"))
    if show_as == "sql" and results is not None:
        found += f"<p>Its result:</p>{pre(results(prompt, text), 3000)}"
    return found


def marked(text: str, against: str, mono: bool = False) -> str:
    """`text` with the words that differ underlined; a long one is folded behind its first part."""
    if len(text) + len(against) > 8 * FOLD:  # marking would take long and show little
        return folded(text, mono)
    mine, theirs = (re.findall(r"\s+|\w+|[^\w\s]", t) for t in (text, against))
    parts: list[str] = []
    length, cut = 0, None
    for tag, start, end, *_ in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        piece = "".join(mine[start:end])
        if not piece:
            continue
        if cut is None and length + len(piece) > FOLD:
            cut = len(parts)
        length += len(piece)
        shown = escape(piece)
        parts.append(shown if tag == "equal" or not piece.strip() else f'<mark style="{MARK}">{shown}</mark>')
    style = f'{BOX}; font-family: {"monospace" if mono else "inherit"}"'
    return _with_rest("".join(parts[:cut]), "".join(parts[cut:]) if cut is not None else "", len(text), style)


def folded(text: str, mono: bool = False) -> str:
    """`text`; what goes beyond `FOLD` characters opens on a click."""
    style = f'{BOX}; font-family: {"monospace" if mono else "inherit"}"'
    head, rest = text[:FOLD], text[FOLD:]
    return _with_rest(escape(head), escape(rest), len(text), style)


def _with_rest(head: str, rest: str, length: int, style: str) -> str:
    """Escaped text whose second part opens on a click."""
    shown = f"<pre {style}>{head}</pre>"
    if not rest:
        return shown
    return (
        f"{shown}<details><summary>The rest ({length:,} characters in all)</summary><pre {style}>{rest}</pre></details>"
    )


def _json(value: Any, depth: int = 0) -> str:
    """A table of fields; a list of rows is a table of its own."""
    if isinstance(value, dict):
        rows = "".join(
            f'<tr><th style="text-align: left; vertical-align: top">{escape(key, 200)}</th>'
            f'<td style="text-align: left">{_json(inner, depth + 1)}</td></tr>'
            for key, inner in list(value.items())[:200]
        )
        return f'<table class="{NO_MATH}"><tbody>{rows}</tbody></table>'
    if isinstance(value, list) and depth < 3 and value and all(isinstance(v, (list, dict)) for v in value):
        cells = [list(v.values()) if isinstance(v, dict) else v for v in value[:200]]
        return table([f"{len(value)} rows"] + [""] * (max(map(len, cells), default=1) - 1), cells)
    return escape(value, 2000)


def _rubric(session: Session) -> str:
    parts = []
    for c in session.rubric.criteria:
        anchors = "".join(f"<dt>{escape(grade)}</dt><dd>{escape(meaning)}</dd>" for grade, meaning in c.anchors.items())
        examples = "".join(f"<p>For example: {escape(example)}</p>" for example in c.examples)
        parts.append(f"<h4>{escape(c.name)}</h4><p>{escape(c.description)}</p><dl>{anchors}</dl>{examples}")
    if not parts:
        return ""
    return f"<details><summary>Rubric {escape(session.rubric.version)}</summary>{''.join(parts)}</details>"


def text_card(session: Session, results: Result | None = None, width: int = 100) -> str:
    """The item on show for a terminal; what could steer it is written out."""
    one, other = session.answers
    lines = [f"--- {session.status()}", session.rubric.question, ""]
    for title, text in (("Prompt", session.pair.prompt), ("A", one), ("B", other)):
        lines += [f"[{title}]", _wrapped(text, width)]
        if session.rubric.show_as == "sql" and results is not None and title in ("A", "B"):
            lines += ["  its result:", textwrap.indent(visible(results(session.pair.prompt, text)), "  ")]
        lines.append("")
    draft = session.draft
    said = [f"strength {draft.strength}"] if draft.strength else []
    said += [f"{name}: {CHOICES[choice]}" for name, choice in draft.criteria.items()]
    said += [f"note: {draft.note}"] if draft.note else []
    if said:
        lines.append(visible("Goes with your vote: " + "; ".join(said)))
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> str:
    shown = visible(text)
    if len(shown) > 4 * FOLD:
        shown = f"{shown[: 3 * FOLD]}\n… [{len(shown) - 4 * FOLD:,} characters left out] …\n{shown[-FOLD:]}"
    return "\n".join(textwrap.fill(line, width, replace_whitespace=False) for line in shown.split("\n"))


def sql_results(task: Task, databases: str | Path | None = None, column: str = "database") -> Result:
    """Shows what a query gives on the database of the example that has this prompt, run in the sandbox.

    Args:
        task: its examples name their databases in `extra[column]`.
        databases: the folder of the SQLite files; default: those of the built-in task.
    """
    folder = Path(databases) if databases is not None else data_folder() / task.name / "databases"
    known = {e.prompt: e.extra.get(column) for split in task.splits.values() for e in split}

    @lru_cache(maxsize=256)
    def result(prompt: str, query: str) -> str:
        file = folder / f"{known.get(prompt)}.sqlite"
        if not file.is_file():
            return "(no database is known for this prompt)"
        found = run_sql(file, [extract_code(query)], rows=20)[0]
        if found.problem is not None:
            return f"{found.problem.kind}: {found.problem}"
        rows = [" | ".join(map(str, row)) for row in (found.columns, *found.rows)]
        return "\n".join(rows) + ("\n… more rows" if found.cut else "")

    return result

"""Text in HTML: `escape` is the one function through which a model's text, or any other, reaches a page."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# MathJax leaves elements of these classes alone; an escaped dollar sign is a dollar sign again once it is on the page.
NO_MATH = "tex2jax_ignore mathjax_ignore"
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0"  # letters by category, but nothing to see
_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")


def escape(text: Any, limit: int = 20_000) -> str:
    """HTML that shows `text` as it is and does nothing else: no tag, no entity, no attribute can come of it.

    Control characters, ANSI escapes, zero-width and bidirectional marks, lone surrogates are shown as `\\u202e` and
    the like. Fit for text and for quoted attributes. Put it into an element of class `NO_MATH` (`pre` and `table` do).

    Args:
        text: anything; `str` is taken of it.
        limit: longer text is folded in its middle, and a mark says how much was left out.
    """
    text = str(text)
    if len(text) > limit:
        head, tail = limit - limit // 4, limit // 4
        left_out = len(text) - head - tail
        text = f"{text[:head]} … [{left_out:,} characters folded] … {text[len(text) - tail :]}"
    return html.escape(visible(text), quote=True).replace("$", "&#36;")


def visible(text: str) -> str:
    """`text` with control characters, ANSI escapes and hidden marks written out, for a terminal too."""
    return _UNUSUAL.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    character = match.group()
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    if not hidden and character not in _BLANK_LETTERS:
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def pre(text: Any, limit: int = 20_000) -> str:
    """`text` in a `<pre>` that wraps long lines."""
    return f'<pre class="{NO_MATH}" style="white-space: pre-wrap; overflow-wrap: anywhere">{escape(text, limit)}</pre>'


def paragraph(text: Any, *, bold: bool = False) -> str:
    """`text` in a `<p>`."""
    inner = f"<strong>{escape(text)}</strong>" if bold else escape(text)
    return f'<p class="{NO_MATH}">{inner}</p>'


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table of escaped cells; numbers, and text that starts like one, stand to the right."""
    head = "".join(f'<th style="text-align: left">{escape(cell)}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f'<table class="{NO_MATH}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>'


def _cell(value: Any) -> str:
    side = "right" if re.match(r"[-+−]?\d", str(value)) else "left"
    return f'<td style="text-align: {side}">{escape(value)}</td>'

"""Text in HTML. All text of models and people passes through `escape` before it reaches a page."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# MathJax skips elements of these classes. Escaping dollar signs is not enough: on the page they are dollar signs again.
NO_MATH = "tex2jax_ignore mathjax_ignore"
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0"  # letters by category, but invisible
_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")


def escape(text: Any, limit: int = 20_000) -> str:
    """HTML that shows `text` as it is; it can't become a tag, an entity or an attribute.

    Control characters, ANSI escapes, zero-width and bidirectional marks and lone surrogates are written out, such as
    `\\u202e`. Use it for text and in quoted attributes, in an element of class `NO_MATH` (`pre` and `table` do that).

    The middle of a text of more than `limit` characters is replaced by a note that says how much was left out.
    """
    text = str(text)
    if len(text) > limit:
        head, tail = limit - limit // 4, limit // 4
        left_out = len(text) - head - tail
        text = f"{text[:head]} … [{left_out:,} characters folded] … {text[len(text) - tail :]}"
    return html.escape(visible(text), quote=True).replace("$", "&#36;")


def visible(text: str) -> str:
    """`text` with control characters, ANSI escapes and invisible marks written out; also for terminals."""
    return _UNUSUAL.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    character = match.group()
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    if not hidden and character not in _BLANK_LETTERS:
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def page(title: str, body: str) -> str:
    """A whole page, without scripts, that loads nothing. `body` is HTML."""
    policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    head = f'<meta charset="utf-8">{policy}<title>{escape(title)}</title><style>td {{ padding: 0 1em 0 0 }}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def pre(text: Any, limit: int = 20_000) -> str:
    """A `<pre>` that wraps long lines."""
    return f'<pre class="{NO_MATH}" style="white-space: pre-wrap; overflow-wrap: anywhere">{escape(text, limit)}</pre>'


def paragraph(text: Any, *, bold: bool = False) -> str:
    """A `<p>`."""
    inner = f"<strong>{escape(text)}</strong>" if bold else escape(text)
    return f'<p class="{NO_MATH}">{inner}</p>'


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table of escaped cells; numbers, and text that starts with one, are aligned right."""
    head = "".join(f'<th style="text-align: left">{escape(cell)}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f'<table class="{NO_MATH}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>'


def _cell(value: Any) -> str:
    side = "right" if re.match(r"[-+−]?\d", str(value)) else "left"
    return f'<td style="text-align: {side}">{escape(value)}</td>'

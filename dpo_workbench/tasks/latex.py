"""Read typeset mathematics as plain text."""

from __future__ import annotations

import re
from typing import Any

_RULES: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"\\(?:boxed|fbox|mathrm|text|textbf|mathbf|operatorname|rm)\b\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), lambda match: _fraction(match[1], match[2])),
    (re.compile(r"\^\s*\{\s*([-+−]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"(?:\^ ?)?\{? ?\\(?:circ|degree)(?![a-z]) ?\}?"), "°"),
    (re.compile(r"\\times(?![a-z])"), "×"),
    (re.compile(r"\\cdot(?![a-z])"), "·"),
    (re.compile(r"\\pm(?![a-z])"), "±"),
    (re.compile(r"\\pi(?![a-z])"), "π"),
    (re.compile(r"\\sqrt(?![a-z])"), "√"),
    (re.compile(r"\\Omega(?![a-z])"), "Ω"),
    (re.compile(r"\\mu(?![a-z])\s*"), "µ"),
    (re.compile(r"\\(?:[,;:! ]|q?quad(?![a-z]))|~(?!\d)"), " "),
    (re.compile(r"(?<=[\w)])\*\*(?=[-(]?\d)"), "^"),
)


def plain_math(text: str) -> str:
    """Text without LaTeX: `$1.2\\times10^{3}\\,\\mathrm{J}$` becomes `1.2×10^3 J`, and `\\boxed{4}` becomes `4`."""
    if not any(sign in text for sign in "\\$*~"):
        return text
    for pattern, plain in _RULES * 2:  # one command may be nested in another
        text = pattern.sub(plain, text)
    return re.sub(r"\*\*|[$\\]", "", text)


def _fraction(above: str, below: str) -> str:
    """A numeric fraction gets parentheses; a fraction of units does not."""
    parts = [part if re.fullmatch(r"\s*[\w.]+\s*", part) else f"({part})" for part in (above, below)]
    return f"({'/'.join(parts)})" if re.search(r"\d", above) else "/".join(parts)

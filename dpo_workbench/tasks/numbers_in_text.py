"""Find the numbers in a text. A number is either read correctly or marked as unreadable; it is never guessed."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺−–", "0123456789-+--")
_SPACES = "\u00a0\u2009\u202f"  # no-break, thin and narrow space, which group digits
_MAGNITUDES = {
    "k": 1e3, "dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "lakh": 1e5, "crore": 1e7, "million": 1e6, "mio": 1e6,
    "mln": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12,
}  # fmt: skip
_NUMBER = re.compile(
    rf"""(?: (?<![\w.)\]}}%°]) (?P<sign>[-+−–]) )?  (?<![\w.])
    (?: \(? (?: (?P<whole>\d{{1,9}}) \s+ )? (?P<above>\d{{1,9}}) \s?/\s? (?P<below>\d{{1,9}}) \)? (?![\w/(]|[.,]\d)
      | (?P<digits> \d+ (?: [.,'’_{_SPACES}] \d+ )* | \.\d+ )
        (?: \s* [×x*·⋅] \s*10\s* (?:\^|\*\*)? \s*[({{]? (?P<power> [-+−–]?\d{{1,3}} | [⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,3}} ) [)}}]?
          | [eE] (?P<exponent> [-+−–]?\d{{1,3}} ) (?!\d) )?
    )
    (?P<magnitude> (?: (?-i:k) (?![\w/^]) | (?: \s? (?:{"|".join(list(_MAGNITUDES)[1:])})s?\b )+ )? )""",
    re.IGNORECASE | re.VERBOSE,
)
_DATE_OR_TIME = re.compile(r"(?<![\w.])(?:\d{1,4}([-/.])\d{1,2}\1\d{1,4}|\d+:\d+(?::\d+)*)(?![\w/])")
_THOUSANDS = re.compile(  # 1,234.5 and 12,34,567
    rf"[1-9]\d{{0,2}}(?:([,'’_{_SPACES}])\d{{3}}(?:\1\d{{3}})*)(?:\.\d+)?|[1-9]\d?(?:,\d{{2}})+,\d{{3}}(?:\.\d+)?"
)
_DECIMAL_COMMA = re.compile(  # 0,5 and 1.234,5 and 1.000.000
    rf"\d+,\d+|[1-9]\d{{0,2}}(?:(?:\.\d{{3}}){{2,}}|(?:([.'’{_SPACES}])\d{{3}}(?:\1\d{{3}})*),\d+)"
)
_LATEX: tuple[tuple[str, Any], ...] = (
    (r"\\(?:boxed|fbox|mathrm|text|textbf|mathbf|operatorname|rm)\b\s*\{([^{}]*)\}", r"\1"),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", lambda match: _fraction(match[1], match[2])),
    (r"\^\s*\{\s*([-+−]?\d+)\s*\}", r"^\1"),
    (r"(?:\^ ?)?\{? ?\\(?:circ|degree)(?![a-z]) ?\}?", "°"),
    *(
        (rf"\\{name}(?![a-z])", sign)
        for name, sign in zip("times cdot pm pi sqrt Omega".split(), "×·±π√Ω", strict=True)
    ),
    (r"\\mu(?![a-z])\s*", "µ"),
    (r"\\(?:[,;:! ]|q?quad(?![a-z]))|~(?!\d)", " "),
    (r"(?<=[\w)])\*\*(?=[-(]?\d)", "^"),
)


@dataclass(frozen=True)
class Number:
    """A number and where it is in the text. `value` is None where the digits have no single reading, as in `1,2,3`."""

    value: float | None
    start: int
    end: int


def find_numbers(text: str) -> Iterator[Number]:
    """The numbers in a text, in order. Dates, times of day and ratios such as 3:4 are skipped."""
    skipped = [match.span() for match in _DATE_OR_TIME.finditer(text)]
    for match in _NUMBER.finditer(text):
        if not any(start <= match.end() - 1 < end or start <= match.start() < end for start, end in skipped):
            yield Number(_value(match), match.start(), match.end())


def read_number(text: str) -> float | None:
    """The value of a text that is one number and nothing else; None for any other text."""
    match = _NUMBER.fullmatch(with_plain_fractions(text).strip())
    return _value(match) if match else None


def with_plain_fractions(text: str) -> str:
    """The text with fraction characters written out: `2½` becomes `2 1/2`."""
    text = re.sub("[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    return text.replace("⁄", "/")


def plain_math(text: str) -> str:
    """Text without LaTeX: `$1.2\\times10^{3}\\,\\mathrm{J}$` becomes `1.2×10^3 J`, and `\\boxed{4}` becomes `4`."""
    if not any(sign in text for sign in "\\$*~"):
        return text
    for pattern, plain in _LATEX * 2:  # one command may be nested in another
        text = re.sub(pattern, plain, text)
    return re.sub(r"\*\*|[$\\]", "", text)


def _fraction(above: str, below: str) -> str:
    """A numeric fraction gets parentheses; a fraction of units does not."""
    parts = [part if re.fullmatch(r"\s*[\w.]+\s*", part) else f"({part})" for part in (above, below)]
    return f"({'/'.join(parts)})" if re.search(r"\d", above) else "/".join(parts)


def _value(match: re.Match[str]) -> float | None:
    if match["digits"] is not None:
        value = _decimal(match["digits"])
    else:
        value = int(match["whole"] or 0) + int(match["above"]) / int(match["below"]) if int(match["below"]) else None
    if value is None:
        return None
    for word in re.findall(r"[a-z]+", match["magnitude"].lower()):
        value *= _MAGNITUDES.get(word) or _MAGNITUDES[word.removesuffix("s")]
    power = int((match["power"] or match["exponent"] or "0").translate(SUPERSCRIPTS))
    value *= 10.0**power if power <= 300 else math.inf
    sign = -1.0 if match["sign"] in ("-", "−", "–") else 1.0
    return sign * value if math.isfinite(value) else None


def _decimal(run: str) -> float | None:
    """The value of digits with separators.

    `1,000` is a thousand and `1.000` is one, as in English. `1.000,5` and `1.000.000` can only be European, and `0,5`
    can only be a decimal comma. Other mixtures have no reading.
    """
    if _THOUSANDS.fullmatch(run):
        return float(re.sub(r"[^\d.]", "", run))
    if _DECIMAL_COMMA.fullmatch(run):
        return float(re.sub(r"[^\d,]", "", run).replace(",", "."))
    return float(run) if re.fullmatch(r"\d*\.?\d+", run) else None

"""Find the numbers in a text. A number is either read correctly or marked as unreadable; it is never guessed."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺−–", "0123456789-+--")
_SPACES = "\u00a0\u2009\u202f"  # no-break, thin and narrow space, which group digits
_MAGNITUDES = {
    "k": 1e3, "dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "lakh": 1e5, "crore": 1e7, "million": 1e6, "mio": 1e6,
    "mln": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12,
}  # fmt: skip
_NUMBER = re.compile(
    rf"""(?: (?<![\w.)\]}}%°]) (?P<sign>[-+−–]) )?  (?<![\w.]) (?<!\d,)
    (?: (?P<no_number> (?: \d{{1,4}}(?P<mark>[-/.])\d{{1,2}}(?P=mark)\d{{1,4}} | \d+:\d+(?::\d+)* ) (?![\w/]|,\d) )
      | \(? (?: (?P<whole>\d{{1,9}}) \s+ )? (?P<above>\d{{1,9}}) \s?/\s? (?P<below>\d{{1,9}}) \)? (?![\w/(]|[.,]\d)
      | (?P<digits> \d+ (?: [.,'’_{_SPACES}] \d+ )* | \.\d+ )
        (?: \s* [×x*·⋅] \s*10\s* (?:\^|\*\*)? \s*[({{]? (?P<power> [-+−–]?\d{{1,3}} | [⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,3}} ) [)}}]?
          | [eE] (?P<exponent> [-+−–]?\d{{1,3}} ) (?!\d) )?
    )
    (?P<magnitude> (?: (?-i:k) (?![\w/^]) | (?: \s? (?:{"|".join(list(_MAGNITUDES)[1:])})s?\b )+ )? )""",
    re.IGNORECASE | re.VERBOSE,
)
_SIGN_NAMES = "times cdot pm pi sqrt Omega mu".split()
_THOUSANDS = re.compile(  # 1,234.5 and 12,34,567
    rf"[1-9]\d{{0,2}}(?:([,'’_{_SPACES}])\d{{3}}(?:\1\d{{3}})*)(?:\.\d+)?|[1-9]\d?(?:,\d{{2}})+,\d{{3}}(?:\.\d+)?"
)
_DECIMAL_COMMA = re.compile(  # 0,5 and 1.234,5 and 1.000.000
    rf"\d+,\d+|[1-9]\d{{0,2}}(?:(?:\.\d{{3}}){{2,}}|(?:([.'’{_SPACES}])\d{{3}}(?:\1\d{{3}})*),\d+)"
)
_PLAIN_MATH: tuple[tuple[str, Any], ...] = (
    (r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\}){1,200})\}", r"\nAnswer: \1\n"),
    (r"\\(?:fbox|mathrm|text|textbf|mathbf|operatorname|rm)\b\s*\{([^{}]*)\}", r"\1"),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", lambda match: _fraction(match[1], match[2])),
    (r"\^\s*\{\s*([-+−]?\d+)\s*\}", r"^\1"),
    (r"(?:\^ ?)?\{? ?\\(?:circ|degree)(?![a-z]) ?\}?", "°"),
    *((rf"\\{name}(?![a-z])\s*", sign) for name, sign in zip(_SIGN_NAMES, "×·±π√Ωµ", strict=True)),
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
    for match in _NUMBER.finditer(text):
        if not match["no_number"]:
            yield Number(_value(match), match.start(), match.end())


def read_number(text: str) -> float | None:
    """The value of a text that is digits with separators and nothing else, as in `-1.000,50`; None for other texts.

    Texts that are codes, such as 007 or a number of 16 digits, are not numbers.
    """
    match = re.fullmatch(rf"\s*([-+−–]?)([\d.,'’_{_SPACES}]{{1,40}}?)\s*", text)
    if not match or re.search(r"^0\d|\d{16}", match[2]):
        return None
    value = _decimal(match[2])
    return -value if value is not None and match[1] not in ("", "+") else value


def plain_math(text: str) -> str:
    """Text without LaTeX and fraction characters: `$1.2\\times10^{3}\\,\\mathrm{J}$` becomes `1.2×10^3 J`, `½` `1/2`.

    What is boxed becomes a line `Answer: ...`.
    """
    if any(sign in text for sign in "\\$*~"):
        for pattern, plain in _PLAIN_MATH * 2:  # one command may be nested in another
            text = re.sub(pattern, plain, text)
        text = re.sub(r"\*\*|[$\\]", "", text)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    return re.sub("[¼-¾⅐-⅞]", lambda match: unicodedata.normalize("NFKC", match[0]), text).replace("⁄", "/")


def plain_powers(text: str) -> str:
    """Text with `^` for raised digits and an ASCII minus: `10⁻³ − 1` becomes `10^-3 - 1`."""
    return re.sub("([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", r"^\1", text).translate(_SUPERSCRIPTS)


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
    power = int((match["power"] or match["exponent"] or "0").translate(_SUPERSCRIPTS))
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

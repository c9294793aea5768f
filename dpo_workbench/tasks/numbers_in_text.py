"""Find the numbers in a text. A number is either read correctly or marked as unreadable; it is never guessed."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

SIGNS = "-+−–"  # hyphen, plus, minus sign (U+2212), en dash (U+2013)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SPACES = "\u00a0\u2009\u202f"  # no-break, thin and narrow space, which group digits
_RUN = rf"(?:\d+(?:[.,'’_{_SPACES}]\d+)*|\.\d+)"  # digits and the separators between them
_POWER = (
    r"(?:\s*(?:[×x*·⋅]\s*10\s*(?:(?:\^|\*\*)?\s*[({]?\s*(?P<power>[-+−–]?\d{1,3})[)}]?"
    r"|(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))|[eE](?P<exponent>[-+−–]?\d{1,3})(?!\d)))?"
)
_MAGNITUDES = {
    "k": 1e3, "dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "lakh": 1e5, "crore": 1e7, "million": 1e6, "mio": 1e6,
    "mln": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12,
}  # fmt: skip
_WORDS = "|".join(name for name in _MAGNITUDES if name != "k")
_MAGNITUDE = rf"(?P<magnitude>(?:(?-i:k)(?![\w/^])|(?:\s?(?:{_WORDS})s?\b)+)?)"  # `10k`, but not `10 k`
_NUMBER = re.compile(
    rf"(?:(?<![\w.)\]}}%°])(?P<sign>[{SIGNS}]))?(?<![\w.])"
    r"(?:\(?(?:(?P<whole>\d{1,9})\s+)?(?P<above>\d{1,9})\s?/\s?(?P<below>\d{1,9})\)?(?![\w/(]|[.,]\d)"
    rf"|(?P<digits>{_RUN}){_POWER}){_MAGNITUDE}",
    re.IGNORECASE,
)
_DATE_OR_TIME = re.compile(r"(?<![\w.])(?:\d{1,4}([-/.])\d{1,2}\1\d{1,4}|\d+:\d+(?::\d+)*)(?![\w/])")
_GROUPED = re.compile(rf"[1-9]\d{{0,2}}(?:([,'’_{_SPACES}])\d{{3}}(?:\1\d{{3}})*)(?:\.\d+)?")  # 1,234.5
_INDIAN = re.compile(r"[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?")  # 12,34,567
_EUROPEAN = re.compile(
    rf"[1-9]\d{{0,2}}(?:(?:\.\d{{3}}){{2,}}|(?:([.'’{_SPACES}])\d{{3}}(?:\1\d{{3}})*),\d+)"
)  # 1.234,5
_COMMA = re.compile(r"\d+,\d+")  # 0,5


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


def _value(match: re.Match[str]) -> float | None:
    if match["digits"] is not None:
        value = _decimal(match["digits"])
        power = match["power"] or match["exponent"] or match["raised"] or "0"
    else:
        below = int(match["below"])
        value = int(match["whole"] or 0) + int(match["above"]) / below if below else None
        power = "0"
    if value is None:
        return None
    for word in re.findall(r"[a-z]+", match["magnitude"].lower()):
        value *= _MAGNITUDES.get(word) or _MAGNITUDES[word.removesuffix("s")]
    try:
        value *= 10.0 ** int(power.translate(SUPERSCRIPTS).replace("−", "-").replace("–", "-"))
    except OverflowError:
        return None
    sign = -1.0 if match["sign"] and match["sign"] != "+" else 1.0
    return sign * value if math.isfinite(value) else None


def _decimal(run: str) -> float | None:
    """The value of digits with separators.

    `1,000` is a thousand and `1.000` is one, as in English. `1.000,5` and `1.000.000` can only be European, and `0,5`
    can only be a decimal comma. Other mixtures have no reading.
    """
    if _GROUPED.fullmatch(run) or _INDIAN.fullmatch(run):
        plain = re.sub(r"[^\d.]", "", run)
    elif _EUROPEAN.fullmatch(run):
        plain = re.sub(r"[^\d,]", "", run).replace(",", ".")
    elif _COMMA.fullmatch(run):
        plain = run.replace(",", ".")
    elif re.fullmatch(r"\d*\.?\d+", run):
        plain = run
    else:
        return None
    return float(plain)

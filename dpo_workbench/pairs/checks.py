"""The checks of preference data: what is wrong with a text, a pair or a set, and shortcuts in a set."""

from __future__ import annotations

import bisect
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from dpo_workbench.pairs.codes import Note
from dpo_workbench.pairs.messages import Turns, messages_of
from dpo_workbench.pairs.preference import Pair

FEW = 50  # pairs
MANY = 20  # fewer pairs are not tested for one-sidedness
ONE_SIDED = 0.9  # share of pairs above which a length is reported

_TEMPLATE_TOKEN = re.compile(r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which UTF-8 and tokenizers can't encode


def text_problems(name: str, text: str) -> Iterator[Note]:
    """What is wrong with one text."""
    if not text.strip():
        yield "P301", name, repr(text[:9])
    half = None if text.isascii() else _SURROGATE.search(text)
    for code, match in (("P304", half), ("P306", _TEMPLATE_TOKEN.search(text))):
        if match:
            yield code, name, text[max(0, match.start() - 20) : match.end() + 20]


def pair_problems(pair: Pair) -> Iterator[Note]:
    """What is wrong between the texts of a pair."""
    asked = messages_of(pair.prompt)[-1]["content"]
    if pair.chosen.strip() == pair.rejected.strip() and pair.rejected_finished:
        yield "P302", "rejected", pair.rejected
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if len(asked) > 20 and text.startswith(asked):
            yield "P206", name, text


def set_problems(pairs: Sequence[Pair], lines: Sequence[int]) -> Iterator[tuple[int, str, str, str]]:
    """Line, code, field and excerpt of what is wrong with the pairs as a set; `lines` has the line of each pair."""
    first: dict[tuple[str | Turns, str, str], int] = {}
    for pair, line in zip(pairs, lines, strict=True):
        if (other := first.get((pair.prompt, pair.rejected, pair.chosen))) is not None:
            yield line, "P403", "chosen", f"the opposite of line {other}: {pair.chosen}"
        first.setdefault((pair.prompt, pair.chosen, pair.rejected), line)
    auc, longer = length_auc(pairs), statistics.fmean(_win(len(p.chosen) - len(p.rejected)) for p in pairs)
    if len(pairs) >= MANY and (not 0.2 <= auc <= 0.8 or not 1 - ONE_SIDED < longer < ONE_SIDED):
        yield 0, "P405", "chosen", f"AUC of length {auc:.2f}; the chosen answer is longer in {longer:.0%}"
    if len(pairs) < FEW:
        yield 0, "P409", "", f"{len(pairs)} pairs"


def length_auc(pairs: Sequence[Pair]) -> float:
    """How well length alone tells a chosen from a rejected answer: area under the ROC curve; 0.5 is chance."""
    lengths = sorted(len(p.rejected) for p in pairs)
    below = sum(bisect.bisect_left(lengths, len(p.chosen)) + bisect.bisect_right(lengths, len(p.chosen)) for p in pairs)
    return below / (2 * len(pairs) ** 2)


def fixed_rules(pairs: Sequence[Pair]) -> dict[str, float]:
    """The share of pairs in which each rule picks the chosen answer; a tie counts half."""
    rules: dict[str, Callable[[Pair], float]] = {
        "shorter wins": lambda p: _win(len(p.rejected) - len(p.chosen)),
        "finished wins": lambda p: _win(not p.rejected_finished),
        "reference wins": lambda p: _win((p.chosen_from == "reference") - (p.rejected_from == "reference")),
    }
    return {name: statistics.fmean(map(rule, pairs)) for name, rule in rules.items()}


def learned_rules(pairs: Sequence[Pair]) -> dict[str, float]:
    """The same for rules that pick the answer whose first word, or format, was chosen more often in the other pairs."""
    first_word = _learned(pairs, lambda text: (text.split() or [""])[0].lower())
    return {"first word": first_word, "format": _learned(pairs, _format)}


def _learned(pairs: Sequence[Pair], feature: Callable[[str], object]) -> float:
    features = [(feature(p.chosen), feature(p.rejected)) for p in pairs]
    tally = Counter(chosen for chosen, _ in features)
    tally.subtract(rejected for _, rejected in features)
    # where the two differ, this pair itself added 1 to the one and took 1 from the other
    return statistics.fmean(0.5 if c == r else _win(tally[c] - tally[r] - 2) for c, r in features)


def _format(text: str) -> tuple[str, str, int, bool]:
    """Kinds of the first and last character, number of lines up to 3, whether a line starts like a list item."""
    flat = text.strip()
    first, last = ("letter" if c.isalpha() else "digit" if c.isdigit() else c for c in (flat[:1], flat[-1:]))
    return first, last, min(3, flat.count("\n") + 1), bool(re.search(r"^\s*[-*\u2022]", flat, re.M))


def _win(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)

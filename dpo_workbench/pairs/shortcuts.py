"""Shortcuts: how often a rule that needs no understanding picks the chosen answer."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from dpo_workbench.pairs.preference import Pair


def fixed_rules(pairs: Sequence[Pair]) -> dict[str, float]:
    """The share of pairs in which each rule picks the chosen answer; 0.5 is chance, and a tie counts half."""

    def share(rule: Callable[[Pair], float]) -> float:
        return statistics.fmean(rule(p) for p in pairs)

    return {
        "shorter wins": share(lambda p: _win(len(p.rejected) - len(p.chosen))),
        "finished wins": share(lambda p: 0.5 if p.rejected_finished else 1.0),
        "reference wins": share(lambda p: _win((p.chosen_from == "reference") - (p.rejected_from == "reference"))),
    }


def learned_rules(pairs: Sequence[Pair]) -> dict[str, float]:
    """The same for two rules that are learned from the other pairs: by the first word, and by the format alone.

    The rule picks the answer whose first word (or format: kinds of the first and last character, number of lines,
    list marks) was chosen more often than rejected in the other pairs.
    """
    return {"first word": _learned(pairs, _first_word), "format": _learned(pairs, _format)}


def _learned(pairs: Sequence[Pair], feature: Callable[[str], object]) -> float:
    features = [(feature(p.chosen), feature(p.rejected)) for p in pairs]
    tally: Counter[object] = Counter()
    for chosen, rejected in features:
        tally[chosen] += 1
        tally[rejected] -= 1
    wins = []
    for chosen, rejected in features:
        own = 0 if chosen == rejected else 1  # what this pair itself added to both
        wins.append(0.5 if chosen == rejected else _win((tally[chosen] - own) - (tally[rejected] + own)))
    return statistics.fmean(wins)


def _first_word(text: str) -> str:
    return (text.split() or [""])[0].lower()


def _format(text: str) -> tuple[str, str, int, bool]:
    """Kinds of the first and last character, number of lines up to 3, whether a line starts like a list item."""
    flat = text.strip()

    def kind(c: str) -> str:
        return "letter" if c.isalpha() else "digit" if c.isdigit() else c

    listed = any(line.lstrip()[:1] in {"-", "*", "\u2022"} for line in flat.splitlines())
    return kind(flat[:1]), kind(flat[-1:]), min(3, flat.count("\n") + 1), listed


def _win(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)

"""`judge_blind`: people compare answers before and after training without knowing which is which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import visible
from dpo_workbench.evaluation.run import Evaluation, matched_rows
from dpo_workbench.evaluation.statistics import Interval, prompts_needed, win_rate
from dpo_workbench.labelling.events import item_key
from dpo_workbench.labelling.labels import Labels, read_labels
from dpo_workbench.labelling.rubric import Rubric
from dpo_workbench.labelling.widget import Labeller, label, label_text
from dpo_workbench.pairs.pair import Pair, Pairs


@dataclass(frozen=True, repr=False)
class WinRate:
    """How often the answers after training were judged better. A tie counts half, and so do two equal answers."""

    names: tuple[str, str]  # before, after
    wins: int
    losses: int
    ties: int  # judged equally good or both bad
    equal: int  # prompts whose two answers are equal, so that nobody judges them
    missing: int  # prompts without a usable judgment; they don't count
    interval: Interval

    def needed(self, difference: float) -> int | None:
        """How many more judged prompts detect a win rate of 0.5 + difference / 2 (80 % power); None: over 20,000."""
        total = prompts_needed(difference, (self.wins + self.losses) / self.interval.n)
        return None if total is None else max(0, total - self.interval.n)

    def __repr__(self) -> str:
        i, (before, after) = self.interval, self.names
        text = (
            f"{after!r} against {before!r}: win rate {i.estimate:.2f} ({i.low:.2f} to {i.high:.2f}) on {i.n} prompts: "
            f"{self.wins} wins, {self.losses} losses, {self.ties} ties, {self.equal} equal answers (ties and equal "
            f"answers count half); {self.missing} without a usable judgment.\n"
        )
        if not i.low <= 0.5 <= i.high:
            return visible(f"{text}The answers of {(after if i.low > 0.5 else before)!r} are clearly preferred.")
        rates = sorted({i.estimate, 0.55} - {0.5})
        counts = [(rate, self.needed(2 * rate - 1)) for rate in rates]
        told = [f"{'over 20,000' if n is None else n} to detect a win rate of {rate:.2f}" for rate, n in counts]
        return visible(f"{text}Neither is clearly preferred. Judgments still needed: about {', '.join(told)}.")


@dataclass(frozen=True)
class Answers:
    """The answers of two models to the same prompts."""

    names: tuple[str, str]
    pairs: Pairs  # those that differ, in random order; `chosen` is the answer after training
    equal: list[str]  # the groups of the prompts whose two answers are equal

    def win_rate(self, votes: Mapping[str, float]) -> WinRate:
        """The win rate by votes per item key: above 0 for the answer after training, 0 for a tie."""
        judged = [(votes[key], str(pair.group)) for pair in self.pairs if (key := item_key(pair)) in votes]
        if not judged:
            raise WorkbenchError(f"A win rate needs judgments. Got none on {len(self.pairs)} pairs. Judge some first.")
        values, groups = zip(*judged, *((0.0, group) for group in self.equal), strict=True)
        wins, losses = [value > 0 for value in values], [value < 0 for value in values]
        counts = (sum(wins), sum(losses), len(judged) - sum(wins) - sum(losses), len(self.equal))
        return WinRate(self.names, *counts, len(self.pairs) - len(judged), win_rate(losses, wins, groups))


def paired_answers(before: Evaluation, after: Evaluation) -> Answers:
    """Match two evaluations by id. Raises if they are not of the same prompts, or if all answers are equal."""
    rows = matched_rows(before, after)
    differ = [(old, new) for old, new in rows if old.answer.strip() != new.answer.strip()]
    if not differ:
        raise WorkbenchError(
            f"Two models must differ in some answers. Got only equal answers of {before.name!r} and {after.name!r} to "
            f"{len(rows)} prompts. Check that these are the right files."
        )
    pairs = [Pair(old.id, old.prompt, new.answer, old.answer, group=old.group) for old, new in differ]
    equal = [old.group for old, new in rows if old.answer.strip() == new.answer.strip()]
    return Answers((before.name, after.name), Pairs(sorted(pairs, key=item_key)), equal)


def majority(labels: Labels) -> dict[str, float]:
    """Item key -> sum of the votes of all raters, above 0 for the answer after training. Both bad is a tie."""
    return {item: float(sum(vote.value or 0 for vote in votes)) for item, votes in labels.by_item.items()}


@dataclass(frozen=True, repr=False)
class Blind:
    """A rater's screen, and the votes of all who used the same label file."""

    answers: Answers
    store: str | Path
    screen: Labeller | None = None  # None in plain text

    @property
    def labels(self) -> Labels:
        """All votes, for `dw.agreement`."""
        return read_labels(self.store, self.answers.pairs)

    @property
    def win_rate(self) -> WinRate:
        """By the majority of the raters so far; even votes are a tie."""
        return self.answers.win_rate(majority(self.labels))

    def _ipython_display_(self) -> None:
        if self.screen is not None:
            self.screen._ipython_display_()

    def __repr__(self) -> str:
        return f"Blind: {len(self.answers.pairs)} pairs of different answers; votes are in {self.store}"


def judge_blind(
    before: Evaluation,
    after: Evaluation,
    *,
    rater: str,
    store: str | Path = "blind.jsonl",
    rubric: str | Path | Rubric | None = None,
    text: bool = False,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> Blind:
    """Compare answers before and after training, blind. The screen ends with the win rate.

    Sides are random, and names and scores are hidden. Pairs come in random order, so a part of them is a fair sample.
    Votes are saved as by `label`, and the same call continues. Several people may use one file. Equal answers are not
    shown.

    Args:
        before, after: evaluations of the same prompts, with or without scores (see `dw.read_evaluation`).
        rater, store, rubric: as in `label`.
        text: ask in plain text, with `read` and `write`, in place of the widget.
    """
    answers = paired_answers(before, after)
    if text:
        done = label_text(answers.pairs, rubric=rubric, rater=rater, store=store, read=read, write=write)
        blind = Blind(answers, store)
        write(repr(blind.win_rate) if done.finished else "The win rate is shown once all pairs are judged.")
        return blind
    screen = label(answers.pairs, rubric=rubric, rater=rater, store=store)
    blind = Blind(answers, store, screen)
    screen.closing = lambda: repr(blind.win_rate)
    screen.show()
    return blind

"""`judge_blind`: people compare answers before and after training without knowing which is which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import visible
from dpo_workbench.evaluation.run import Evaluation
from dpo_workbench.evaluation.statistics import Interval, prompts_needed, win_rate
from dpo_workbench.labelling.events import item_key
from dpo_workbench.labelling.labels import Labels, read_labels
from dpo_workbench.labelling.rubric import Rubric
from dpo_workbench.labelling.widget import Labeller, label, label_text
from dpo_workbench.pairs.pair import Pair, Pairs

SMALL_LEAD = 0.05  # a win rate this far from 0.5 is what a result without a clear winner should be able to detect


@dataclass(frozen=True, repr=False)
class WinRate:
    """How often the answers `after` training won. A tie counts half, and so do equal answers."""

    before: str  # names of the two
    after: str
    wins: int
    losses: int
    ties: int  # judged equally good, or both bad
    equal: int  # prompts with the same answer twice, which nobody has to judge
    interval: Interval
    missing: int  # prompts without a usable judgment, which don't count

    @property
    def clear(self) -> bool:
        """The interval excludes 0.5."""
        return not self.interval.low <= 0.5 <= self.interval.high

    def needed(self, difference: float | None = None) -> int | None:
        """About how many more judged prompts detect a difference with a power of 80 %; None if 20,000 don't suffice.

        Args:
            difference: wins minus losses, as a share of the prompts; default: the observed one.
        """
        n = self.interval.n
        observed = (self.wins - self.losses) / n
        total = prompts_needed(observed if difference is None else difference, (self.wins + self.losses) / n)
        return None if total is None else max(0, total - n)

    def __repr__(self) -> str:
        i = self.interval
        lines = [
            f"{self.after!r} against {self.before!r}: win rate {i.estimate:.2f} ({i.low:.2f} to {i.high:.2f}) on {i.n} "
            f"prompts: {self.wins} wins, {self.losses} losses, {self.ties + self.equal} ties ({self.equal} of them "
            "equal answers). A tie counts half."
        ]
        if self.missing:
            lines.append(f"{self.missing} prompts have no usable judgment and don't count.")
        if self.clear:
            better = self.after if i.low > 0.5 else self.before
            lines.append(f"The answers of {better!r} are clearly preferred.")
        else:
            told = {f"a win rate of {0.5 + SMALL_LEAD}": self.needed(2 * SMALL_LEAD)}
            if self.wins != self.losses:
                told = {"a difference of this size": self.needed()} | told
            numbers = [f"{'over 20,000' if n is None else n} more to detect {what}" for what, n in told.items()]
            lines.append(f"Neither is clearly preferred. Judgments still needed: about {'; '.join(numbers)}.")
        return visible("\n".join(lines))


@dataclass(frozen=True)
class Answers:
    """The answers of two models to the same prompts."""

    before: Evaluation
    after: Evaluation
    pairs: Pairs  # those that differ; `chosen` is the answer after training. In an order that depends on contents only
    keys: dict[str, str]  # pair id -> item key
    groups: dict[str, str]  # of every prompt, by row id

    def wins(self, votes: Mapping[str, float]) -> WinRate:
        """The win rate that follows from votes by item key: above 0 for the answer after training, 0 for a tie."""
        found = {i: votes[key] for i, key in self.keys.items() if key in votes}
        values = found | {i: 0.0 for i in self.groups if i not in self.keys}
        if not found:
            raise WorkbenchError(f"A win rate needs judgments. Got none of {len(self.pairs)}. Judge some pairs first.")
        wins, losses = [v > 0 for v in values.values()], [v < 0 for v in values.values()]
        interval = win_rate(losses, wins, [self.groups[i] for i in values])
        equal = len(self.groups) - len(self.keys)
        counts = (sum(wins), sum(losses), len(found) - sum(wins) - sum(losses), equal)
        missing = len(self.keys) - len(found)
        return WinRate(self.before.name, self.after.name, *counts, interval, missing)


def paired_answers(before: Evaluation, after: Evaluation) -> Answers:
    """Match two evaluations by id. Raises if they are not of the same prompts, or if all answers are equal."""
    old, new = ({row.id: row for row in run.rows} for run in (before, after))
    different = sorted(old.keys() ^ new.keys()) or [i for i in old if old[i].prompt != new[i].prompt]
    if different:
        raise WorkbenchError(
            f"Two models must have answered the same prompts. Got {len(old)} of {before.name!r} and {len(new)} of "
            f"{after.name!r}; {len(different)} ids are not the same in both, such as {different[0]!r}. Let both answer "
            "one split or one file of prompts."
        )
    pairs = [Pair(i, old[i].prompt, new[i].answer, old[i].answer, group=old[i].group) for i in old]
    keys = {p.id: item_key(p) for p in pairs if p.chosen.strip() != p.rejected.strip()}
    if not keys:
        raise WorkbenchError(
            f"There must be answers that differ. Got {len(old)} prompts with equal answers of {before.name!r} and "
            f"{after.name!r}. Check that the second model is the trained one."
        )
    judged = sorted((p for p in pairs if p.id in keys), key=lambda p: keys[p.id])
    return Answers(before, after, Pairs(judged), keys, {i: row.group for i, row in old.items()})


def majority(labels: Labels) -> dict[str, float]:
    """Item key -> sum of the raters' votes: above 0 for the answer after training. Both bad is a tie."""
    sums: dict[str, float] = defaultdict(float)
    for vote in labels.first:
        sums[vote.item] += vote.value or 0
    return dict(sums)


@dataclass(frozen=True, repr=False)
class Blind:
    """The screen of one person, and the win rate by the votes of all who used the same label file."""

    answers: Answers
    store: Path
    screen: Labeller | None = None

    @property
    def labels(self) -> Labels:
        """The votes, for `dw.agreement`."""
        return read_labels(self.store, self.answers.pairs)

    @property
    def win_rate(self) -> WinRate:
        """By the majority of the raters so far; even votes are a tie."""
        return self.answers.wins(majority(self.labels))

    def _ipython_display_(self) -> None:
        if self.screen is not None:
            self.screen._ipython_display_()

    def __repr__(self) -> str:
        return repr(self.win_rate) if self.screen is None else repr(self.screen)


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
    """Compare answers before and after training, blind; the screen ends with the win rate.

    Each prompt's two answers are shown side by side, on random sides, without names and scores. Pairs come in a random
    order, so the votes until any moment are a fair sample. Prompts with equal answers are not shown and count as ties.
    Votes are saved like those of `label`, and the same call continues. Several people may share a file.

    Args:
        before, after: evaluations of the same prompts, with or without scores (`dw.read_evaluation`).
        rater, store, rubric: as in `label`.
        text: ask in plain text, with `read` and `write`, and not in a widget.
    """
    answers = paired_answers(before, after)
    blind = Blind(answers, Path(store))
    if text:
        done = label_text(answers.pairs, rubric=rubric, rater=rater, store=store, read=read, write=write)
        write(repr(blind.win_rate) if done.finished else "The win rate is shown when all pairs are judged.")
        return blind
    screen = label(answers.pairs, rubric=rubric, rater=rater, store=store)
    screen.closing = lambda: repr(blind.win_rate)
    screen.show()
    return Blind(answers, Path(store), screen)

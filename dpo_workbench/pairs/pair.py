"""`Pair` and `Pairs`: a prompt with a better and a worse answer, and where each came from."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text

if TYPE_CHECKING:
    from dpo_workbench.tasks.task import Task

ORIGINS = ("reference", "own", "human")


@dataclass(frozen=True)
class Pair:
    """One preference: `chosen` is better than `rejected` as an answer to `prompt`."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_from: str = "human"  # reference, own (sampled from the model) or human
    rejected_from: str = "human"
    chosen_score: float | None = None  # the task's score, in [0, 1]
    rejected_score: float | None = None
    failure: str | None = None  # failure class of the rejected answer
    group: str = ""  # pairs of one group stay on one side of a split
    weight: float = 1.0  # how much the pair counts in the loss, beside the other pairs of a run
    rejected_finished: bool = True  # False: the rejected answer was cut at the token limit and gets no end token


class Pairs(Sequence[Pair]):
    """Checked pairs. They know the task they came from, so that training can score answers on the way.

    Args:
        rows: at least one pair.
        task: the task whose `score` judged them, if any.
    Raises:
        WorkbenchError: no rows, an empty text, an id twice, chosen equal to rejected, or a weight that is not positive.
    """

    def __init__(self, rows: Iterable[Pair], task: Task | None = None):
        self.rows = list(rows)
        self.task = task
        if not self.rows:
            raise WorkbenchError(
                "A pair set must have pairs. Got none. Mine more prompts or samples, or look at `found.headroom()`."
            )
        ids = Counter(p.id for p in self.rows)
        for pair in self.rows:
            if ids[pair.id] > 1:
                raise WorkbenchError(f"Pair ids must differ. Got {pair.id!r} {ids[pair.id]} times. Rename one.")
            if not (pair.prompt.strip() and pair.chosen.strip() and pair.rejected.strip()):
                raise WorkbenchError(
                    f"`prompt`, `chosen`, `rejected` must have text. Got an empty one in pair {pair.id!r}."
                )
            if pair.chosen.strip() == pair.rejected.strip() and pair.rejected_finished:
                raise WorkbenchError(
                    f"`rejected` must differ from `chosen`. Got the same text in pair {pair.id!r}. Drop the row "
                    "or edit it."
                )
            if not (isinstance(pair.weight, (int, float)) and 0 < pair.weight < math.inf):
                raise WorkbenchError(
                    f"`weight` must be a number above 0. Got {pair.weight!r} in pair {pair.id!r}. To leave a pair out, "
                    "drop its row."
                )

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> Pair | Pairs:
        return Pairs(self.rows[index], self.task) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.rows)

    def save(self, path: str | Path) -> Path:
        """Write JSONL, one pair a line, in one step; `weight` only where it is not 1."""
        rows = ({k: v for k, v in asdict(p).items() if (k, v) != ("weight", 1.0)} for p in self.rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(path), text)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, task: Task | None = None) -> Pairs:
        """Read what `save` wrote (JSONL with at least id, prompt, chosen, rejected), or a file of another layout.

        Raises:
            WorkbenchError: a row cannot be used; `read_pairs` reads the others.
        """
        path = Path(path)
        if not path.is_file():
            raise WorkbenchError(f"A pair file must exist. Got no file at {path}. Check the path.")
        data = path.read_bytes()
        if data.strip() and not _is_own(data.lstrip().split(b"\n", 1)[0]):
            from dpo_workbench.pairs.readers import read_pairs

            return cls(read_pairs(path).strict(), task)
        rows = []
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                pair = Pair(**json.loads(line.decode("utf-8")))
                if not all(isinstance(x, str) for x in (pair.id, pair.prompt, pair.chosen, pair.rejected)):
                    raise TypeError("id, prompt, chosen and rejected must be text")
                rows.append(pair)
            except (ValueError, TypeError, RecursionError) as error:
                raise WorkbenchError(
                    f"Each row must be a JSON object with id, prompt, chosen, rejected. Got {line[:60]!r} "
                    f"({path}:{number}: {error}). Mend or drop the row."
                ) from error
        return cls(rows, task)

    def shortcuts(self) -> dict[str, float]:
        """What a trivial rule would score on these pairs: the share in which it picks the chosen answer.

        0.5 is chance. A rule near 1.0 is a shortcut that training may learn instead of the task.
        """

        def share(rule) -> float:
            return statistics.fmean(rule(p) for p in self.rows)

        return {
            "shorter wins": share(lambda p: _half(len(p.rejected) - len(p.chosen))),
            "finished wins": share(lambda p: 0.5 if p.rejected_finished else 1.0),
            "reference wins": share(lambda p: _half((p.chosen_from == "reference") - (p.rejected_from == "reference"))),
        }

    def shortcut_report(self) -> dict[str, float]:
        """`shortcuts`, and two rules that are learned: what the first word, or the format alone, would score.

        Each pair is judged by all others: the answer whose first word (or format: first and last kind of character,
        lines, list marks) was chosen more often among them, net, is picked; a tie counts half.
        """
        return self.shortcuts() | {"first word": self._learned(_first_word), "format": self._learned(_format)}

    def _learned(self, key: Callable[[str], object]) -> float:
        """Share of the pairs in which a tally of `key` over the other pairs picks the chosen answer."""
        keys = [(key(p.chosen), key(p.rejected)) for p in self.rows]
        tally: Counter[object] = Counter()
        for chosen, rejected in keys:
            tally[chosen] += 1
            tally[rejected] -= 1
        found = []
        for chosen, rejected in keys:
            own = 0 if chosen == rejected else 1  # what this pair itself added to both
            found.append(0.5 if chosen == rejected else _half((tally[chosen] - own) - (tally[rejected] + own)))
        return statistics.fmean(found)

    def even(self, most: int | None = None) -> Pairs:
        """As many pairs with the longer answer chosen as with the shorter one, own good answers first.

        Lost rows make short failures and repeated rows long ones. Where one kind prevails, DPO learns "write more" (or
        less) and trades one class for the other. If all pairs lie on one side, all stay.

        Args:
            most: at most so many pairs.
        """
        rows = sorted(self.rows, key=lambda p: p.chosen_from != "own")
        longer = [p for p in rows if len(p.chosen) > len(p.rejected)]
        shorter = [p for p in rows if len(p.chosen) < len(p.rejected)]
        level = [p for p in rows if len(p.chosen) == len(p.rejected)]
        both = [p for two in zip(longer, shorter, strict=False) for p in two] or longer or shorter
        return Pairs((both + level)[:most], self.task)

    def summary(self) -> dict[str, object]:
        """Counts by failure class and origin, and the shortcuts."""
        return {
            "pairs": len(self),
            "groups": len({p.group for p in self.rows}),
            "rejected by class": dict(Counter(p.failure or "unknown" for p in self.rows).most_common()),
            "chosen from": dict(Counter(p.chosen_from for p in self.rows).most_common()),
            "shortcuts": {k: round(v, 3) for k, v in self.shortcuts().items()},
        }

    def __repr__(self) -> str:
        facts = self.summary()
        lines = [f"Pairs: {facts['pairs']} in {facts['groups']} groups"]
        lines += [f"  {key}: {_words(facts[key])}" for key in ("rejected by class", "chosen from")]
        lines.append(f"  a trivial rule would pick the chosen answer: {_words(facts['shortcuts'])}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def _is_own(line: bytes) -> bool:
    """Whether a line has the four texts that each row of `save` has."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and all(isinstance(row.get(k), str) for k in ("id", "prompt", "chosen", "rejected"))


def _first_word(text: str) -> str:
    return (text.split() or [""])[0].lower()


def _format(text: str) -> tuple[str, str, int, bool]:
    """Kind of the first and last character, number of lines up to 3, whether a line begins like a list's."""
    flat = text.strip()

    def kind(c: str) -> str:
        return "letter" if c.isalpha() else "digit" if c.isdigit() else c

    listed = any(line.lstrip()[:1] in {"-", "*", "\u2022"} for line in flat.splitlines())
    return (kind(flat[:1]), kind(flat[-1:]), min(3, flat.count("\n") + 1), listed)


def _half(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _words(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{key} {value}" for key, value in counts.items())

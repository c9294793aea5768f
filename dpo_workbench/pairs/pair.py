"""`Pairs`, a checked set of preference pairs, and `read_pairs`, the one way in which files become pairs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text
from dpo_workbench.common.hub import card, code_block, upload
from dpo_workbench.pairs.checks import fixed_rules, learned_rules, pair_problems, text_problems
from dpo_workbench.pairs.codes import CODES, Finding, stop
from dpo_workbench.pairs.messages import messages_of
from dpo_workbench.pairs.preference import Pair
from dpo_workbench.pairs.reader import read_rows

__all__ = ["Pair", "Pairs", "ReadResult", "read_pairs"]
_TOLD_ON_LOADING = ("P110", "P210", "P212", "P401", "P411", "P412")


class Pairs(Sequence[Pair]):
    """Checked pairs. They know the task they came from, so that training can score answers on the way.

    Args:
        rows: at least one pair.
        task: the `Task` whose `score` judged them, if any. (Its room imports this one, so its type is not named.)

    Raises:
        WorkbenchError: no rows, an id twice, or a pair that cannot be trained on; names the pair.
    """

    def __init__(self, rows: Iterable[Pair], task: Any = None):
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
            _check(pair)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> Pair | Pairs:
        return Pairs(self.rows[index], self.task) if isinstance(index, slice) else self.rows[index]

    def save(self, path: str | Path) -> Path:
        """Write JSONL, one pair per line (see `pair_rows`), in one step; `weight` only where it is not 1."""
        rows = ({k: v for k, v in row.items() if (k, v) != ("weight", 1.0)} for row in pair_rows(self.rows))
        write_text(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return Path(path)

    def to_dataset(self) -> Any:
        """A `datasets.Dataset`, one row per pair. If a prompt has turns, all prompts and answers are messages."""
        from datasets import Dataset

        return Dataset.from_list(pair_rows(self.rows))

    @classmethod
    def from_dataset(cls, dataset: Any, task: Any = None) -> Pairs:
        """The pairs of a `datasets.Dataset` in any layout that `read_pairs` reads. Prints and raises as `load` does."""
        return cls.load(dataset, task)

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Upload all pairs, texts included, as a data set, and return its address. Arguments as in `dw.publish`."""
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "data" / "train-00000-of-00001.parquet"  # so named, it is the split `train`
            file.parent.mkdir()
            self.to_dataset().to_parquet(file)
            page = f"# Preference pairs\n\n{code_block(self)}"
            write_text(Path(scratch) / "README.md", card({"tags": ["dpo", "dpo-workbench"]}, page))
            return upload(Path(scratch), repo_id, private=private, kind="dataset")

    @classmethod
    def load(cls, path: Any, task: Any = None) -> Pairs:
        """Read any source that `read_pairs` reads, such as what `save` wrote. Prints what was left out or interpreted.

        Raises:
            WorkbenchError: a row was refused; `read_pairs` reads the others.
        """
        result = read_pairs(path)
        if result.refused:
            raise result._error("All rows must be usable.")
        pairs = cls(result.pairs, task)
        for code in _TOLD_ON_LOADING:
            if n := result.counts[code]:
                what = f"{code}, {n} time{'s' if n > 1 else ''}: {CODES[code].rule} {CODES[code].advice}"
                print(f"{result.source}: {what}")
        return pairs

    def shortcuts(self) -> dict[str, float]:
        """The share of pairs in which a trivial rule picks the chosen answer: 0.5 is chance, near 1 is a shortcut."""
        return fixed_rules(self.rows)

    def shortcut_report(self) -> dict[str, float]:
        """`shortcuts`, and two rules that are learned from the pairs: by the first word, and by the format alone."""
        return fixed_rules(self.rows) | learned_rules(self.rows)

    def summary(self) -> dict[str, Any]:
        """Counts of pairs, prompts, groups (prompts where there are none), failures and origins, and the shortcuts."""
        return {
            "pairs": len(self),
            "prompts": len({p.prompt for p in self.rows}),
            "groups": len({p.split_key for p in self.rows}),
            "rejected by class": dict(Counter(p.failure or "unknown" for p in self.rows).most_common()),
            "chosen from": dict(Counter(p.chosen_from for p in self.rows).most_common()),
            "shortcuts": {k: round(v, 3) for k, v in self.shortcuts().items()},
        }

    def __repr__(self) -> str:
        facts, kind = self.summary(), "groups" if any(p.group for p in self.rows) else "prompts"
        lines = [f"Pairs: {facts['pairs']} in {facts[kind]} {kind if facts[kind] != 1 else kind[:-1]}"]
        lines += [f"  {key}: {_counted(facts[key])}" for key in ("rejected by class", "chosen from")]
        lines.append(f"  a trivial rule would pick the chosen answer: {_counted(facts['shortcuts'])}")
        return "\n".join(lines)


def pair_rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The pairs as plain values. If a prompt has turns, all texts are messages (TRL's conversational format)."""
    rows = [asdict(pair) for pair in pairs]
    if all(isinstance(pair.prompt, str) for pair in pairs):
        return rows
    said = [{name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")} for row in rows]
    return [row | {"prompt": messages_of(p.prompt)} | both for row, p, both in zip(rows, pairs, said, strict=True)]


def _check(pair: Pair) -> None:
    """The checks that `read_pairs` makes, for pairs that were made in other ways."""
    texts = {name: getattr(pair, name) for name in ("id", "group", "chosen", "rejected")}
    texts["prompt"] = pair.prompt_as_text
    for name, value in texts.items():
        if not isinstance(value, str):
            raise WorkbenchError(f"`{name}` must be text. Got {value!r:.60} in pair {pair.id!r}. Write it as text.")
    needed = [(name, value) for name, value in texts.items() if value.strip() or name not in ("id", "group")]
    for code, name, got in [*(n for text in needed for n in text_problems(*text)), *pair_problems(pair)]:
        if CODES[code].severity == "error":
            raise stop(code, got, f"`{name}` of pair {pair.id!r}")
    if not (isinstance(pair.weight, (int, float)) and 0 < pair.weight < math.inf):
        raise stop("P108", repr(pair.weight), f"`weight` of pair {pair.id!r}", "Write a number above 0 here.")


def _counted(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in counts.items())


@dataclass
class ReadResult:
    """What `read_pairs` read. Each row is counted once: `rows == kept + refused + merged + skipped`."""

    source: str
    layout: str
    rows: int
    kept: int
    refused: int
    merged: int  # exact copies of an earlier row
    skipped: int  # fine, but without a winner or without a second answer to compare with
    findings: list[Finding]
    found: list[Pair]

    @property
    def counts(self) -> Counter[str]:
        """The number of findings of each code."""
        return Counter(finding.code for finding in self.findings)

    @property
    def pairs(self) -> Pairs:
        """The pairs of the rows that were kept. Raises WorkbenchError if there are none."""
        if not self.found:
            raise self._error("A file must have a row that can be used.")
        return Pairs(self.found)

    def to_dict(self) -> dict[str, Any]:
        """The counts and findings as plain values."""
        return {key: value for key, value in asdict(self).items() if key != "found"}

    def _error(self, must: str) -> WorkbenchError:
        problems = [str(f) for f in self.findings if f.severity in ("error", "skipped")]
        skipped = f" and {self.skipped} skipped" if self.skipped else ""
        return WorkbenchError(
            f"{must} Got {self.refused} refused{skipped} of {self.rows}: {' '.join(problems[:3])} Fix or drop the "
            f"{'row' if self.refused == 1 else 'rows'}; `dpo-workbench check {self.source}` shows all."
        )

    def __repr__(self) -> str:
        lines = [f"{self.source}: layout {self.layout}"]
        for code, count in sorted(self.counts.items(), key=lambda item: (CODES[item[0]].severity != "error", item[0])):
            lines.append(f"{code} {CODES[code].severity}, {count} time{'s' if count > 1 else ''}: {CODES[code].rule}")
            stored = [f for f in self.findings if f.code == code]
            for f in stored[:3]:
                where = f"{self.source}:{f.line}" if f.line else "the whole set"
                lines.append(f"    {where}{f' `{f.field}`' if f.field else ''}{f': {f.excerpt}' if f.excerpt else ''}")
            if count > 3:
                lines.append(f"    and {count - 3} more in .findings")
            lines.append(f"    fix: {' '.join(dict.fromkeys(f.fix for f in stored[:3]))}")
        skipped = f" + {self.skipped} skipped" if self.skipped else ""
        lines.append(
            f"{self.rows} rows read = {self.kept} kept + {self.refused} refused + {self.merged} merged{skipped}; "
            f"{len(self.found)} pairs"
        )
        return "\n".join(lines)


def read_pairs(source: Any, *, mapping: Mapping[str, str] | None = None) -> ReadResult:
    """Read preference data and check every row: good rows become pairs, bad rows are refused and reported.

    Args:
        source: path of a JSONL, JSON, CSV, TSV or Parquet file (also .gz), `hub:owner/name` or `hub:owner/name@split`
            (`train` by default), a pandas DataFrame, a `datasets` object, or a list of dicts.
        mapping: the file's names of our columns, such as `{"prompt": "question"}`.

    Raises:
        WorkbenchError: nothing could be read, or the columns match no known layout.
    """
    done = read_rows(source, mapping or {})
    layout = f"{done.layout.name} ({done.layout.what}), {done.source.kind}"
    return ReadResult(done.source.name, layout, done.rows, **done.ends, findings=done.findings, found=done.pairs)

"""Splits that keep groups and prompts together, and leaks between splits: prompts and groups that are in both."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.messages import prompt_as_text
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.pairs.preference import Pair, normal

T = TypeVar("T")
Form = tuple[str, frozenset[str]]  # what is compared of a prompt: its text in normal form, its own words
NEAR = 0.8  # Jaccard index of the words of two prompts
COMMON_LINE, MANY = 0.2, 20  # a line that this share of at least so many prompts contain is not compared
_WORDS = re.compile(r"\w+")
# scripts without spaces between words: kana, Han, Thai, Lao, Khmer, Burmese
_LETTERS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


def split_pairs(pairs: Iterable[Pair], shares: Mapping[str, float] | None = None, *, seed: int = 0) -> dict[str, Pairs]:
    """Divide pairs into splits so that no `group` and no prompt is in two of them.

    Args:
        pairs: in any order. Set their `group` if more than the prompt must stay together: a document, a customer.
        shares: of the pairs, by split; 0.8 train, 0.1 dev and 0.1 test by default. Groups stay whole, so the shares are
            met as closely as the groups allow.
        seed: of the drawing.

    Raises:
        WorkbenchError: shares that are not positive, or fewer groups than splits.
    """
    rows = list(pairs)
    groups: dict[str, list[Pair]] = defaultdict(list)
    for key, pair in zip(split_keys(rows), rows, strict=True):
        groups[key].append(pair)
    parts = deal(groups, shares or {"train": 0.8, "dev": 0.1, "test": 0.1}, seed)
    return {name: Pairs(part, getattr(pairs, "task", None)) for name, part in parts.items()}


def split_keys(pairs: Sequence[Pair]) -> list[str]:
    """A key for each pair; pairs that share a group or a prompt, directly or through others, get the same key.

    This is stricter than `Pair.split_key` when a prompt occurs in several groups.
    """
    from scipy.cluster.hierarchy import DisjointSet

    prompts = [("prompt", normal(pair.prompt_as_text)) for pair in pairs]
    sets = DisjointSet(prompts)
    for pair, prompt in zip(pairs, prompts, strict=True):
        if pair.group:
            sets.add(("group", pair.group))
            sets.merge(prompt, ("group", pair.group))
    keys: dict[Any, str] = {}
    for pair, prompt in zip(pairs, prompts, strict=True):
        keys[sets[prompt]] = min(keys.get(sets[prompt], pair.split_key), pair.split_key)
    return [keys[sets[prompt]] for prompt in prompts]


def deal(groups: Mapping[str, Sequence[T]], shares: Mapping[str, float], seed: int = 0) -> dict[str, list[T]]:
    """Divide whole groups into splits, as close to the shares of the rows as they allow. See `split_pairs`."""
    if min(shares.values()) <= 0:
        raise WorkbenchError(f"Shares must be above 0. Got {dict(shares)}. Leave out the split that you do not want.")
    if len(groups) < len(shares):
        raise WorkbenchError(
            f"{len(shares)} splits need as many groups. Got {len(groups)}. Add rows with other prompts, or set `group` "
            "to something narrower: a document, a customer, a template."
        )
    parts: dict[str, list[T]] = {name: [] for name in shares}
    whole, n_rows = sum(shares.values()), sum(map(len, groups.values()))
    goals = {name: share / whole * n_rows for name, share in shares.items()}
    for k, group in enumerate(sorted(groups, key=lambda name: drawn(name, seed))):
        empty = [s for s in parts if not parts[s]]  # they come first when groups run short
        open_parts = empty if len(groups) - k <= len(empty) else parts
        parts[max(open_parts, key=lambda s: 1 - len(parts[s]) / goals[s])] += groups[group]
    return parts


def drawn(group: str, seed: int) -> bytes:
    """A key that sorts groups in the random order of `seed`, whatever the order of the rows."""
    return hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Leak:
    """Two rows of different splits that ask the same."""

    kind: str  # exact: equal except for case, spaces and Unicode form; near: nearly the same words
    splits: tuple[str, str]
    ids: tuple[str, str]
    jaccard: float
    excerpts: tuple[str, str]


@dataclass(frozen=True)
class Leaks:
    """What `find_leaks` found. `clean` returns the splits without it."""

    leaks: tuple[Leak, ...]
    near: float
    shared_groups: dict[tuple[str, str], tuple[str, ...]]  # groups that are in two splits
    splits: Mapping[str, Sequence[Any]] = field(repr=False, compare=False)

    def clean(self) -> dict[str, Any]:
        """The splits without leaked rows; of two rows, the one in the split that was named first is dropped."""
        gone = {(leak.splits[0], leak.ids[0]) for leak in self.leaks}
        made: dict[str, Any] = {}
        for name, rows in self.splits.items():
            kept = [row for k, row in enumerate(rows) if (name, _id(row, k)) not in gone]
            if rows and not kept:
                raise WorkbenchError(
                    f"A split must have rows. Got {name!r}, in which every row is like one of another split. Split the "
                    "rows again: `split_pairs` keeps equal prompts together, and a `group` keeps similar ones together."
                )
            made[name] = Pairs(kept, rows.task) if isinstance(rows, Pairs) else kept
        return made

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in self.splits.items())
        if not self.leaks and not self.shared_groups:
            return f"No prompt of one split is in another ({sizes}; equal, or Jaccard of {self.near:g} or more)."
        exact, near = (sum(leak.kind == kind for leak in self.leaks) for kind in ("exact", "near"))
        lines = [f"{exact} equal and {near} nearly equal prompts across splits ({sizes}; Jaccard >= {self.near:g})"]
        for leak in self.leaks[:5]:
            one, other = (f"{s} {i!r}" for s, i in zip(leak.splits, leak.ids, strict=True))
            lines.append(f"  {leak.kind}, {leak.jaccard:.2f}: {one} and {other}: {leak.excerpts[0]}")
        if len(self.leaks) > 5:
            lines.append(f"  and {len(self.leaks) - 5} more in .leaks")
        for (first, second), groups in self.shared_groups.items():
            lines.append(f"  {len(groups)} groups are in {first} and in {second}: {', '.join(groups[:5])}")
        lines.append("  fix: clean() drops them from the split that was named first; split_pairs keeps groups whole")
        return "\n".join(lines)


def find_leaks(splits: Mapping[str, Sequence[Any]] | Any, *, near: float = NEAR) -> Leaks:
    """Prompts that are in two splits, equal or nearly equal, and groups that are in both.

    Two prompts are nearly equal if the Jaccard index of their sets of words is at least `near` (numbers count, case and
    punctuation don't; in scripts without spaces, characters are the words). Lines that a fifth of all prompts contain,
    such as the task's instruction, are left out. Each leaked row is named with the most similar one of the other split.

    Args:
        splits: name -> rows with `id` and `prompt` (pairs or examples), or texts; the one to be cleaned first. Or a
            `Task`, whose splits are compared.
        near: the Jaccard index, above 0.5.

    Raises:
        WorkbenchError: fewer than two splits, or `near` out of its range.
    """
    splits = getattr(splits, "splits", splits)
    if not isinstance(splits, Mapping) or len(splits) < 2:
        raise WorkbenchError("Leaks are between splits. Got fewer than two. Pass {'train': ..., 'test': ...}.")
    if not 0.5 < near <= 1:
        raise WorkbenchError(f"`near` must be above 0.5 and at most 1. Got {near}. Below, prompts are merely similar.")
    texts = {name: [prompt_as_text(getattr(row, "prompt", row)) for row in rows] for name, rows in splits.items()}
    different = {normal(text): text for split in texts.values() for text in split}.values()
    counts = Counter(line for text in different for line in set(map(normal, text.splitlines())))
    instruction = {line for line, n in counts.items() if len(different) >= MANY and n >= COMMON_LINE * len(different)}
    forms = {name: [(normal(text), _words(text, instruction)) for text in split] for name, split in texts.items()}
    groups = {name: {group for row in rows if (group := getattr(row, "group", ""))} for name, rows in splits.items()}
    leaks, shared_groups = [], {}
    for one, other in itertools.combinations(splits, 2):
        found = {(i, j): jaccard for i, j, jaccard in _nearest(forms[one], forms[other], near)}
        found |= {(i, j): jaccard for j, i, jaccard in _nearest(forms[other], forms[one], near)}
        for (i, j), jaccard in found.items():
            kind = "exact" if forms[one][i][0] == forms[other][j][0] else "near"
            excerpts = (" ".join(texts[one][i].split())[:80], " ".join(texts[other][j].split())[:80])
            ids = (_id(splits[one][i], i), _id(splits[other][j], j))
            leaks.append(Leak(kind, (one, other), ids, jaccard, excerpts))
        if both := groups[one] & groups[other]:
            shared_groups[one, other] = tuple(sorted(both))
    leaks.sort(key=lambda leak: (leak.kind, -leak.jaccard))
    return Leaks(tuple(leaks), near, shared_groups, splits)


def _nearest(ones: Sequence[Form], others: Sequence[Form], near: float) -> Iterator[tuple[int, int, float]]:
    """Places of prompts with the first equal, else the most similar prompt of the other side, and the Jaccard index."""
    equal: dict[str, int] = {}  # text -> the first prompt of the other side with it
    having: dict[str, list[int]] = defaultdict(list)  # word -> the prompts of the other side with it
    for j, (text, words) in enumerate(others):
        equal.setdefault(text, j)
        for word in words:
            having[word].append(j)
    places = {word: numpy.array(found) for word, found in having.items()}
    sizes = numpy.array([len(words) for _, words in others])
    for i, (text, words) in enumerate(ones):
        known = [places[word] for word in words if word in places]
        if text in equal:
            yield i, equal[text], 1.0
        elif known:
            n_shared = numpy.bincount(numpy.concatenate(known), minlength=len(others))
            jaccard = n_shared / (len(words) + sizes - n_shared)
            if jaccard.max() >= near:
                yield i, int(jaccard.argmax()), float(jaccard.max())


def _words(text: str, instruction: set[str]) -> frozenset[str]:
    """The words of the lines that are the prompt's own, or of all lines if none is."""
    lines = [normal(line) for line in text.splitlines()]
    own = " ".join(line for line in lines if line not in instruction) or " ".join(lines)
    own = _LETTERS.sub(r" \g<0> ", own)
    return frozenset(_WORDS.findall(own) or own.split() or [""])


def _id(row: Any, k: int) -> str:
    """A row's id; the number of a text, from 1."""
    return str(k + 1) if isinstance(row, str) else row.id

"""Splits that keep groups and prompts together, and leaks between splits: prompts and groups that are in both."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.pairs.preference import Pair, normal, split_keys

T = TypeVar("T")
NEAR = 0.8  # Jaccard index of the words of two prompts
COMMON_LINE, MANY = 0.2, 20  # a line that this share of at least so many prompts contain is not compared
_WORDS = re.compile(r"\w+")
# scripts without spaces between words: kana, Han, Thai, Lao, Khmer, Burmese
_LETTERS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


def split_pairs(pairs: Iterable[Pair], shares: Mapping[str, float] | None = None, *, seed: int = 0) -> dict[str, Pairs]:
    """Divide pairs into splits so that no `group` and no prompt is in two of them.

    Which split a group goes to depends on its name, the seed and the other groups, not on the order of the rows.

    Args:
        pairs: set their `group` if more than the prompt must stay together: a document, a customer, a template.
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
    whole = sum(shares.values())
    n_rows = sum(map(len, groups.values()))

    def missing(name: str) -> float:
        """How far the split is from its share, as a part of it."""
        return 1 - len(parts[name]) / (shares[name] / whole * n_rows)

    names = sorted(groups, key=lambda group: drawn(group, seed))
    for left, name in zip(range(len(names), 0, -1), names, strict=True):
        empty = [s for s in parts if not parts[s]]  # they come first when groups run short
        parts[max(empty if left <= len(empty) else parts, key=missing)] += groups[name]
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

    @property
    def counts(self) -> Counter[str]:
        """How many leaks of each kind there are."""
        return Counter(leak.kind for leak in self.leaks)

    def clean(self) -> dict[str, Any]:
        """The splits without leaked rows; of two rows, the one in the split that was named first is dropped."""
        gone: dict[str, set[str]] = defaultdict(set)
        for leak in self.leaks:
            gone[leak.splits[0]].add(leak.ids[0])
        made: dict[str, Any] = {}
        for name, rows in self.splits.items():
            kept = [row for k, row in enumerate(rows) if _id(row, k) not in gone[name]]
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
        exact, near = self.counts["exact"], self.counts["near"]
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
    such as the task's instruction, are left out of this comparison. Every leaked row is named at least once, with the
    most similar row of the other split.

    Args:
        splits: name -> rows with `id` and `prompt` (pairs or examples), or texts; the one to be cleaned first, as in
            {"train": ..., "test": ...}. Or a `Task`, whose splits are compared.
        near: the Jaccard index, above 0.5.

    Raises:
        WorkbenchError: fewer than two splits, or `near` out of its range.
    """
    splits = getattr(splits, "splits", splits)
    if not isinstance(splits, Mapping) or len(splits) < 2:
        raise WorkbenchError("Leaks are between splits. Got fewer than two. Pass {'train': ..., 'test': ...}.")
    if not 0.5 < near <= 1:
        raise WorkbenchError(f"`near` must be above 0.5 and at most 1. Got {near}. Below, prompts are merely similar.")
    texts = {name: [row if isinstance(row, str) else row.prompt for row in rows] for name, rows in splits.items()}
    common = _common_lines({normal(text): text for split in texts.values() for text in split}.values())
    words = {name: [_words(text, common) for text in split] for name, split in texts.items()}
    leaks = []
    for names in itertools.combinations(splits, 2):
        one, other = names
        equal = _equal(texts[one], texts[other])
        rest = [sorted(set(range(len(texts[name]))) - {ij[k] for ij in equal}) for k, name in enumerate(names)]
        similar = _similar([words[one][i] for i in rest[0]], [words[other][j] for j in rest[1]], near)
        found = [("exact", i, j, 1.0) for i, j in equal]
        found += [("near", rest[0][i], rest[1][j], jaccard) for (i, j), jaccard in similar.items()]
        for kind, i, j, jaccard in found:
            excerpts = (" ".join(texts[one][i].split())[:80], " ".join(texts[other][j].split())[:80])
            leaks.append(Leak(kind, names, (_id(splits[one][i], i), _id(splits[other][j], j)), jaccard, excerpts))
    leaks.sort(key=lambda leak: (leak.kind, -leak.jaccard))
    return Leaks(tuple(leaks), near, _shared_groups(splits), splits)


def _equal(ones: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """Places of equal texts: each text that has an equal one on the other side, with the first such one."""
    places: list[dict[str, list[int]]] = [defaultdict(list), defaultdict(list)]
    for side, texts in zip(places, (ones, others), strict=True):
        for k, text in enumerate(texts):
            side[normal(text)].append(k)
    found: dict[tuple[int, int], None] = {}
    for form in places[0].keys() & places[1].keys():
        left, right = places[0][form], places[1][form]
        found |= dict.fromkeys([(i, right[0]) for i in left] + [(left[0], j) for j in right])
    return sorted(found)


def _similar(
    ones: Sequence[frozenset[str]], others: Sequence[frozenset[str]], near: float
) -> dict[tuple[int, int], float]:
    """Places of nearly equal sets and their Jaccard index: each set with the most similar one of the other side."""
    from scipy.sparse import csr_matrix

    if not ones or not others:
        return {}
    columns = {word: k for k, word in enumerate(frozenset().union(*ones, *others))}

    def matrix(sets: Sequence[frozenset[str]]) -> Any:
        """One row per set, with a 1 for each word, so that a product of matrices counts common words."""
        places = [columns[word] for words in sets for word in words]
        starts = numpy.cumsum([0, *map(len, sets)])
        return csr_matrix((numpy.ones(len(places), numpy.int32), places, starts), shape=(len(sets), len(columns)))

    left, right = matrix(ones), matrix(others).T.tocsr()
    sizes = numpy.array([len(words) for words in others])
    best, place = numpy.zeros(len(others)), numpy.zeros(len(others), numpy.int64)  # of each set of the other side
    found: dict[tuple[int, int], float] = {}
    for i, words in enumerate(ones):
        common = (left[i] @ right).toarray()[0]
        jaccard = common / (len(words) + sizes - common)
        j = int(jaccard.argmax())
        if jaccard[j] >= near:
            found[i, j] = float(jaccard[j])
        better = jaccard > best
        best[better], place[better] = jaccard[better], i
    return found | {(int(place[j]), j): float(best[j]) for j in range(len(others)) if best[j] >= near}


def _common_lines(texts: Iterable[str]) -> set[str]:
    """The lines that so many prompts contain that they must be the task's instruction."""
    lines = [set(map(normal, text.splitlines())) for text in texts]
    counts = Counter(itertools.chain.from_iterable(lines))
    return {line for line, n in counts.items() if len(lines) >= MANY and n >= COMMON_LINE * len(lines)}


def _words(text: str, common_lines: set[str]) -> frozenset[str]:
    """The words of the lines that are the prompt's own, or of all lines if none is."""
    lines = [normal(line) for line in text.splitlines()]
    own = " ".join(line for line in lines if line not in common_lines) or " ".join(lines)
    own = _LETTERS.sub(r" \g<0> ", own)
    return frozenset(_WORDS.findall(own) or own.split() or [""])


def _shared_groups(splits: Mapping[str, Sequence[Any]]) -> dict[tuple[str, str], tuple[str, ...]]:
    groups = {name: {g for row in rows if (g := getattr(row, "group", ""))} for name, rows in splits.items()}
    found = {(a, b): groups[a] & groups[b] for a, b in itertools.combinations(groups, 2)}
    return {names: tuple(sorted(both)) for names, both in found.items() if both}


def _id(row: Any, k: int) -> str:
    """A row's id; the number of a text, from 1."""
    return str(k + 1) if isinstance(row, str) else row.id

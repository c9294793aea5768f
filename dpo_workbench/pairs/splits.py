"""Splits that keep groups and prompts together, and leaks between splits: prompts and groups that are in both."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import pre
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.pairs.preference import Pair, normal, split_keys

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")
NEAR = 0.8  # Jaccard index of the words of two prompts
OWN = 0.6  # the same without the words of the task's instruction, where that is what makes prompts alike
TEMPLATE, MANY = 0.2, 20  # a line that this share of at least so many prompts contain belongs to the instruction
_ENTRIES = 2_000_000  # comparisons in memory at a time
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
    rows: dict[str, int]  # by split
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

    def to_dict(self) -> dict[str, Any]:
        """Counts and leaks as plain values for JSON."""
        groups = [{"splits": list(names), "groups": list(found)} for names, found in self.shared_groups.items()]
        leaks = [asdict(leak) for leak in self.leaks]
        counts = dict(self.counts)
        return {"rows": self.rows, "near": self.near, "counts": counts, "shared_groups": groups, "leaks": leaks}

    def to_dataframe(self) -> pandas.DataFrame:
        """One leak per row."""
        import pandas

        names = ("kind", "split", "id", "text", "other_split", "other_id", "other_text", "jaccard")
        sides = [tuple(zip(k.splits, k.ids, k.excerpts, strict=True)) for k in self.leaks]
        rows = [(k.kind, *one, *other, k.jaccard) for k, (one, other) in zip(self.leaks, sides, strict=True)]
        return pandas.DataFrame(rows, columns=names)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {n}" for name, n in self.rows.items())
        if not self.leaks and not self.shared_groups:
            return f"No prompt of one split is in another ({sizes}; equal, or Jaccard of {self.near:g} or more)."
        exact, near = self.counts["exact"], self.counts["near"]
        lines = [f"{exact} equal and {near} nearly equal prompts across splits ({sizes}; Jaccard >= {self.near:g})"]
        for leak in self.leaks[:5]:
            one, other = (f"{s} {i!r}" for s, i in zip(leak.splits, leak.ids, strict=True))
            lines += [f"  {leak.kind}, {leak.jaccard:.2f}: {one} and {other}: {leak.excerpts[0]}"]
        if len(self.leaks) > 5:
            lines.append(f"  and {len(self.leaks) - 5} more; to_dataframe() has all")
        for (one, other), groups in self.shared_groups.items():
            lines.append(f"  {len(groups)} groups are in {one} and in {other}: {', '.join(groups[:5])}")
        lines.append("  fix: clean() drops them from the split that was named first; split_pairs keeps groups whole")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return pre(repr(self))


def find_leaks(splits: Mapping[str, Sequence[Any]] | Any, *, near: float = NEAR) -> Leaks:
    """Prompts that are in two splits, equal or nearly equal, and groups that are in both.

    Two prompts are nearly equal if the Jaccard index of their sets of words is at least `near` (numbers count, case and
    punctuation don't; in scripts without spaces, characters are the words). If prompts contain the task's instruction,
    that is, lines that a fifth of all prompts have, their other words must also have an index of at least 0.6. Every
    leaked row is named at least once, with the most similar row of the other split.

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
    rows = {name: _by_text(split) for name, split in splits.items()}
    instruction = _instruction_words([members[0][1] for forms in rows.values() for members in forms.values()])
    leaks = []
    for names in itertools.combinations(rows, 2):
        one, other = (rows[name] for name in names)
        exact = [(form, form, 1.0) for form in one if form in other]
        rest = [[form for form in forms if not (form in one and form in other)] for forms in (one, other)]
        for kind, found in (("exact", exact), ("near", _nearest(rest[0], rest[1], instruction, near))):
            for form, other_form, jaccard in found:
                for two in _each_once(one[form], other[other_form]):
                    ids, excerpts = (two[0][0], two[1][0]), tuple(" ".join(text.split())[:80] for _, text in two)
                    leaks.append(Leak(kind, names, ids, jaccard, excerpts))  # type: ignore[arg-type]
    leaks.sort(key=lambda leak: (leak.kind, -leak.jaccard))
    sizes = {name: len(split) for name, split in splits.items()}
    return Leaks(tuple(leaks), sizes, near, _shared_groups(splits), splits)


def _by_text(split: Sequence[Any]) -> dict[str, list[tuple[str, str]]]:
    """The (id, text) of the rows by the normal form of their text."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for k, row in enumerate(split):
        text = row if isinstance(row, str) else row.prompt
        found[normal(text)].append((_id(row, k), text))
    return found


def _each_once(ones: Sequence[T], others: Sequence[T]) -> Iterator[tuple[T, T]]:
    """Pairs in which each item occurs at least once: not each with each, which would be too many."""
    for k in range(max(len(ones), len(others))):
        yield ones[min(k, len(ones) - 1)], others[min(k, len(others) - 1)]


def _nearest(
    ones: Sequence[str], others: Sequence[str], instruction: frozenset[str], near: float
) -> list[tuple[str, str, float]]:
    """For each text that is nearly equal to one of the other side: both texts and their Jaccard index, best match."""
    best: dict[tuple[bool, int], tuple[float, int, int]] = {}
    for i, j, jaccard in _similar(ones, others, instruction, near):
        order = jaccard.argsort(kind="stable")[::-1]
        for left, places in ((True, i), (False, j)):
            _, first = numpy.unique(places[order], return_index=True)
            for k in order[first]:
                key, found = (left, int(places[k])), (float(jaccard[k]), int(i[k]), int(j[k]))
                best[key] = max(found, best.get(key, found), key=lambda x: x[0])
    return [(ones[i], others[j], jaccard) for jaccard, i, j in sorted(set(best.values()))]


def _similar(
    ones: Sequence[str], others: Sequence[str], instruction: frozenset[str], near: float
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]]:
    """Places in both lists and the Jaccard index of nearly equal texts, a block of the first list at a time."""
    words = [[_words(text) for text in texts] for texts in (ones, others)]
    every = _Words(*words)
    own = _Words(*([_without(found, instruction) for found in side] for side in words)) if instruction else every
    step = max(1, _ENTRIES // max(1, len(others)))
    for start in range(0, len(ones), step):
        rows = slice(start, start + step)
        common = own.common(rows).tocoo()
        i, j = common.row, common.col
        jaccard = own.jaccard(rows, i, j, common.data)
        if instruction:
            alike = jaccard >= OWN
            i, j, jaccard = i[alike], j[alike], jaccard[alike]
            shared = numpy.asarray(every.common(rows)[i, j]).ravel()
            jaccard = numpy.maximum(jaccard, every.jaccard(rows, i, j, shared))
        found = jaccard >= near
        yield start + i[found], j[found], jaccard[found]


class _Words:
    """Which words the texts of two lists contain, as sparse matrices, whose product counts the words in common."""

    def __init__(self, ones: Sequence[frozenset[str]], others: Sequence[frozenset[str]]):
        from scipy.sparse import csr_matrix

        columns = {word: k for k, word in enumerate(frozenset().union(*ones, *others))}

        def matrix(sets: Sequence[frozenset[str]]) -> Any:
            places = numpy.fromiter((columns[word] for words in sets for word in words), dtype=numpy.int32)
            starts = numpy.cumsum([0, *map(len, sets)])
            return csr_matrix((numpy.ones(len(places), numpy.int32), places, starts), shape=(len(sets), len(columns)))

        self.left, self.right = matrix(ones), matrix(others).T.tocsr()
        self.sizes = [numpy.array([len(words) for words in sets]) for sets in (ones, others)]

    def common(self, rows: slice) -> Any:
        """How many words each text of the first list (these rows) and each of the second have in common; sparse."""
        return (self.left[rows] @ self.right).tocsr()

    def jaccard(self, rows: slice, i: numpy.ndarray, j: numpy.ndarray, common: numpy.ndarray) -> numpy.ndarray:
        """The Jaccard index at places i (within the rows) and j, given the number of common words."""
        return common / (self.sizes[0][rows][i] + self.sizes[1][j] - common)


def _instruction_words(texts: Sequence[str]) -> frozenset[str]:
    """The words of the lines that so many prompts contain that they must be the task's instruction."""
    if len(texts) < MANY:
        return frozenset()
    counts = Counter(line for text in texts for line in set(map(normal, text.splitlines())))
    return frozenset().union(*(_words(line) for line, n in counts.items() if n >= TEMPLATE * len(texts)))


def _without(words: frozenset[str], instruction: frozenset[str]) -> frozenset[str]:
    """The words of a prompt without those of the instruction, if it has most of these and others too."""
    return words - instruction if 2 * len(words & instruction) > len(instruction) and words - instruction else words


def _words(text: str) -> frozenset[str]:
    text = _LETTERS.sub(r" \g<0> ", text)
    return frozenset(_WORDS.findall(text) or text.split() or [""])


def _shared_groups(splits: Mapping[str, Sequence[Any]]) -> dict[tuple[str, str], tuple[str, ...]]:
    groups = {name: {g for row in rows if (g := getattr(row, "group", ""))} for name, rows in splits.items()}
    found = {(a, b): groups[a] & groups[b] for a, b in itertools.combinations(groups, 2)}
    return {names: tuple(sorted(both)) for names, both in found.items() if both}


def _id(row: Any, k: int) -> str:
    """A row's id; the number of a text, from 1."""
    return str(k + 1) if isinstance(row, str) else row.id

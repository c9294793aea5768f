"""Splits by group, and what leaked between splits: equal and nearly equal prompts, groups on both sides."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.checks import normal
from dpo_workbench.pairs.pair import Pair, Pairs

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")
NEAR = 0.8
OWN = 0.6  # and at least so much outside the task's instruction, where that alone makes prompts alike
# 32 bands of 4 hashes: texts of Jaccard 0.6 meet in one with a probability of 0.99, of 0.3 with 0.2
HASHES, BANDS = 128, (32, 4)
TEMPLATE, MANY = 0.2, 20  # a line in so great a share of at least so many prompts is the task's, not the row's
_WORDS = re.compile(r"\w+")
# scripts without spaces between words: kana, Han, Thai, Lao, Khmer, Burmese
_LETTERS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


def split_pairs(pairs: Iterable[Pair], shares: Mapping[str, float] | None = None, *, seed: int = 0) -> dict[str, Pairs]:
    """Cut pairs into splits by their `group` (their prompt where they have none), so that none is in two splits.

    Where a group goes depends on its name, the seed and the groups there are, not on the order of the rows.

    Args:
        pairs: with a `group` wide enough that another group is a real test.
        shares: of the pairs, by split; 0.8 train, 0.1 dev and 0.1 test by default. Groups stay whole, so shares are met
            as nearly as these allow.
        seed: another one deals otherwise.

    Raises:
        WorkbenchError: shares that are not positive, or fewer groups than splits.
    """
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.group or normal(pair.prompt)].append(pair)
    parts = deal(groups, shares or {"train": 0.8, "dev": 0.1, "test": 0.1}, seed)
    task = getattr(pairs, "task", None)
    return {name: Pairs(rows, task) for name, rows in parts.items()}


def deal(groups: Mapping[str, Sequence[T]], shares: Mapping[str, float], seed: int = 0) -> dict[str, list[T]]:
    """Whole groups into splits, as near to the shares of the rows as they allow. See `split_pairs`."""
    if min(shares.values()) <= 0:
        raise WorkbenchError(f"Shares must be above 0. Got {dict(shares)}. Leave out the split that you do not want.")
    if len(groups) < len(shares):
        raise WorkbenchError(
            f"{len(shares)} splits need as many groups. Got {len(groups)}. Set `group` to what must not be on both "
            "sides: a document, a customer, a template."
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
    """A key that sorts groups as `seed` draws them, whatever the order of the rows."""
    return hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Leak:
    """Two rows of different splits that ask the same."""

    kind: str  # exact: equal but for case, spaces and Unicode form; near: Jaccard of at least `near`
    splits: tuple[str, str]
    ids: tuple[str, str]
    jaccard: float
    excerpts: tuple[str, str]


@dataclass(frozen=True)
class Leaks:
    """What `find_leaks` found. `clean` gives the splits without it."""

    leaks: tuple[Leak, ...]
    rows: dict[str, int]  # by split
    near: float
    shared_groups: dict[tuple[str, str], tuple[str, ...]]  # groups that are in two splits
    splits: Mapping[str, Sequence[Any]] = field(repr=False, compare=False)

    @property
    def counts(self) -> Counter[str]:
        """How many leaks of each kind."""
        return Counter(leak.kind for leak in self.leaks)

    def clean(self) -> dict[str, Any]:
        """The splits without leaked rows: of two rows the one in the split that was named first goes."""
        gone: dict[str, set[str]] = defaultdict(set)
        for leak in self.leaks:
            gone[leak.splits[0]].add(leak.ids[0])
        made: dict[str, Any] = {}
        for name, rows in self.splits.items():
            kept = [row for k, row in enumerate(rows) if _id(row, k) not in gone[name]]
            made[name] = Pairs(kept, rows.task) if isinstance(rows, Pairs) else kept
        return made

    def to_dict(self) -> dict[str, Any]:
        """Counts and leaks as plain values for JSON."""
        groups = [{"splits": list(names), "groups": list(found)} for names, found in self.shared_groups.items()]
        return {
            "rows": self.rows,
            "near": self.near,
            "counts": dict(self.counts),
            "shared_groups": groups,
            "leaks": [asdict(leak) for leak in self.leaks],
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """One leak a row."""
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
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def find_leaks(splits: Mapping[str, Sequence[Any]] | Any, *, near: float = NEAR) -> Leaks:
    """Prompts that are in two splits, equal or nearly so, and groups that are in both.

    Nearly equal are prompts whose sets of words (numbers count, case and punctuation do not; of scripts without spaces,
    letters) have a Jaccard index of `near` or more, with or without the words of the task's instruction (lines that a
    fifth of all prompts have), and of 0.6 or more without them. Candidates come from MinHash with banding (Broder 1997;
    the library datasketch), and each is counted exactly, so that chance makes no leak.

    Args:
        splits: name -> rows with `id` and `prompt` (pairs or examples), or texts; the one to be cleaned first, as in
            {"train": ..., "test": ...}. Or a `Task`, whose splits are taken.
        near: from this Jaccard index on, above 0.5.

    Raises:
        WorkbenchError: fewer than two splits, `near` out of its range, or datasketch is not installed.
    """
    splits = getattr(splits, "splits", splits)
    if not isinstance(splits, Mapping) or len(splits) < 2:
        raise WorkbenchError("Leaks are between splits. Got fewer than two. Pass {'train': ..., 'test': ...}.")
    if not 0.5 < near <= 1:
        raise WorkbenchError(f"`near` must be above 0.5 and at most 1. Got {near}. Below, prompts are merely alike.")
    texts: dict[str, dict[str, list[tuple[str, str]]]] = {}  # split -> normal form -> (id, text) of its rows
    for name, rows in splits.items():
        texts[name] = defaultdict(list)
        for k, row in enumerate(rows):
            text = row if isinstance(row, str) else row.prompt
            texts[name]["\n".join(filter(None, map(normal, text.splitlines())))].append((_id(row, k), text))
    leaks = []
    for names, forms, jaccard in _alike(texts, near):
        kind = "exact" if jaccard == 1 and len({form.replace("\n", " ") for form in forms}) == 1 else "near"
        for one in texts[names[0]][forms[0]]:
            for other in texts[names[1]][forms[1]]:
                excerpts = tuple(" ".join(text.split())[:80] for _, text in (one, other))
                leaks.append(Leak(kind, names, (one[0], other[0]), jaccard, excerpts))  # type: ignore[arg-type]
    leaks.sort(key=lambda leak: (leak.kind, -leak.jaccard))
    sizes = {name: len(rows) for name, rows in splits.items()}
    return Leaks(tuple(leaks), sizes, near, _shared_groups(splits), splits)


def _alike(texts: Mapping[str, Mapping[str, Any]], near: float) -> Iterator[tuple[Any, Any, float]]:
    """Names of two splits, the normal forms of a text in each, and their Jaccard index."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise WorkbenchError(
            "Near duplicates need the library datasketch. It is not installed. pip install 'dpo-workbench[data]'"
        ) from error
    usual = _template([form for part in texts.values() for form in part])
    index = MinHashLSH(num_perm=HASHES, params=BANDS)
    sets: dict[tuple[str, str], frozenset[str]] = {}
    for name, part in texts.items():
        words = {form: _own(_words(form), usual) for form in part}
        sketches = MinHash.generator(
            ([w.encode("utf-8", "surrogatepass") for w in found] for found in words.values()), num_perm=HASHES
        )
        fresh = []
        for (form, found), sketch in zip(words.items(), sketches, strict=True):
            for key in sorted(index.query(sketch)):
                jaccard = _jaccard(found, sets[key])
                if OWN <= jaccard < near:
                    jaccard = max(jaccard, _jaccard(_words(form), _words(key[1])))
                if jaccard >= near:
                    yield (key[0], name), (key[1], form), jaccard
            fresh.append(((name, form), found, sketch))
        for key, found, sketch in fresh:  # after the whole split, which does not leak into itself
            sets[key] = found
            index.insert(key, sketch, check_duplication=False)


def _template(forms: Sequence[str]) -> frozenset[str]:
    """The words of the lines that so many prompts have that they belong to the task."""
    counts = Counter(line for form in forms for line in set(form.split("\n"))) if len(forms) >= MANY else Counter()
    return frozenset().union(*(_words(line) for line, n in counts.items() if n >= TEMPLATE * len(forms)))


def _own(words: frozenset[str], usual: frozenset[str]) -> frozenset[str]:
    """Words without the task's, where a text has most of them and others besides."""
    return words - usual if 2 * len(words & usual) > len(usual) and words - usual else words


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _words(text: str) -> frozenset[str]:
    text = _LETTERS.sub(r" \g<0> ", text)
    return frozenset(_WORDS.findall(text) or text.split() or [""])


def _shared_groups(splits: Mapping[str, Sequence[Any]]) -> dict[tuple[str, str], tuple[str, ...]]:
    groups = {name: {g for row in rows if (g := getattr(row, "group", ""))} for name, rows in splits.items()}
    names = list(groups)
    found = {(a, b): groups[a] & groups[b] for k, a in enumerate(names) for b in names[k + 1 :]}
    return {names: tuple(sorted(both)) for names, both in found.items() if both}


def _id(row: Any, k: int) -> str:
    """A row's id; its number, from 1, where it is a text."""
    return str(k + 1) if isinstance(row, str) else row.id

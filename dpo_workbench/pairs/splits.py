"""Splits that keep groups and prompts together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.pairs.preference import Pair, split_keys

T = TypeVar("T")


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

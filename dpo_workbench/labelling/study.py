"""`plan_labelling`: who judges which pair, and which pairs are judged twice."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.common.html import visible
from dpo_workbench.labelling.events import answer_key, item_key
from dpo_workbench.pairs.pair import Pair

AGAIN = ":again"  # suffix of the key when an item is shown to the same rater a second time
KINDS = ("single", "shared", "gold", "again")


@dataclass(frozen=True)
class Item:
    """One showing of a pair to a rater."""

    key: str
    pair: str  # id of the pair
    swap: bool  # the pair's rejected answer is shown as A
    kind: str = "single"  # one of KINDS

    @property
    def content(self) -> str:
        """The key of the pair, the same for both showings."""
        return self.key.removesuffix(AGAIN)


def all_items(pairs: Sequence[Pair], rater: str) -> list[Item]:
    """Each distinct pair once, in the given order. Sides are drawn by rater and content."""
    items: dict[str, Item] = {}
    for pair in pairs:
        key = item_key(pair)
        items.setdefault(key, Item(key, pair.id, _swap(pair, rater, 0)))
    return list(items.values())


def _swap(pair: Pair, rater: str, seed: int) -> bool:
    """A fair coin that depends on rater and contents, but not on which answer is called chosen."""
    text = f"{seed}\0{rater}\0{item_key(pair)}".encode("utf-8", "surrogatepass")
    first_is_a = bool(hashlib.blake2b(text, digest_size=1).digest()[0] & 1)
    return first_is_a == (answer_key(pair.chosen) <= answer_key(pair.rejected))


@dataclass
class Plan:
    """The items of each rater, in order. `gold` maps an item's key to the key of the better answer."""

    items: dict[str, list[Item]]
    gold: dict[str, str]

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON."""
        write_json(Path(path), asdict(self))
        return Path(path)

    @classmethod
    def load(cls, source: str | Path | Plan) -> Plan:
        """Read a file that `save` wrote; a plan is returned as it is."""
        if isinstance(source, Plan):
            return source
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8"))
            return cls(
                {rater: [Item(**row) for row in rows] for rater, rows in content["items"].items()}, content["gold"]
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkbenchError(f"A plan must be a file that `Plan.save` wrote. Got {source} ({error}).") from error

    def counts(self) -> dict[str, Counter[str]]:
        """How many items of each kind every rater has."""
        return {rater: Counter(item.kind for item in items) for rater, items in self.items.items()}

    def __repr__(self) -> str:
        lines = [f"Plan: {len(self.items)} raters"]
        for rater, kinds in self.counts().items():
            words = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
            lines.append(f"  {visible(rater)}: {kinds.total()} items ({words})")
        return "\n".join(lines)


def plan_labelling(
    pairs: Sequence[Pair],
    raters: Sequence[str],
    *,
    overlap: float = 0.2,
    repeats: float = 0.05,
    gold: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Plan:
    """Divide pairs among raters, so that their lists differ by at most one item (repeats aside).

    Args:
        pairs: the pairs to judge.
        raters: their names.
        overlap: share of the pairs that two raters judge, so that agreement can be measured.
        repeats: share of a rater's items that are shown again with sides swapped, at least a third of the list later.
        gold: pairs with a known winner, `{pair id: "chosen" or "rejected"}`. Every rater judges all of them.
        seed: for all random draws.
    """
    names = list(raters)
    if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise WorkbenchError(f"`raters` must be different names. Got {raters!r}.")
    if not (0 <= overlap <= 1 and 0 <= repeats <= 1):
        raise WorkbenchError(f"`overlap` and `repeats` must be shares in [0, 1]. Got {overlap} and {repeats}.")
    if overlap and len(names) == 1:
        raise WorkbenchError(
            f"An overlap needs two raters. Got {names[0]!r} only. Set overlap=0, and use `repeats` to measure how "
            "consistent the rater is."
        )
    rng = random.Random(seed)
    distinct = {item_key(pair): pair for pair in reversed(list(pairs))}
    winners = _gold_keys(distinct, gold or {})
    rest = [key for key in distinct if key not in winners]
    rng.shuffle(rest)
    n_shared = round(overlap * len(rest))
    kinds: dict[str, dict[str, str]] = {name: {} for name in names}  # rater -> key -> kind
    couples = list(combinations(names, 2))
    for number, key in enumerate(rest):
        if number < n_shared:
            for name in couples[number % len(couples)]:
                kinds[name][key] = "shared"
        else:
            kinds[min(names, key=lambda name: len(kinds[name]))][key] = "single"
    plan = {}
    for name in names:
        own = kinds[name] | dict.fromkeys(winners, "gold")
        items = [Item(key, distinct[key].id, _swap(distinct[key], name, seed), kind) for key, kind in own.items()]
        rng.shuffle(items)
        plan[name] = _with_repeats(items, repeats, rng)
    return Plan(plan, winners)


def _gold_keys(distinct: Mapping[str, Pair], gold: Mapping[str, str]) -> dict[str, str]:
    """Item key -> key of the better answer."""
    keys = {pair.id: key for key, pair in distinct.items()}
    for pair_id, winner in gold.items():
        if pair_id not in keys or winner not in ("chosen", "rejected"):
            raise WorkbenchError(f"`gold` must map pair ids to 'chosen' or 'rejected'. Got {pair_id!r}: {winner!r}.")
    return {keys[name]: answer_key(getattr(distinct[keys[name]], winner)) for name, winner in gold.items()}


def _with_repeats(items: list[Item], share: float, rng: random.Random) -> list[Item]:
    """The items, some of them a second time with sides swapped, at least a third of the list later."""
    gap = max(1, len(items) // 3)
    early = items[: max(1, len(items) - gap)]
    for item in rng.sample(early, min(round(share * len(items)), len(early))):
        earliest = min(items.index(item) + gap, len(items))
        again = replace(item, key=item.key + AGAIN, swap=not item.swap, kind="again")
        items.insert(rng.randint(earliest, len(items)), again)
    return items

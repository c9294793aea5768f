"""`plan_labelling`: who judges which pair, what is judged twice, in which order, and how precise that will be."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.labelling.events import answer_key, item_key
from dpo_workbench.pairs.pair import Pair

AGAIN = ":again"  # marks the second showing of an item to the same rater
KINDS = ("single", "shared", "gold", "again")


@dataclass(frozen=True)
class Item:
    """One showing of a pair to a rater. `swap`: the pair's rejected answer stands on side A."""

    key: str
    pair: str  # id
    swap: bool
    kind: str = "single"  # one of KINDS
    drawn: str = "random"  # or active: taken for its priority, so not fit for estimates of shares

    @property
    def content(self) -> str:
        """The key of the pair, without the mark of a second showing."""
        return self.key.removesuffix(AGAIN)


def side(*parts: Any) -> bool:
    """A fair coin that falls the same way each time for the same parts."""
    return bool(
        hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1
    )


def all_items(pairs: Sequence[Pair], rater: str, seed: int = 0) -> list[Item]:
    """Each pair once, in the order given, sides drawn by rater and content."""
    seen: dict[str, Item] = {}
    for pair in pairs:
        key = item_key(pair)
        seen.setdefault(key, Item(key, pair.id, _swap(pair, rater, seed)))
    return list(seen.values())


def _swap(pair: Pair, rater: str, seed: int) -> bool:
    """Which answer stands on side A depends on contents alone, not on which one is called chosen."""
    first = min(answer_key(pair.chosen), answer_key(pair.rejected))
    return side(seed, rater, item_key(pair)) == (answer_key(pair.chosen) == first)


@dataclass
class Plan:
    """The items of each rater, in order. `gold`: item key -> key of the better answer."""

    items: dict[str, list[Item]]
    gold: dict[str, str]
    settings: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        rows = {rater: [asdict(item) for item in items] for rater, items in self.items.items()}
        write_json(Path(path), {"items": rows, "gold": self.gold, "settings": self.settings})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote.

        Raises:
            WorkbenchError: it is not such a file.
        """
        import json

        try:
            read = json.loads(Path(path).read_text(encoding="utf-8"))
            items = {rater: [Item(**row) for row in rows] for rater, rows in read["items"].items()}
            return cls(items, read["gold"], read["settings"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkbenchError(f"A plan must be a file that `Plan.save` wrote. Got {path} ({error}).") from error

    def counts(self) -> dict[str, Counter[str]]:
        """How many items of each kind a rater has."""
        return {rater: Counter(item.kind for item in items) for rater, items in self.items.items()}

    def precision(self) -> list[dict[str, Any]]:
        """What numbers of judged pairs can tell, at 95 %; see `precision`. The plan's own numbers are among them."""
        planned = len({item.content for items in self.items.values() for item in items})
        shared = len({item.content for items in self.items.values() for item in items if item.kind == "shared"})
        return [precision(n) for n in sorted({50, 100, 200, 400, 800, planned, shared} - {0})]

    def __repr__(self) -> str:
        lines = [f"Plan: {len(self.items)} raters, {self.settings['pairs']} pairs"]
        for rater, kinds in self.counts().items():
            words = ", ".join(f"{kinds[k]} {k}" for k in KINDS if kinds[k])
            lines.append(f"  {rater}: {kinds.total()} items ({words})")
        lines.append("  judged   a share is known to   an agreement (kappa) to   repeated flips above are noticed")
        for row in self.precision():
            lines.append(
                f"  {row['n']:6}   +-{100 * row['share']:.0f} points{'':12} +-{row['kappa']:.2f}{'':19} "
                f"{100 * row['flips_noticed']:.0f} %"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def precision(n: int, agreement: float = 0.8) -> dict[str, Any]:
    """What `n` judged pairs can tell: half widths of 95 % intervals.

    `share`: of a win rate near 0.5 (Wilson 1927). `kappa`: of Cohen's kappa of two raters who agree on `agreement` of
    the pairs with even choices, by its large-sample standard error sqrt(p (1 - p) / n) / (1 - 0.5) (Cohen 1960, eq. 7).
    `flips_noticed`: the smallest share of flipped repeats that is seen at least once with 95 %, 1 - 0.05^(1 / n).
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(n // 2, n, method="wilson")
    return {
        "n": n,
        "share": float(high - low) / 2,
        "kappa": 1.96 * math.sqrt(agreement * (1 - agreement) / n) / 0.5,
        "flips_noticed": 1 - 0.05 ** (1 / n),
    }


def plan_labelling(
    pairs: Sequence[Pair],
    raters: Sequence[str] | int,
    *,
    overlap: float = 0.2,
    raters_each: int = 2,
    repeats: float = 0.05,
    gold: Mapping[str, str] | None = None,
    priority: Mapping[str, float] | None = None,
    control: float = 0.2,
    seed: int = 0,
) -> Plan:
    """Share out pairs among raters: balanced within one item, some seen by several, some shown twice, some with a key.

    Args:
        pairs: what is to be judged.
        raters: names, or how many.
        overlap: share of the pairs that `raters_each` raters see, so that agreement can be measured.
        raters_each: how many see a shared pair; each two raters share as many as any other two.
        repeats: share of a rater's items that come again, sides swapped, at least a third of the list later.
        gold: pairs with a known winner, `{pair id: "chosen" or "rejected"}`; every rater gets all of them.
        priority: by pair id; larger is asked earlier. Default: where both scores are known, the nearer they are.
            Pass `{}` for random order.
        control: share of each rater's places that are filled at random all the same; shares (a win rate, an error
            rate) are estimated from these alone.
        seed: of all draws.

    Raises:
        WorkbenchError: no raters, a name twice, a share outside [0, 1], more raters each than raters, unknown gold.
    """
    names = [f"rater {k + 1}" for k in range(raters)] if isinstance(raters, int) else list(raters)
    shares = {"overlap": overlap, "repeats": repeats, "control": control}
    if not names or len(set(names)) < len(names) or not all(n.strip() for n in names):
        raise WorkbenchError(f"`raters` must be different names, or how many. Got {raters!r}.")
    if wrong := [f"{k}={v}" for k, v in shares.items() if not 0 <= v <= 1]:
        raise WorkbenchError(f"Shares must lie in [0, 1]. Got {wrong[0]}. Write 0.2 for a fifth.")
    if overlap and not 1 < raters_each <= len(names):
        raise WorkbenchError(
            f"`raters_each` must be from 2 to the number of raters. Got {raters_each} of {len(names)}. With one rater, "
            "set overlap=0 and measure agreement with oneself by `repeats`."
        )
    rng = random.Random(seed)
    distinct = {item_key(p): p for p in reversed(list(pairs))}
    ids = {p.id: key for key, p in distinct.items()}
    keyed: dict[str, str] = {}
    for pair_id, winner in (gold or {}).items():
        if pair_id not in ids or winner not in ("chosen", "rejected"):
            raise WorkbenchError(f"`gold` must map pair ids to 'chosen' or 'rejected'. Got {pair_id!r}: {winner!r}.")
        keyed[ids[pair_id]] = answer_key(getattr(distinct[ids[pair_id]], winner))
    open_keys = [key for key in distinct if key not in keyed]
    rng.shuffle(open_keys)
    n_shared = round(overlap * len(open_keys))
    given: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for number, key in enumerate(open_keys[:n_shared]):
        groups = list(combinations(names, raters_each))
        for name in groups[number % len(groups)]:
            given[name].append((key, "shared"))
    for key in open_keys[n_shared:]:
        given[min(names, key=lambda name: len(given[name]))].append((key, "single"))
    wanted = _priority(distinct, priority)
    plan = {}
    for name, keys in given.items():
        ordered = _order(keys, wanted, control, rng)
        items = [Item(key, distinct[key].id, _swap(distinct[key], name, seed), kind, by) for key, kind, by in ordered]
        for key in keyed:
            item = Item(key, distinct[key].id, _swap(distinct[key], name, seed), "gold")
            items.insert(rng.randint(0, len(items)), item)
        plan[name] = _with_repeats(items, repeats, rng)
    settings = {**shares, "raters_each": raters_each, "seed": seed, "pairs": len(distinct), "active": bool(wanted)}
    return Plan(plan, keyed, settings)


def _priority(distinct: Mapping[str, Pair], given: Mapping[str, float] | None) -> dict[str, float]:
    if given is not None:
        return {key: given[p.id] for key, p in distinct.items() if p.id in given}
    return {
        key: -abs(p.chosen_score - p.rejected_score)
        for key, p in distinct.items()
        if p.chosen_score is not None and p.rejected_score is not None
    }


def _order(
    keys: Sequence[tuple[str, str]], wanted: Mapping[str, float], control: float, rng: random.Random
) -> list[tuple[str, str, str]]:
    """Key, kind and how it was drawn: by priority, but a random one with probability `control`."""
    left = list(keys)
    rng.shuffle(left)
    if not wanted:
        return [(key, kind, "random") for key, kind in left]
    left.sort(key=lambda one: -wanted.get(one[0], -math.inf))
    found = []
    while left:
        by_chance = rng.random() < control
        key, kind = left.pop(rng.randrange(len(left)) if by_chance else 0)
        found.append((key, kind, "random" if by_chance else "active"))
    return found


def _with_repeats(items: list[Item], share: float, rng: random.Random) -> list[Item]:
    """Some of the items once more, sides swapped, a third of the list later or more."""
    n, gap = round(share * len(items)), max(1, len(items) // 3)
    early = items[: max(1, len(items) - gap)]
    for item in rng.sample(early, min(n, len(early))):
        place = items.index(item) + gap
        again = Item(item.key + AGAIN, item.pair, not item.swap, "again", item.drawn)
        items.insert(rng.randint(min(place, len(items)), len(items)), again)
    return items

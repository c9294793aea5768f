"""Plant equal and nearly equal prompts across two halves of real sets and count which are found, and what else is.

python benchmarks/leaks.py [FOLDER]     # of data sets as FOLDER/NAME/*.jsonl; without it the project's own task alone

Each set is cut in two. 50 prompts of the first half go into the second in another form (case, spaces, full-width
letters), 50 with words put in, left out or exchanged, such that the sets of words keep a Jaccard index of 0.8 or more.
What else is found counts as a false alarm where that index is below 0.8. Results hold numbers only.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from datetime import date
from pathlib import Path

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.pairs.preference import normal
from dpo_workbench.pairs.splits import NEAR, find_leaks

RESULTS = Path(__file__).parent / "results" / "leaks.json"
FIELDS = ("question", "text", "utterance", "intent", "source", "abstract", "prompt")
PLANTED, SPEED = 50, 100_000


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def jaccard(one: str, other: str) -> float:
    return len(words(one) & words(other)) / len(words(one) | words(other))


def in_another_form(text: str, rng: random.Random) -> str:
    changes = (str.upper, lambda t: t.replace(" ", "  ") + "\n", lambda t: t.replace("e", "\uff45"))
    return rng.choice(changes)(text)


def edited(text: str, rng: random.Random, others: list[str]) -> str | None:
    """As many random edits of words as keep the index at 0.8 or more; None where not one does."""
    best = None
    for _ in range(20):
        parts = (best or text).split()
        place, new = rng.randrange(len(parts)), rng.choice(rng.choice(others).split())
        kind = rng.choice(("insert", "replace", "delete"))
        parts[place : place + (kind != "insert")] = [] if kind == "delete" else [new]
        made = " ".join(parts)
        if normal(made) != normal(text) and made and jaccard(made, text) >= NEAR:
            best = made
    return best


def measure(texts: list[str], seed: int = 0) -> dict:
    rng = random.Random(seed)
    texts = list({normal(t): t for t in texts if len(words(t)) > 3}.values())
    rng.shuffle(texts)
    train, test = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    own = len(test)
    sources = rng.sample(range(len(train)), min(len(train), 4 * PLANTED))
    exact = [(k, in_another_form(train[k], rng)) for k in sources[:PLANTED]]
    near = [(k, made) for k in sources[PLANTED:] if (made := edited(train[k], rng, test))][:PLANTED]
    begun = time.perf_counter()
    found = find_leaks({"train": train, "test": test + [t for _, t in exact + near]})
    seconds = time.perf_counter() - begun
    pairs = {(int(leak.ids[0]) - 1, int(leak.ids[1]) - 1) for leak in found.leaks}
    wanted = [(k, own + i) for i, (k, _) in enumerate(exact + near)]
    alarms = [(i, j) for i, j in pairs if j < own]
    return {
        "prompts": len(texts),
        "exact": [sum(p in pairs for p in wanted[: len(exact)]), len(exact)],
        "near": [sum(p in pairs for p in wanted[len(exact) :]), len(near)],
        "false_alarms": [len({j for i, j in alarms if jaccard(train[i], test[j]) < NEAR}), own],
        "alike_before": len({j for i, j in alarms if jaccard(train[i], test[j]) >= NEAR}),
        "seconds": round(seconds, 2),
    }


def speed() -> dict:
    """Time for prompts of 50 random words, none of which is alike."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    rows = [" ".join(rng.choices(vocabulary, k=50)) for _ in range(SPEED)]
    begun = time.perf_counter()
    found = find_leaks({"train": rows[: SPEED * 9 // 10], "test": rows[SPEED * 9 // 10 :]})
    return {"prompts": SPEED, "found": len(found.leaks), "seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    sets = {"receipts": [e.prompt for s in dw.load_task("receipts").splits.values() for e in s]}
    for folder in sorted(Path(sys.argv[1]).iterdir()) if len(sys.argv) > 1 else ():
        for file in folder.glob("*.jsonl"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            name = next(f for f in FIELDS if f in rows[0])
            sets[folder.name] = [row[name] if isinstance(row[name], str) else " ".join(row[name]) for row in rows]
    results = {}
    for name, texts in sets.items():
        results[name] = measure(texts)
        print(name, results[name])
    timed = speed()
    print(timed)
    facts = {"command": "python benchmarks/leaks.py FOLDER", "seed": 0, "date": date.today().isoformat()}
    write_json(RESULTS, {**facts, "machine": describe(), "sets": results, "speed": timed})


if __name__ == "__main__":
    main()

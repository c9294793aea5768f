"""Mutate valid files of every layout and format and read them: no exception but WorkbenchError, and counts that add up.

python benchmarks/fuzz_readers.py              # 120,000 cases; goes to results/fuzz_readers.json
python benchmarks/fuzz_readers.py --cases 2000 # a quick look, which is not recorded
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import tempfile
import time
import traceback
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import describe
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.pairs.pair import Pairs, read_pairs

RESULTS = Path(__file__).parent / "results" / "fuzz_readers.json"
CASES = 120_000


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _pairwise(side: str) -> dict[str, Any]:
    result = [{"from_name": "pw", "to_name": "text1", "type": "pairwise", "value": {"selected": side}}]
    return {"completed_by": 7, "was_cancelled": False, "result": result}


# Rows of each layout that all say: to QUESTION, GOOD is a better answer than BAD.
QUESTION, GOOD, BAD = "How many legs has a beetle?", "A beetle has six legs.", "Eight, like a spider."
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "own": [{"id": "b1", "prompt": QUESTION, "chosen": GOOD, "rejected": BAD, "chosen_score": 1.0, "weight": 0.5}],
    "trl": [{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}],
    "trl messages": [{"prompt": user(QUESTION), "chosen": said(GOOD), "rejected": said(BAD)}],
    "trl-implicit": [{"chosen": f"{QUESTION}\n{GOOD}", "rejected": f"{QUESTION}\n{BAD}"}],
    "trl-implicit messages": [{"chosen": user(QUESTION) + said(GOOD), "rejected": user(QUESTION) + said(BAD)}],
    "openai": [
        {
            "input": {"messages": user(QUESTION), "tools": [], "parallel_tool_calls": True},
            "preferred_output": said(GOOD),
            "non_preferred_output": said(BAD),
        }
    ],
    "hh": [
        {
            "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
            "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
        }
    ],
    "compared": [{"prompt": QUESTION, "response_0": BAD, "response_1": GOOD, "better_response_id": 1}],
    "compared outputs": [{"instruction": QUESTION, "input": "", "output_1": GOOD, "output_2": BAD, "preference": 1}],
    "compared conversations": [
        {
            "conversation_a": user(QUESTION) + said(BAD),
            "conversation_b": user(QUESTION) + said(GOOD),
            "winner": "model_b",
            "judge": "ada",
        }
    ],
    "labelstudio": [
        {"id": 3, "data": {"prompt": QUESTION, "text1": GOOD, "text2": BAD}, "annotations": [_pairwise("left")]}
    ],
    "labelstudio min": [{"id": 3, "prompt": QUESTION, "text1": BAD, "text2": GOOD, "pw": "right", "annotator": 7}],
    "ultrafeedback": [
        {
            "instruction": QUESTION,
            "completions": [{"response": BAD, "overall_score": 2.0}, {"response": GOOD, "overall_score": 8.5}],
        }
    ],
    "score list": [{"prompt": QUESTION, "responses": [BAD, GOOD], "scores": [0.1, 0.9]}],
    "ranked": [{"prompt": QUESTION, "answers": [GOOD, BAD]}],
    "ranks within": [
        {
            "prompt": f"\n\nHuman: {QUESTION}\n\nAssistant: ",
            "answers": [{"answer": BAD, "rank": 7.0}, {"answer": GOOD, "rank": 1.0}],
        }
    ],
    "thumbs": [
        {"prompt": QUESTION, "completion": BAD, "label": False},
        {"prompt": QUESTION, "completion": GOOD, "label": True},
    ],
}
FLAT = (
    "own",
    "trl",
    "trl-implicit",
    "hh",
    "compared",
    "labelstudio min",
    "thumbs",
)  # what a CSV file can hold
ODD: list[Any] = [
    *(None, True, 0, -1, 5, 0.5, float("nan"), float("inf"), 10**400, "", " ", "\n", "x", "5", "true", "Tie", "left"),
    *("\ud800", "\x00", "\ufeff", "\u2028", "<|im_end|>", "é" * 50, "e\u0301", "[{", '[{"role": 3, "content": 3}]'),
    *([], {}, [[]], [{}], [None], [3], {"role": "user"}, user("hi"), said("ho"), user("hi") * 2, said("")),
    *([{"role": "king", "content": "x"}], [{"from": "human", "value": "x"}], {"messages": []}, {"selected": []}),
]  # fmt: skip
KEYS = "prompt chosen rejected choosen id label score scores ranks weight group split fields data x".split()
JUNK = [b"\xff", b"\x00", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b",", b":"]
JUNK += [b"\\ud800", b"NaN", b"null", b"\t", b";", b"[" * 3000, b"9" * 5000, b'\\"', b"PAR1", b"\x1f\x8b"]


def mutate_value(rng: random.Random, value: Any) -> Any:
    """A value with one odd thing somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        made, key = dict(value), rng.choice(list(value))
        kind = rng.random()
        if kind < 0.15:
            del made[key]
        elif kind < 0.25:
            made[rng.choice(KEYS)] = made.pop(key)
        elif kind < 0.35:
            made[rng.choice(KEYS)] = rng.choice(ODD)
        else:
            made[key] = mutate_value(rng, value[key])
        return made
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.random()
        middle = [] if kind < 0.2 else [value[at]] * 2 if kind < 0.4 else [mutate_value(rng, value[at])]
        return value[:at] + middle + value[at + 1 :]
    return rng.choice(ODD)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at] + rng.choice(JUNK) + data[at:]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[end:]
    if kind == 3:
        return data[:end] + data[at:]
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def encode(rows: list[Any], form: str) -> bytes:
    """Rows as a file."""
    if form == "csv" or form == "tsv":
        out = io.StringIO()
        names = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)) or ["prompt"]
        writer = csv.DictWriter(out, names, delimiter="," if form == "csv" else "\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for row in rows if isinstance(row, dict))
        return out.getvalue().encode("utf-8", "surrogatepass")
    if form == "json":
        return json.dumps(rows, indent=1).encode()
    if form == "parquet":
        import pyarrow
        import pyarrow.parquet

        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def case(rng: random.Random) -> tuple[str, str, Any]:
    """Layout, form, and the mutated file (bytes) or table (list of rows)."""
    name = rng.choice(list(EXAMPLES))
    rows: list[Any] = []
    for k in range(rng.randint(1, 4)):
        rows += [{**row, **({"id": f"b{k}"} if "id" in row else {})} for row in EXAMPLES[name]]
    if rng.random() < 0.1:
        rows += EXAMPLES[rng.choice(list(EXAMPLES))]
    form = rng.choice(["jsonl", "jsonl", "json", "csv", "tsv", "gz", "rows", "parquet"])
    if form in ("csv", "tsv") and name not in FLAT:
        form = "jsonl"
    if form != "parquet":
        for _ in range(rng.choice([0, 1, 1, 2])):
            at = rng.randrange(len(rows))
            rows[at] = mutate_value(rng, rows[at])
    if form == "rows":
        return name, form, rows
    if form == "parquet":
        rows = EXAMPLES[name] * 3  # a Parquet file cannot hold columns of mixed types
    data = encode(rows, form)
    if form == "gz":
        data = gzip.compress(data, 1)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        data = mutate_bytes(rng, data)
    return name, form, data


def holds(form: str, given: Any, folder: Path) -> str:
    """Read one case and check what must hold; says how it ended. Raises whatever is wrong."""
    source = given
    if isinstance(given, bytes):
        source = folder / f"a.{form if form != 'gz' else 'jsonl.gz'}"
        source.write_bytes(given)
    try:
        read = read_pairs(source)
    except WorkbenchError as error:
        assert str(error)[-1] in ".)>" and "P0" in str(error) or "P1" in str(error), str(error)
        return "not readable"
    assert read.rows == read.kept + read.refused + read.merged + read.skipped
    assert all(f.line >= 0 and f.code and f.fix for f in read.findings)
    assert repr(read)
    if read.found:
        assert len({p.id for p in read.pairs}) == len(read.pairs) >= 1 and (read.kept > 0)
        read.pairs.save(folder / "saved.jsonl")
        assert Pairs.load(folder / "saved.jsonl").rows == read.found
    return "all kept" if read.kept == read.rows else "some not kept"


def run(cases: int, seed: int = 0) -> dict[str, Any]:
    """Counts of how the cases ended, and the first failures with their seeds."""
    ends: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(cases):
            name, form, given = case(random.Random(f"{seed}-{k}"))
            try:
                ends[holds(form, given, Path(folder))] += 1
            except Exception:
                ends["FAILED"] += 1
                failures.append(f"case {seed}-{k}, {name} as {form}: {traceback.format_exc(limit=-3)}\n{given!r:.600}")
    return {"cases": cases, "seed": seed, "ends": dict(ends), "failures": failures[:20]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.monotonic()
    results = run(args.cases, args.seed) | {"seconds": round(time.monotonic() - begun, 1)}
    print(*results["failures"], {k: v for k, v in results.items() if k != "failures"}, sep="\n")
    if args.cases >= CASES:
        facts = {"machine": describe(), "command": "python benchmarks/fuzz_readers.py"}
        write_json(RESULTS, facts | {"date": date.today().isoformat()} | results)


if __name__ == "__main__":
    main()

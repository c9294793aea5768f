"""How long may a pack be before its dense attention mask costs more than it saves? Results: results/pack_length.json.

    python benchmarks/pack_length.py

SDPA with a boolean mask computes all T x T scores of a pack, although rows of a pack don't attend to each other. This
measures seconds per pair of one forward and backward pass of SmolLM2-135M with LoRA in fp32, for packs of more and more
equal pairs, and for the same pairs as padded sequences.
"""

from __future__ import annotations

import json
import random
import time
from datetime import date
from pathlib import Path

import torch

import dpo_workbench as dw
from dpo_workbench.common.environment import describe, peak_memory_gib
from dpo_workbench.common.files import write_json
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Row, lay_out, pack

RESULTS = Path(__file__).parent / "results" / "pack_length.json"
PROMPT, ANSWER = 200, 75  # tokens
PAIRS = (1, 2, 4, 8, 12)
REPEATS = 3


def rows(n: int, vocabulary: int) -> list[Row]:
    rng = random.Random(0)

    def draw(k: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(k))

    return [Row(str(k), draw(PROMPT), (draw(ANSWER), draw(ANSWER))) for k in range(n)]


def seconds_per_pair(model: dw.Model, batch, n_pairs: int) -> float:
    """The fastest of a few forward and backward passes."""
    times = []
    for _ in range(REPEATS):
        begun = time.monotonic()
        with model.active(trainable=True) as network:
            answer_logps(network, batch).sum().backward()
        times.append(time.monotonic() - begun)
    return min(times) / n_pairs


def main() -> None:
    model = dw.load_model("smol", device="cpu", dtype=torch.float32).with_new_adapter()
    results = []
    for n_pairs in PAIRS:
        made = rows(n_pairs, len(model.tokenizer))
        packed = pack(made)
        entry = {
            "pairs": n_pairs,
            "tokens": packed.input_ids.shape[1],
            "seconds_per_pair_packed": round(seconds_per_pair(model, packed, n_pairs), 3),
            "peak_memory_gib": round(peak_memory_gib(), 2),
        }
        if n_pairs <= 4:
            plain = seconds_per_pair(model, lay_out(made, 0), n_pairs)
            entry["seconds_per_pair_plain"] = round(plain, 3)
        results.append(entry)
        print(json.dumps(entry), flush=True)
    facts = {"command": "python benchmarks/pack_length.py", "date": date.today().isoformat(), "machine": describe()}
    facts |= {"threads": torch.get_num_threads(), "prompt_tokens": PROMPT, "answer_tokens": ANSWER, "seed": 0}
    write_json(RESULTS, {**facts, "packs": results})


if __name__ == "__main__":
    main()

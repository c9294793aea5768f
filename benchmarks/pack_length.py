"""Should pairs share a sequence where attention is SDPA? Results: results/pack_length.json.

    python benchmarks/pack_length.py

SDPA computes all scores between the tokens of a sequence, also those that the mask hides. This measures seconds per
pair of one forward and backward pass of SmolLM2-135M with LoRA in fp32 for more and more equal pairs: each pair as its
own sequence (what `pack` does for SDPA), all pairs in one sequence with a dense mask, and without packing.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Row, lay_out, pack

RESULTS = Path(__file__).parent / "results" / "pack_length.json"
PROMPT, ANSWER = 200, 75  # tokens
PAIRS = (1, 4)
REPEATS = 1


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
        shared = pack(made, flex=True)
        places = torch.arange(shared.input_ids.shape[1])
        zero = torch.tensor(0)
        mask = shared.attention_mask.mask_mod(zero, zero, places[:, None], places[None, :])
        batches = {
            "own_sequences": pack(made),
            "one_sequence": replace(shared, attention_mask=mask[None, None]),
            "not_packed": lay_out(made, 0),
        }
        seconds = {name: round(seconds_per_pair(model, batch, n_pairs), 3) for name, batch in batches.items()}
        entry = {"pairs": n_pairs, "tokens": n_pairs * (PROMPT + 2 * ANSWER), "seconds_per_pair": seconds}
        results.append(entry)
        print(json.dumps(entry), flush=True)
    facts = {"command": "python benchmarks/pack_length.py", "date": date.today().isoformat(), "machine": describe()}
    facts |= {"threads": torch.get_num_threads(), "prompt_tokens": PROMPT, "answer_tokens": ANSWER, "seed": 0}
    write_json(RESULTS, {**facts, "packs": results})


if __name__ == "__main__":
    main()

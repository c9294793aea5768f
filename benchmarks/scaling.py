"""Seconds and peak memory of the loop against prompt length, answer length and number of pairs, with the exponents.

python benchmarks/scaling.py                    # each point in a process of its own; recorded points are kept
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "scaling.json"
POINTS = {  # prompt tokens, tokens of each answer, pairs in a step
    "prompt": [(n, 64, 2) for n in (64, 256, 1024, 4096)],
    "answer": [(64, n, 2) for n in (64, 256, 1024)],
    "pairs": [(128, 64, n) for n in (2, 8, 32)],
}


def measure(prompt: int, answer: int, n_pairs: int) -> dict:
    """Seconds of one training step of smol in bf16 with activation checkpointing, after one that is not counted."""
    import torch
    from vs_trl import load

    from dpo_workbench.models.kept import Kept
    from dpo_workbench.training import loop
    from dpo_workbench.training.config import TrainConfig
    from dpo_workbench.training.packing import Row

    model = load("bf16").with_new_adapter(seed=0)
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, 40_000, (n,), generator=draw).tolist())

    rows = [Row(f"r{i}", ids(prompt), (ids(answer), ids(answer))) for i in range(n_pairs)]
    config = TrainConfig(batch_size=n_pairs, micro_tokens=1536, checkpointing=True)
    parameters = model.adapter_parameters()
    optimizer = loop.optimizer_for(parameters, config)
    reference = dict.fromkeys([r.id for r in rows], (-400.0, -400.0))
    objective = loop.preference_objective(reference, config, rows, model)
    seconds, kept = [], Kept(model.network)
    for _ in range(2):
        begun = time.monotonic()
        batches = list(loop.micro_batches(rows, model, config))
        with model.active(trainable=True, checkpointing=config.checkpointing) as network:
            loop.train_step(network, batches, objective, parameters, optimizer, config, kept=kept)
        seconds.append(time.monotonic() - begun)
    return {"tokens": sum(row.n_tokens for row in rows), "seconds": round(min(seconds), 3)}


def exponent(points: list[dict]) -> float:
    """Slope of log seconds against log tokens, by least squares."""
    x, y = ([math.log(p[key]) for p in points] for key in ("tokens", "seconds"))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure recorded points again")
    parser.add_argument("--child", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child)))
        return
    from dpo_workbench.common.environment import describe

    recorded = (
        json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() and not args.again else {"points": {}}
    )
    recorded |= {
        "machine": describe(),
        "command": "python benchmarks/scaling.py",
        "seed": 0,
        "date": date.today().isoformat(),
    }
    for points in POINTS.values():
        for point in points:
            key = "-".join(map(str, point))
            if key in recorded["points"]:
                continue
            child = subprocess.Popen(
                [sys.executable, __file__, "--child", *map(str, point)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "CI": "1"},
            )
            out = child.stdout.read()  # type: ignore[union-attr]
            _, status, usage = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"point {key} ended with status {status}")
            peak = round(usage.ru_maxrss / 2**20, 3)
            recorded["points"][key] = json.loads(out.strip().splitlines()[-1]) | {"peak_memory_gib": peak}
            print(key, recorded["points"][key], flush=True)
            RESULTS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    recorded["exponents"] = {
        name: round(exponent([recorded["points"]["-".join(map(str, p))] for p in points]), 3)
        for name, points in POINTS.items()
    }
    print("exponents", recorded["exponents"])
    RESULTS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Write losses.json: values and gradients of every loss at fixed inputs, in fp64.

    python tests/oracles/make_losses.py

The file was written before the CPU engine left the package. Run this again only when a loss is added, and check that no
other number changed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

import dpo_workbench as dw
from dpo_workbench.training.losses import PairLogps

FILE = Path(__file__).with_name("losses.json")
NAMES = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
SETTINGS = [
    {"beta": 0.1, "label_smoothing": 0.1},
    {"beta": 0.5, "label_smoothing": 0.02, "dpop_lambda": 5.0, "simpo_gamma": 1.2},
]


def draw_inputs(seed: int = 0, n: int = 6) -> dict[str, list[float]]:
    """Six pairs with log-ratios of a few nats, among them one pair of equal models and one that is far apart."""
    rng = random.Random(seed)
    reference = [[round(-rng.uniform(5, 60), 3) for _ in range(n)] for _ in range(2)]
    policy = [[round(x + rng.gauss(0, 3), 3) for x in side] for side in reference]
    policy[0][0], policy[1][0] = reference[0][0], reference[1][0]
    policy[0][1], policy[1][1] = round(reference[0][1] - 80, 3), -0.125
    lengths = [[float(rng.randint(2, 30)) for _ in range(n)] for _ in range(2)]
    weights = [round(rng.uniform(0.2, 2.0), 2) for _ in range(n)]  # so that no gradient cancels out
    given = dict(zip(NAMES, (*policy, *reference), strict=True))
    return {**given, "chosen_lengths": lengths[0], "rejected_lengths": lengths[1], "weights": weights}


def compute(name: str, inputs: dict[str, list[float]], settings: dict[str, float]) -> dict[str, list[float]]:
    """The loss of each pair, and the gradients of their weighted sum by the policy's log-probabilities."""
    tensors = {key: torch.tensor(values, dtype=torch.float64) for key, values in inputs.items()}
    weights = tensors.pop("weights")
    policy = [tensors[key].requires_grad_() for key in NAMES[:2]]
    values = dw.LOSSES[name].values(PairLogps(**tensors), dw.TrainConfig(nll_weight=0.0, **settings))
    slopes = torch.autograd.grad((values * weights).sum(), policy, allow_unused=True, materialize_grads=True)
    rows: dict[str, Any] = {"values": values, "by_chosen": slopes[0], "by_rejected": slopes[1]}
    return {key: row.tolist() for key, row in rows.items()}


def main() -> None:
    inputs = draw_inputs()
    found = {name: [compute(name, inputs, settings) for settings in SETTINGS] for name in dw.LOSSES}
    losses = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in found.items())
    head = f'"inputs": {json.dumps(inputs)},\n"settings": {json.dumps(SETTINGS)}'
    FILE.write_text(f'{{{head},\n"losses": {{\n{losses}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()

"""How far bf16 turns the gradient of a pair, by kind of attention, and how far the pair itself lets it turn.

python benchmarks/rounding.py

`smol` with a random adapter, medium pairs of `vs_trl.py`, one at a time: the gradient of the chosen answer's
log-probability in bf16 against the same in fp32, as |difference| / |fp32|. Beside it fp32 against fp32 whose embeddings
carry noise of the size that bf16 rounds away: what no exact kernel can be better than.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import vs_trl
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpo_workbench.common.environment import describe
from dpo_workbench.models import attention, kernels, layer
from dpo_workbench.models.loading import Model
from dpo_workbench.training import loop
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Row

RESULTS = Path(__file__).parent / "results" / "rounding.json"
N_PAIRS, N_NOISES, BF16_STEP = 10, 4, 2**-9


def main() -> None:
    exact, low = model("fp32"), model("bf16")
    tokenizer = exact.tokenizer
    rows = []
    for i, pair in enumerate(vs_trl.texts(tokenizer, "medium")[:N_PAIRS]):
        answers = (tokenizer(pair[side]).input_ids + [tokenizer.eos_token_id] for side in ("chosen", "rejected"))
        rows.append(Row(f"p{i}", tuple(tokenizer(pair["prompt"]).input_ids), tuple(map(tuple, answers))))
    found = []
    for row in rows:
        want = gradient(exact, row)
        cell = {"norm": want.norm().item(), "this loop": differs(gradient(low, row), want)}
        with patch.object(kernels, "_compile", lambda dtype: None):
            cell["this loop without Numba"] = differs(gradient(low, row), want)
        with patch.object(layer, "attend", by_parts), patch.object(layer, "attend_backward", by_parts_backward):
            cell["sdpa, each part"] = differs(gradient(low, row), want)
        cell["sdpa, plain sequences"] = differs(gradient(low, row, packing=False), want)
        with sdpa_kernel(SDPBackend.MATH):
            cell["sdpa's math kernel, plain sequences"] = differs(gradient(low, row, packing=False), want)
        cell["fp32 with noise"] = [differs(gradient(exact, row, noise=seed), want) for seed in range(N_NOISES)]
        found.append(cell)
        print(row.id, cell, flush=True)
    record = {
        "command": "python benchmarks/rounding.py",
        "date": date.today().isoformat(),
        "machine": describe(),
        "seed": 1,
        "pairs": found,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def model(dtype: str) -> Model:
    made = vs_trl.load(dtype).with_new_adapter(seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in made.network.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.02)
    return made


def gradient(model: Model, row: Row, packing: bool = True, noise: int | None = None) -> torch.Tensor:
    """Of the chosen answer's log-probability with respect to the adapter, flat, fp32."""
    (batch,) = loop.micro_batches([row], model, TrainConfig(nll_weight=0.0, packing=packing))
    for p in model.adapter_parameters():
        p.grad = None
    generator = torch.Generator().manual_seed(noise or 0)
    hook = model.network.get_base_model().get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, out: out * (1 + BF16_STEP * torch.randn(out.shape, generator=generator))
    ) if noise is not None else nullcontext()  # fmt: skip
    with hook, model.active(trainable=True) as network:
        answer_logps(network, batch)[0].backward()
    return torch.cat([p.grad.float().flatten() for p in model.adapter_parameters()])


def differs(got: torch.Tensor, want: torch.Tensor) -> float:
    return round(((got - want).norm() / want.norm()).item(), 4)


def by_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, layout: attention.Layout, out: Any
) -> None:
    """Attention as on a GPU."""
    out.copy_(attention._attention_of_parts(*(x.transpose(0, 1)[None] for x in (q, k, v)), scale, layout)[0])


def by_parts_backward(grad: torch.Tensor, *args: Any) -> None:
    inputs, out = [x.detach().requires_grad_() for x in args[:3]], args[-1]
    with torch.enable_grad():
        made = attention._attention_of_parts(*(x.transpose(0, 1)[None] for x in inputs), *args[3:-1])[0]
    out.copy_(torch.cat(torch.autograd.grad(made, inputs, grad), 1))


if __name__ == "__main__":
    main()

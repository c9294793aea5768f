"""How near the loop is to the machine: its floating-point operations over its time, against plain matrix products.

python benchmarks/limit.py                      # medium pairs of benchmarks/vs_trl.py, fp32 and bf16
python benchmarks/limit.py --results limit_avx2 # another kind of processor, a file of its own

Counted are the operations that the result needs: two for each multiply-add of the linear layers, LoRA, attention and
head, forward and backward; attention only where a token may look; nothing that backward computes a second time.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch
from dpo_workbench.models.kept import Kept
from vs_trl import BATCH, SHAPES, load

from dpo_workbench.common.environment import describe
from dpo_workbench.training import loop
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.packing import Row, pack

RESULTS = Path(__file__).parent / "results"
PRODUCTS = [(576, 1536), (1536, 576), (576, 576), (576, 192)]  # of smol's layers: in, out


def operations(model, rows: list[Row], rank: int, *, backward: bool) -> float:
    """Floating-point operations of one pass over packed rows."""
    config = model.network.config
    total, every = 0.0, sum(row.n_tokens for row in rows)
    answers = sum(len(answer) for row in rows for answer in row.answer_ids)
    embedding = model._causal().get_input_embeddings()
    last = f"model.layers.{config.num_hidden_layers - 1}."
    for name, module in model._causal().named_modules():
        base = getattr(module, "base_layer", None)
        if base is None or "lora" in name:
            continue
        n_out, n_in = base.weight.shape
        read_once = name.startswith(last) and not name.endswith(("k_proj", "v_proj"))  # of the last layer, what is read
        tokens = answers if read_once else every
        first = name.startswith("model.layers.0.self_attn") and not name.endswith("o_proj")
        dense, low = 2 * tokens * n_in * n_out, 2 * tokens * rank * (n_in + n_out)
        total += dense + low
        if backward:  # the input's slope (nothing below the first layer has one), and the slopes of A and B
            total += (0 if first else dense + low) + low
    head = 2 * answers * embedding.weight.shape[0] * embedding.weight.shape[1]
    total += head * (2 if backward else 1)
    seen = sum(n * before + n * (n + 1) // 2 for before, n in (part.sizes for part in pack(rows).layout.parts))
    heads = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return total + config.num_hidden_layers * 2 * heads * seen * (6 if backward else 2)


def product_rate(dtype: torch.dtype, tokens: int) -> float:
    """Operations a second of the layers' matrix products, weighted as they occur."""
    spent = done = 0.0
    for n_in, n_out in PRODUCTS:
        x, w = torch.randn(tokens, n_in, dtype=dtype), torch.randn(n_out, n_in, dtype=dtype)
        best = min(_seconds(lambda x=x, w=w: x @ w.T, 20) for _ in range(5))
        spent, done = spent + best, done + 2 * tokens * n_in * n_out
    return done / spent


def _seconds(work, times: int) -> float:
    work()
    begun = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begun) / times


def measure(shape: str, dtype: str) -> dict:
    """Rates of the training step and of the reference pass, and of plain products before and after."""
    prompt, answer, together = SHAPES[shape]
    model = load(dtype).with_new_adapter(seed=0)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (BATCH, prompt + 2 * answer), generator=draw).tolist()
    rows = [
        Row(f"r{i}", tuple(x[:prompt]), (tuple(x[prompt : prompt + answer]), tuple(x[prompt + answer :])))
        for i, x in enumerate(ids)
    ]
    config = TrainConfig(batch_size=BATCH, micro_tokens=together * (prompt + 2 * answer))
    parameters = model.adapter_parameters()
    optimizer = loop.optimizer_for(parameters, config)
    reference = dict.fromkeys([r.id for r in rows], (-400.0, -400.0))
    objective = loop.preference_objective(reference, config, rows, model)
    kept = Kept(model.network)

    def train() -> None:
        batches = list(loop.micro_batches(rows, model, config))
        with model.active(trainable=True) as network:
            loop.train_step(network, batches, objective, parameters, optimizer, config, kept=kept)

    def look() -> None:
        with model.active() as network, torch.no_grad():
            for batch in loop.micro_batches(rows, model, config):
                loop.answer_logps(network, batch)

    rates = [product_rate(model.dtype, together * (prompt + 2 * answer))]
    train()
    seconds = {
        "training": min(_seconds(train, 1) for _ in range(3)),
        "reference": min(_seconds(look, 1) for _ in range(3)),
    }
    rates.append(product_rate(model.dtype, together * (prompt + 2 * answer)))
    result = {"product_gflops": [round(r / 1e9) for r in rates]}
    for name, spent in seconds.items():
        rate = operations(model, rows, config.rank, backward=name == "training") / spent
        result[name] = {
            "seconds_a_pair": round(spent / BATCH, 4),
            "gflops": round(rate / 1e9, 1),
            "share_of_products": round(rate / (sum(rates) / 2), 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["medium"], choices=list(SHAPES))
    parser.add_argument("--results", default="limit", help="name of the results file")
    args = parser.parse_args()
    results = RESULTS / f"{args.results}.json"
    recorded = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    recorded |= {
        "machine": describe(),
        "command": "python benchmarks/limit.py" + (f" --results {args.results}" if args.results != "limit" else ""),
        "seed": 0,
        "date": date.today().isoformat(),
    }
    for shape in args.shapes:
        for dtype in ("fp32", "bf16"):
            recorded[f"{shape}-{dtype}"] = measure(shape, dtype)
            print(shape, dtype, recorded[f"{shape}-{dtype}"], flush=True)
            results.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""This package's training loop next to TRL's DPOTrainer, on the same pairs, each in its own process.

    python benchmarks/vs_trl.py                              # fp32, one epoch; a recorded cell is not measured again
    python benchmarks/vs_trl.py --cells medium-fp32-1 --again
    python benchmarks/vs_trl.py --cells short-bf16-1 long-fp32-3    # SHAPE-DTYPE-EPOCHS

Both sides have the same model (SmolLM2-135M), token ids, LoRA adapter (rank 16 on all linear layers, the same start),
pairs in a forward pass and in an optimizer step, AdamW, learning rate, order, and number of steps. The clock runs from
a loaded model and pairs as text to the end of training: tokenizing, adding the adapter and the reference pass are
included, imports are not. Peak memory is that of the whole process. TRL runs without activation checkpointing (its
default is with it, which is slower), and with one epoch it computes the reference next to the policy (its default).
`ours_checkpointing` is this package with `checkpointing=True`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHAPES = {"short": (60, 30, 8), "medium": (200, 75, 4), "long": (600, 60, 2)}  # prompt, each answer, pairs in a pass
N_PAIRS = {"short": 16, "medium": 8, "long": 8}
BATCH, LR = 8, 1e-5


def texts(tokenizer, shape: str) -> list[dict[str, str]]:
    """Pairs of random words, each one token, so that both sides read the same number of tokens."""
    rng = random.Random(0)
    words = [w for w in tokenizer.get_vocab() if w.startswith("Ġ") and w[1:].isascii() and w[1:].isalpha()]
    words = sorted(" " + w[1:] for w in words if len(w) > 3)
    prompt, answer, _ = SHAPES[shape]

    def draw(n: int) -> str:
        return "".join(rng.choice(words) for _ in range(n))

    ends = (draw(1), draw(1))  # the answers begin differently, so nothing but the prompt is shared
    return [
        {
            "prompt": draw(prompt - 1) + "\n",
            "chosen": ends[0] + draw(answer - 2),
            "rejected": ends[1] + draw(answer - 2),
        }
        for _ in range(N_PAIRS[shape])
    ]


def load(dtype: str, seed: int = 0):
    """smol with a fresh adapter, the tokenizer without a chat template (both sides then read plain text)."""
    import torch

    import dpo_workbench as dw
    from dpo_workbench.models.chat import Chat

    torch.manual_seed(seed)
    model = dw.load_model("smol", device=device(), dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    model.tokenizer.chat_template = None
    return replace(model, chat=Chat(model.tokenizer, {"join": "\n"}))


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def ours(shape: str, dtype: str, epochs: int, checkpointing: bool = False) -> dict:
    import dpo_workbench as dw
    from dpo_workbench.training.config import TrainConfig

    model = load(dtype)
    prompt, answer, together = SHAPES[shape]
    made = texts(model.tokenizer, shape)
    pairs = dw.Pairs([dw.Pair(f"p{i}", p["prompt"][:-1], p["chosen"], p["rejected"]) for i, p in enumerate(made)])
    config = TrainConfig(
        lr=LR,
        epochs=epochs,
        batch_size=BATCH,
        nll_weight=0.0,
        probes=0,
        held_out=0.0,
        warmup=0.0,
        micro_tokens=together * (prompt + 2 * answer),
        checkpointing=checkpointing,
    )
    train = dw.train  # imports the loop before the clock starts
    begun = time.monotonic()
    run = train(model, pairs, config, show=False)
    return {"seconds": time.monotonic() - begun, "losses": [h["loss"] for h in run.history]}


def ours_checkpointing(shape: str, dtype: str, epochs: int) -> dict:
    return ours(shape, dtype, epochs, checkpointing=True)


def trl(shape: str, dtype: str, epochs: int) -> dict:
    import datasets  # noqa: F401
    from trl import DPOConfig, DPOTrainer  # noqa: F401

    model = load(dtype)
    begun = time.monotonic()
    trainer = trl_trainer(model, texts(model.tokenizer, shape), SHAPES[shape][2], dtype, epochs)
    trainer.train()
    seconds = time.monotonic() - begun
    return {"seconds": seconds, "losses": [h["loss"] for h in trainer.state.log_history if "loss" in h]}


def trl_trainer(model, pairs: list[dict[str, str]], together: int, dtype: str, epochs: int):
    """TRL's trainer with the arithmetic of `dw.train`: its fused output head, SDPA, no activation checkpointing.

    Args:
        model: a handle without an adapter. TRL wraps its network.
        pairs: texts with the keys prompt, chosen and rejected.
        together: pairs in one forward pass, a divisor of `BATCH`.
    """
    import datasets
    import torch
    from peft import LoraConfig, get_peft_model
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir="work/trl",
        per_device_train_batch_size=together,
        gradient_accumulation_steps=BATCH // together,
        num_train_epochs=epochs,
        learning_rate=LR,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        gradient_checkpointing=False,
        precompute_ref_log_probs=epochs > 1,
        bf16=dtype == "bf16",
        fp16=dtype == "fp16",
        use_cpu=device() == "cpu",
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    model.network.set_attn_implementation("sdpa")
    torch.manual_seed(0)  # as `add_adapter`
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    network = get_peft_model(model.network, lora)
    return DPOTrainer(
        model=network,
        args=config,
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=model.tokenizer,
    )


def check(shape: str, dtype: str, _epochs: int) -> dict:
    model = load(dtype)
    trainer = trl_trainer(model, texts(model.tokenizer, shape), SHAPES[shape][2], dtype, 1)
    return first_pass(trainer, load(dtype))


def first_pass(trainer, model) -> dict:
    """Loss and gradient of the first pass on both sides, from an adapter that already differs from its reference.

    `model` has the weights that the trainer's model began with, in a network of its own.
    """
    import torch

    from dpo_workbench.training.config import TrainConfig
    from dpo_workbench.training.logps import answer_logps
    from dpo_workbench.training.losses import Preference
    from dpo_workbench.training.packing import Row, micro_batches

    network = trainer.accelerator.unwrap_model(trainer.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "lora_B" in name and p.requires_grad:
                p.normal_(0, 0.02)
    parameters = [p for p in network.parameters() if p.requires_grad]
    batch = next(iter(trainer.get_train_dataloader()))
    network.train()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    want = torch.cat([p.grad.flatten() for p in parameters])
    network.zero_grad()
    moved = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}

    model = model.with_new_adapter(seed=0)
    mine = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, value in moved.items():
            mine[name.replace(".default.", f".{model.adapter}.")].copy_(value)
    rows = [
        Row(str(i), tuple(r["prompt_ids"]), (tuple(r["chosen_ids"]), tuple(r["rejected_ids"])))
        for i, r in enumerate(trainer.train_dataset)
    ][: trainer.args.per_device_train_batch_size]
    assert len({(len(r.prompt_ids), *map(len, r.answer_ids), r.n_shared) for r in rows}) == 1 and not rows[0].n_shared
    config = TrainConfig(nll_weight=0.0, micro_tokens=10**6)
    (packed,) = micro_batches(rows, model, config)
    with model.network.disable_adapter(), torch.no_grad():
        sums = answer_logps(model.network, packed).view(-1, 2).tolist()
    reference = dict(zip(packed.ids, map(tuple, sums), strict=True))
    with model.active(trainable=True) as network:
        mine_loss, _ = Preference(reference, config).loss(network, packed, rows, step=1)
        mine_loss.backward()
    got = torch.cat([p.grad.flatten() for p in model.adapter_parameters()])
    return {
        "loss_ours": mine_loss.item(),
        "loss_trl": loss.item(),
        "loss_difference": abs(mine_loss.item() - loss.item()),
        "gradient_relative_difference": ((got - want).norm() / want.norm()).item(),
    }


def run_cell(side: str, shape: str, dtype: str, epochs: int) -> dict:
    """One measurement in a child process: what the child says, with the peak memory of its whole life."""
    command = [sys.executable, __file__, "--child", side, shape, dtype, str(epochs)]
    env = {**os.environ, "CI": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    out = child.stdout.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return json.loads(out.strip().splitlines()[-1]) | {"peak_memory_gib": round(usage.ru_maxrss / 2**20, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    grid = [f"{shape}-fp32-1" for shape in SHAPES]
    parser.add_argument("--cells", nargs="*", default=grid, help="SHAPE-DTYPE-EPOCHS")
    parser.add_argument("--again", action="store_true", help="measure recorded cells again")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side, in turn; the medians count")
    parser.add_argument("--results", default="vs_trl", help="name of the results file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side, shape, dtype, epochs = args.child
        sides = {"ours": ours, "ours_checkpointing": ours_checkpointing, "trl": trl, "check": check}
        print(json.dumps(sides[side](shape, dtype, int(epochs))))
        return
    from dpo_workbench.common.environment import describe

    results = RESULTS / f"{args.results}.json"
    recorded = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {"cells": {}}
    command = "python benchmarks/vs_trl.py" + (f" --results {args.results}" if args.results != "vs_trl" else "")
    machine = describe()
    recorded |= {"machine": machine, "command": command, "seed": 0, "pairs": N_PAIRS}
    for cell in args.cells:
        if cell in recorded["cells"] and not args.again:
            continue
        shape, dtype, epochs = cell.split("-")
        sides = ("ours", "ours_checkpointing", "trl")
        rounds = [[run_cell(side, shape, dtype, int(epochs)) for side in sides] for _ in range(args.rounds)]
        mine, small, theirs = (
            sorted(runs, key=lambda x: x["seconds"])[len(runs) // 2] for runs in zip(*rounds, strict=True)
        )
        factors = [theirs["seconds"] / mine["seconds"] for mine, _, theirs in rounds]
        entry = {
            "ours": mine,
            "ours_checkpointing": small,
            "trl": theirs,
            "seconds_a_pair": [round(x["seconds"] / N_PAIRS[shape] / int(epochs), 3) for x in (mine, theirs)],
            "times_faster": round(theirs["seconds"] / mine["seconds"], 2),
            "times_faster_of_rounds": [round(x, 2) for x in factors],
            "share_of_memory": round(mine["peak_memory_gib"] / theirs["peak_memory_gib"], 3),
            "checkpointing_share_of_memory": round(small["peak_memory_gib"] / theirs["peak_memory_gib"], 3),
            "checkpointing_times_slower": round(small["seconds"] / mine["seconds"], 2),
            "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
            "date": date.today().isoformat(),
            "processor": f"{machine['processor']} ({machine.get('instructions', '?')})",
        }
        if epochs == "1":
            entry["first_batch"] = run_cell("check", shape, dtype, 1)
        recorded["cells"][cell] = entry
        results.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(cell, {k: v for k, v in entry.items() if k not in ("ours", "trl")}, flush=True)


if __name__ == "__main__":
    main()

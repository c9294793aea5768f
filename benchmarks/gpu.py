"""This package on one GPU, next to TRL and to transformers' `generate`: results/gpu.json, in at most 8 minutes.

    python benchmarks/gpu.py                                   # on a GPU; run it again to measure what did not fit
    python benchmarks/gpu.py --cells train-1.5B-long --again   # measure one cell again
    python benchmarks/gpu.py --toy                             # everything at toy size on a CPU: results/gpu_toy.json

It needs torch, transformers and peft, and nothing of this package has to be installed. TRL's side also needs
`pip install "trl>=1.0"`; without it those measurements are left out. Nothing is downloaded: the models have the layers
and the vocabulary of Qwen2.5-0.5B and -1.5B and random weights, which are made on the GPU.

A cell is one comparison. Each side of it runs in a process of its own, one right after the other, so that its peak
memory is clean and the ratio is that of one moment. A cell is written to the results file as soon as it is measured.

- `equal`: loss and gradient of one batch in fp32 are those of TRL, and the log-probabilities of packs are those of
  plain sequences.
- `train`: one epoch with LoRA (rank 16 on all linear layers) on equal pairs in an equal number of forward passes. TRL
  has its fused output head, SDPA and no activation checkpointing. Its steps include the reference model (its default
  for one epoch); here the reference pass before training is added to the steps. Warm-up steps do not count. Tokens are
  those of a pair with its prompt counted once, for both sides.
- `generate`: greedy answers, and 4 samples for each prompt, next to `network.generate(num_return_sequences=4)`.
- `packs`: forward and backward passes of the same pairs as packs and as plain sequences.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # so that a clone needs no installation
RESULTS = ROOT / "benchmarks" / "results"

FIRST_GUESS = 60.0  # seconds that a cell may take, before one was measured
VOCABULARY = {"toy": 512, "0.5B": 151_936, "1.5B": 151_936}
SIZES = {  # of Qwen2.5's config.json
    "toy": (64, 128, 2, 4, 2),
    "0.5B": (896, 4864, 24, 14, 2),
    "1.5B": (1536, 8960, 28, 12, 2),
}  # hidden, intermediate, layers, heads, key-value heads
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LENGTHS = {"short": (64, 128), "medium": (512, 128), "long": (2048, 128)}  # tokens of the prompt and of each answer
TOY_LENGTHS = {"short": (8, 8), "medium": (16, 8), "long": (32, 8)}
WARM_UP, STEPS, STEP_SECONDS = 2, 5, 20.0  # steps that do not count; at most so many that do, or so many seconds
SAMPLES = 4
ORDER = [  # the most telling first
    "equal-0.5B-short", "train-1.5B-medium", "train-1.5B-long", "generate-1.5B-medium", "packs-1.5B-medium",
    "train-0.5B-medium", "train-0.5B-long", "train-1.5B-short", "train-0.5B-short", "generate-0.5B-medium",
    "packs-1.5B-long",
]  # fmt: skip
TOY_ORDER = ["equal-toy-short", *(f"train-toy-{x}" for x in LENGTHS), "generate-toy-medium", "packs-toy-medium"]
SIDES = {"equal": ["both"], "train": ["ours", "trl"], "generate": ["ours", "transformers"], "packs": ["both"]}
NEEDED = ("torch", "transformers", "peft", "safetensors", "jinja2", "regex", "tqdm")


def lengths(size: str, length: str) -> tuple[int, int]:
    return (TOY_LENGTHS if size == "toy" else LENGTHS)[length]


def pairs_together(length: str) -> int:
    """Pairs in one forward pass, on both sides: what TRL's activations of the 1.5B model leave room for."""
    import torch

    gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else 100
    choices = (8, 4, 2) if gib > 70 else (8, 4, 1) if gib > 38 else (2, 1, 1)
    return dict(zip(LENGTHS, choices, strict=True))[length]


def random_model(size: str, dtype: str, device: str | None = None, n_layers: int | None = None) -> Any:
    """A handle on a Qwen2 with random weights, made on the device, whose tokenizer has the words `t1`, `t2`, ..."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    from dpo_workbench.common.environment import choose_device
    from dpo_workbench.models.attention import pack_attention, use_plain_attention
    from dpo_workbench.models.chat import Chat
    from dpo_workbench.models.loading import Model, _Shared

    where, end = choose_device(device), "<|end|>"
    words = {end: 0} | {f"t{i}": i for i in range(1, VOCABULARY[size])}
    raw = Tokenizer(models.WordLevel(words, unk_token=end))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, pad_token=end)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip(names, SIZES[size], strict=True)) | ({"num_hidden_layers": n_layers} if n_layers else {})
    ends = {"eos_token_id": 0, "pad_token_id": 0}
    config = Qwen2Config(**sizes, **ends, vocab_size=VOCABULARY[size], tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device(where):
        network = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, DTYPES[dtype]))
    network = network.requires_grad_(False).eval()
    use_plain_attention(network)
    chat = Chat(tokenizer, {"join": " "}, network.generation_config)
    return Model(f"Qwen2 {size}", chat, size, _Shared(network, pack_attention(network, where)))


def draw_pairs(n_pairs: int, size: str, length: str) -> list[dict[str, str]]:
    """Pairs of random words, each one token. The answers begin differently; each of them ends with the end token."""
    rng = random.Random(0)
    prompt, answer = lengths(size, length)

    def draw(n: int) -> str:
        return " ".join(f"t{rng.randrange(10, VOCABULARY[size])}" for _ in range(n))

    return [
        {"prompt": draw(prompt) + " ", "chosen": f"t1 {draw(answer - 2)}", "rejected": f"t2 {draw(answer - 2)}"}
        for _ in range(n_pairs)
    ]


def encode_pairs(model: Any, pairs: list[dict[str, str]]) -> list[Any]:
    from dpo_workbench.training.tokens import tokenize

    texts = [(f"p{i}", p["prompt"][:-1], (p["chosen"], p["rejected"])) for i, p in enumerate(pairs)]
    return tokenize(model, texts, max_tokens=model.max_positions)


def now() -> float:
    """The time after everything that the GPU was asked to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """On a GPU the most memory of tensors since `reset_peak`; on a CPU that of the whole life of the process."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


class StepClock:
    """Times of the ends of steps, and whether enough of them were measured."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def tick(self) -> bool:
        """Note the end of a step. True after `STEPS` steps that count, or 2 when they took `STEP_SECONDS`."""
        self.ends.append(now())
        counted = len(self.ends) - WARM_UP
        return counted >= STEPS or (counted >= 2 and self.ends[-1] - self.ends[WARM_UP - 1] > STEP_SECONDS)

    @property
    def seconds(self) -> list[float]:
        """Of the steps that count."""
        times = self.ends[WARM_UP - 1 :]
        return [round(after - before, 5) for before, after in zip(times, times[1:], strict=False)]


def trained(clock: StepClock, reference_seconds: float, size: str, length: str, facts: dict) -> dict:
    """The record of one side of a `train` cell; `reference_seconds` are those of a pair, outside the steps."""
    from vs_trl import BATCH

    prompt, answer = lengths(size, length)
    seconds = reference_seconds + median(clock.seconds) / BATCH
    return {
        "seconds_per_pair": round(seconds, 6),
        "reference_seconds_per_pair": round(reference_seconds, 6),
        "step_seconds": clock.seconds,
        "tokens_per_second": round((prompt + 2 * answer) / seconds, 1),
        "peak_memory_gib": peak_gib(),
        **facts,
    }


def train_ours(size: str, length: str, dtype: str) -> dict:
    from vs_trl import BATCH, LR

    from dpo_workbench.common.interrupts import Interrupts
    from dpo_workbench.training.config import TrainConfig
    from dpo_workbench.training.loop import TrainState, training_steps
    from dpo_workbench.training.losses import Preference
    from dpo_workbench.training.reference import choose_packing, reference_logps

    model = random_model(size, dtype)
    rows = encode_pairs(model, draw_pairs((WARM_UP + STEPS) * BATCH, size, length))
    tokens = pairs_together(length) * rows[0].n_tokens
    config = TrainConfig(lr=LR, epochs=1, batch_size=BATCH, nll_weight=0.0, warmup=0.0, micro_tokens=tokens)
    config = choose_packing(model, rows, config)
    reference_logps(model, rows[:BATCH], config, None)  # compiles kernels, and hashes the weights once
    reset_peak()
    begun = now()
    reference = reference_logps(model, rows, config, None)
    reference_seconds = (now() - begun) / len(rows)
    state = TrainState(model.with_new_adapter(seed=0), config)
    clock, losses = StepClock(), []
    with Interrupts() as interrupts:
        for metrics in training_steps(state, rows, Preference(reference, config), interrupts):
            losses.append(metrics["loss"])
            if clock.tick():
                break
    attention = "flex_attention" if model.uses_flex_attention else "sdpa"
    facts = {"losses": losses, "attention": attention, "packing": config.packing, "micro_tokens": tokens}
    return trained(clock, reference_seconds, size, length, facts)


def train_trl(size: str, length: str, dtype: str) -> dict:
    import trl
    from transformers import TrainerCallback
    from vs_trl import BATCH, trl_trainer

    clock = StepClock()

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop |= clock.tick()

    model = random_model(size, dtype)
    made = draw_pairs((WARM_UP + STEPS) * BATCH, size, length)
    trainer = trl_trainer(model, made, pairs_together(length), dtype, epochs=1)
    trainer.add_callback(Clock())
    reset_peak()
    trainer.train()
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    facts = {"losses": losses, "attention": model.network.config._attn_implementation, "trl": trl.__version__}
    return trained(clock, 0.0, size, length, facts)


def equal(size: str, length: str, _dtype: str) -> dict:
    """In fp32: gradients next to TRL's, and log-probabilities of packs next to those of plain sequences."""
    found = {"packs": pack_values(random_model(size, "fp32"), size, length)}
    if importlib.util.find_spec("trl"):
        from vs_trl import first_pass, trl_trainer

        trainer = trl_trainer(random_model(size, "fp32"), draw_pairs(4, size, length), 4, "fp32", epochs=1)
        found["trl"] = first_pass(trainer, random_model(size, "fp32"))
    return found


def layouts(model: Any, rows: list[Any]) -> dict[str, tuple[Any, Any]]:
    """The same rows as packs with FlexAttention (where it can run), as packs with SDPA, and as plain sequences."""
    from dpo_workbench.training.packing import lay_out, pack

    plain = replace(model, _shared=replace(model._shared, pack_attention="sdpa"))
    made = {
        "packs_sdpa": (plain, pack(rows, model.device)),
        "plain": (plain, lay_out(rows, model.chat.end_id, model.device)),
    }
    flex = {"packs_flex_attention": (model, pack(rows, model.device, flex=True))}
    return flex | made if model.uses_flex_attention else made


def moved_adapter(model: Any) -> Any:
    """A handle with an adapter that changes the model, so that its matrices have gradients that are not zero."""
    import torch

    handle = model.with_new_adapter(seed=0)
    with torch.no_grad():
        for p in handle.adapter_parameters():
            p.add_(torch.randn_like(p) * 0.02)
    return handle


def pack_values(model: Any, size: str, length: str) -> dict:
    """How much log-probabilities and gradients of packs differ from those of plain sequences.

    The control leaves out the mask and the positions, and must differ.
    """
    import torch

    from dpo_workbench.training.logps import answer_logps

    handle = moved_adapter(model)
    made, found = layouts(handle, encode_pairs(handle, draw_pairs(4, size, length))), {}
    view, packed = made["packs_sdpa"]
    made["control"] = (view, replace(packed, attention_mask=None, position_ids=None))
    for name, (view, batch) in made.items():
        for p in handle.adapter_parameters():
            p.grad = None
        with view.active(trainable=True) as network:
            logps = answer_logps(network, batch)
            logps.sum().backward()
        found[name] = (logps.detach(), torch.cat([p.grad.flatten() for p in handle.adapter_parameters()]))
    values, gradient = found.pop("plain")
    return {
        name: {
            "nats_per_token": ((logps - values).abs().max() / lengths(size, length)[1]).item(),
            "gradient_relative_difference": ((grad - gradient).norm() / gradient.norm()).item(),
        }
        for name, (logps, grad) in found.items()
    }


def packs(size: str, length: str, dtype: str) -> dict:
    """Seconds and memory of a forward and backward pass in each layout."""
    from dpo_workbench.training.logps import answer_logps

    handle = moved_adapter(random_model(size, dtype))
    together = pairs_together(length)
    made = layouts(handle, encode_pairs(handle, draw_pairs(together, size, length)))
    found: dict[str, dict] = {}
    for name, (view, batch) in made.items():
        times, begun = [], 0.0
        for k in range(WARM_UP + STEPS):
            if k == WARM_UP:
                reset_peak()
            begun = now()
            with view.active(trainable=True) as network:
                answer_logps(network, batch).sum().backward()
            times.append(now() - begun)
        found[name] = {"seconds_per_pair": median(times[WARM_UP:]) / together, "peak_memory_gib": peak_gib()}
    return found


def generate(side: str, size: str, length: str, dtype: str) -> dict:
    """Greedy answers to 32 prompts, and 4 samples for each of 8 prompts: tokens per second and peak memory."""
    import torch

    from dpo_workbench.models.generation import generate as ours

    n_prompts, limit = (4, 8) if size == "toy" else (32, 128)
    model = random_model(size, dtype)
    prompts = [p["prompt"][:-1] for p in draw_pairs(n_prompts, size, length)]

    def answers(asked: list[str], samples: int, temperature: float) -> list[str]:
        if side == "ours":
            drawn = ours(model, asked, samples=samples, temperature=temperature, max_new_tokens=limit)
            return [answer.text for some in drawn for answer in some]
        ids = torch.tensor([model.chat.prompt_ids(prompt) for prompt in asked], device=model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        settings = {"num_return_sequences": samples, "max_new_tokens": limit, **sampling}
        with torch.inference_mode():
            drawn = model.network.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return model.tokenizer.decode(drawn[:, ids.shape[1] :], skip_special_tokens=True)

    found: dict[str, Any] = {}
    for name, setting in {
        "greedy": (prompts, 1, 0.0),
        f"{SAMPLES}_samples": (prompts[: max(1, n_prompts // SAMPLES)], SAMPLES, 1.0),
    }.items():
        answers(*setting)  # warm-up
        reset_peak()
        times = []
        for _ in range(3):
            begun = now()
            texts = answers(*setting)
            times.append(now() - begun)
        seconds = median(times)
        tokens_per_second = round(sum(len(text.split()) for text in texts) / seconds, 1)
        found[name] = {"seconds": times, "tokens_per_second": tokens_per_second, "peak_memory_gib": peak_gib()}
        found[name]["answers"] = [hashlib.sha256(repr(text.split()).encode()).hexdigest()[:8] for text in texts]
    return found


def child(kind: str, size: str, length: str, side: str) -> dict:
    """One side of a cell, in this process."""
    from dpo_workbench.common.environment import choose_device, choose_dtype
    from dpo_workbench.common.memory import out_of_memory

    best = choose_dtype(choose_device())
    dtype = "fp32" if size == "toy" else next(short for short, name in DTYPES.items() if str(best) == f"torch.{name}")
    work: dict[str, Callable[[], dict]] = {
        "equal": lambda: equal(size, length, dtype),
        "train": lambda: (train_ours if side == "ours" else train_trl)(size, length, dtype),
        "generate": lambda: generate(side, size, length, dtype),
        "packs": lambda: packs(size, length, dtype),
    }
    try:
        return {"dtype": dtype, **work[kind]()}
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return {"dtype": dtype, "failed": "out of memory"}


def run_side(cell: str, side: str, seconds: float, toy: bool) -> dict:
    """What a child process measured, or {"failed": why}."""
    if side == "trl" and not importlib.util.find_spec("trl"):
        return {"failed": 'TRL is not installed: pip install "trl>=1.0"'}
    command = [sys.executable, __file__, "--child", *cell.split("-"), side]
    quiet = {"CI": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    gpus = "" if toy else os.environ.get("CUDA_VISIBLE_DEVICES", "0")  # TRL refuses to see several GPUs
    env = os.environ | quiet | {"CUDA_VISIBLE_DEVICES": gpus}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return {"failed": "the time was up"}
    if done.returncode:
        return {"failed": f"the process ended with status {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(kind: str, sides: dict[str, dict]) -> dict:
    """Ratios of the two sides of a cell, where both were measured."""
    if any("failed" in found for found in sides.values()):
        return {}
    if kind == "train":
        ours, trl = sides["ours"], sides["trl"]
        return {
            "times_faster_than_trl": round(trl["seconds_per_pair"] / ours["seconds_per_pair"], 2),
            "share_of_trl_memory": round(ours["peak_memory_gib"] / trl["peak_memory_gib"], 3),
        }
    if kind == "generate":
        ours, theirs = sides["ours"], sides["transformers"]
        settings = [name for name in ours if name != "dtype"]
        same = [a == b for a, b in zip(ours["greedy"]["answers"], theirs["greedy"]["answers"], strict=True)]
        ratios = {s: round(ours[s]["tokens_per_second"] / theirs[s]["tokens_per_second"], 2) for s in settings}
        return {"times_faster_than_transformers": ratios, "same_greedy_answers": f"{sum(same)} of {len(same)}"}
    return {}


def measure(record: dict, cells: list[str], seconds: float, toy: bool, save: Callable[[dict], None]) -> None:
    """Measure the cells that the record lacks, each only if there is time for it, and save after each one."""
    deadline = time.monotonic() + seconds
    longest = FIRST_GUESS
    for cell in cells:
        if cell in record["cells"]:
            continue
        left = deadline - time.monotonic()
        if left < longest:
            print(f"{cell}: not measured, {left:.0f} s are left. Run the same command again.", flush=True)
            continue
        begun = time.monotonic()
        kind = cell.split("-")[0]
        sides = {side: run_side(cell, side, deadline - time.monotonic(), toy) for side in SIDES[kind]}
        longest = max(longest, time.monotonic() - begun)
        if any(found.get("failed") == "the time was up" for found in sides.values()):
            print(f"{cell}: not measured, the time was up. Run the same command again.", flush=True)
            continue
        took = round(time.monotonic() - begun, 1)
        entry = {**sides, **compare(kind, sides), "cell_seconds": took, "date": date.today().isoformat()}
        record["cells"][cell] = entry
        save(record)
        print(cell, json.dumps(compare(kind, sides) or sides), f"{took} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a small model and short prompts, on the CPU")
    parser.add_argument("--cells", nargs="*", help=f"among {' '.join(ORDER)}, or with --toy {' '.join(TOY_ORDER)}")
    parser.add_argument("--minutes", type=float, default=8, help="for everything; a cell for which none are left waits")
    parser.add_argument("--again", action="store_true", help="measure recorded cells again")
    parser.add_argument("--results", type=Path, help="another results file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        raise SystemExit(f"This needs {', '.join(missing)}: pip install {' '.join(missing)}")
    import torch

    from dpo_workbench.common.environment import describe
    from dpo_workbench.common.files import write_json

    if not args.toy and not torch.cuda.is_available():
        print("PyTorch finds no GPU, so nothing is measured. The same at toy size on the CPU follows (--toy).")
        args.toy = True
    file = args.results or RESULTS / ("gpu_toy.json" if args.toy else "gpu.json")
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"cells": {}}
    machine = describe()
    if not args.toy:
        facts = torch.cuda.get_device_properties(0)
        machine |= {"gpu": facts.name, "gpu_memory_gib": round(facts.total_memory / 2**30, 1)}
        machine |= {"compute_capability": f"{facts.major}.{facts.minor}", "cuda": torch.version.cuda}
    record |= {"machine": machine, "seed": 0, "command": "python benchmarks/gpu.py" + (" --toy" if args.toy else "")}
    cells = args.cells or (TOY_ORDER if args.toy else ORDER)
    if args.again:
        record["cells"] = {name: cell for name, cell in record["cells"].items() if name not in cells}
    measure(record, cells, 60 * args.minutes, args.toy, lambda found: write_json(file, found))
    print(f"{len(record['cells'])} cells are in {file}")


if __name__ == "__main__":
    main()

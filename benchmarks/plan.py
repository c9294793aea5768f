"""The memory that `dw.plan` foresees next to measured peaks. Results: results/plan.json.

    python benchmarks/plan.py                    # 8 settings, each in its own process
    python benchmarks/plan.py --only 71M-short
    python benchmarks/plan.py --published        # the plan next to peaks that others have published; measures nothing

Two random models (Llama with 71 M parameters, Qwen2 with 253 M), short rows (4 pairs of 200 tokens) and long ones (one
pair of 1,500 tokens), with and without activation checkpointing, in fp32 on a CPU or in 16 bits on a GPU if there is
one. A setting takes one small step, which creates the optimizer's state, and then one step with all rows. Measured is
the peak during that second step: on a GPU what PyTorch allocated, on a CPU the resident memory above what the process
had before it loaded the model. The C library keeps freed memory by default, so on a CPU it is told to give back every
tensor at once (MALLOC_MMAP_THRESHOLD_). For the small model `default_allocator_gib` is measured without that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "plan.json"
COMMON = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, "max_position_embeddings": 4096}
MODELS = {
    "71M": ("llama", {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
                      "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "253M": ("qwen2", {"vocab_size": 49152, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 14,
                       "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "tiny": ("llama", {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "num_key_value_heads": 1}),
}  # fmt: skip
LLAMA_8B = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
QWEN_7B = LLAMA_8B | {"vocab_size": 151936, "intermediate_size": 11008, "num_key_value_heads": 32}
TORCHTUNE = "torchtune README at 0031bfb: 2 rows of 2,048 tokens, compiled, checkpointing"
QWEN = "Qwen README at 03cd81f: one row, FlashAttention 2, DeepSpeed for Q-LoRA, checkpointing"
PUBLIC = [  # source, method, sizes, LoRA rank, 4-bit, tokens in a pass, tokens of a row, published GiB
    (TORCHTUNE, "LoRA, Llama 3.1 8B", LLAMA_8B, 16, False, 4096, 2048, 16.2),
    (TORCHTUNE, "QLoRA, Llama 3.1 8B", LLAMA_8B, 8, True, 4096, 2048, 7.4),
    (QWEN, "LoRA, Qwen 7B", QWEN_7B, 64, False, 256, 256, 20.1),
    (QWEN, "LoRA, Qwen 7B", QWEN_7B, 64, False, 1024, 1024, 21.5),
    (QWEN, "LoRA, Qwen 7B", QWEN_7B, 64, False, 4096, 4096, 29.7),
    (QWEN, "Q-LoRA (GPTQ), Qwen 7B", QWEN_7B, 64, True, 1024, 1024, 12.3),
]
ROWS = {"short": (4, 100, 50), "long": (1, 1300, 100)}  # pairs, tokens of the prompt and of each answer
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def make(folder: Path, kind: str, sizes: dict) -> None:
    """A model folder with random weights and the tokenizer of nano, which nothing here uses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from dpo_workbench.common.environment import data_folder

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **COMMON, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(data_folder() / "nano").save_pretrained(folder)


def resident(name: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the peak) of this process."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def step_twice(folder: str, rows_name: str, checkpointing: bool, vocabulary: int) -> int:
    """The peak of a training step, in bytes."""
    import torch

    import dpo_workbench as dw
    from dpo_workbench.common.interrupts import Interrupts
    from dpo_workbench.training.config import TrainConfig
    from dpo_workbench.training.loop import TrainState, train_step
    from dpo_workbench.training.losses import Preference
    from dpo_workbench.training.packing import Row

    cuda, rng = torch.cuda.is_available(), random.Random(0)
    model = dw.load_model(folder, dtype=None if cuda else torch.float32)
    sum(p.sum() for p in model.network.parameters())  # so that all pages of the file are in memory
    n_pairs, prompt, answer = ROWS[rows_name]

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(n))

    rows = [Row(str(k), draw(prompt), (draw(answer), draw(answer))) for k in range(n_pairs)]
    small = [Row("small", draw(8), (draw(8), draw(8)))]
    config = TrainConfig(micro_tokens=10**6, checkpointing=checkpointing, nll_weight=0.0)
    state = TrainState(model.with_new_adapter(rank=config.rank, alpha=config.alpha), config)
    state.step = 1  # at step 0 the policy must equal the reference, which here is made up
    objective = Preference({row.id: (-100.0, -100.0) for row in small + rows}, config)
    with Interrupts() as interrupts:
        train_step(state, small, objective, interrupts)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        train_step(state, rows, objective, interrupts)
    return torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")


def child(folder: str, tiny: str, rows_name: str, checkpointing: bool, vocabulary: int) -> dict:
    import gc

    import torch

    step_twice(tiny, "short", checkpointing, 500)  # loads all libraries
    gc.collect()
    before = 0 if torch.cuda.is_available() else resident("VmRSS")
    return {"peak": step_twice(folder, rows_name, checkpointing, vocabulary) - before}


def measure(*arguments: str, allocator: dict[str, str]) -> float:
    """GiB, from a child process."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **allocator})
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])["peak"] / 2**30


def published() -> list[dict]:
    """What the plan says for settings with a published peak. These programs are not this package."""
    import torch
    from transformers import LlamaConfig

    from dpo_workbench.models.needs import CONTEXT, needs_of

    found = []
    for source, method, sizes, rank, quantized, tokens, row, gib in PUBLIC:
        parts = needs_of(LlamaConfig(**sizes), torch.bfloat16, rank).parts(tokens, row, True, quantized, True)
        total = (sum(parts.values()) + CONTEXT * (source == QWEN)) / 2**30  # Qwen's figures are of the whole GPU
        # transformers computes the logits of all tokens: in 16 bits, in fp32, and the loss's log-softmax and gradient
        logits = (2 + 3 * 4) * tokens * sizes["vocab_size"] / 2**30 if source == QWEN else 0.0
        total += logits
        entry = {"source": source, "method": method, "rank": rank, "tokens": tokens, "published_gib": gib}
        entry["all_logits_gib"] = round(logits, 2)
        entry["parts_gib"] = {part: round(size / 2**30, 2) for part, size in parts.items()}
        found.append(entry | {"planned_gib": round(total, 1), "planned_by_published": round(total / gib, 2)})
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="name of one setting, such as 253M-long-checkpointing")
    parser.add_argument("--again", action="store_true", help="measure recorded settings again")
    parser.add_argument("--published", action="store_true", help="only compare with published figures")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, tiny, rows_name, checkpointing, vocabulary = args.child
        print(json.dumps(child(folder, tiny, rows_name, checkpointing == "on", int(vocabulary))))
        return
    import torch
    from transformers import AutoConfig

    from dpo_workbench.common.environment import choose_device, choose_dtype, describe
    from dpo_workbench.common.files import write_json
    from dpo_workbench.models.needs import needs_of

    cuda = torch.cuda.is_available()
    dtype = choose_dtype(choose_device()) if cuda else torch.float32
    flex = cuda and torch.cuda.get_device_capability() >= (8, 0)
    results = RESULTS.with_stem("plan_gpu") if cuda else RESULTS
    recorded = json.loads(results.read_text()) if results.is_file() else {"settings": {}}
    if args.published:
        write_json(results, recorded | {"published": published()})
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name, (kind, sizes) in MODELS.items():
            make(Path(scratch) / name, kind, sizes)
        for name in ("71M", "253M"):
            needs = needs_of(AutoConfig.from_pretrained(Path(scratch) / name), dtype, 16)
            for rows_name, (n_pairs, prompt, answer) in ROWS.items():
                for checkpointing in ("off", "on"):
                    setting = f"{name}-{rows_name}{'-checkpointing' if checkpointing == 'on' else ''}"
                    if args.only not in (None, setting) or (setting in recorded["settings"] and not args.again):
                        continue
                    row = prompt + 2 * answer
                    parts = needs.parts(n_pairs * row, row, checkpointing == "on", False, flex)
                    folders = str(Path(scratch) / name), str(Path(scratch) / "tiny")
                    what = (*folders, rows_name, checkpointing, str(sizes["vocab_size"]))
                    measured, foreseen = measure(*what, allocator=GIVE_BACK), sum(parts.values()) / 2**30
                    entry = {"planned_gib": round(foreseen, 3), "measured_gib": round(measured, 3)}
                    entry["planned_by_measured"] = round(foreseen / measured, 3)
                    entry["parts_gib"] = {part: round(size / 2**30, 3) for part, size in parts.items()}
                    if not cuda and name == "71M":
                        entry["default_allocator_gib"] = round(measure(*what, allocator={}), 3)
                    recorded["settings"][setting] = entry
                    print(setting, entry, flush=True)
                    recorded |= {"command": "python benchmarks/plan.py", "date": date.today().isoformat(), "seed": 0}
                    recorded |= {"machine": describe(), "dtype": str(dtype)[6:], "rank": 16}
                    write_json(results, recorded)


if __name__ == "__main__":
    main()

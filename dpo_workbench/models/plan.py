"""`plan`: will it fit? What a run needs and what to set, before the weights are downloaded."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dpo_workbench.common.environment import choose_device, choose_dtype
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import pre
from dpo_workbench.common.memory import free_bytes
from dpo_workbench.models.attention import has_flex_attention
from dpo_workbench.models.files import load_chat, max_positions, read_config
from dpo_workbench.models.generation import ROWS
from dpo_workbench.models.needs import Device, needs_of
from dpo_workbench.models.rows import Row, encode, pair_texts
from dpo_workbench.pairs.pair import Pairs

GIB = 2**30
# Memory in GiB as PyTorch reports it, which is less than the card's name says, and peak TFLOPS of dense products in 16
# bits with 32-bit sums, from NVIDIA's data sheets (GeForce: the white papers of Ampere GA102 and Ada).
GPUS = {
    "T4": (14.7, 65), "L4": (22.0, 121), "A10": (22.0, 125), "RTX-3090": (23.6, 71), "RTX-4090": (23.6, 165),
    "A100-40": (39.4, 312), "L40S": (44.4, 362), "A100-80": (79.1, 312), "H100": (79.1, 989), "H200": (139.8, 989),
}  # fmt: skip
UTILIZATION = 0.3  # share of the peak that training reaches: an assumption
CHARACTERS = 3.5  # in a token, where there is no tokenizer
NEW_TOKENS = 256  # of a sampled answer
TEXT = """\
Plan: {model} ({parameters:,} parameters, {adapter:,} in the adapter) on {device}: {memory_gib:.1f} GiB, {dtype}
{pairs} pairs of {mean_tokens:.0f} tokens on average, {longest} at most (prompt and both answers)

weights  checkpointing  longest pair alone, GiB  micro_tokens
{table}

{found}
{budget}
Sampling {rows} answers at a time: {cache_gib:.1f} GiB of keys and values (fewer at a time if that does not fit)."""
TIME = (
    "Time: about {minutes} min for {epochs} epochs without sampling, a rough estimate: {share:.0%} of {tflops} TFLOPS."
)


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """What `plan` found: shown as text, and as plain values by `to_dict`."""

    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.facts

    def __repr__(self) -> str:
        facts, table = self.facts, []
        for option in facts["options"]:
            tokens = f"{option['micro_tokens']:,}" if option["micro_tokens"] else "does not fit"
            weights = f"{'4-bit' if option['quantize'] else facts['dtype']:<8} {option['checkpointing']!s:<13}"
            table.append(f"{weights}  {option['one_pair_gib']:>23.1f}  {tokens:>12}")
        found = "Nothing fits. In GiB for the longest pair alone, with 4-bit weights and checkpointing:"
        if facts["recommended"]:
            found = f"Budget in GiB with {', '.join(f'{k}={v}' for k, v in facts['recommended'].items())}"
        budget = "\n".join(f"  {name:<33}{size:>7.2f}" for name, size in facts["budget_gib"].items())
        lines = [TEXT.format(**facts | {"table": "\n".join(table), "found": found, "budget": budget})]
        lines += [TIME.format(share=UTILIZATION, **facts)] if facts["minutes"] else []
        lines += [f"Note: {note}" for note in facts["notes"]]
        return "\n".join([*lines, "", facts["command"] or "Shorten or drop the longest pairs, or use a smaller model."])

    def _repr_html_(self) -> str:
        return pre(repr(self))


def plan(
    model: str | Path,
    pairs: Pairs | str | Path,
    *,
    gpu: str | None = None,
    memory_gib: float | None = None,
    rank: int = 16,
    epochs: int = 2,
) -> MemoryPlan:
    """Tell whether a run fits into memory and what to set. Of the model it reads config.json and a local tokenizer.

    Args:
        model: as for `load_model`; a folder needs no weights.
        pairs: the pairs, or a file of them.
        gpu: a name in `GPUS`; None plans for this machine.
        memory_gib: memory of the GPU, if it is not in the list or not all yours.
        rank, epochs: as in `TrainConfig`.

    Raises:
        WorkbenchError: the GPU is unknown, the memory is not above 0, or the config can't be read.
    """
    name, notes = str(model), []
    device, config = _device(name, gpu, memory_gib), read_config(name)
    needs = needs_of(config, device.dtype, rank)
    rows, known = _rows(name, pairs if isinstance(pairs, Pairs) else Pairs.load(pairs))
    lengths = [row.n_tokens for row in rows]
    longest, positions = max(lengths), max_positions(config)
    if too_long := sum(row.length > positions for row in rows):
        notes.append(f"{too_long} pairs do not fit into the model's {positions} positions; `train` refuses them.")
    if not known:
        notes.append(f"there is no tokenizer here, so tokens are estimated: {CHARACTERS} characters each.")
    if not needs.exact:
        notes.append("activations are a rule of thumb (5 bytes for each input and output of a linear layer).")
    options: list[dict[str, Any]] = []
    for quantize, mode in product((None, "4bit"), (False, True)):
        tokens, _ = needs.choose(device, longest, bool(quantize), modes=(mode,)) or (0, mode)
        alone = needs.total(device, longest, longest, mode, bool(quantize)) / GIB
        options.append({"quantize": quantize, "micro_tokens": tokens, "checkpointing": mode, "one_pair_gib": alone})
    best = next((option for option in options if option["micro_tokens"]), options[-1])
    fits, mode, quantized = best["micro_tokens"], best["checkpointing"], bool(best["quantize"])
    size = max(fits, longest), longest, mode, quantized
    parts, total = needs.parts(*size, device.flex), needs.total(device, *size)
    parts["kept by the C library (assumed)" if device.cpu else "CUDA, gaps (assumed)"] = total - sum(parts.values())
    # Operations: 4 for each parameter and token, 6 with checkpointing, and once 2 for the reference.
    work = (2 + epochs * (6 if mode else 4)) * needs.parameters * sum(lengths)
    command = ["dpo-workbench", "train", "pairs.jsonl" if isinstance(pairs, Pairs) else str(pairs), "--model", name]
    command += ["--out", f"runs/{Path(name).name}", *["--quantize", "4bit"] * quantized, *["--checkpointing"] * mode]
    if (limit := max(row.length for row in rows)) > 1024:  # the default of `train`
        command += ["--max-tokens", str(limit)]
    command += ["--micro-tokens", str(fits), "--rank", str(rank), "--epochs", str(epochs)]
    return MemoryPlan({
        "model": name, "parameters": needs.parameters, "adapter": needs.adapter // 4, "device": device.name,
        "memory_gib": device.memory / GIB, "dtype": str(device.dtype).removeprefix("torch."), "tflops": device.tflops,
        "pairs": len(rows), "mean_tokens": fmean(lengths), "longest": longest, "epochs": epochs, "notes": notes,
        "options": options, "command": shlex.join(command) if fits else None,
        "recommended": {key: best[key] for key in ("quantize", "micro_tokens", "checkpointing")} if fits else None,
        "budget_gib": {part: size / GIB for part, size in [*parts.items(), ("total", total)]}, "rows": ROWS,
        "cache_gib": ROWS * needs.cache * (max(len(row.prompt_ids) for row in rows) + NEW_TOKENS) / GIB,
        "minutes": ceil(work / (device.tflops * 6e13 * UTILIZATION)) if fits and device.tflops else None,
    })  # fmt: skip


def _device(model: str, gpu: str | None, memory_gib: float | None) -> Device:
    if memory_gib is not None and not memory_gib > 0:
        raise WorkbenchError(f"`memory_gib` must be above 0. Got {memory_gib!r}. Say how many GiB the GPU has.")
    if gpu is not None:
        key = re.sub(r"[\W_]|NVIDIA|TESLA|GEFORCE", "", gpu.upper())
        if not (found := [name for name in GPUS if key == name.replace("-", "")]):
            raise WorkbenchError(
                f"`gpu` must be one of {', '.join(GPUS)}. Got {gpu!r}. For another one give `memory_gib`."
            )
        (size, tflops), old = GPUS[found[0]], found[0] == "T4"
        device = Device(found[0], size * GIB, torch.float16 if old else torch.bfloat16, flex=not old, tflops=tflops)
    elif memory_gib:
        device = Device("a GPU", 0.0, torch.bfloat16)
    else:
        here = choose_device()
        cpu, flex = here.type == "cpu", has_flex_attention(here)
        device = Device(f"this machine ({here})", free_bytes(here), choose_dtype(here), cpu, flex)
    dtype = torch.float32 if model == "nano" else device.dtype
    return device._replace(dtype=dtype, memory=memory_gib * GIB if memory_gib else device.memory)


def _rows(name: str, pairs: Pairs) -> tuple[list[Row], bool]:
    """The pairs as token ids, and whether the tokenizer is on this machine. If not, their numbers are estimated."""
    try:
        chat, _ = load_chat(name, local=True)
        return [encode(chat, *pair_texts(pair)) for pair in pairs], True
    except WorkbenchError:
        pass
    rows = []
    for pair in pairs:
        prompt, *answers = (round(len(str(t)) / CHARACTERS) + 8 for t in (pair.prompt, pair.chosen, pair.rejected))
        rows.append(Row(pair.id, (0,) * prompt, tuple((k,) * n for k, n in enumerate(answers))))
    return rows, False

"""`plan`: will it fit? What a run needs and what to set, before the weights are downloaded."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoTokenizer

from dpo_workbench.common.environment import choose_device, choose_dtype
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import pre
from dpo_workbench.common.memory import free_bytes
from dpo_workbench.models.chat import Chat
from dpo_workbench.models.files import CHATML, max_positions, read_config
from dpo_workbench.models.generation import ROWS
from dpo_workbench.models.needs import Device, Needs, needs_of
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


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """What `plan` found: shown as text, and as plain values by `to_dict`."""

    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.facts

    def __repr__(self) -> str:
        facts = self.facts
        lines = [
            "Plan: {model} ({parameters:,} parameters, {adapter:,} in the adapter) on {device}: {memory_gib:.1f} GiB, "
            "{dtype}".format(**facts),
            "{pairs} pairs of {mean_tokens:.0f} tokens on average, {longest} at most (prompt and both answers)\n"
            "\nweights  checkpointing  longest pair alone, GiB  micro_tokens up to".format(**facts),
        ]
        for option in facts["options"]:
            on, most = "on" if option["checkpointing"] else "off", option["micro_tokens"]
            told = f"{most:,}" if most else "does not fit"
            lines.append(f"{option['weights']:<7}  {on:<13}  {option['one_pair_gib']:>23.1f}  {told:>18}")
        if found := facts["recommended"]:
            lines.append("\nBudget in GiB with " + ", ".join(f"{name}={value}" for name, value in found.items()))
        else:
            lines.append("\nNothing fits. In GiB for the longest pair alone, with 4-bit weights and checkpointing:")
        lines += [f"  {name:<33}{size:>7.2f}" for name, size in facts["budget_gib"].items()]
        lines.append(
            "While sampling {rows} answers at a time: {cache:.1f} GiB of keys and values, {merged:.1f} GiB for merged "
            "weights.\nFewer answers are sampled at a time if that does not fit.".format(**facts["sampling_gib"])
        )
        if facts["minutes"]:
            lines.append(
                "Time: about {minutes} min for {epochs} epochs, without loading and sampling. This is a rough "
                "estimate:\n{utilization:.0%} of the GPU's {tflops} TFLOPS.".format(**facts)
            )
        lines += [f"Note: {note}" for note in facts["notes"]]
        return "\n".join([*lines, "", *facts["commands"]])

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
    name, file = str(model), "pairs.jsonl" if isinstance(pairs, Pairs) else str(pairs)
    device = _device(name, gpu, memory_gib)
    config = read_config(name)
    needs, notes = needs_of(config, device.dtype, rank), []
    rows, known = _rows(name, config, pairs if isinstance(pairs, Pairs) else Pairs.load(pairs))
    lengths = [row.n_tokens for row in rows]
    longest, positions = max(lengths), max_positions(config)
    if too_long := sum(row.length > positions for row in rows):
        notes.append(f"{too_long} pairs do not fit into the model's {positions} positions; `train` refuses them.")
    if not known:
        notes.append(f"there is no tokenizer here, so tokens are estimated: {CHARACTERS} characters each.")
    if not needs.exact:
        notes.append("activations are a rule of thumb (10 bytes for each input and output of a linear layer).")
    fits = ((quantized, needs.choose(device, longest, quantized)) for quantized in (False, True))
    quantized, found = next((found for found in fits if found[1]), (True, None))
    micro_tokens, checkpointing = found or (longest, True)
    setting = {"micro_tokens": micro_tokens, "checkpointing": checkpointing}
    if not found and (larger := _larger(needs, device, longest)):
        notes.append(f"it would fit on {larger}.")
    passes = 2 + epochs * (6 if checkpointing else 4)  # operations for a parameter and token; the reference needs 2
    operations = passes * needs.parameters * sum(lengths)
    given = setting | {"max_tokens": max([1024, *(row.length for row in rows)]), "rank": rank, "epochs": epochs}
    facts = {
        "model": name, "parameters": needs.parameters, "adapter": needs.adapter // 4, "device": device.name,
        "memory_gib": device.memory / GIB, "dtype": str(device.dtype).removeprefix("torch."), "pairs": len(rows),
        "longest": longest, "mean_tokens": fmean(lengths), "options": _options(needs, device, longest),
        "recommended": {"quantize": "4bit" if quantized else None, **setting} if found else None,
        "budget_gib": _budget(needs, device, max(micro_tokens, longest), longest, checkpointing, quantized),
        "sampling_gib": {
            "rows": ROWS, "cache": ROWS * needs.cache * (max(len(row.prompt_ids) for row in rows) + NEW_TOKENS) / GIB,
            "merged": 0.0 if quantized else needs.merged / GIB,
        },
        "minutes": ceil(operations / (device.tflops * 6e13 * UTILIZATION)) if found and device.tflops else None,
        "epochs": epochs, "utilization": UTILIZATION, "tflops": device.tflops, "notes": notes,
        "commands": _commands(name, file, quantized, given) if found else [],
    }  # fmt: skip
    return MemoryPlan(facts)


def _options(needs: Needs, device: Device, longest: int) -> list[dict[str, Any]]:
    """For each way to run: GiB for the longest pair alone, and the most micro_tokens that fit (0: none)."""
    found = []
    for quantized, checkpointing in ((q, c) for q in (False, True) for c in (False, True)):
        alone = needs.total(device, longest, longest, checkpointing, quantized)
        most = 0
        for step in (1 << k for k in range(20, 5, -1)):  # down to steps of 64
            if needs.total(device, max(most + step, longest), longest, checkpointing, quantized) <= device.memory:
                most += step
        weights = "4-bit" if quantized else f"{8 * device.dtype.itemsize}-bit"
        option = {"weights": weights, "checkpointing": checkpointing, "one_pair_gib": alone / GIB}
        found.append({**option, "micro_tokens": most and max(most, longest)})
    return found


def _budget(
    needs: Needs, device: Device, tokens: int, longest: int, checkpointing: bool, quantized: bool
) -> dict[str, float]:
    """GiB by part, and in total."""
    parts = needs.parts(tokens, longest, checkpointing, quantized, device.flex)
    total = needs.total(device, tokens, longest, checkpointing, quantized)
    lost = "kept by the C library (assumed)" if device.cpu else "CUDA, fragmentation (assumed)"
    return {name: size / GIB for name, size in {**parts, lost: total - sum(parts.values()), "total": total}.items()}


def _commands(model: str, file: str, quantized: bool, settings: dict[str, Any]) -> list[str]:
    """The command line and the Python code for a run; settings that are the default are left out."""
    defaults = {"checkpointing": False, "max_tokens": 1024, "rank": 16, "epochs": 2}
    settings = {name: value for name, value in settings.items() if value != defaults.get(name)}
    command = ["dpo-workbench", "train", file, "--model", model, "--out", f"runs/{Path(model).name}"]
    command += ["--quantize", "4bit"] * quantized
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    given = ", ".join(f"{name}={value}" for name, value in settings.items())
    load = f"dw.load_model({model!r}{', quantize=' + repr('4bit') if quantized else ''})"
    return [shlex.join(command), f"dw.train({load}, pairs, dw.TrainConfig({given}))"]


def _larger(needs: Needs, device: Device, longest: int) -> str:
    """The smallest GPU in the list on which the run fits, if there is one."""
    names = sorted(GPUS, key=lambda name: GPUS[name][0])
    fit = (n for n in names if needs.choose(device._replace(memory=GPUS[n][0] * GIB, cpu=False), longest, True))
    return next(fit, "")


def _device(model: str, gpu: str | None, memory_gib: float | None) -> Device:
    if memory_gib is not None and not memory_gib > 0:
        raise WorkbenchError(f"`memory_gib` must be above 0. Got {memory_gib!r}. Say how many GiB the GPU has.")
    if gpu is not None:
        plain = {re.sub(r"\W", "", name).lower(): name for name in GPUS}
        key = re.sub(r"[\W_]|nvidia|tesla|geforce", "", gpu.lower())
        if key not in plain:
            near = [plain[k] for k in plain if key and key in k] or difflib.get_close_matches(gpu.upper(), GPUS)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise WorkbenchError(
                f"`gpu` must be one of {', '.join(GPUS)}. Got {gpu!r}. {hint}For another GPU, leave it out and give "
                "`memory_gib`."
            )
        size, tflops = GPUS[plain[key]]
        old = plain[key] == "T4"
        found = Device(plain[key], size * GIB, torch.float16 if old else torch.bfloat16, flex=not old, tflops=tflops)
    elif memory_gib:
        found = Device("a GPU", 0.0, torch.bfloat16)
    else:
        here = choose_device()
        cuda = here.type == "cuda"
        name = torch.cuda.get_device_name(here) if cuda else f"this machine ({here.type})"
        flex = cuda and torch.cuda.get_device_capability(here) >= (8, 0)
        found = Device(name, free_bytes(here), choose_dtype(here)[0], not cuda, flex)
    if model == "nano":
        found = found._replace(dtype=torch.float32)
    return found._replace(memory=memory_gib * GIB) if memory_gib else found


def _rows(name: str, config: Any, pairs: Pairs) -> tuple[list[Row], bool]:
    """The pairs as token ids, and whether the tokenizer is on this machine. If not, their numbers are estimated."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.name_or_path, local_files_only=True)
        known = "plan" in tokenizer.decode(tokenizer("plan")["input_ids"])  # not an empty one, made from config.json
    except (OSError, ValueError):
        known = False
    if known:
        if name == "smol":
            tokenizer.chat_template = CHATML
        chat = Chat(tokenizer)
        return [encode(chat, *pair_texts(pair)) for pair in pairs], True
    rows = []
    for pair in pairs:
        prompt, *answers = (round(len(str(t)) / CHARACTERS) + 8 for t in (pair.prompt, pair.chosen, pair.rejected))
        rows.append(Row(pair.id, (0,) * prompt, tuple((k,) * n for k, n in enumerate(answers))))
    return rows, False

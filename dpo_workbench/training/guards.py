"""Guards: values that are not finite, memory that runs out, pairs that are held out, and signs of a harmful run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.memory import free_bytes, free_memory, memory_problem
from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.models.needs import Device, needs_of
from dpo_workbench.pairs.messages import Turns
from dpo_workbench.pairs.preference import Pair
from dpo_workbench.pairs.splits import split_keys
from dpo_workbench.tasks.failures import detect
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.losses import Reference, pair_logps
from dpo_workbench.training.packing import Row, first_epoch, n_tokens

T = TypeVar("T")
MAX_CHECKED_PROMPTS = 8
LARGE_MARGIN = 4.0  # in units of the reward; runs that ended above it produced loops and broken answers


def check_finite(ids: Sequence[str], terms: Mapping[str, Sequence[float]]) -> None:
    """Raise if a loss, gradient or log-probability is NaN or infinite. Call it before anything is updated.

    `terms` are values by name that were computed from the rows `ids`: one in all, or one for each row. All are checked,
    since an infinite log-ratio can hide in a loss of 0. The error names the rows: those of the bad values, if known.
    """
    wrong = [(name, k) for name, values in terms.items() for k, v in enumerate(values) if not math.isfinite(v)]
    if not wrong:
        return
    named = [ids[k] for k in sorted({k for name, k in wrong if len(terms[name]) == len(ids)})] or list(ids)
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    names = list(dict.fromkeys(name for name, _ in wrong))
    also = f" (also not finite: {', '.join(names[1:])})" if names[1:] else ""
    raise WorkbenchError(
        f"The {names[0]} must be finite. Got {terms[names[0]][wrong[0][1]]} in {'row' if len(named) == 1 else 'rows'} "
        f"{', '.join(named[:8])}{more}{also}. The model was not changed by this batch. Look at these rows. If they are "
        "correct, lower lr or load the model with dtype=torch.float32."
    )


def rows_within_memory(
    work: Callable[[TrainConfig], T], rows: Sequence[Row], config: TrainConfig
) -> tuple[T, TrainConfig]:
    """`work(config)`, which computes something for `rows` in micro-batches, and the settings that it succeeded with.

    Each time memory runs out it is called again with settings that need less and give the same result: smaller
    micro-batches, then activation checkpointing. A single row that does not fit is a WorkbenchError.
    """
    while True:
        try:
            return work(config), config
        except (RuntimeError, MemoryError) as error:
            problem = memory_problem(error)
        free_memory()
        shortest = sorted(rows, key=lambda row: row.n_tokens)[:2]
        if len(rows) > 1 and config.tokens_at_once >= n_tokens(shortest, config.packing):
            config = replace(config, micro_tokens=min(config.tokens_at_once, n_tokens(rows, config.packing)) // 2)
            print(f"memory ran out ({problem}): continuing with micro_tokens={config.micro_tokens}", flush=True)
        elif config.checkpointing is not True:
            config = replace(config, checkpointing=True)
            print(f"memory ran out ({problem}): continuing with checkpointing=True (slower)", flush=True)
        else:
            longest = max(rows, key=lambda row: row.n_tokens)
            raise WorkbenchError(
                f"A single row must fit into memory. Row {longest.id!r} ({longest.n_tokens} tokens) does not: "
                f"{problem}. Shorten or drop it, or use a smaller model."
            )


def fit_memory(model: Model, rows: Sequence[Row], config: TrainConfig) -> TrainConfig:
    """The config with values for micro_tokens and checkpointing where they are "auto": what fits into free memory.

    On a CPU they are 1536 and False unless memory is short, so that results do not depend on what else is running.
    """
    size, mode = config.micro_tokens, config.checkpointing
    if size != "auto" and mode != "auto":
        return config
    memory = free_bytes(model.device) + sum(p.nbytes for p in causal_lm(model.network).parameters())  # in use already
    device = Device("", memory, model.dtype, model.device.type == "cpu", model.uses_flex_attention and config.packing)
    longest = max(n_tokens([row], config.packing) for row in rows)
    modes, start = ((False, True) if mode == "auto" else (mode,)), (0 if size == "auto" else size)
    needs = needs_of(model.network.config, model.dtype, config.rank)
    found = needs.choose(device, longest, model.quantize is not None, start, modes)
    chosen = found or (config.tokens_at_once, mode is not False)  # too much: training itself will say which row is
    if chosen[0] < config.tokens_at_once or (mode == "auto" and chosen[1]):
        print(f"memory is short: micro_tokens={chosen[0]}, checkpointing={chosen[1]}", flush=True)
    return replace(config, micro_tokens=chosen[0], checkpointing=chosen[1])


def hold_out(pairs: Sequence[Pair], config: TrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into (held out, trained). About `held_out` of the pairs are held out, and never all of them.

    Pairs of one group stay together, and so do pairs with the same prompt. So no held-out prompt is trained on. What
    belongs together and would take more than twice the share is not held out.
    """
    groups: dict[str, list[Pair]] = defaultdict(list)
    for key, pair in zip(split_keys(pairs), pairs, strict=True):
        groups[key].append(pair)
    wanted = config.held_out * len(pairs)
    keys = sorted(groups)
    held: list[Pair] = []
    for i in torch.randperm(len(keys), generator=torch.Generator().manual_seed(config.seed)).tolist():
        group = groups[keys[i]]
        if wanted < 1 or (held and len(held) + len(group) > wanted):
            break
        if len(group) <= 2 * wanted and len(held) + len(group) < len(pairs):
            held += group
    ids = {pair.id for pair in held}
    return held, [pair for pair in pairs if pair.id not in ids]


@dataclass
class HeldOut:
    """Held-out pairs as token ids, with the reference's log-probabilities."""

    rows: list[Row]
    reference: Reference

    def log_ratios(self, policy: Model, config: TrainConfig) -> dict[str, float]:
        """Mean log-ratios in nats, and the share of pairs that they order correctly (a tie counts half).

        Computed in the micro-batches of `reference_logps`, so that the values are exactly 0 before training, also
        where bf16 rounds differently for other batch sizes.
        """
        found: list[tuple[float, float]] = []
        with policy.active() as network, torch.no_grad():
            for batch in first_epoch(self.rows, policy, config):
                logps = pair_logps(network, batch, self.reference)
                found += zip(logps.chosen_logratios.tolist(), logps.rejected_logratios.tolist(), strict=True)
        return {
            "chosen_logratio": fmean(chosen for chosen, _ in found),
            "rejected_logratio": fmean(rejected for _, rejected in found),
            "preferred": fmean((chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in found),
        }


def displacement(log_ratio: float, n_pairs: int) -> str:
    """A warning if held-out chosen answers became less likely by more than one nat on average, or "".

    DPO also widens the gap between two answers when both become less likely (arXiv 2410.08847).
    """
    if log_ratio > -1:
        return ""
    return (
        f"likelihood displacement: the chosen answers of {n_pairs} held-out pairs became e^{-log_ratio:.1f} times less "
        f"likely than at the start (log-ratio {log_ratio:.1f} nats). Raise nll_weight, lower lr, or use loss='dpop'."
    )


def large_margin(margin: float) -> str:
    """A warning if the mean reward margin (beta times the difference of the log-ratios) is very large, or ""."""
    if margin <= LARGE_MARGIN:
        return ""
    return (
        f"the reward margin reached {margin:.1f}. At margins above {LARGE_MARGIN:g} models often lose fluency although "
        "loss and accuracy look perfect. Read some answers, and try fewer epochs, a lower lr, or a higher beta."
    )


def degenerate_answers(before: Model, after: Model, prompts: Sequence[str | Turns], max_new_tokens: int) -> str:
    """A warning if more answers to the first few prompts are empty, loop or are cut off after training, or ""."""
    asked = list(dict.fromkeys(prompts))[:MAX_CHECKED_PROMPTS]
    counts = []
    for model in (before, after):
        answers = [answer for (answer,) in generate(model, asked, max_new_tokens=max_new_tokens)]
        found = [detect(a.text, prompt=p, finished=a.finished) for a, p in zip(answers, asked, strict=True)]
        counts.append(Counter(name for name, _ in filter(None, found)))
    if counts[1].total() <= counts[0].total():
        return ""
    words = [", ".join(f"{n} {name}" for name, n in count.items()) or "none" for count in counts]
    return (
        f"of {len(asked)} prompts, more answers are degenerate than before training: {words[1]} (before: {words[0]}). "
        "The run may have damaged the model. Try fewer epochs, a lower lr, or a higher nll_weight."
    )

"""Pairs that are set aside: how they are chosen, what is measured on them, and a look at a few answers at the end."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.preference import Pair
from dpo_workbench.tasks.failures import detect
from dpo_workbench.training.batches import micro_batches, rows_of_step, steps_per_epoch
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.objectives import pair_logps
from dpo_workbench.training.packing import Row
from dpo_workbench.training.reference import Reference

MAX_CHECKED_PROMPTS = 8
LARGE_MARGIN = 4.0  # in units of the reward; runs that ended above it produced loops and broken answers


def hold_out(pairs: Sequence[Pair], config: TrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into (held out, trained). About `held_out` of the pairs are held out, and never all of them.

    Pairs of one group stay together, and so do pairs with the same prompt. So no held-out prompt is trained on. What
    belongs together and would take more than twice the share is not held out.
    """
    groups = _connected(pairs)
    wanted = config.held_out * len(pairs)
    keys = sorted(groups)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(config.seed)).tolist()
    held: list[Pair] = []
    for i in order:
        group = groups[keys[i]]
        if wanted < 1 or (held and len(held) + len(group) > wanted):
            break
        if len(group) <= 2 * wanted and len(held) + len(group) < len(pairs):
            held += group
    ids = {pair.id for pair in held}
    return held, [pair for pair in pairs if pair.id not in ids]


def _connected(pairs: Sequence[Pair]) -> dict[tuple[str, str], list[Pair]]:
    """Pairs that share a group or a prompt, also by way of other pairs, under the group (or prompt) of one of them."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}  # a forest: each tree holds the groups and prompts of one set

    def root(key: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]  # shortens the way for the next look
            key = parent[key]
        return key

    for pair in pairs:
        if pair.group:
            parent[root(("prompt", pair.prompt))] = root(("group", pair.group))
    found: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        found.setdefault(root(("prompt", pair.prompt)), []).append(pair)
    return found


@dataclass
class HeldOut:
    """Held-out pairs as token ids, with the reference's log-probabilities."""

    rows: list[Row]
    reference: Reference

    def log_ratios(self, policy: Model, config: TrainConfig) -> dict[str, float]:
        """Mean log-ratios in nats: policy minus reference, of chosen and rejected answers; and the share
        of pairs whose log-ratios prefer the chosen answer (a tie counts half).

        Computed in the micro-batches of `reference_logps`, so that the values are exactly 0 before training, also
        where bf16 rounds differently for other batch sizes.
        """
        chosen: list[float] = []
        rejected: list[float] = []
        with policy.active() as network, torch.no_grad():
            for step in range(steps_per_epoch(len(self.rows), config)):
                for batch in micro_batches(rows_of_step(self.rows, config, step), policy, config):
                    logps = pair_logps(network, batch, self.reference)
                    chosen += logps.chosen_logratios.tolist()
                    rejected += logps.rejected_logratios.tolist()
        return {
            "chosen_logratio": statistics.fmean(chosen),
            "rejected_logratio": statistics.fmean(rejected),
            "preferred": statistics.fmean((c > r) + (c == r) / 2 for c, r in zip(chosen, rejected, strict=True)),
        }


def large_margin(margin: float) -> str:
    """A warning if the mean reward margin (beta times the difference of the log-ratios) is very large, or ""."""
    if margin <= LARGE_MARGIN:
        return ""
    return (
        f"the reward margin reached {margin:.1f}. At margins above {LARGE_MARGIN:g} models often lose fluency although "
        "loss and accuracy look perfect. Read some answers, and try fewer epochs, a lower lr, or a higher beta."
    )


def degenerate_answers(before: Model, after: Model, prompts: Sequence[str], max_new_tokens: int) -> str:
    """A warning if more answers are empty, loop or are cut off after training than before, or "".

    Args:
        before, after: the models to compare.
        prompts: the first few are answered greedily.
        max_new_tokens: enough for an answer of the usual length.
    """
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

"""`TrainConfig`: every choice of a training run, in one place."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from dpo_workbench.common.errors import WorkbenchError


@dataclass(frozen=True)
class TrainConfig:
    """Choices of one run, for `dw.train` (the defaults) and `dw.sft` (see `SFT_CONFIG`)."""

    loss: str | dict[str, float] = "sigmoid"  # a name of docs/losses.md (sigmoid is DPO), or weights by name for a sum
    beta: float = 0.1  # how far the policy may move from the reference; lower = further
    nll_weight: float = 0.2  # weight of the chosen answers' mean NLL; higher = steadier and slower
    label_smoothing: float = 0.0  # share of labels taken to be wrong, for cdpo, robust, exo_pair, aot and aot_unpaired
    dpop_lambda: float = 50.0  # dpop's price on a chosen answer below its reference; higher = held more firmly
    simpo_gamma: float = 0.5  # margin that simpo asks for, in units of beta x mean logps
    lr: float = 5e-5  # peak learning rate of the LoRA weights; too high ruins answers, not rewards
    epochs: int = 2  # passes over the pairs
    batch_size: int = 16  # rows in one optimiser step
    micro_tokens: int = 1536  # tokens in one forward pass; lower = less memory, same result
    packing: bool = True  # compute what answers share once; off by itself for models that cannot (slower, same result)
    checkpointing: bool = False  # a layer keeps its input and computes the rest again: less memory, a third slower
    warmup: float = 0.1  # share of steps in which the learning rate rises; then it falls to 0 in a straight line
    max_grad_norm: float = 1.0  # gradients longer than this are shortened to it
    rank: int = 16  # LoRA rank; higher = more capacity and memory
    alpha: int = 32  # LoRA scale times rank
    max_tokens: int = 1024  # longest row; a longer one is an error, never cut
    probes: int = 4  # how often the dev prompts are answered and scored on the way; 0 = never
    held_out: float = 0.1  # share of pairs (whole groups) never trained on, to watch their log-ratios
    checkpoint_seconds: float = 120.0  # a run with a folder is saved at least so often, and after each probe
    seed: int = 0  # order of rows, adapter's start, probe's draws

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), {"int": Integral, "float": Real}.get(str(field.type))
            if kind and (not isinstance(value, kind) or isinstance(value, bool)):
                what = "a whole number" if kind is Integral else "a number"
                raise WorkbenchError(f"`{field.name}` must be {what}. Got {value!r}.")
        for name in "beta lr epochs batch_size micro_tokens max_grad_norm rank alpha max_tokens".split():
            if not getattr(self, name) > 0:
                raise WorkbenchError(f"`{name}` must be above 0. Got {getattr(self, name)!r}. Choose a positive value.")
        for name in "nll_weight dpop_lambda probes checkpoint_seconds".split():
            if not getattr(self, name) >= 0:
                raise WorkbenchError(f"`{name}` must be 0 or more. Got {getattr(self, name)!r}.")
        for name, fits in (("warmup", 0 <= self.warmup <= 1), ("held_out", 0 <= self.held_out < 1)):
            if not fits:
                raise WorkbenchError(f"`{name}` must be a share from 0 to 1. Got {getattr(self, name)!r}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise WorkbenchError(
                f"`label_smoothing` must lie in [0, 0.5): at 0.5 labels say nothing. Got {self.label_smoothing!r}."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """From plain values; an unknown key raises and names the nearest valid one."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
                raise WorkbenchError(f"TrainConfig has no setting {key!r}. {hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


SFT_CONFIG = TrainConfig(lr=1e-3, epochs=2, batch_size=16, nll_weight=0.0, probes=2)

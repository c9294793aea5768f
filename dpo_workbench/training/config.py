"""`TrainConfig`: all settings of a training run."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

import numpy

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.trackers import TRACKERS

KINDS: dict[str, tuple[Any, str]]
KINDS = {"int": (Integral, "a whole number"), "float": (Real, "a number"), "bool": (bool, "True or False")}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. The defaults are for `dw.train`; those of `dw.sft` are in `SFT_CONFIG`."""

    loss: str | dict[str, float] = "sigmoid"  # a name from docs/losses.md (sigmoid is DPO), or weights by name
    beta: float = 0.1  # how strongly the policy is tied to the reference; lower = it may move further
    nll_weight: float = 0.0  # weight of the chosen answers' negative log-likelihood; above 0 = more stable, slower
    label_smoothing: float = 0.0  # assumed share of wrong labels, for cdpo and robust
    dpop_lambda: float = 50.0  # dpop's penalty for a chosen answer below its reference; higher = held more firmly
    simpo_gamma: float = 0.5  # simpo's target margin between the mean log-probabilities, times beta
    lr: float = 5e-5  # peak learning rate of the adapter; too high ruins the answers while rewards still look good
    epochs: int = 2  # passes over the pairs; more = larger margins, and at some point worse answers
    batch_size: int = 16  # pairs in one optimizer step
    micro_tokens: int | Literal["auto"] = "auto"  # tokens in one forward pass; auto = what fits; same result
    packing: bool = True  # compute the shared prompt once; switched off for models that cannot, with the same result
    checkpointing: bool | Literal["auto"] = "auto"  # recompute activations: less memory, about a third slower
    warmup: float = 0.1  # share of the steps in which the learning rate rises; afterwards it falls linearly to 0
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this length
    rank: int = 16  # LoRA rank; higher = more capacity and memory
    alpha: int = 32  # LoRA scale times rank; higher = larger updates
    max_tokens: int = 1024  # limit for a prompt with one of its answers; longer rows are an error, never cut
    probes: int = 4  # how often dev prompts are scored and held-out pairs measured during the run; 0 = never
    held_out: float = 0.1  # share of the pairs (whole groups or prompts) that are only measured, never trained on
    checkpoint_seconds: float = 120.0  # save at least this often if the run has a folder
    report_to: str = "none"  # where metrics are sent as well: none, trackio, wandb or tensorboard (docs/publish.md)
    seed: int = 0  # for the order of rows and the adapter's initial weights

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (kind, _, auto) = getattr(self, field.name), str(field.type).partition(" | ")
            if isinstance(value, numpy.generic):  # JSON can't write it
                object.__setattr__(self, field.name, value := value.item())
            wanted, what = KINDS.get(kind, (object, ""))
            right = isinstance(value, wanted) and (kind not in ("int", "float") or not isinstance(value, bool))
            if not right and not (auto and value == "auto"):
                what += " or 'auto'" if auto else ""
                raise WorkbenchError(f"`{field.name}` must be {what}. Got {value!r}.")
        if self.report_to not in TRACKERS:
            raise WorkbenchError(f"`report_to` must be one of {', '.join(TRACKERS)}. Got {self.report_to!r}.")
        above_0 = "beta lr epochs batch_size micro_tokens max_grad_norm rank alpha max_tokens".split()
        from_0 = "nll_weight dpop_lambda probes checkpoint_seconds".split()
        for names, fits, what in (
            (above_0, lambda value: value > 0, "above 0"),
            (from_0, lambda value: value >= 0, "0 or more"),
            (["warmup"], lambda value: 0 <= value <= 1, "a share from 0 to 1"),
            (["held_out"], lambda value: 0 <= value < 1, "a share from 0 to below 1"),
            (["label_smoothing"], lambda value: 0 <= value < 0.5, "in [0, 0.5): at 0.5 the labels are random"),
        ):
            if wrong := [name for name in names if getattr(self, name) != "auto" and not fits(getattr(self, name))]:
                raise WorkbenchError(f"`{wrong[0]}` must be {what}. Got {getattr(self, wrong[0])!r}.")

    @property
    def tokens_at_once(self) -> int:
        """`micro_tokens`, or 1536 as long as it is "auto"."""
        return 1536 if self.micro_tokens == "auto" else self.micro_tokens

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Build a config from a dict. An unknown key is an error that names the nearest valid key."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
                raise WorkbenchError(f"TrainConfig has no setting {key!r}. {hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


SFT_CONFIG = TrainConfig(lr=1e-3, epochs=2, batch_size=16, nll_weight=0.0, probes=2)

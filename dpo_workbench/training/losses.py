"""What a step minimizes. Preference losses: one function and one row of `LOSSES` each, which names the paper.

In the formulas, c and r are the log-ratios of the chosen and the rejected answer (policy logps minus reference logps,
in nats, summed over the answer's tokens). nc and nr are their numbers of tokens, e is `label_smoothing`, and s is the
logistic sigmoid. Every function returns the loss of each pair, shape (B,). More in docs/losses.md.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Batch, Row

Reference = dict[str, tuple[float, float]]  # by pair id: log-probabilities of the chosen and the rejected answer
Metrics = dict[str, Tensor]  # by TRL's names, one value for each row of the micro-batch


class PairLogps(NamedTuple):
    """Inputs of a loss for B pairs. All tensors have shape (B,). Logps are in nats; lengths count the end token."""

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    reference_chosen_logps: Tensor
    reference_rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    batch_chosen_length: float | None = None  # mean over the whole batch, when these pairs are only part of it

    @property
    def chosen_logratios(self) -> Tensor:
        return self.policy_chosen_logps - self.reference_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        return self.policy_rejected_logps - self.reference_rejected_logps

    @property
    def delta(self) -> Tensor:
        """c - r. Multiplied by beta it is the margin."""
        return self.chosen_logratios - self.rejected_logratios

    @property
    def mean_delta(self) -> Tensor:
        """c / nc - r / nr, in nats per token."""
        return self.chosen_logratios / self.chosen_lengths - self.rejected_logratios / self.rejected_lengths


def sigmoid(logps: PairLogps, beta: float) -> Tensor:
    """DPO: -log s(beta (c - r))"""
    return -logsigmoid(beta * logps.delta)


def cdpo(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Conservative DPO: -(1 - e) log s(beta (c - r)) - e log s(-beta (c - r))"""
    margin, e = beta * logps.delta, label_smoothing
    return -(1 - e) * logsigmoid(margin) - e * logsigmoid(-margin)


def robust(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Robust DPO: (-(1 - e) log s(beta (c - r)) + e log s(-beta (c - r))) / (1 - 2 e)"""
    margin, e = beta * logps.delta, label_smoothing
    return (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)


def hinge(logps: PairLogps, beta: float) -> Tensor:
    """SLiC's hinge: max(0, 1 - beta (c - r))"""
    return torch.relu(1 - beta * logps.delta)


def ipo(logps: PairLogps, beta: float) -> Tensor:
    """IPO: (c / nc - r / nr - 1 / (2 beta))^2"""
    return (logps.mean_delta - 1 / (2 * beta)) ** 2


def exo_pair(logps: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """EXO on pairs: q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e), q = s(beta (c - r))"""
    margin, e = beta * logps.delta, label_smoothing
    right = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-e))
    return right + (-margin).sigmoid() * (logsigmoid(-margin) - math.log(e))


def nca_pair(logps: PairLogps, beta: float) -> Tensor:
    """NCA on pairs: -log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2"""
    chosen, rejected = beta * logps.chosen_logratios, beta * logps.rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(logps: PairLogps, beta: float) -> Tensor:
    """BCO on pairs: -log s(beta c) - log s(-beta r)"""
    return -logsigmoid(beta * logps.chosen_logratios) - logsigmoid(-beta * logps.rejected_logratios)


def sppo_hard(logps: PairLogps, beta: float) -> Tensor:
    """SPPO with hard labels: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2"""
    return (logps.chosen_logratios - 0.5 / beta) ** 2 + (logps.rejected_logratios + 0.5 / beta) ** 2


def apo_zero(logps: PairLogps, beta: float) -> Tensor:
    """APO-zero: 1 - s(beta c) + s(beta r)"""
    return (-beta * logps.chosen_logratios).sigmoid() + (beta * logps.rejected_logratios).sigmoid()


def apo_down(logps: PairLogps, beta: float) -> Tensor:
    """APO-down: s(beta c) + 1 - s(beta (c - r))"""
    return (beta * logps.chosen_logratios).sigmoid() + (-beta * logps.delta).sigmoid()


def discopop(logps: PairLogps, beta: float, tau: float = 0.05) -> Tensor:
    """DiscoPOP: -(1 - m) log s(x) + m exp(-x), x = beta (c - r), m = s(x / tau), tau = 0.05"""
    x = beta * logps.delta
    return -(-x / tau).sigmoid() * logsigmoid(x) + (logsigmoid(x / tau) - x).exp()


def sigmoid_norm(logps: PairLogps, beta: float) -> Tensor:
    """Length-normalized DPO: -log s(beta (c / nc - r / nr))"""
    return -logsigmoid(beta * logps.mean_delta)


def dpop(logps: PairLogps, beta: float, dpop_lambda: float = 50.0) -> Tensor:
    """DPO-Positive: -log s(beta (c - r - lambda max(0, -c))), lambda = `dpop_lambda`"""
    return -logsigmoid(beta * (logps.delta - dpop_lambda * (-logps.chosen_logratios).clamp(min=0)))


def simpo(logps: PairLogps, beta: float, simpo_gamma: float = 0.5) -> Tensor:
    """SimPO: -log s(beta (policy chosen logps / nc - policy rejected logps / nr) - gamma), gamma = `simpo_gamma`"""
    chosen = logps.policy_chosen_logps / logps.chosen_lengths
    return -logsigmoid(beta * (chosen - logps.policy_rejected_logps / logps.rejected_lengths) - simpo_gamma)


def sft(logps: PairLogps) -> Tensor:
    """NLL by token: -(policy chosen logps) / (mean nc of the batch)"""
    mean = logps.batch_chosen_length
    return -logps.policy_chosen_logps / (logps.chosen_lengths.double().mean() if mean is None else mean)


def nll(logps: PairLogps) -> Tensor:
    """NLL by answer: -(policy chosen logps) / nc"""
    return -logps.policy_chosen_logps / logps.chosen_lengths


class Loss(NamedTuple):
    """A row of `LOSSES`. `function(logps, *settings)` returns shape (B,); its docstring is the formula."""

    function: Callable[..., Tensor]
    settings: tuple[str, ...]  # the fields of `TrainConfig` that the function takes, in order
    paper: str  # arXiv number and equation or section
    equals: str  # the implementation that gives the same values

    def values(self, logps: PairLogps, config: TrainConfig) -> Tensor:
        """The loss of each pair, with the settings from `config`. Shape (B,)."""
        return self.function(logps, *(getattr(config, name) for name in self.settings))


BETA, SMOOTHED = ("beta",), ("beta", "label_smoothing")
LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(sigmoid, BETA, "2305.18290, eq. 7", "TRL `sigmoid`"),
    "cdpo": Loss(cdpo, SMOOTHED, "ericmitchell.ai/cdpo.pdf", "TRL `aot` on single pairs"),
    "robust": Loss(robust, SMOOTHED, "2403.00409, section 3.1", "TRL `robust`"),
    "hinge": Loss(hinge, BETA, "2309.06657, hinge-norm; 2305.10425, section 2", "TRL `hinge`"),
    "ipo": Loss(ipo, BETA, "2310.12036, eq. 17 with tau = beta", "TRL `ipo`"),
    "exo_pair": Loss(exo_pair, SMOOTHED, "2402.00856, eq. 16", "TRL `exo_pair`"),
    "nca_pair": Loss(nca_pair, BETA, "2402.05369, section 4.1", "TRL `nca_pair`"),
    "bco_pair": Loss(bco_pair, BETA, "2404.04656, section 4", "TRL `bco_pair`"),
    "sppo_hard": Loss(sppo_hard, BETA, "2405.00675, eq. 4.7 with P = 1 and 0", "TRL `sppo_hard`"),
    "apo_zero": Loss(apo_zero, BETA, "2408.06266, eq. 7", "TRL `apo_zero`"),
    "apo_down": Loss(apo_down, BETA, "2408.06266, eq. 8", "TRL `apo_down`"),
    "discopop": Loss(discopop, BETA, "2406.08414, eq. 5", "TRL `discopop`"),
    "sigmoid_norm": Loss(sigmoid_norm, BETA, "2411.15124 (length-normalized DPO)", "TRL `sigmoid_norm`"),
    "dpop": Loss(dpop, ("beta", "dpop_lambda"), "2402.13228, eq. 3", "the paper's formula"),
    "simpo": Loss(simpo, ("beta", "simpo_gamma"), "2405.14734, eq. 6", "TRL's CPO trainer, `simpo`"),
    "sft": Loss(sft, (), "Supervised fine-tuning", "TRL `sft`"),
    "nll": Loss(nll, (), "2404.19733, eq. 1, second term", "the paper's formula"),
}


def loss_terms(config: TrainConfig) -> dict[str, float]:
    """Names and weights of the losses in the weighted sum; `nll_weight` adds to the weight of `nll`.

    Raises:
        WorkbenchError: an unknown name, a bad weight, or a setting that no loss in the sum uses or that one lacks.
    """
    terms = {config.loss: 1.0} if isinstance(config.loss, str) else dict(config.loss)
    if not terms:
        raise WorkbenchError('`loss` must name a loss. Got none. Choose one, such as "sigmoid".')
    for name, weight in terms.items():
        if name not in LOSSES:
            near = difflib.get_close_matches(str(name), LOSSES, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise WorkbenchError(f"`loss` must be one of {', '.join(LOSSES)}, or weights by name. Got {name!r}.{hint}")
        if not (isinstance(weight, (int, float)) and 0 < weight < math.inf):
            raise WorkbenchError(f"A loss's weight must be above 0. Got {weight!r} for {name!r}. Leave the loss out.")
    for setting in ("label_smoothing", "dpop_lambda", "simpo_gamma"):
        readers = [name for name, loss in LOSSES.items() if setting in loss.settings]
        value = getattr(config, setting)
        if value != getattr(TrainConfig, setting) and not terms.keys() & readers:
            raise WorkbenchError(
                f"`{setting}` must be read by a loss of the run. Got {value!r} with {', '.join(terms)}. Leave it out, "
                f"or choose {', '.join(readers)}."
            )
    if "exo_pair" in terms and not config.label_smoothing:
        raise WorkbenchError("exo_pair needs `label_smoothing` above 0. Got 0. Set it to 0.001 (the paper's), or more.")
    return {**terms, "nll": terms.get("nll", 0.0) + config.nll_weight} if config.nll_weight else terms


class Objective(Protocol):
    """What the loop needs to know about a loss."""

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        """The share of a micro-batch in the loss of a step's `rows` (so that gradients add up), and values to log."""


@dataclass
class Preference:
    """The mean over the pairs of a batch of the weighted sum of losses that the config names."""

    reference: Reference
    config: TrainConfig
    weights: dict[str, float] = field(default_factory=dict)  # by pair id, with a mean of 1; 1 where an id is missing

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        logps = pair_logps(network, batch, self.reference)
        if step == 0:
            check_start(logps, batch.ids, causal_lm(network).dtype)
        logps = logps._replace(batch_chosen_length=fmean(len(row.answer_ids[0]) for row in rows))
        weights = logps.policy_chosen_logps.new_tensor([self.weights.get(i, 1.0) for i in batch.ids])
        terms = loss_terms(self.config).items()
        values = sum(weight * LOSSES[name].values(logps, self.config) for name, weight in terms)  # (B,)
        return (weights * values).sum() / len(rows), pair_metrics(logps, self.config.beta)


def pair_logps(network: nn.Module, batch: Batch, reference: Reference) -> PairLogps:
    """The policy's log-probabilities from the network, next to the stored ones of the reference."""
    sums, lengths = answer_logps(network, batch), batch.lengths
    fixed = torch.tensor([reference[i] for i in batch.ids], device=sums.device)
    return PairLogps(sums[0::2], sums[1::2], fixed[:, 0], fixed[:, 1], lengths[0::2], lengths[1::2])


def pair_metrics(logps: PairLogps, beta: float) -> Metrics:
    """Values for each pair by TRL's names. An answer's reward is beta times its log-ratio (arXiv 2305.18290, eq. 5)."""
    chosen, rejected = beta * logps.chosen_logratios, beta * logps.rejected_logratios
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps.policy_chosen_logps,
        "logps/rejected": logps.policy_rejected_logps,
    }
    return {key: value.detach() for key, value in values.items()}


def check_start(logps: PairLogps, ids: Sequence[str], dtype: torch.dtype) -> None:
    """Check on a micro-batch that the policy equals the reference before the first update, where DPO's loss is log 2.

    In 16 bits, packs of different sizes round differently: an answer of 75 tokens got values 0.84 nats apart in packs
    of one and of four rows (SmolLM2-135M, bf16). So there the limit, 0.01 nats a token, grows by 0.25 times the root
    of the length. Beyond it a WorkbenchError is raised.
    """
    gaps = torch.stack([logps.chosen_logratios, logps.rejected_logratios]).detach().abs()  # (2, B)
    gaps = gaps.where(gaps.isfinite(), 0.0)  # values that are not finite are reported by the step itself
    lengths = torch.stack([logps.chosen_lengths, logps.rejected_lengths])
    noise = 0.25 if dtype.itemsize < 4 else 0.0
    if (gaps > 0.01 * lengths + noise * lengths.sqrt()).any():
        raise WorkbenchError(
            "Before the first update the policy must equal the reference (loss 0.6931). Got log-probabilities that "
            f"differ by {gaps.max().item():.2f} nats on rows {', '.join(ids[:4])}. Delete the run's `reference` folder "
            "and start again."
        )


class Likelihood:
    """Supervised fine-tuning: the mean negative log-likelihood of a batch's answer tokens."""

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        n_tokens = sum(len(row.answer_ids[0]) for row in rows)
        sums = answer_logps(network, batch)
        return -sums.sum() / n_tokens, {"mean_logps": sums.detach() / batch.lengths}

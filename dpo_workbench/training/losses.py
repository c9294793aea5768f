"""Preference losses: one function and one row of `LOSSES` each. `docs/losses.md` is generated from both.

In the formulas, c and r are the log-ratios of the chosen and the rejected answer (policy logps minus reference logps,
in nats, summed over the answer's tokens). nc and nr are their numbers of tokens, e is `label_smoothing`, and s is the
logistic sigmoid. The examples "by hand" are one pair with c = 1 and r = -0.5, policy logps -9 and -20.5, nc = 2 and
nr = 4, beta = 0.5 and e = 0.1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training.config import TrainConfig


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
    """DPO: -log s(beta (c - r))

    By hand: margin 0.5 * 1.5 = 0.75, -log s(0.75) = 0.3869. When policy and reference are equal, the loss is log 2.
    Use: the default for every task. When the two answers differ in only a few tokens (JSON, SQL, code), both can lose
    probability. Then raise `nll_weight` or use `dpop`.
    Elsewhere: OpenRLHF, LLaMA-Factory and the DPO authors' code apply label smoothing to this loss, which is `cdpo`
    here. TRL ignores the setting for this loss; here it is an error.
    """
    return -logsigmoid(beta * logps.delta)


def cdpo(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Conservative DPO: -(1 - e) log s(beta (c - r)) - e log s(-beta (c - r))

    By hand: 0.9 * 0.3869 + 0.1 * 1.1369 = 0.4619. The minimum is where s(margin) = 1 - e: margins stop growing there.
    Use: labels from people who make mistakes or disagree. Set e to the share of wrong labels. Labels from a verifier do
    not need it.
    Elsewhere: TRL's DPO trainer does not have it, because its `sigmoid` ignores `label_smoothing`.
    """
    return _smoothed(beta * logps.delta, label_smoothing)


def robust(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Robust DPO: (-(1 - e) log s(beta (c - r)) + e log s(-beta (c - r))) / (1 - 2 e)

    By hand: (0.9 * 0.3869 - 0.1 * 1.1369) / 0.8 = 0.2931. If a share e of the labels is flipped, the mean of this loss
    equals the DPO loss on the correct labels. The gradient with respect to c - r never gets smaller than
    beta e / (1 - 2 e), so the loss has no lower bound.
    Use: like `cdpo`, when you know e well. The loss keeps increasing the margins: train for few epochs and watch the
    dev score.
    Elsewhere: label smoothing in OpenRLHF, LLaMA-Factory and the DPO authors' code is `cdpo`, a different loss.
    """
    margin, e = beta * logps.delta, label_smoothing
    return (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)


def hinge(logps: PairLogps, beta: float) -> Tensor:
    """SLiC's hinge: max(0, 1 - beta (c - r))

    By hand: 1 - 0.75 = 0.2500. The loss and its gradient are zero once c - r reaches 1 / beta.
    Use: a mix of easy and hard pairs. Pairs that are already separated get no gradient, so easy pairs are not pushed
    further and further apart.
    Elsewhere: H2O LLM Studio uses mean log-ratios. The margin in the SLiC paper has no reference model.
    """
    return torch.relu(1 - beta * logps.delta)


def ipo(logps: PairLogps, beta: float) -> Tensor:
    """IPO: (c / nc - r / nr - 1 / (2 beta))^2

    By hand: (0.5 + 0.125 - 1)^2 = 0.1406. The target is a gap in nats per token. Pairs beyond the target are pulled
    back.
    Use: few reliable pairs and several epochs, where DPO overfits. Choose beta from the gap you want.
    Elsewhere: OpenRLHF and the DPO authors' code use sums, so there 1 / (2 beta) is the gap between whole answers.
    """
    return (logps.mean_delta - 1 / (2 * beta)) ** 2


def exo_pair(logps: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """EXO on pairs: q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e), q = s(beta (c - r))

    By hand: q = 0.6792, 0.6792 * (-0.3869 + 0.1054) + 0.3208 * (-1.1369 + 2.3026) = 0.1828. The loss is zero where
    q = 1 - e. It is infinite for e = 0, which is an error here.
    Use: like `cdpo`, but also with correct labels (e = 0.001): margins stop growing at q = 1 - e.
    """
    margin, e = beta * logps.delta, label_smoothing
    right = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-e))
    return right + (-margin).sigmoid() * (logsigmoid(-margin) - math.log(e))


def nca_pair(logps: PairLogps, beta: float) -> Tensor:
    """NCA on pairs: -log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2

    By hand: 0.4741 + (0.9741 + 0.5759) / 2 = 1.2491. When policy and reference are equal, the loss is 2 log 2.
    Use: reasoning and code, where `sigmoid` lowers the probability of the chosen answers. This loss constrains the
    likelihood of each answer separately.
    """
    chosen, rejected = beta * logps.chosen_logratios, beta * logps.rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(logps: PairLogps, beta: float) -> Tensor:
    """BCO on pairs: -log s(beta c) - log s(-beta r)

    By hand: 0.4741 + 0.5759 = 1.0500. The paper subtracts a running mean of the rewards. For pairs it is left out, so
    the loss of a pair does not depend on other batches. When policy and reference are equal, the loss is 2 log 2.
    Use: in sums (MPO: sigmoid 0.8, bco_pair 0.2, sft 1.0; arXiv 2411.10442), to raise the chosen answers themselves and
    not only their lead.
    Elsewhere: TRL's BCO trainer, which is for unpaired data, keeps the running mean.
    """
    return -logsigmoid(beta * logps.chosen_logratios) - logsigmoid(-beta * logps.rejected_logratios)


def sppo_hard(logps: PairLogps, beta: float) -> Tensor:
    """SPPO with hard labels: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2

    By hand: (1 - 1)^2 + (-0.5 + 1)^2 = 0.2500. Each answer has its own target, in nats for the whole answer.
    Use: several rounds, each with new samples from the model. The target is for the whole answer, so longer answers
    need a smaller beta.
    """
    return (logps.chosen_logratios - 0.5 / beta) ** 2 + (logps.rejected_logratios + 0.5 / beta) ** 2


def aot(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT: cDPO of the sorted policy gaps minus the sorted reference gaps (gap: chosen minus rejected logps) of a batch

    By hand: for one pair it is cDPO, 0.4619. Two pairs with policy gaps (3, 1) and reference gaps (0, 2), sorted:
    (1, 3) - (0, 2) = (1, 1), each 0.9 * 0.4741 + 0.1 * 0.9741 = 0.5241. Shape (B,), in the order of the sorted gaps.
    Use: large batches whose individual labels are noisy but correct on average. A smaller last batch counts too.
    Elsewhere: TRL sorts each device's micro-batch, so gradient accumulation changes its result. Here the whole batch is
    sorted.
    """
    gaps = (logps.policy_chosen_logps - logps.policy_rejected_logps).sort().values
    return _smoothed(
        beta * (gaps - (logps.reference_chosen_logps - logps.reference_rejected_logps).sort().values), label_smoothing
    )


def aot_unpaired(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT without pairing: cDPO of the sorted chosen minus the sorted rejected log-ratios of a batch

    By hand: for one pair it is cDPO, 0.4619. Two pairs with c = (1, 0) and r = (0.5, -0.5), sorted:
    (0, 1) - (-0.5, 0.5) = (0.5, 0.5), each 0.9 * 0.5759 + 0.1 * 0.8259 = 0.6009. Shape (B,), in the order of the
    sorted log-ratios.
    Use: like `aot`, for good and bad answers that do not belong to the same prompts.
    Elsewhere: as for `aot`.
    """
    return _smoothed(
        beta * (logps.chosen_logratios.sort().values - logps.rejected_logratios.sort().values), label_smoothing
    )


def apo_zero(logps: PairLogps, beta: float) -> Tensor:
    """APO-zero: 1 - s(beta c) + s(beta r)

    By hand: 1 - 0.6225 + 0.4378 = 0.8154. When policy and reference are equal, the loss is 1.
    Use: chosen answers that are better than the model's own (references, corrections). It raises the chosen answers and
    lowers the rejected ones.
    """
    return (-beta * logps.chosen_logratios).sigmoid() + (beta * logps.rejected_logratios).sigmoid()


def apo_down(logps: PairLogps, beta: float) -> Tensor:
    """APO-down: s(beta c) + 1 - s(beta (c - r))

    By hand: 0.6225 + 1 - 0.6792 = 0.9433. When policy and reference are equal, the loss is 1. It lowers both answers,
    the rejected one more.
    Use: chosen answers that are worse than the model's own, so that only the difference between the two should be
    learned.
    """
    return (beta * logps.chosen_logratios).sigmoid() + (-beta * logps.delta).sigmoid()


def discopop(logps: PairLogps, beta: float, tau: float = 0.05) -> Tensor:
    """DiscoPOP: -(1 - m) log s(x) + m exp(-x), x = beta (c - r), m = s(x / tau), tau = 0.05

    By hand: m = s(15) = 1.0000, exp(-0.75) = 0.4724. The loss is not convex: when policy and reference are equal, the
    gradient pushes the two answers together. m exp(-x) is computed as exp(log m - x), which stays finite where exp(-x)
    does not.
    Use: for comparison only. Training starts where the gradient has the wrong sign, and a short run may not get away
    from there.
    """
    x = beta * logps.delta
    return -(-x / tau).sigmoid() * logsigmoid(x) + (logsigmoid(x / tau) - x).exp()


def sigmoid_norm(logps: PairLogps, beta: float) -> Tensor:
    """Length-normalized DPO: -log s(beta (c / nc - r / nr))

    By hand: 0.5 * (0.5 + 0.125) = 0.3125, -log s(0.3125) = 0.5491. When policy and reference are equal, the loss is
    log 2.
    Use: answers of different length, where `sigmoid` learns the length instead of the task (see `shortcut_report` of
    your pairs).
    """
    return -logsigmoid(beta * logps.mean_delta)


def dpop(logps: PairLogps, beta: float, dpop_lambda: float = 50.0) -> Tensor:
    """DPO-Positive: -log s(beta (c - r - lambda max(0, -c))), lambda = `dpop_lambda`

    By hand: c is above 0, so it is DPO, 0.3869. With c = -0.1: 0.5 * (-0.1 + 0.5 - 50 * 0.1) = -2.3, 2.3955.
    Use: pairs that differ in only a few tokens (JSON, SQL, code, small corrections), where the chosen answers would
    otherwise lose probability.
    """
    return -logsigmoid(beta * (logps.delta - dpop_lambda * (-logps.chosen_logratios).clamp(min=0)))


def simpo(logps: PairLogps, beta: float, simpo_gamma: float = 0.5) -> Tensor:
    """SimPO: -log s(beta (policy chosen logps / nc - policy rejected logps / nr) - gamma), gamma = `simpo_gamma`

    By hand: 0.5 * (-9 / 2 + 20.5 / 4) - 0.5 = -0.1875, -log s(-0.1875) = 0.7913. The reference is not used.
    Use: when you don't want to stay close to the reference. Nothing keeps the model near its start: use a small
    learning rate and watch the dev score.
    Elsewhere: the authors' code takes gamma / beta as its setting. Here, as in TRL, the setting is gamma itself.
    """
    chosen = logps.policy_chosen_logps / logps.chosen_lengths
    return -logsigmoid(beta * (chosen - logps.policy_rejected_logps / logps.rejected_lengths) - simpo_gamma)


def sft(logps: PairLogps) -> Tensor:
    """NLL by token: -(policy chosen logps) / (mean nc of the batch)

    By hand: 9 / 2 = 4.5000. The mean over a batch is the mean over all its chosen tokens, so long answers count more.
    Use: as a term in a sum, when you want the same values as TRL.
    Elsewhere: TRL takes the mean over each micro-batch, so gradient accumulation changes its result. Here it is over
    the whole batch.
    """
    mean = logps.batch_chosen_length
    return -logps.policy_chosen_logps / (logps.chosen_lengths.double().mean() if mean is None else mean)


def nll(logps: PairLogps) -> Tensor:
    """NLL by answer: -(policy chosen logps) / nc

    By hand: 9 / 2 = 4.5000. Each answer counts the same, whatever its length. `nll_weight` adds this term to any loss.
    Use: as a second term with any loss, above all when the two answers differ in only a few tokens.
    """
    return -logps.policy_chosen_logps / logps.chosen_lengths


def _smoothed(margin: Tensor, e: float) -> Tensor:
    return -(1 - e) * logsigmoid(margin) - e * logsigmoid(-margin)


class Loss(NamedTuple):
    """A row of `LOSSES`. `function(logps, *settings)` returns shape (B,); its docstring has formula, example, use."""

    function: Callable[..., Tensor]
    settings: tuple[str, ...]  # the fields of `TrainConfig` that the function takes, in order
    paper: str  # arXiv number and equation or section
    equals: str  # the implementation that gives the same values
    whole_batch: bool = False  # True if the loss compares the pairs of a batch with each other

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
    "aot": Loss(aot, SMOOTHED, "2406.05882, section 3", "TRL `aot`", whole_batch=True),
    "aot_unpaired": Loss(aot_unpaired, SMOOTHED, "2406.05882, section 3", "TRL `aot_unpaired`", whole_batch=True),
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
        WorkbenchError: an unknown name, a weight that is not positive, a changed setting that no loss in the sum uses,
            or a setting that a loss in the sum needs and does not have.
    """
    terms = {config.loss: 1.0} if isinstance(config.loss, str) else dict(config.loss)
    for name, weight in terms.items():
        if name not in LOSSES:
            near = difflib.get_close_matches(str(name), LOSSES, 1)
            hint = f"Did you mean {near[0]!r}?" if near else "Choose one of these; see docs/losses.md."
            raise WorkbenchError(f"`loss` must be one of {', '.join(LOSSES)}, or weights by name. Got {name!r}. {hint}")
        if not (isinstance(weight, (int, float)) and 0 < weight < math.inf):
            raise WorkbenchError(f"A loss's weight must be above 0. Got {weight!r} for {name!r}. Leave the loss out.")
    if not terms:
        raise WorkbenchError('`loss` must name a loss. Got none. Choose one, such as "sigmoid".')
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

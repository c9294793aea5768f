"""Preference losses: one function and one row of `LOSSES` each. `docs/losses.md` is written from both.

In the formulas c and r are the log-ratios of the chosen and the rejected answer (policy minus reference logps, nats,
sums over an answer's tokens), nc and nr their tokens, e is `label_smoothing`, s the logistic sigmoid. The examples by
hand are one pair with c = 1 and r = -0.5, policy logps -9 and -20.5, nc = 2 and nr = 4, at beta = 0.5 and e = 0.1.
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
    """What a loss sees of B pairs. All tensors have shape (B,), logps in nats, lengths in tokens with the end token."""

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    reference_chosen_logps: Tensor
    reference_rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    batch_chosen_length: float | None = None  # mean over the whole batch, where these pairs are only a part of it

    @property
    def chosen_logratios(self) -> Tensor:
        return self.policy_chosen_logps - self.reference_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        return self.policy_rejected_logps - self.reference_rejected_logps

    @property
    def delta(self) -> Tensor:
        """c - r, which times beta is the margin."""
        return self.chosen_logratios - self.rejected_logratios

    @property
    def mean_delta(self) -> Tensor:
        """c / nc - r / nr, in nats a token."""
        return self.chosen_logratios / self.chosen_lengths - self.rejected_logratios / self.rejected_lengths


def sigmoid(logps: PairLogps, beta: float) -> Tensor:
    """DPO: -log s(beta (c - r))

    By hand: margin 0.5 * 1.5 = 0.75, -log s(0.75) = 0.3869. Equal models give log 2.
    Use: the start for every task. Where answers differ in few tokens (JSON, SQL, code) both can lose probability: add
    `nll_weight`, or take `dpop`.
    Elsewhere: OpenRLHF, LLaMA-Factory and the DPO authors' code apply label smoothing to it, which is `cdpo` here. TRL
    ignores the setting; here it is refused.
    """
    return -logsigmoid(beta * logps.delta)


def cdpo(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Conservative DPO: -(1 - e) log s(beta (c - r)) - e log s(-beta (c - r))

    By hand: 0.9 * 0.3869 + 0.1 * 1.1369 = 0.4619. Lowest where s(margin) = 1 - e, so margins stop growing there.
    Use: labels of people who err or disagree, e their share of wrong labels. A verifier's labels need none.
    Elsewhere: TRL's DPO trainer lacks it, since its `sigmoid` ignores `label_smoothing`.
    """
    return _smoothed(beta * logps.delta, label_smoothing)


def robust(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Robust DPO: (-(1 - e) log s(beta (c - r)) + e log s(-beta (c - r))) / (1 - 2 e)

    By hand: (0.9 * 0.3869 - 0.1 * 1.1369) / 0.8 = 0.2931. Its mean over labels of which a share e is flipped is DPO's
    loss on the right labels. The slope never falls below beta e / (1 - 2 e): the loss has no lower bound.
    Use: as `cdpo`, when e is well known. Margins are pushed without end: few epochs, and watch the dev score.
    Elsewhere: label smoothing in OpenRLHF, LLaMA-Factory and the DPO authors' code is `cdpo`, which is another loss.
    """
    margin, e = beta * logps.delta, label_smoothing
    return (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)


def hinge(logps: PairLogps, beta: float) -> Tensor:
    """SLiC's hinge: max(0, 1 - beta (c - r))

    By hand: 1 - 0.75 = 0.2500. Zero, with no gradient, once c - r is 1 / beta.
    Use: easy and hard pairs mixed. Pairs already apart are left alone, so the easy ones do not run away.
    Elsewhere: H2O LLM Studio takes mean log-ratios. SLiC's own margin has no reference in it.
    """
    return torch.relu(1 - beta * logps.delta)


def ipo(logps: PairLogps, beta: float) -> Tensor:
    """IPO: (c / nc - r / nr - 1 / (2 beta))^2

    By hand: (0.5 + 0.125 - 1)^2 = 0.1406. The target is a gap in nats a token: pairs beyond it are pulled back.
    Use: few sound pairs and several epochs, where DPO over-fits. Choose beta by the gap that it asks for.
    Elsewhere: OpenRLHF and the DPO authors' code take sums, so that 1 / (2 beta) is the gap of whole answers.
    """
    return (logps.mean_delta - 1 / (2 * beta)) ** 2


def exo_pair(logps: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """EXO on pairs: q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e), q = s(beta (c - r))

    By hand: q = 0.6792, 0.6792 * (-0.3869 + 0.1054) + 0.3208 * (-1.1369 + 2.3026) = 0.1828. Zero where q = 1 - e, and
    infinite for e = 0, which is refused.
    Use: as `cdpo`, with an end to the margin also for sound labels (e = 0.001).
    """
    margin, e = beta * logps.delta, label_smoothing
    right = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-e))
    return right + (-margin).sigmoid() * (logsigmoid(-margin) - math.log(e))


def nca_pair(logps: PairLogps, beta: float) -> Tensor:
    """NCA on pairs: -log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2

    By hand: 0.4741 + (0.9741 + 0.5759) / 2 = 1.2491. Equal models give 2 log 2.
    Use: reasoning and code, where `sigmoid` lets chosen answers sink: it holds the likelihood of each answer by itself.
    """
    chosen, rejected = beta * logps.chosen_logratios, beta * logps.rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(logps: PairLogps, beta: float) -> Tensor:
    """BCO on pairs: -log s(beta c) - log s(-beta r)

    By hand: 0.4741 + 0.5759 = 1.0500. The paper subtracts a running mean of the rewards; for pairs it is left out, so
    nothing depends on other batches. Equal models give 2 log 2.
    Use: in sums (MPO: sigmoid 0.8, bco_pair 0.2, sft 1.0; arXiv 2411.10442), to raise chosen answers as such.
    Elsewhere: TRL's BCO trainer, for unpaired data, keeps the running mean.
    """
    return -logsigmoid(beta * logps.chosen_logratios) - logsigmoid(-beta * logps.rejected_logratios)


def sppo_hard(logps: PairLogps, beta: float) -> Tensor:
    """SPPO with hard labels: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2

    By hand: (1 - 1)^2 + (-0.5 + 1)^2 = 0.2500. Targets for each answer, in nats of the whole answer.
    Use: rounds of fresh samples of the model's own. A target for the whole answer: longer answers need a smaller beta.
    """
    return (logps.chosen_logratios - 0.5 / beta) ** 2 + (logps.rejected_logratios + 0.5 / beta) ** 2


def aot(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT: cDPO of the sorted policy gaps minus the sorted reference gaps (gap: chosen minus rejected logps) of a batch

    By hand: one pair is cDPO, 0.4619. Two pairs with policy gaps (3, 1) and reference gaps (0, 2), sorted: (1, 3) -
    (0, 2) = (1, 1), each 0.9 * 0.4741 + 0.1 * 0.9741 = 0.5241. Shape (B,), in the order of the sorted gaps.
    Use: large batches whose pairs are noisy one by one but right as a whole. The last, smaller batch counts as well.
    Elsewhere: TRL sorts each device's micro-batch, so accumulation changes its result; here always the whole batch.
    """
    gaps = (logps.policy_chosen_logps - logps.policy_rejected_logps).sort().values
    return _smoothed(
        beta * (gaps - (logps.reference_chosen_logps - logps.reference_rejected_logps).sort().values), label_smoothing
    )


def aot_unpaired(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT without pairing: cDPO of the sorted chosen minus the sorted rejected log-ratios of a batch

    By hand: one pair is cDPO, 0.4619. Two with c = (1, 0) and r = (0.5, -0.5): (0, 1) - (-0.5, 0.5) = (0.5, 0.5), each
    0.9 * 0.5759 + 0.1 * 0.8259 = 0.6009. Shape (B,), in the order of the sorted log-ratios.
    Use: as `aot`, for good and bad answers that do not belong together.
    Elsewhere: as `aot`.
    """
    return _smoothed(
        beta * (logps.chosen_logratios.sort().values - logps.rejected_logratios.sort().values), label_smoothing
    )


def apo_zero(logps: PairLogps, beta: float) -> Tensor:
    """APO-zero: 1 - s(beta c) + s(beta r)

    By hand: 1 - 0.6225 + 0.4378 = 0.8154. Equal models give 1.
    Use: chosen answers better than the model's own (references, corrections): raises them, lowers the rejected ones.
    """
    return (-beta * logps.chosen_logratios).sigmoid() + (beta * logps.rejected_logratios).sigmoid()


def apo_down(logps: PairLogps, beta: float) -> Tensor:
    """APO-down: s(beta c) + 1 - s(beta (c - r))

    By hand: 0.6225 + 1 - 0.6792 = 0.9433. Equal models give 1. Lowers both answers, the rejected one more.
    Use: chosen answers worse than the model's own, where only the difference between the two is to be learned.
    """
    return (beta * logps.chosen_logratios).sigmoid() + (-beta * logps.delta).sigmoid()


def discopop(logps: PairLogps, beta: float, tau: float = 0.05) -> Tensor:
    """DiscoPOP: -(1 - m) log s(x) + m exp(-x), x = beta (c - r), m = s(x / tau), tau = 0.05

    By hand: m = s(15) = 1.0000, exp(-0.75) = 0.4724. Not convex: at equal models the slope pushes the pair together.
    m exp(-x) is computed as exp(log m - x), which stays finite where exp(-x) does not.
    Use: for comparison. Training starts where the slope has the wrong sign, and few steps may not leave that place.
    """
    x = beta * logps.delta
    return -(-x / tau).sigmoid() * logsigmoid(x) + (logsigmoid(x / tau) - x).exp()


def sigmoid_norm(logps: PairLogps, beta: float) -> Tensor:
    """Length-normalised DPO: -log s(beta (c / nc - r / nr))

    By hand: 0.5 * (0.5 + 0.125) = 0.3125, -log s(0.3125) = 0.5491. Equal models give log 2.
    Use: answers of unequal length, where `sigmoid` learns the length (see the shortcuts of your pairs).
    """
    return -logsigmoid(beta * logps.mean_delta)


def dpop(logps: PairLogps, beta: float, dpop_lambda: float = 50.0) -> Tensor:
    """DPO-Positive: -log s(beta (c - r - lambda max(0, -c))), lambda = `dpop_lambda`

    By hand: c is above 0, so it is DPO, 0.3869. With c = -0.1: 0.5 * (-0.1 + 0.5 - 50 * 0.1) = -2.3, 2.3955.
    Use: pairs that differ in few tokens (JSON, SQL, code, minimal corrections), where chosen answers would sink.
    """
    return -logsigmoid(beta * (logps.delta - dpop_lambda * (-logps.chosen_logratios).clamp(min=0)))


def simpo(logps: PairLogps, beta: float, simpo_gamma: float = 0.5) -> Tensor:
    """SimPO: -log s(beta (policy chosen logps / nc - policy rejected logps / nr) - gamma), gamma = `simpo_gamma`

    By hand: 0.5 * (-9 / 2 + 20.5 / 4) - 0.5 = -0.1875, -log s(-0.1875) = 0.7913. The reference plays no part.
    Use: where the reference is no good anchor. Nothing holds the model to its start: small lr, and watch the dev score.
    Elsewhere: the authors' code takes gamma / beta; here, as in TRL, it is gamma itself.
    """
    chosen = logps.policy_chosen_logps / logps.chosen_lengths
    return -logsigmoid(beta * (chosen - logps.policy_rejected_logps / logps.rejected_lengths) - simpo_gamma)


def sft(logps: PairLogps) -> Tensor:
    """NLL by token: -(policy chosen logps) / (mean nc of the batch)

    By hand: 9 / 2 = 4.5000. The mean over a batch is the mean over all its chosen tokens: long answers count more.
    Use: as a term in a sum, where TRL's values are to be met.
    Elsewhere: TRL takes the mean over each micro-batch, so accumulation changes its result; here over the whole batch.
    """
    mean = logps.batch_chosen_length
    return -logps.policy_chosen_logps / (logps.chosen_lengths.double().mean() if mean is None else mean)


def nll(logps: PairLogps) -> Tensor:
    """NLL by answer: -(policy chosen logps) / nc

    By hand: 9 / 2 = 4.5000. Each answer counts alike, whatever its length. `nll_weight` adds this term to any loss.
    Use: as a term beside any loss, most of all where answers differ in few tokens.
    """
    return -logps.policy_chosen_logps / logps.chosen_lengths


def _smoothed(margin: Tensor, e: float) -> Tensor:
    return -(1 - e) * logsigmoid(margin) - e * logsigmoid(-margin)


class Loss(NamedTuple):
    """A row of `LOSSES`. `function(logps, *settings)` has shape (B,); its docstring has formula, example and use."""

    function: Callable[..., Tensor]
    settings: tuple[str, ...]  # fields of `TrainConfig` that the function takes, in order
    paper: str  # arXiv number and place in it
    equals: str  # the implementation whose values it has
    whole_batch: bool = False  # compares the pairs of a batch with each other

    def values(self, logps: PairLogps, config: TrainConfig) -> Tensor:
        """The loss of each pair with the run's settings. Shape (B,)."""
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
    "sigmoid_norm": Loss(sigmoid_norm, BETA, "2411.15124 (length-normalised DPO)", "TRL `sigmoid_norm`"),
    "dpop": Loss(dpop, ("beta", "dpop_lambda"), "2402.13228, eq. 3", "the paper's formula"),
    "simpo": Loss(simpo, ("beta", "simpo_gamma"), "2405.14734, eq. 6", "TRL's CPO trainer, `simpo`"),
    "sft": Loss(sft, (), "Supervised fine-tuning", "TRL `sft`"),
    "nll": Loss(nll, (), "2404.19733, eq. 1, second term", "the paper's formula"),
}


def loss_terms(config: TrainConfig) -> dict[str, float]:
    """Names and weights of the losses whose weighted sum is trained on; `nll_weight` is the weight of `nll`.

    Raises:
        WorkbenchError: an unknown name, a weight that is not positive, a setting that no term reads or that one lacks.
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

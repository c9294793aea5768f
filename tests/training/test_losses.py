"""Losses by hand, by their symmetries, at their extremes, and against TRL's own code.

The pair of the docstrings: log-ratios 1 (chosen) and -0.5 (rejected) nats over a reference of -10 and -20, with 2 and 4
tokens, at beta 0.5 and label smoothing 0.1. Each value here is the one that the loss's docstring works out.
"""

import inspect
import math
import re
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training import losses
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.losses import LOSSES, PairLogps, dpop, ipo, loss_terms, nll, sft, sigmoid

CONFIG = TrainConfig(beta=0.5, label_smoothing=0.1, nll_weight=0.0)
SMOOTHED = [name for name, loss in LOSSES.items() if "label_smoothing" in loss.settings]
BY_HAND = {
    "sigmoid": 0.3869,
    "cdpo": 0.4619,
    "robust": 0.2931,
    "hinge": 0.2500,
    "ipo": 0.1406,
    "exo_pair": 0.1828,
    "nca_pair": 1.2491,
    "bco_pair": 1.0500,
    "sppo_hard": 0.2500,
    "apo_zero": 0.8154,
    "apo_down": 0.9433,
    "discopop": 0.4724,
    "sigmoid_norm": 0.5491,
    "dpop": 0.3869,
    "simpo": 0.7913,
    "sft": 4.5,
    "nll": 4.5,
}
AT_EQUAL_MODELS = {  # at beta 0.5; those of a margin of 0 give log 2
    "robust": math.log(2),
    "hinge": 1.0,
    "ipo": 1.0,
    "exo_pair": 0.5 * (math.log(0.5 / 0.9) + math.log(0.5 / 0.1)),
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 2.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * math.log(2) + 0.5,
}
REFERENCE_FREE = ("simpo", "sft", "nll")


def pairs(chosen: list[float], rejected: list[float], lengths=(2, 4), dtype=torch.float64) -> PairLogps:
    """Policies with the given log-ratios over a reference of -10 and -20 nats."""
    c, r = torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype)
    reference_c, reference_r = torch.full_like(c, -10.0), torch.full_like(r, -20.0)
    sizes = [torch.full((len(c),), n) for n in lengths]
    return PairLogps(reference_c + c, reference_r + r, reference_c, reference_r, *sizes)


def random_pairs(n: int = 7, seed: int = 0) -> PairLogps:
    draw = torch.Generator().manual_seed(seed)
    logps = [-30 * torch.rand(n, generator=draw, dtype=torch.float64) for _ in range(4)]
    return PairLogps(*logps, *(torch.randint(1, 9, (n,), generator=draw) for _ in range(2)))


def gradients(name: str, logps: PairLogps, config: TrainConfig = CONFIG) -> tuple[Tensor, Tensor]:
    """Of the mean loss, by the policy's chosen and rejected logps."""
    chosen, rejected = (x.clone().requires_grad_() for x in logps[:2])
    LOSSES[name].values(PairLogps(chosen, rejected, *logps[2:]), config).mean().backward()
    return chosen.grad, torch.zeros_like(rejected) if rejected.grad is None else rejected.grad


def _section(name: str) -> str:
    """The section about a loss in docs/losses.md."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    return page.split(f"\n## `{name}`\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", LOSSES)
def test_by_hand(name: str) -> None:
    value = LOSSES[name].values(pairs([1.0], [-0.5]), CONFIG)
    assert value.shape == (1,) and value.item() == pytest.approx(BY_HAND[name], abs=5.1e-5)
    assert f"{BY_HAND[name]:.4f}" in _section(name)


def test_more_by_hand() -> None:
    """The second example of docs/losses.md: a chosen answer that fell."""
    assert dpop(pairs([-0.1], [-0.5]), 0.5).item() == pytest.approx(2.3955, abs=5e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in REFERENCE_FREE])
def test_equal_models(name: str) -> None:
    value = LOSSES[name].values(pairs([0.0, 0.0], [0.0, 0.0]), CONFIG)
    assert value.tolist() == pytest.approx([AT_EQUAL_MODELS.get(name, math.log(2))] * 2)


@pytest.mark.parametrize("name", SMOOTHED)
def test_swapped_answers_are_a_wrong_label(name: str) -> None:
    """Label smoothing e says that a share e is swapped: the swapped pairs at 1 - e cost what the pairs cost at e."""
    one = random_pairs()
    other = PairLogps(*(one[k] for k in (1, 0, 3, 2, 5, 4)))
    function = LOSSES[name].function
    assert function(one, 0.5, 0.2).sum().item() == pytest.approx(function(other, 0.5, 0.8).sum().item())
    assert function(one, 0.5, 0.2).sum().item() != pytest.approx(function(other, 0.5, 0.2).sum().item())


def test_swapping_the_answers_swaps_the_margin() -> None:
    """s(x) + s(-x) = 1, so exp(-loss) of a pair and of its swap add up to one; IPO's target lies on the other side."""
    for name in ("sigmoid", "sigmoid_norm"):
        one, other = (LOSSES[name].function(pairs(*x, (3, 3)), 0.5) for x in (([0.7], [-1.3]), ([-1.3], [0.7])))
        assert float((-one).exp() + (-other).exp()) == pytest.approx(1.0)
    h, target = 0.7 / 3 + 1.3 / 3, 1.0
    a, b = ipo(pairs([0.7], [-1.3], (3, 3)), 0.5), ipo(pairs([-1.3], [0.7], (3, 3)), 0.5)
    assert float(a) == pytest.approx((h - target) ** 2) and float(b) == pytest.approx((h + target) ** 2)


@pytest.mark.parametrize("name", LOSSES)
def test_direction_of_descent_near_the_start(name: str) -> None:
    """It raises the chosen and lowers the rejected answer. The exceptions are what the docstrings say of them."""
    chosen, rejected = gradients(name, pairs([0.01], [-0.01]), replace(CONFIG, beta=0.1))
    want = {"apo_down": (1, 1), "discopop": (1, -1), "sft": (-1, 0), "nll": (-1, 0)}.get(name, (-1, 1))
    assert (chosen.sign().item(), rejected.sign().item()) == want


def test_gradient_of_dpo_by_hand() -> None:
    """d loss / d chosen = -beta * sigmoid(-margin) (arXiv 2305.18290, section 4)."""
    chosen, rejected = gradients("sigmoid", pairs([1.0], [-1.0]))
    assert chosen.item() == pytest.approx(-0.5 / (1 + math.exp(1.0))) == -rejected.item()


@pytest.mark.parametrize(("name", "sign"), [("ipo", 1), ("sppo_hard", 1), ("cdpo", 1), ("exo_pair", 1), ("hinge", 0)])
def test_losses_with_a_target_stop_or_turn_back_beyond_it(name: str, sign: int) -> None:
    assert gradients(name, pairs([10.0], [-10.0]))[0].sign().item() == sign
    assert gradients("robust", pairs([90.0], [-90.0]))[0].item() == pytest.approx(-0.5 * 0.1 / 0.8)  # never flat


def test_dpop_is_dpo_until_the_chosen_answer_falls() -> None:
    kept = pairs([0.0, 0.5, 3.0], [0.0, -2.0, 4.0])
    torch.testing.assert_close(dpop(kept, 0.1), sigmoid(kept, 0.1), rtol=0, atol=0)
    fallen = pairs([-0.5], [-2.0])
    assert dpop(fallen, 0.1).item() > sigmoid(fallen, 0.1).item()
    assert gradients("dpop", fallen, replace(CONFIG, beta=0.1))[0].item() < -0.1  # steeper than DPO can ask


@pytest.mark.parametrize("name", LOSSES)
def test_only_log_ratios_matter(name: str) -> None:
    """A constant on policy and reference, as a longer prompt would add, changes nothing where there is a reference."""
    logps = pairs([0.3, -0.2], [-0.4, 0.6])
    shifted = PairLogps(*(x - 7.5 for x in logps[:4]), *logps[4:])
    same = torch.allclose(LOSSES[name].values(shifted, CONFIG), LOSSES[name].values(logps, CONFIG))
    assert same == (name not in REFERENCE_FREE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_far_apart_is_finite(name: str, dtype: torch.dtype) -> None:
    far = pairs([1e4, -1e4, 1e4, -1e4, 30.0, -30.0], [-1e4, 1e4, 1e4, -1e4, -30.0, 30.0], dtype=dtype)
    for beta in (0.01, 0.1, 1.0):
        config = replace(CONFIG, beta=beta, label_smoothing=0.001)
        assert torch.isfinite(LOSSES[name].values(far, config)).all()
        assert all(torch.isfinite(g).all() for g in gradients(name, far, config))


def test_far_apart_keeps_its_slope() -> None:
    assert sigmoid(pairs([-2000.0], [2000.0]), 1.0).item() == pytest.approx(4000.0)
    with pytest.raises(AssertionError):  # negative control of the test above: DiscoPOP as its formula is written
        x = torch.tensor([-1e4], dtype=torch.float64)
        assert torch.isfinite((x / 0.05).sigmoid() * (-x).exp()).all()


def test_tokens_of_the_whole_batch_weigh_alike_in_sft() -> None:
    logps = pairs([0.0, 2.0], [0.0, 0.0])._replace(chosen_lengths=torch.tensor([1, 3]))
    assert sft(logps).mean().item() == pytest.approx((10 + 8) / 4) != nll(logps).mean().item()
    parts = [PairLogps(*(x[k : k + 1] for x in logps[:6]), batch_chosen_length=2.0) for k in (0, 1)]
    assert [sft(part).item() for part in parts] == pytest.approx(sft(logps).tolist()) == [5.0, 4.0]


# TRL's own code


class TRL:
    """`DPOTrainer._compute_loss` of the installed TRL on given log-probabilities, without a model or a data set."""

    def __init__(self) -> None:
        from trl import DPOConfig, DPOTrainer

        self.config, self.trainer = DPOConfig, DPOTrainer

    def loss(self, logps: PairLogps, loss_type: str | list[str], **settings) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's loss, and its gradients by the policy's chosen and rejected logps."""
        args = self.config(loss_type=loss_type, use_cpu=True, bf16=False, report_to="none", **settings)
        trainer = self.trainer.__new__(self.trainer)
        same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device=torch.device("cpu"))
        vars(trainer).update(
            args=args,
            model=torch.nn.Identity().train(),
            accelerator=same,
            loss_types=args.loss_type,
            loss_weights=args.loss_weights or [1.0] * len(args.loss_type),
            beta=args.beta,
            label_smoothing=args.label_smoothing,
            f_divergence_type=args.f_divergence_type,
            ld_alpha=args.ld_alpha,
            use_weighting=args.use_weighting,
            precompute_ref_logps=True,
            aux_loss_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
        )
        lengths = torch.cat([logps.chosen_lengths, logps.rejected_lengths])
        mask = (torch.arange(1 + int(lengths.max())) >= 1) & (torch.arange(1 + int(lengths.max())) <= lengths[:, None])
        share = torch.rand(mask[:, 1:].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        share = share * mask[:, 1:]  # how an answer's logps are spread over its tokens
        sums = torch.cat(logps[:2]).clone().requires_grad_()
        per_token = sums[:, None] * share / share.sum(dim=1, keepdim=True)
        none = torch.zeros_like(per_token)
        seen = SimpleNamespace(log_probs=per_token, entropy=none, mean_logits=none, is_top1=mask[:, 1:])
        inputs = {"input_ids": torch.zeros_like(mask, dtype=torch.long), "attention_mask": mask.long()}
        inputs |= {"completion_mask": mask.long(), "ref_chosen_logps": logps[2], "ref_rejected_logps": logps[3]}
        loss = trainer._compute_loss(lambda **_: seen, inputs, return_outputs=False)
        loss.backward()
        return loss.detach(), *sums.grad.chunk(2)


@pytest.fixture(scope="module")
def trl() -> TRL:
    return TRL()


TRL_NAMES = [name for name, loss in LOSSES.items() if loss.equals == f"TRL `{name}`"]


def test_every_loss_type_of_trl_is_here_but_two(trl) -> None:
    """TRL lists its loss types when it is asked for one that it does not have."""
    with pytest.raises(ValueError, match="Unknown loss type: none_such. Should be one of") as caught:
        trl.loss(random_pairs(), "none_such")
    listed = set(re.findall(r"'(\w+)'", str(caught.value)))
    assert len(listed) >= 15 and listed == {*TRL_NAMES, "aot", "aot_unpaired"}


@pytest.mark.parametrize("name", TRL_NAMES)
def test_values_and_gradients_of_trl(trl, name: str) -> None:
    for seed, beta, e in ((0, 0.1, 0.1), (1, 0.02, 0.3), (2, 1.5, 0.001)):
        logps, config = random_pairs(9, seed), TrainConfig(beta=beta, label_smoothing=e)
        theirs, *slopes = trl.loss(logps, name, beta=beta, label_smoothing=e)
        ours = LOSSES[name].values(logps, config).mean()
        close = 1e-7 if name == "exo_pair" else 1e-12  # TRL holds exo_pair's label smoothing in fp32
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
        for mine, slope in zip(gradients(name, logps, config), slopes, strict=True):
            torch.testing.assert_close(mine, slope, rtol=close, atol=close)
        if beta == 0.1:  # negative control: 0.01 nats are seen
            moved = LOSSES[name].values(logps._replace(policy_chosen_logps=logps[0] - 0.01), config).mean()
            assert abs(moved - theirs) > 1e-6 * abs(theirs)


def test_weighted_sum_of_trl(trl, monkeypatch) -> None:
    """MPO's sum (arXiv 2411.10442), by way of the objective in two micro-batches."""
    logps = random_pairs(5)
    weights = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    theirs = trl.loss(logps, list(weights), loss_weights=list(weights.values()), beta=0.1)[0]
    ids = [f"p{k}" for k in range(5)]
    rows = [
        SimpleNamespace(id=i, answer_ids=((0,) * int(n), ())) for i, n in zip(ids, logps.chosen_lengths, strict=True)
    ]
    config = TrainConfig(loss=weights, beta=0.1, nll_weight=0.0)
    objective = losses.Preference({}, config)
    total = 0.0
    for part in (slice(0, 2), slice(2, 5)):
        monkeypatch.setattr(losses, "pair_logps", lambda *_, part=part: PairLogps(*(x[part] for x in logps[:6])))
        total += objective.loss(None, SimpleNamespace(ids=ids[part]), rows, step=1)[0].item()
    assert total == pytest.approx(theirs.item(), rel=1e-9)


def test_simpo_has_the_values_of_trl_s_cpo_trainer() -> None:
    from trl.experimental.cpo import CPOTrainer

    logps = random_pairs()
    mean_c, mean_r = logps[0] / logps.chosen_lengths, logps[1] / logps.rejected_lengths
    here = SimpleNamespace(device=torch.device("cpu"))
    settings = {"loss_type": "simpo", "simpo_gamma": 0.7, "beta": 2.0, "label_smoothing": 0.0, "alpha": 0.0}
    theirs = CPOTrainer.cpo_loss(SimpleNamespace(accelerator=here, **settings), mean_c, mean_r)[0]
    torch.testing.assert_close(LOSSES["simpo"].function(logps, 2.0, 0.7), theirs, rtol=1e-9, atol=1e-9)


def test_cdpo_is_trl_s_aot_on_single_pairs(trl) -> None:
    logps = random_pairs()
    theirs = [
        trl.loss(PairLogps(*(x[k : k + 1] for x in logps[:6])), "aot", beta=0.3, label_smoothing=0.2)[0].item()
        for k in range(7)
    ]
    assert LOSSES["cdpo"].function(logps, 0.3, 0.2).tolist() == pytest.approx(theirs, rel=1e-9)


# the table, its settings and its page


def test_rows_name_the_function_and_its_settings() -> None:
    known = {f.name for f in fields(TrainConfig)}
    for name, loss in LOSSES.items():
        took = list(inspect.signature(loss.function).parameters)
        assert loss.function.__name__ == name and took[1 : 1 + len(loss.settings)] == list(loss.settings), name
        assert set(loss.settings) <= known and loss.paper and loss.equals, name


def test_terms_of_a_run() -> None:
    assert loss_terms(TrainConfig(nll_weight=0.0)) == {"sigmoid": 1.0}
    assert loss_terms(TrainConfig(loss="hinge")) == {"hinge": 1.0}
    both = TrainConfig(loss={"sigmoid": 0.8, "nll": 0.1}, nll_weight=0.2)
    assert loss_terms(both) == pytest.approx({"sigmoid": 0.8, "nll": 0.3}) and both.loss == {"sigmoid": 0.8, "nll": 0.1}
    assert loss_terms(TrainConfig(loss={"robust": 1, "sigmoid": 1}, label_smoothing=0.1, nll_weight=0.0))
    assert TrainConfig.from_dict(both.to_dict()) == both


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "sigmoids"}, "must be one of sigmoid, .*Got 'sigmoids'. Did you mean 'sigmoid'"),
        ({"loss": {"sigmoid": 1.0, "sft_": 1.0}}, "Got 'sft_'. Did you mean 'sft'"),
        ({"loss": {}}, "must name a loss. Got none"),
        ({"loss": {"ipo": 0.0}}, "weight must be above 0. Got 0.0 for 'ipo'"),
        ({"loss": {"ipo": float("nan")}}, "weight must be above 0. Got nan"),
        ({"loss": {"ipo": "1"}}, "weight must be above 0. Got '1'"),
        ({"label_smoothing": 0.1}, "`label_smoothing` must be read by .*Got 0.1 with sigmoid.*choose cdpo, robust"),
        ({"loss": "dpop", "simpo_gamma": 1.0}, "`simpo_gamma` must be read by .*choose simpo"),
        ({"loss": "exo_pair"}, "exo_pair needs `label_smoothing` above 0"),
        ({"loss": "simpo", "dpop_lambda": 5.0}, "`dpop_lambda` must be read by .*choose dpop"),
    ],
)
def test_terms_that_cannot_be_meant_raise(settings: dict, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        loss_terms(TrainConfig(**settings))


@pytest.mark.parametrize("value", [-0.1, 0.5, float("nan")])
def test_label_smoothing_lies_below_a_half(value: float) -> None:
    with pytest.raises(WorkbenchError, match=r"must be in \[0, 0.5\)"):
        TrainConfig(loss="robust", label_smoothing=value)


def test_the_page_of_losses_has_a_section_for_each() -> None:
    for name, loss in LOSSES.items():
        section = _section(name)
        assert f"Same values as: {loss.equals}." in section
        formula = loss.function.__doc__.partition(": ")[2]
        assert formula in section

"""Held-out pairs: no prompt on both sides, exact zeros at the start, and warnings where no task scores the answers."""

import random
import warnings
from dataclasses import replace

import pytest
import torch

from dpo_workbench.models.decoding import Answer
from dpo_workbench.models.loading import load_model
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.training import guards, losses
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import HeldOut, degenerate_answers, hold_out, large_margin
from dpo_workbench.training.reference import reference_logps
from dpo_workbench.training.run import train
from dpo_workbench.training.tokens import pair_texts, tokenize

CONFIG = TrainConfig(lr=2e-2, batch_size=4, epochs=2, rank=4, alpha=8, probes=2, held_out=0.2, nll_weight=0.1)


@pytest.mark.parametrize("n_groups", [1, 4, 40])
def test_groups_stay_together(n_groups: int) -> None:
    pairs = [Pair(f"p{k}", f"q{k}", "a", "b", group=f"g{k % n_groups}") for k in range(40)]
    config = replace(CONFIG, held_out=0.1)
    held, trained = hold_out(pairs, config)
    assert len(held) + len(trained) == 40 and trained
    assert not {p.group for p in held} & {p.group for p in trained}
    assert len(held) == {1: 0, 4: 0, 40: 4}[n_groups]
    assert hold_out(pairs, replace(CONFIG, held_out=0.0))[0] == []
    assert hold_out(pairs, replace(CONFIG, held_out=0.99))[1]
    assert hold_out(pairs, config) == (held, trained)  # the same again
    if n_groups == 40:
        assert hold_out(pairs, replace(config, seed=1))[0] != held


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_pairs_of_one_prompt_stay_together_without_a_group(share: float) -> None:
    draw = random.Random(0)
    pairs = [Pair(f"p{k}", f"question {draw.randrange(60)}", "a", "b") for k in range(300)]
    held, trained = hold_out(pairs, replace(CONFIG, held_out=share))
    assert not {p.prompt for p in held} & {p.prompt for p in trained}
    assert abs(len(held) / 300 - share) < 0.04
    assert [p for p in pairs if p in held] == sorted(held, key=pairs.index) and held + trained != pairs


def test_a_prompt_in_several_groups_is_on_one_side() -> None:
    pairs = [Pair(f"p{k}", f"q{k % 20}", "a", "b", group=f"g{k}" if k % 3 else "") for k in range(60)]
    for seed in range(5):
        held, trained = hold_out(pairs, replace(CONFIG, seed=seed))
        assert held and not {p.prompt for p in held} & {p.prompt for p in trained}
        assert not {p.group for p in held} & {p.group for p in trained} - {""}


def test_the_split_of_many_pairs_looks_at_each_pair_a_few_times(monkeypatch) -> None:
    """Work that grows with the square of the number would look at 20,000 pairs some 10,000 times each."""
    looks = [0]

    class Counted(Pair):
        def __getattribute__(self, name: str):
            looks[0] += name in ("id", "prompt", "group")
            return super().__getattribute__(name)

    pairs = [Counted(f"p{k}", f"question {k // 2}", "a", "b") for k in range(20_000)]
    looks[0] = 0
    held, trained = hold_out(pairs, replace(CONFIG, held_out=0.1))
    assert 1900 < len(held) <= 2000 and len(held) + len(trained) == 20_000
    assert looks[0] < 10 * len(pairs)


@pytest.fixture
def rows(moved, toy_pairs):
    return tokenize(moved, map(pair_texts, toy_pairs), 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packing", [True, False])
def test_log_ratios_are_exactly_zero_at_the_start(tiny_folder, toy_pairs, dtype, packing: bool) -> None:
    model = load_model(tiny_folder, device="cpu", dtype=dtype)
    config = replace(CONFIG, micro_tokens=150, packing=packing)
    rows = tokenize(model, map(pair_texts, toy_pairs), 200)
    watched = HeldOut(rows, reference_logps(model, rows, config, None))
    policy = model.with_new_adapter(rank=4, alpha=8)
    assert watched.log_ratios(policy, config) == {"chosen_logratio": 0.0, "rejected_logratio": 0.0, "preferred": 0.5}
    with torch.no_grad():
        for p in policy.adapter_parameters():
            p.add_(0.05)
    moved = watched.log_ratios(policy, config)
    assert moved["chosen_logratio"] != 0 != moved["rejected_logratio"]  # negative control


def test_log_ratios_by_hand(moved, rows) -> None:
    """Three pairs of which one is preferred, one is not, and one is a tie."""
    values = reference_logps(moved, rows[:3], CONFIG, None)
    log_ratios = [(3.0, 0.0), (-2.0, 1.0), (0.5, 0.5)]  # policy minus reference
    known = {i: (c - dc, r - dr) for (i, (c, r)), (dc, dr) in zip(values.items(), log_ratios, strict=True)}
    seen = HeldOut(rows[:3], known).log_ratios(moved, CONFIG)
    assert seen["chosen_logratio"] == pytest.approx((3 - 2 + 0.5) / 3, abs=1e-4)
    assert seen["rejected_logratio"] == pytest.approx((0 + 1 + 0.5) / 3, abs=1e-4)
    assert 1 / 3 <= seen["preferred"] <= 2 / 3  # rounding decides the tie


def plain(pairs: Pairs) -> Pairs:
    """The same pairs without a task."""
    return Pairs(pairs.rows)


def test_held_out_pairs_are_never_trained_on(moved, toy_pairs, monkeypatch) -> None:
    trained_on: set[str] = set()
    honest = losses.Preference.loss

    def loss(self, network, batch, rows, step):
        trained_on.update(batch.ids)
        return honest(self, network, batch, rows, step)

    monkeypatch.setattr(losses.Preference, "loss", loss)
    train(moved, toy_pairs, replace(CONFIG, probes=0), show=False)
    held, trained = hold_out(list(toy_pairs), CONFIG)
    assert trained_on == {p.id for p in trained} and len(held) == 2


def test_without_a_task_the_held_out_pairs_are_measured(moved, toy_pairs, capsys) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(moved, plain(toy_pairs), replace(CONFIG, lr=1e-4))
    assert [p["step"] for p in run.probes] == [0, 3, 6] and run.scores == []
    assert all(p.keys() == {"step", "chosen_logratio", "rejected_logratio", "preferred"} for p in run.probes)
    assert run.probes[0]["chosen_logratio"] == run.probes[0]["rejected_logratio"] == 0.0
    assert run.probes[-1]["chosen_logratio"] != 0
    assert run.best_step == 6 and not run.unchanged and repr(run)  # the last adapter is kept
    out = capsys.readouterr().out
    assert "probe at step 6: held-out log-ratios" in out and "dev score" not in out


def test_without_a_task_displacement_is_reported(moved, toy_pairs) -> None:
    steep = replace(CONFIG, lr=0.3, nll_weight=0.0, epochs=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(moved, plain(toy_pairs), steep, show=False)
    texts = [str(w.message) for w in caught]
    assert min(p["chosen_logratio"] for p in run.probes) < -1
    assert sum("likelihood displacement: the chosen answers of 2 held-out pairs" in text for text in texts) == 1


def test_large_margins_are_reported() -> None:
    assert large_margin(3.9) == "" and large_margin(-9.0) == ""
    assert "reward margin reached 4.1" in large_margin(4.1)


@pytest.mark.parametrize(("beta", "n_warnings"), [(0.01, 0), (3.0, 1)])
def test_a_run_without_a_task_that_ends_at_a_large_margin_says_so(moved, toy_pairs, beta, n_warnings) -> None:
    config = replace(CONFIG, beta=beta, lr=1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(moved, plain(toy_pairs), config, show=False)
    assert (run.history[-1]["rewards/margins"] > 4) == (n_warnings == 1)
    found = [w for w in caught if "the reward margin reached" in str(w.message)]
    assert len(found) == n_warnings
    assert all(w.filename == __file__ for w in found)  # the warning points at the caller's line


CUT_OFF = "yes and so on and so on " * 10


def answers(*texts: str) -> list[list[Answer]]:
    return [[Answer(text, 5, text != CUT_OFF)] for text in texts]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (["fine.", "good."], ["fine.", ""], "1 empty (before: none)"),
        (["fine.", "good."], ["fine.", CUT_OFF], "1 loop (before: none)"),
        (["fine.", ""], ["", "good."], ""),  # no more than before
        (["fine.", ""], ["fine.", "good."], ""),
    ],
)
def test_more_degenerate_answers_than_before_are_reported(tiny, moved, monkeypatch, before, after, words) -> None:
    asked = []

    def generate(model, prompts, **settings):
        asked.append((model, list(prompts), settings))
        return answers(*(before if model is tiny else after))

    monkeypatch.setattr(guards, "generate", generate)
    text = degenerate_answers(tiny, moved, ["q1", "q2", "q1"], 40)
    assert [prompts for _, prompts, _ in asked] == [["q1", "q2"]] * 2  # each prompt once
    assert (words in text and "of 2 prompts" in text) if words else text == ""


@pytest.mark.parametrize("with_task", [True, False])
def test_only_runs_without_a_task_look_at_answers_at_the_end(moved, toy_pairs, monkeypatch, with_task: bool) -> None:
    seen = []
    monkeypatch.setattr(guards, "degenerate_answers", lambda *a: seen.append(a) or "answers broke")
    pairs = toy_pairs if with_task else plain(toy_pairs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(moved, pairs, CONFIG, show=False)
        train(moved, pairs, replace(CONFIG, probes=0), show=False)  # probes=0 asks for no looks at all
    if with_task:
        assert not seen
        return
    ((before, after, prompts, limit),) = seen
    assert before is moved and after is run.model and limit >= 32
    assert prompts == [p.prompt for p in hold_out(list(pairs), CONFIG)[0]]
    assert [str(w.message) for w in caught] == ["answers broke"]

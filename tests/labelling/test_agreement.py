"""Agreement against the reference libraries and by hand; labels to pairs; the report's advice on built studies."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

import dpo_workbench as dw
from dpo_workbench.labelling.events import Store, answer_key, item_key
from dpo_workbench.labelling.labels import flip_rate
from dpo_workbench.labelling.report import cohen_kappa
from dpo_workbench.labelling.session import Session

PAIRS = [
    dw.Pair(
        f"p{k}", f"question {k}", f"right {k}" + " and more" * (k % 4 == 1), f"wrong {k}" + " and more" * (k % 4 == 3),
        chosen_score=1.0, rejected_score=0.0,
    )
    for k in range(60)
]  # fmt: skip


def random_table(rng: random.Random) -> dict[str, dict[int, float]]:
    raters, items, values = rng.randint(2, 6), rng.randint(3, 40), rng.randint(2, 6)
    domain = rng.sample([-3.0, 0.0, 0.5, 1.0, 2.0, 5.0, 13.0], values)
    full = rng.random() < 0.2
    return {f"r{r}": {i: rng.choice(domain) for i in range(items) if full or rng.random() < 0.7} for r in range(raters)}


@pytest.mark.slow
def test_kappas_equal_their_definitions_on_200_tables():
    rng = random.Random(1)
    for _ in range(200):
        table = random_table(rng)
        one, other = (table[r] for r in list(table)[:2])
        both = [i for i in one if i in other]
        found = cohen_kappa(one, other)
        values = {*(one[i] for i in both), *(other[i] for i in both)}
        if len(values) < 2:
            assert math.isnan(found.estimate)
            continue
        seen = np.mean([one[i] == other[i] for i in both])
        chance = sum(np.mean([one[i] == v for i in both]) * np.mean([other[i] == v for i in both]) for v in values)
        assert abs(found.estimate - (seen - chance) / (1 - chance)) <= 1e-9


@pytest.mark.slow
def test_the_intervals_cover_what_the_panel_was_built_with():
    """Two raters who each flip a fair truth with 10 %: kappa is (1 - 2 e)^2 = 0.64."""
    rng, kappas = random.Random(0), 0
    for _ in range(60):
        table: dict[str, dict[int, float]] = {"a": {}, "b": {}}
        for i in range(120):
            truth = rng.choice((1, -1))
            for rater in table:
                table[rater][i] = float(-truth if rng.random() < 0.1 else truth)
        kappa = cohen_kappa(table["a"], table["b"])
        kappas += kappa.low <= 0.64 <= kappa.high
    assert kappas >= 52  # 95 % of 60 is 57; fewer than 52 has probability 0.01


def test_full_agreement_has_an_interval():
    row = {k: float(k % 2) for k in range(30)}
    found = cohen_kappa(row, row)
    assert (found.estimate, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 30)


@pytest.mark.parametrize("rate", (0.05, 0.1, 0.2, 0.3))
def test_the_flip_rate_is_found_again(rate):
    rng = random.Random(rate)
    disagree = sum((rng.random() < rate) != (rng.random() < rate) for _ in range(20_000))
    found = flip_rate(disagree, 20_000)
    assert abs(found.estimate - rate) < 0.02 and found.low < found.estimate < found.high


def study(tmp_path, votes):
    """`votes`: rater -> function of a pair's number giving chosen, rejected, tie, bad or skip, or None."""
    for rater, vote in votes.items():
        work = Session(PAIRS, rater, tmp_path / "l.jsonl", "python", quick=0)
        for place in range(len(PAIRS)):
            said = vote(place)
            if said is None:
                continue
            work.do(f"g {place + 1}")
            command = {"tie": "t", "bad": "x", "skip": "s"}.get(said)
            work.do(command or ("b" if (said == "chosen") == work.swapped else "a"))
    return dw.read_labels(tmp_path / "l.jsonl", PAIRS)


def test_ties_and_both_bad_never_become_pairs(tmp_path):
    kinds = ["chosen", "rejected", "tie", "bad", "skip"]
    labels = study(tmp_path, {"ann": lambda k: kinds[k % 5]})
    for how in ("majority", "weighted"):
        pairs = labels.pairs(how)
        named = {p.prompt for p in pairs}
        assert named == {PAIRS[k].prompt for k in range(60) if k % 5 < 2}
        for p in pairs:
            k = int(p.prompt.split()[1])
            assert p.chosen == (PAIRS[k].chosen if k % 5 == 0 else PAIRS[k].rejected)
    assert labels.left_out() == {"tie": 12, "both bad": 12}


def test_even_votes_make_no_pair_and_a_majority_does(tmp_path):
    labels = study(
        tmp_path,
        {
            "ann": lambda k: "chosen",
            "bob": lambda k: "rejected" if k % 2 else "chosen",
            "cid": lambda k: "tie" if k % 4 == 1 else "chosen" if k % 4 != 3 else None,
        },
    )
    assert labels.left_out() == {"even votes": 30}
    assert all(p.weight == 1 for p in labels.pairs())
    weights = {p.prompt: p.weight for p in labels.pairs("weighted")}
    assert weights == {PAIRS[k].prompt: 1.0 for k in range(0, 60, 2)}


def test_strength_and_disagreement_set_the_weight(tmp_path):
    pair, store = PAIRS[0], Store(tmp_path / "l.jsonl")
    for rater, choice, strength in (("ann", "a", 3), ("bob", "a", 1), ("cid", "b", 1)):
        store.add(
            "label", rater, item_key(pair), choice=choice, strength=strength,
            left=answer_key(pair.chosen), right=answer_key(pair.rejected),
        )  # fmt: skip
    (found,) = dw.read_labels(tmp_path / "l.jsonl", PAIRS).pairs("weighted")
    assert found.weight == pytest.approx((1.5 + 0.5 - 0.5) / 3)


def test_a_noisy_panel_sets_the_epsilon_of_the_robust_loss(tmp_path):
    rng = random.Random(3)
    noisy = lambda k: "rejected" if rng.random() < 0.2 else "chosen"  # noqa: E731
    labels = study(tmp_path, {f"r{j}": noisy for j in range(4)})
    config = labels.config()
    assert config.loss == "robust" and 0.13 < config.label_smoothing < 0.27
    with pytest.raises(dw.WorkbenchError, match="No two raters"):
        study(tmp_path / "one", {"ann": noisy}).config()


def test_a_rater_who_tosses_coins_stops_the_robust_loss(tmp_path):
    rng = random.Random(0)
    toss = lambda k: rng.choice(("chosen", "rejected"))  # noqa: E731
    with pytest.raises(dw.WorkbenchError, match="better than by chance"):
        study(tmp_path, {"ann": toss, "bob": toss, "cid": toss}).config()


def test_the_report_names_who_prefers_a_side_or_the_longer_answer(tmp_path):
    longer = lambda k: {1: "chosen", 3: "rejected"}.get(k % 4, "chosen")  # noqa: E731
    study(tmp_path, {"ann": lambda k: "chosen", "bob": lambda k: longer(k) if k % 2 else "tie"})
    work = Session(PAIRS, "lea", tmp_path / "l.jsonl", "python", quick=0)
    while not work.finished:
        work.do("a")  # whatever is there
    report = dw.agreement(dw.read_labels(tmp_path / "l.jsonl", PAIRS))
    by_name = {r.name: r for r in report.raters}
    assert by_name["ann"].side_a.p > 0.01 and by_name["ann"].longer.p > 0.01
    assert by_name["lea"].side_a.share.estimate == 1 and by_name["bob"].longer.share.estimate == 1
    advice = " ".join(report.advice)
    assert "lea prefers side A" in advice and "bob mostly prefers the longer answer" in advice
    assert "ann" not in advice and report.discuss
    assert report.verifier.n > 20


def test_a_clean_study_has_nothing_to_discuss(tmp_path):
    rng = random.Random(5)
    truth = [rng.choice(("chosen", "rejected")) for _ in PAIRS]
    labels = study(tmp_path, {"ann": truth.__getitem__, "bob": truth.__getitem__})
    report = dw.agreement(labels)
    assert report.flip_rate.estimate == 0 and report.discuss == []


def test_raters_who_all_prefer_the_chosen_answers_agree(tmp_path):
    """The names chosen and rejected must not make one category of all votes."""
    labels = study(tmp_path, {"ann": lambda k: "chosen", "bob": lambda k: "chosen"})
    report = dw.agreement(labels)
    assert report.kappa["ann / bob"].estimate == 1
    assert report.verifier.estimate == 1


@pytest.mark.parametrize("raters", (1, 2, 3, 7))
def test_a_plan_is_balanced_and_covers_all(raters):
    names = [f"rater {k}" for k in range(raters)]
    plan = dw.plan_labelling([*PAIRS, replace(PAIRS[0], id="copy")], names, overlap=0.2 * (raters > 1))
    sizes = [len(own) for own in plan.values()]
    assert list(plan) == names and max(sizes) - min(sizes) <= 1
    judged = [item_key(pair) for own in plan.values() for pair in own]
    assert set(judged) == {item_key(pair) for pair in PAIRS} and all(judged.count(key) < 3 for key in judged)
    assert len(judged) == 60 + 12 * (raters > 1)


def test_sides_are_even_over_raters_and_pairs(tmp_path):
    sessions = [Session(PAIRS, f"rater {r}", tmp_path / "l.jsonl") for r in range(20)]
    swaps = []
    for work in sessions:
        for work.position in range(len(PAIRS)):
            swaps.append(work.swapped)
    assert abs(np.mean(swaps) - 0.5) < 0.05


@pytest.mark.parametrize(
    "more",
    [
        {"raters": []}, {"raters": ["a", "a"]}, {"raters": [" "]}, {"overlap": 1.5},
        {"raters": ["a"], "overlap": 0.2}, {"raters": list("abc"), "pairs": PAIRS[:2]},
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused(more):
    with pytest.raises(dw.WorkbenchError):
        dw.plan_labelling(**{"pairs": PAIRS, "raters": ["ann", "bob"], **more})


def test_labels_of_other_pairs_are_counted_or_refused(tmp_path):
    study(tmp_path, {"ann": lambda k: "chosen"})
    labels = dw.read_labels(tmp_path / "l.jsonl", PAIRS[:10])
    assert len(labels.votes) == 10 and labels.unmatched == 50
    with pytest.raises(dw.WorkbenchError, match="belong to the pairs"):
        dw.read_labels(tmp_path / "l.jsonl", [dw.Pair("z", "z", "y", "x")])
    with pytest.raises(dw.WorkbenchError, match="must exist"):
        dw.read_labels(tmp_path / "none.jsonl", PAIRS)

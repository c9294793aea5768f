"""Agreement against the reference libraries and by hand; labels to pairs; the report's advice on built studies."""

import math
import random

import numpy as np
import pytest

import dpo_workbench as dw
from dpo_workbench.labelling import agreement as stats
from dpo_workbench.labelling.events import Store, answer_key, item_key
from dpo_workbench.labelling.session import Session
from dpo_workbench.labelling.study import AGAIN, all_items

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


def test_alpha_equals_the_reference_library_on_200_tables_with_gaps():
    import krippendorff

    rng, compared = random.Random(0), 0
    for _ in range(200):
        table = random_table(rng)
        n = 1 + max((i for row in table.values() for i in row), default=0)
        matrix = np.array([[row.get(i, np.nan) for i in range(n)] for row in table.values()])
        mine = stats.alpha(table, resamples=1).value
        try:
            reference = krippendorff.alpha(reliability_data=matrix, level_of_measurement="ordinal")
        except ValueError:
            reference = math.nan
        assert math.isnan(mine) == math.isnan(reference)
        if not math.isnan(mine):
            compared += 1
            assert abs(mine - reference) <= 1e-9
    assert compared > 150


@pytest.mark.slow
def test_kappas_equal_their_definitions_on_200_tables():
    rng = random.Random(1)
    for _ in range(200):
        table = random_table(rng)
        one, other = (table[r] for r in list(table)[:2])
        both = [i for i in one if i in other]
        found = stats.cohen_kappa(one, other)
        values = {*(one[i] for i in both), *(other[i] for i in both)}
        if len(values) < 2:
            assert math.isnan(found.value)
            continue
        seen = np.mean([one[i] == other[i] for i in both])
        chance = sum(np.mean([one[i] == v for i in both]) * np.mean([other[i] == v for i in both]) for v in values)
        assert abs(found.value - (seen - chance) / (1 - chance)) <= 1e-9


@pytest.mark.slow
def test_the_intervals_cover_what_the_panel_was_built_with():
    """Two raters who each flip a fair truth with 10 %: alpha and kappa are (1 - 2 e)^2 = 0.64."""
    rng, alphas, kappas = random.Random(0), 0, 0
    for study in range(60):
        table: dict[str, dict[int, float]] = {"a": {}, "b": {}}
        for i in range(120):
            truth = rng.choice((1, -1))
            for rater in table:
                table[rater][i] = float(-truth if rng.random() < 0.1 else truth)
        found, kappa = stats.alpha(table, resamples=300, seed=study), stats.cohen_kappa(table["a"], table["b"])
        alphas += found.low <= 0.64 <= found.high
        kappas += kappa.low <= 0.64 <= kappa.high
    assert alphas >= 52 and kappas >= 52  # 95 % of 60 is 57; fewer than 52 has probability 0.01


def test_full_agreement_has_an_interval():
    row = {k: float(k % 2) for k in range(30)}
    assert stats.cohen_kappa(row, row) == stats.Estimate(1.0, 1.0, 1.0, 30)


@pytest.mark.parametrize("rate", (0.05, 0.1, 0.2, 0.3))
def test_the_flip_rate_is_found_again(rate):
    rng = random.Random(rate)
    disagree = sum((rng.random() < rate) != (rng.random() < rate) for _ in range(20_000))
    found = stats.flip_rate(disagree, 20_000)
    assert abs(found.value - rate) < 0.02 and found.low < found.value < found.high


def study(tmp_path, votes, plan=None, pairs=PAIRS):
    """`votes`: rater -> function of a pair's number giving chosen, rejected, tie, bad or skip, or None."""
    for rater, vote in votes.items():
        work = Session(pairs, rater, tmp_path / "l.jsonl", "python", plan, quick=0)
        for place, item in enumerate(work.items):
            said = vote(next(k for k, p in enumerate(pairs) if p.id == item.pair))
            if said is None:
                continue
            work.do(f"g {place + 1}")
            command = {"tie": "t", "bad": "x", "skip": "s"}.get(said)
            work.do(command or ("b" if (said == "chosen") == item.swap else "a"))
    return dw.read_labels(tmp_path / "l.jsonl", pairs, plan)


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


def test_the_report_names_a_side_leaner_a_gold_misser_and_a_changer_of_mind(tmp_path):
    gold = {p.id: "chosen" for p in PAIRS[:20]}
    plan = dw.plan_labelling(PAIRS, ["ann", "bob", "lea"], overlap=0.5, repeats=0.2, gold=gold, seed=1)
    rng = random.Random(0)
    good = lambda k: "chosen"  # noqa: E731
    labels = study(tmp_path, {"ann": good, "bob": lambda k: rng.choice(("chosen", "rejected"))}, plan)
    work = Session(PAIRS, "lea", tmp_path / "l.jsonl", "python", plan, quick=0)
    while not work.finished:
        work.do("a")  # whatever stands there
    labels = dw.read_labels(tmp_path / "l.jsonl", PAIRS, plan)
    report = dw.agreement(labels, resamples=100)
    by_name = {r.name: r for r in report.raters}
    assert by_name["ann"].gold.value == 1 and by_name["ann"].repeats.value == 1 and by_name["ann"].side_a_p > 0.01
    assert by_name["lea"].side_a.value == 1 and by_name["lea"].repeats.value == 0
    advice = " ".join(report.advice)
    assert "lea prefers side A" in advice and "lea often votes differently" in advice and "bob misjudges gold" in advice
    assert "ann" not in advice and report.discuss
    assert report.verifier.n > 20


def test_a_clean_study_has_nothing_to_discuss(tmp_path):
    rng = random.Random(5)
    truth = [rng.choice(("chosen", "rejected")) for _ in PAIRS]
    labels = study(tmp_path, {"ann": truth.__getitem__, "bob": truth.__getitem__})
    report = dw.agreement(labels, resamples=100)
    assert report.alpha.value == 1 and report.discuss == []


def test_raters_who_all_prefer_the_chosen_answers_agree(tmp_path):
    """The names chosen and rejected must not make one category of all votes."""
    labels = study(tmp_path, {"ann": lambda k: "chosen", "bob": lambda k: "chosen"})
    report = dw.agreement(labels, resamples=100)
    assert report.alpha.value == 1 and report.kappa["ann / bob"].value == 1
    assert report.verifier.value == 1


@pytest.mark.parametrize("raters", (1, 2, 3, 7))
def test_a_plan_is_balanced_and_covers_all(raters):
    names = [f"rater {k}" for k in range(raters)]
    overlap = 0.2 if raters > 1 else 0.0
    plan = dw.plan_labelling(PAIRS, names, overlap=overlap, repeats=0.1, gold={"p0": "chosen"}, seed=4)
    counts = plan.counts()
    sizes = [c.total() - c["again"] for c in counts.values()]
    assert max(sizes) - min(sizes) <= 1
    assert {item.content for items in plan.items.values() for item in items} == {item_key(p) for p in PAIRS}
    for name, items in plan.items.items():
        keys = [item.key for item in items]
        assert len(set(keys)) == len(keys) and counts[name]["gold"] == 1
        place = {item.key: k for k, item in enumerate(items)}
        for item in items:
            if item.kind == "again":
                first = items[place[item.content]]
                assert place[item.key] - place[item.content] >= len(items) // 4 and item.swap != first.swap
    shared = [item.content for items in plan.items.values() for item in items if item.kind == "shared"]
    assert all(shared.count(key) == 2 for key in shared) and len(set(shared)) == (12 if raters > 1 else 0)


def test_sides_are_even_over_raters_and_pairs():
    swaps = [item.swap for r in range(20) for item in all_items(PAIRS, f"rater {r}")]
    assert abs(np.mean(swaps) - 0.5) < 0.05


def test_a_plan_goes_to_a_file_and_back(tmp_path):
    plan = dw.plan_labelling(PAIRS, ["ann", "bob"], gold={"p3": "rejected"})
    again = dw.Plan.load(plan.save(tmp_path / "plan.json"))
    assert again == plan and "ann" in repr(plan)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(dw.WorkbenchError, match="plan"):
        dw.Plan.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "more",
    [
        {"raters": []}, {"raters": ["a", "a"]}, {"raters": [" "]}, {"overlap": 1.5}, {"repeats": -0.1},
        {"raters": ["a"], "overlap": 0.2}, {"gold": {"nope": "chosen"}}, {"gold": {"p0": "a"}},
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused(more):
    with pytest.raises(dw.WorkbenchError):
        dw.plan_labelling(PAIRS, **{"raters": ["ann", "bob"], **more})


def test_labels_of_other_pairs_are_counted_or_refused(tmp_path):
    study(tmp_path, {"ann": lambda k: "chosen"})
    labels = dw.read_labels(tmp_path / "l.jsonl", PAIRS[:10])
    assert len(labels.votes) == 10 and labels.unmatched == 50
    with pytest.raises(dw.WorkbenchError, match="belong to the pairs"):
        dw.read_labels(tmp_path / "l.jsonl", [dw.Pair("z", "z", "y", "x")])
    with pytest.raises(dw.WorkbenchError, match="must exist"):
        dw.read_labels(tmp_path / "none.jsonl", PAIRS)


def test_second_showings_are_no_second_votes(tmp_path):
    plan = dw.plan_labelling(PAIRS, ["ann", "bob"], repeats=0.3, seed=0)
    labels = study(tmp_path, {"ann": lambda k: "chosen", "bob": lambda k: "chosen"}, plan)
    assert any(v.event.item.endswith(AGAIN) for v in labels.votes)
    assert len(labels.first) == len({(v.event.rater, v.item) for v in labels.votes})

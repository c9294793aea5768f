"""The generator: the same rows from the same seed, splits that share no words or layouts, answers that score 1.0."""

import itertools
import json
import random
import re
from collections import Counter
from dataclasses import fields, replace

import pytest
from generators.receipts_tasks import (
    INSTRUCTION,
    LABELLED,
    POOLS,
    SEEDS,
    SHORT,
    SHORT_ITEMS,
    make_example,
    make_examples,
    wide_pool,
)

from dpo_workbench.tasks import receipts

TASK = receipts.load()


@pytest.mark.parametrize("split", POOLS)
def test_same_seed_same_rows_and_the_shipped_files(split: str) -> None:
    seed = SEEDS[split]
    rows = make_examples(split, 30, seed)
    assert rows == make_examples(split, 30, seed)
    assert rows == TASK.split(split).examples[:30]
    assert rows[:10] == make_examples(split, 10, seed)  # more rows leave the first ones alone
    assert all(x.prompt != y.prompt for x, y in zip(rows, make_examples(split, 30, seed + 1), strict=True))


@pytest.mark.parametrize("name", ["vendor_first", "vendor_last", "adjectives", "nouns", "lines", "totals", "dates"])
def test_pools_share_nothing(name: str) -> None:
    assert name in {f.name for f in fields(POOLS["train"])}
    for one, other in itertools.combinations(POOLS, 2):
        shared = set(getattr(POOLS[one], name)) & set(getattr(POOLS[other], name))
        assert not shared, (one, other, shared)
    assert all(len(set(getattr(pool, name))) == len(getattr(pool, name)) for pool in POOLS.values())


def test_documents_of_two_splits_share_no_vendor_and_no_item_word() -> None:
    """Not the pools but the shipped rows. Brands (capital letter) are drawn from syllables, so a rare one may recur."""
    vendors, words, brands = {}, {}, {}
    for name, split in TASK.splits.items():
        answers = [json.loads(e.reference) for e in split]
        vendors[name] = {a["vendor"].casefold() for a in answers}
        names = " ".join(row[0] for a in answers for row in a["items"])
        words[name] = set(re.findall(r"\b[a-z]{3,}\b", names))
        brands[name] = set(re.findall(r"\b[A-Z][a-z]{2,}\b", names))
    for one, other in itertools.combinations(TASK.splits, 2):
        assert not vendors[one] & vendors[other] and not words[one] & words[other]
        assert len(brands[one] & brands[other]) <= 0.03 * min(len(brands[one]), len(brands[other]))
    assert min(map(len, words.values())) > 25  # the check above had something to look at


def test_groups_and_prompts_lie_in_one_split() -> None:
    groups = {name: {e.group for e in split} for name, split in TASK.splits.items()}
    prompts = {name: {e.prompt for e in split} for name, split in TASK.splits.items()}
    for one, other in itertools.combinations(TASK.splits, 2):
        assert not groups[one] & groups[other] and not prompts[one] & prompts[other]
    assert len(groups["train"]) > 50 and min(map(len, groups.values())) >= 10


def test_every_reference_scores_one() -> None:
    for split in TASK.splits.values():
        for e in split:
            found = TASK.score(e, e.reference)
            assert (found.value, found.failure) == (1.0, None), (e.id, found.explanation)


def test_every_printed_value_can_be_copied() -> None:
    """Vendor, names, amounts and total stand in the document, and the total is the sum."""
    for split in TASK.splits.values():
        for e in split:
            answer, page = json.loads(e.reference), e.prompt.split("\n\n", 1)[1]
            assert e.prompt.startswith(INSTRUCTION) and answer["vendor"] in page
            cents = [round(100 * float(amount)) for _, _, amount in answer["items"]]
            assert sum(cents) == round(100 * float(answer["total"]))
            for name, quantity, amount in answer["items"]:
                assert name in page and str(quantity) in page and amount in page.replace(",", ".")


def test_lengths_up_to_twelve_items_and_repeated_rows_occur() -> None:
    sizes = Counter(len(json.loads(e.reference)["items"]) for e in TASK.train)
    assert set(sizes) == set(range(1, 13))
    assert all(e.extra["items"] == len(json.loads(e.reference)["items"]) for e in TASK.train)
    most = [max(Counter(map(tuple, json.loads(e.reference)["items"])).values()) for e in TASK.train]
    assert max(most) == 2 and 0.02 < sum(n > 1 for n in most) / len(most) < 0.2  # a legitimate repetition occurs
    short = [e.extra["items"] for e in TASK.train[:SHORT]]  # what fine-tuning learns from
    assert max(short) == SHORT_ITEMS < max(e.extra["items"] for e in TASK.train[SHORT:])


def test_every_second_label_of_what_is_fine_tuned_on_has_a_blank_total() -> None:
    labelled = [e for e in TASK.train if e.label is not None]
    assert {e.id for e in labelled} < {e.id for e in TASK.train[:LABELLED]}
    assert 0.47 < len(labelled) / LABELLED < 0.53
    for example in labelled:
        assert json.loads(example.label) == json.loads(example.reference) | {"total": ""}
        assert TASK.score(example, example.label).failure == "missing_field"
    assert all(e.label is None for split in (TASK.dev, TASK.test) for e in split)


def test_max_items_and_layout_of_a_pool_of_ones_own() -> None:
    assert max(e.extra["items"] for e in make_examples("train", 60, seed=3, max_items=2)) == 2
    pool = replace(POOLS["train"], lines=("<{q}|{n}|{a}>",), totals=("={t}=",))
    made = make_example(pool, random.Random(0), "mine", "x", 1)
    name, quantity, amount = json.loads(made.reference)["items"][0]
    assert re.search(rf"<{quantity}\|{re.escape(name)}\|{amount.replace('.', '[.,]')}>", made.prompt)
    assert made.group == "x-layout0-0" and made.id == "mine"


def test_drawn_layouts_are_many_and_belong_to_one_split() -> None:
    pools = {split: wide_pool(split) for split in POOLS}
    for one, other in itertools.combinations(pools, 2):
        assert not set(pools[one].lines) & set(pools[other].lines) and not set(pools[one].totals) & set(
            pools[other].totals
        )
    hand_written = {line for pool in POOLS.values() for line in pool.lines}
    assert all(len(set(p.lines)) >= 24 and not hand_written & set(p.lines) for p in pools.values())
    assert all(
        line.count("{n}") == 1 and line.count("{a}") == 1 and "{q}" in line for p in pools.values() for line in p.lines
    )
    assert pools["dev"] == wide_pool("dev")
    seen = {name: {e.group.split("-layout")[0] for e in split} for name, split in TASK.splits.items()}
    assert seen == {"train": {"train", "train-wide"}, "dev": {"dev-wide"}, "test": {"test-wide"}}

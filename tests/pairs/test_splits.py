"""Splits by group; leaks between splits: planted ones are found, templates and mere likeness are none."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.pairs.preference import normal
from dpo_workbench.pairs.splits import Leaks, find_leaks, split_keys, split_pairs
from dpo_workbench.tasks.task import Example

WORDS = [a + b for a in "bcdfghklmnprstvwz" for b in ("aran", "elto", "imus", "ogra", "urel", "yndo")]


def prompts(n: int, seed: int, length: int = 24, head: str = "") -> list[str]:
    rng = random.Random(seed)
    return [head + " ".join(rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(length)) for _ in range(n)]


def pairs_in(groups: dict[str, int]) -> list[Pair]:
    return [Pair(f"{g}-{k}", f"{g} asks {k}", "yes", "no", group=g) for g, n in groups.items() for k in range(n)]


def kinds(found: Leaks) -> Counter[str]:
    return Counter(leak.kind for leak in found.leaks)


@settings(deadline=None)
@given(st.dictionaries(st.text("abcde", min_size=1), st.integers(1, 9), min_size=3), st.integers(0, 5), st.randoms())
def test_groups_stay_whole_and_no_pair_is_lost(groups: dict[str, int], seed: int, rng: random.Random) -> None:
    rows = pairs_in(groups)
    parts = split_pairs(Pairs(rows), seed=seed)
    assert list(parts) == ["train", "dev", "test"] and all(map(len, parts.values()))
    assert sorted(p.id for part in parts.values() for p in part) == sorted(p.id for p in rows)
    assert not find_leaks(parts).shared_groups
    mixed = rows.copy()
    rng.shuffle(mixed)
    again = split_pairs(Pairs(mixed), seed=seed)
    assert {n: {p.id for p in part} for n, part in again.items()} == {n: {p.id for p in v} for n, v in parts.items()}


def test_shares_are_met_and_the_seed_deals() -> None:
    rows = Pairs(pairs_in({f"g{k}": 1 + k % 3 for k in range(300)}))
    one, other = (split_pairs(rows, {"train": 3, "test": 1}, seed=seed) for seed in (0, 1))
    assert len(one["train"]) / len(rows) == pytest.approx(0.75, abs=0.01)
    assert {p.id for p in one["test"]} != {p.id for p in other["test"]}
    alone = split_pairs(Pairs(Pair(f"p{k}", f"same {k % 5}", "a", f"b{k}") for k in range(20)), {"a": 1, "b": 1})
    assert {p.prompt for p in alone["a"]}.isdisjoint(p.prompt for p in alone["b"])  # without groups, prompts are


def test_a_prompt_is_never_on_both_sides() -> None:
    """Neither without groups, nor where some of its pairs have one, nor where they have different ones."""
    rows = [Pair(f"p{k}", f"Prompt  {k // 4}" if k % 2 else f"prompt {k // 4}", "a", f"b{k}") for k in range(400)]
    grouped = [Pair(p.id, p.prompt, p.chosen, p.rejected, group=("", f"g{k}")[k % 3 > 0]) for k, p in enumerate(rows)]
    for pairs in (rows, grouped):
        parts = split_pairs(Pairs(pairs))
        prompts_of = [{normal(p.prompt) for p in part} for part in parts.values()]
        assert sum(map(len, prompts_of)) == 100 and not kinds(find_leaks(parts))["exact"]


def test_split_keys_join_pairs_through_others() -> None:
    def pair(name: str, prompt: str, group: str = "") -> Pair:
        return Pair(name, prompt, "a", "b", group=group)

    rows = [
        pair("1", "p", "g"),
        pair("2", "q", "g"),
        pair("3", "Q "),
        pair("4", "q", "h"),
        pair("5", "r"),
        pair("6", "h"),
    ]
    keys = split_keys(rows)
    assert keys[0] == keys[1] == keys[2] == keys[3] and len({keys[0], keys[4], keys[5]}) == 3
    assert split_keys(rows[::-1]) == keys[::-1]
    assert [p.split_key for p in rows] == ["g", "g", "q", "h", "r", "h"]


@pytest.mark.parametrize("shares", [{"train": 0.5, "test": 0.0}, {"train": -1}, dict.fromkeys("abcd", 1)])
def test_shares_that_cannot_be_met_raise(shares: dict[str, float]) -> None:
    with pytest.raises(WorkbenchError, match=r"above 0|need as many groups"):
        split_pairs(Pairs(pairs_in({"a": 2, "b": 3, "c": 1})), shares)


CHANGES = {
    "case": str.upper,
    "spaces": lambda t: "\n " + t.replace(" ", "  ", 3) + "\t",
    "form": lambda t: t.replace("a", "\uff41", 2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_equal_but_for_its_form_is_exact(change) -> None:
    train, test = prompts(30, 0), prompts(30, 1)
    test[7] = change(train[3])
    found = find_leaks({"train": train, "test": test})
    assert [(k.kind, k.splits, k.ids, k.jaccard) for k in found.leaks] == [("exact", ("train", "test"), ("4", "8"), 1)]
    assert found.clean() == {"train": train[:3] + train[4:], "test": test}


def test_edited_words_are_near() -> None:
    train, test = prompts(40, 0), prompts(40, 1)
    words = train[0].split()
    test[0] = " ".join([*words[:4], "other", *words[5:12], *words[13:]])  # one replaced, one dropped: 22 of 25
    test[1] = train[1].replace("a", ",").replace("o", "a") + " "  # negative control
    test[2] = " ".join(sorted(train[2].split())) + " twice twice"  # the same words in another order, and one more
    test[3] = " ".join(train[3].split()[:8])
    found = find_leaks({"train": train, "test": test})
    assert [(k.kind, k.ids) for k in found.leaks] == [("near", ("3", "3")), ("near", ("1", "1"))]
    assert [k.jaccard for k in found.leaks] == pytest.approx([24 / 25, 22 / 25])
    assert [k.ids for k in find_leaks({"train": train, "test": test}, near=0.95).leaks] == [("3", "3")]


def test_a_common_instruction_is_no_leak_and_an_equal_rest_is() -> None:
    head = "Answer in one word and give no reason for it.\nMind the unit of what is asked.\n"
    train, test = (prompts(40, seed, 5, head) for seed in (0, 1))
    assert find_leaks({"train": train, "test": test}).leaks == ()
    test[5] = train[9]
    assert [k.ids for k in find_leaks({"train": train, "test": test}).leaks] == [("10", "6")]
    words = train[2].split()
    test[6] = head + " ".join(words[-5:-1]) + " else more"  # 4 of 7 words of its own line: no leak
    assert [k.ids for k in find_leaks({"train": train, "test": test}).leaks] == [("10", "6")]
    same = [head] * 30  # nothing but the template: then it is the text
    found = find_leaks({"train": same, "test": [head]})
    assert kinds(found) == {"exact": 30}
    with pytest.raises(WorkbenchError, match="Got 'train', in which every row is like one of another split"):
        found.clean()


def test_scripts_without_spaces() -> None:
    train = ["東京の天気を三十字以内で教えてください", "大阪から京都までの電車の時刻表を調べる"]
    test = ["東京の天気を二十字以内で教えてください", "札幌の冬の平均気温は何度ですか"]
    assert [k.ids for k in find_leaks({"train": train, "test": test}).leaks] == [("1", "1")]


def test_within_a_split_nothing_leaks_and_every_row_of_a_text_is_named() -> None:
    texts = prompts(3, 0)
    rows = [Pair(f"p{k}", texts[k // 2], "a", f"b{k}", group=f"g{k // 2}") for k in range(6)]
    dev, test = [Example("e0", texts[0], "", "g0")], [Example("e1", texts[1], "", "other")]
    found = find_leaks({"train": Pairs(rows), "dev": dev, "test": test})
    assert sorted(k.ids for k in found.leaks) == [("p0", "e0"), ("p1", "e0"), ("p2", "e1"), ("p3", "e1")]
    assert found.shared_groups == {("train", "dev"): ("g0",)}
    clean = found.clean()
    assert [p.id for p in clean["train"]] == ["p4", "p5"] and isinstance(clean["train"], Pairs) and clean["dev"] == dev
    assert not find_leaks(clean).leaks
    text = repr(found)
    assert "4 equal and 0 nearly equal" in text and "train 'p0' and dev 'e0'" in text and "1 groups are in" in text
    assert kinds(found) == {"exact": 4}


def test_the_shipped_task_has_no_leak() -> None:
    task = dw.load_task("receipts")
    found = find_leaks(task)
    assert not found.leaks and not found.shared_groups and repr(found).startswith("No prompt of one split")


@pytest.mark.parametrize("splits", [{}, {"train": ["a"]}, ["a"]])
def test_two_splits_are_needed(splits) -> None:
    with pytest.raises(WorkbenchError, match="fewer than two"):
        find_leaks(splits)


def test_a_threshold_out_of_range_raises() -> None:
    with pytest.raises(WorkbenchError, match="above 0.5"):
        find_leaks({"a": ["x"], "b": ["x"]}, near=0.3)


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6), st.lists(st.text(max_size=30), max_size=6))
def test_any_texts(one: list[str], other: list[str]) -> None:
    found = find_leaks({"a": one, "b": other})
    forms = [{str(k): normal(text) for k, text in enumerate(texts, 1)} for texts in (one, other)]
    exact = [k.ids for k in found.leaks if k.kind == "exact"]
    assert all(forms[0][i] == forms[1][j] for i, j in exact)
    for side in (0, 1):  # each row that has an equal one on the other side is named
        assert {ids[side] for ids in exact} == {k for k, v in forms[side].items() if v in forms[1 - side].values()}
    assert all(k.jaccard >= 0.8 for k in found.leaks)


def test_check_against_another_file(run, tmp_path) -> None:
    train, test = (Pairs(Pair(f"p{k}", text, "a", "b") for k, text in enumerate(prompts(3, seed))) for seed in (0, 1))
    train.save(tmp_path / "train.jsonl")
    Pairs([*test, Pair("p9", train[1].prompt.upper(), "a", "b")]).save(tmp_path / "test.jsonl")
    code, out, _ = run("check", "train.jsonl", "--against", "test.jsonl")
    assert code == 1 and "1 equal and 0 nearly equal" in out and "train.jsonl 'p1' and test.jsonl 'p9'" in out
    test.save(tmp_path / "test.jsonl")
    code, out, _ = run("check", "train.jsonl", "--against", "test.jsonl")
    assert code == 0 and "No prompt of one split is in another" in out


def test_a_row_that_resembles_an_exact_duplicate_is_found_too() -> None:
    text = prompts(1, 0)[0]
    test = [*prompts(9, 1), text]
    found = find_leaks({"train": [text, text + " more"], "test": test})
    assert [(k.kind, k.ids) for k in found.leaks] == [("exact", ("1", "10")), ("near", ("2", "10"))]

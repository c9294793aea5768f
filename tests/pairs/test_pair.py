"""Pair sets: what they refuse, the shortcuts by hand, and files that name the line that is wrong."""

import json
from dataclasses import asdict, replace

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair, Pairs

ONE = Pair("a", "prompt", "better", "worse", "own", "own", 1.0, 0.2, "wrong", "g1")
TWO = Pair(
    "b", "prompt\u2028é", "ok", "a longer one", "reference", "own", 1.0, 0.0, "loop", "g1", rejected_finished=False
)


def test_no_pairs_raise() -> None:
    with pytest.raises(WorkbenchError, match="must have pairs. Got none.*headroom"):
        Pairs([])


def test_id_twice_raises() -> None:
    with pytest.raises(WorkbenchError, match="ids must differ. Got 'a' 2 times"):
        Pairs([ONE, replace(TWO, id="a")])


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_text_raises(name: str, text: str) -> None:
    with pytest.raises(
        WorkbenchError, match=rf"must not be empty. Got .* .`{name}` of pair 'a', P301.. Write the text"
    ):
        Pairs([replace(ONE, **{name: text})])


def test_equal_answers_raise_unless_one_was_cut() -> None:
    """An answer that never ends differs from the same text with its end, though not in its letters."""
    for text in ("better", " better\n"):
        with pytest.raises(WorkbenchError, match="`rejected` must differ from `chosen`.*'a', P302.. Drop the row"):
            Pairs([replace(ONE, rejected=text)])
    assert len(Pairs([replace(ONE, rejected="better", rejected_finished=False)])) == 1


def test_pairs_are_a_sequence() -> None:
    pairs = Pairs([ONE, TWO], task="the task")  # type: ignore[arg-type]
    part = pairs[1:]
    assert isinstance(part, Pairs) and part.rows == [TWO] and part.task == "the task"
    assert pairs[0] is ONE and list(pairs) == [ONE, TWO] and len(pairs) == 2
    with pytest.raises(WorkbenchError, match="Got none"):
        pairs[5:]


def test_shortcuts_by_hand() -> None:
    """better (6) against worse (5): longer wins. ok (2) against 12 letters: shorter wins. So 0.5 of each."""
    found = Pairs([ONE, TWO]).shortcuts()
    assert found == {"shorter wins": 0.5, "finished wins": 0.75, "reference wins": 0.75}
    assert Pairs([TWO]).shortcuts() == {"shorter wins": 1.0, "finished wins": 1.0, "reference wins": 1.0}
    same = replace(ONE, rejected="bitter", chosen_from="human", rejected_from="human")
    assert Pairs([same]).shortcuts() == {"shorter wins": 0.5, "finished wins": 0.5, "reference wins": 0.5}


def test_summary_counts() -> None:
    facts = Pairs([ONE, TWO, replace(ONE, id="c", group="g2", failure=None)]).summary()
    assert (facts["pairs"], facts["groups"]) == (3, 2)
    assert facts["rejected by class"] == {"wrong": 1, "loop": 1, "unknown": 1}
    assert facts["chosen from"] == {"own": 2, "reference": 1}
    assert "Pairs: 3 in 2 groups" in repr(Pairs([ONE, TWO, replace(ONE, id="c", group="g2")]))


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "2", None])
def test_weight_must_be_a_number_above_zero(weight) -> None:
    with pytest.raises(WorkbenchError, match="Got .*`weight` of pair 'a', P108.. Write a number above 0"):
        Pairs([replace(ONE, weight=weight)])


def test_weight_is_written_where_it_is_not_one(tmp_path) -> None:
    pairs = Pairs([ONE, replace(TWO, weight=0.25)])
    path = pairs.save(tmp_path / "pairs.jsonl")
    assert ["weight" in line for line in path.read_text().split("\n")[:2]] == [False, True]
    assert [p.weight for p in Pairs.load(path)] == [1.0, 0.25]


def test_pairs_survive_the_disk(tmp_path) -> None:
    pairs = Pairs([ONE, TWO, replace(ONE, id="c", chosen="line\r\nline \x85")])
    path = pairs.save(tmp_path / "deep" / "pairs.jsonl")
    assert Pairs.load(path).rows == pairs.rows
    assert path.read_bytes().count(b"\n") == 3  # one line each, whatever the texts hold
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").rstrip())
    assert Pairs.load(path).rows == pairs.rows


def test_short_rows_get_defaults(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"id": "a", "prompt": "p", "chosen": "c", "rejected": "r"}')
    (pair,) = Pairs.load(path, task="t").rows  # type: ignore[arg-type]
    assert pair == Pair("a", "p", "c", "r") and (pair.chosen_from, pair.weight, pair.rejected_finished) == (
        "human",
        1.0,
        True,
    )


GOOD = json.dumps(asdict(ONE)).encode()
BAD_ROWS = {
    "not JSON": b"{'id': 'a'}",
    "cut": GOOD[:40],
    "list": b"[]",
    "scalar": b"3",
    "missing key": b'{"id": "x", "prompt": "p", "chosen": "c"}',
    "misspelt key": GOOD.replace(b'"chosen"', b'"choosen"'),
    "number for text": GOOD.replace(b'"prompt": "prompt"', b'"prompt": 5'),
    "null for text": GOOD.replace(b'"chosen": "better"', b'"chosen": null'),
    "messages for text": GOOD.replace(b'"chosen": "better"', b'"chosen": [{"role": "user"}]'),
    "list as id": GOOD.replace(b'"id": "a"', b'"id": [1]'),
    "word for a truth value": GOOD.replace(b'"rejected_finished": true', b'"rejected_finished": "perhaps"'),
    "key twice": GOOD[:-1] + b', "chosen": "other"}',
    "NaN": GOOD.replace(b'"weight": 1.0', b'"weight": NaN'),
    "lone surrogate": GOOD.replace(b"worse", b"w\\ud800rse"),
    "another layout": b'{"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}',
    "invalid UTF-8": GOOD.replace(b"worse", b"w\xffrse"),
    "UTF-16": '{"id": "a"}'.encode("utf-16"),
    "nested too deep": b'{"id":' * 100_000,
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row_is_named_by_file_and_line(tmp_path, row: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD + b"\n\n" + row)
    with pytest.raises(WorkbenchError, match=r"pairs\.jsonl:3: .*Fix or drop the row"):
        Pairs.load(path)


def test_load_understands_what_read_pairs_does(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD.replace(b'"rejected_finished": true', b'"rejected_finished": "false"').replace(b'"g1"', b"5"))
    (pair,) = Pairs.load(path)
    assert pair.rejected_finished is False and pair.group == "5"


def test_a_lone_surrogate_is_refused_before_training() -> None:
    for name in ("prompt", "chosen", "rejected", "id", "group"):
        with pytest.raises(
            WorkbenchError,
            match=rf"must not contain half of a surrogate pair. Got .* .`{name}` of pair .*Write the char",
        ):
            Pairs([replace(ONE, **{name: "a\ud800"})])
        told = "int: 3 .`prompt` of pair 'a'" if name == "prompt" else f"`{name}` must be text. Got 3"
        with pytest.raises(WorkbenchError, match=told):
            Pairs([replace(ONE, **{name: 3})])


def test_a_blank_group_is_no_fault() -> None:
    assert len(Pairs([replace(ONE, group=" ")])) == 1


def test_the_display_counts_prompts_where_there_are_no_groups() -> None:
    pairs = Pairs([replace(ONE, id=str(k), prompt=f"p{k % 3}", group="") for k in range(6)])
    assert repr(pairs).startswith("Pairs: 6 in 3 prompts\n") and pairs.summary()["groups"] == 3


def test_missing_and_empty_files(tmp_path) -> None:
    with pytest.raises(WorkbenchError, match="Got no file .*none.jsonl"):
        Pairs.load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(WorkbenchError, match="must have rows"):
        Pairs.load(tmp_path / "empty.jsonl")


def test_learned_rules_find_a_first_word_and_a_format_but_not_chance() -> None:
    def pair(k: int, chosen: str, rejected: str) -> Pair:
        return Pair(f"p{k}", f"q{k}", chosen, rejected, group=f"g{k}")

    words = Pairs([pair(k, f"Sure {k} a", f"Well {k} a") for k in range(10)]).shortcut_report()
    assert words["first word"] == 1.0 and words["format"] == 0.5
    lists = Pairs([pair(k, f"- {k}\n- b", f"{k} and b") for k in range(10)]).shortcut_report()
    assert lists["format"] == 1.0
    mixed = [pair(k, *(("yes a", "no a") if k % 2 else ("no a", "yes a"))) for k in range(10)]
    assert Pairs(mixed).shortcut_report()["first word"] == 0.0  # each pair is outvoted by the rest: no rule holds
    alone = Pairs([pair(0, "yes", "no")]).shortcut_report()
    assert alone["first word"] == 0.5  # a rule cannot be learned from the pair that it judges

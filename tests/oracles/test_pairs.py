"""Files of preference pairs: layouts, formats and malformed rows; splits by group, and leaks between splits."""

import gzip
import json

import pytest

import dpo_workbench as dw

Q, GOOD, BAD = "How many legs has a beetle?", "A beetle has six legs.", "Eight, like a spider."


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


VOTE = [{"from_name": "pw", "to_name": "text1", "type": "pairwise", "value": {"selected": "left"}}]
LAYOUTS = {  # rows that all say: GOOD is a better answer to Q than BAD
    "own": [{"id": "b1", "prompt": Q, "chosen": GOOD, "rejected": BAD, "chosen_score": 1.0, "weight": 0.5}],
    "TRL": [{"prompt": Q, "chosen": GOOD, "rejected": BAD}],
    "TRL messages": [{"prompt": user(Q), "chosen": said(GOOD), "rejected": said(BAD)}],
    "TRL implicit": [{"chosen": user(Q) + said(GOOD), "rejected": user(Q) + said(BAD)}],
    "OpenAI": [{"input": {"messages": user(Q)}, "preferred_output": said(GOOD), "non_preferred_output": said(BAD)}],
    "HH": [{"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"}],
    "compared": [{"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1}],
    "arena": [{"conversation_a": user(Q) + said(BAD), "conversation_b": user(Q) + said(GOOD), "winner": "model_b"}],
    "Label Studio": [
        {"id": 3, "data": {"prompt": Q, "text1": GOOD, "text2": BAD},
         "annotations": [{"completed_by": 7, "was_cancelled": False, "result": VOTE}]}
    ],
    "scores": [{"prompt": Q, "responses": [BAD, GOOD], "scores": [0.1, 0.9]}],
    "ranked": [{"prompt": Q, "answers": [GOOD, BAD]}],
    "thumbs": [{"prompt": Q, "completion": BAD, "label": False}, {"prompt": Q, "completion": GOOD, "label": True}],
}  # fmt: skip
FORMS = {
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "jsonl.gz": lambda rows: gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_read_right(tmp_path, name: str, form: str) -> None:
    (tmp_path / f"a.{form}").write_bytes(FORMS[form](LAYOUTS[name]))
    read = dw.read_pairs(tmp_path / f"a.{form}")
    assert [(p.prompt.strip(), p.chosen, p.rejected) for p in read.pairs] == [(Q, GOOD, BAD)]
    assert (read.rows, read.kept, read.refused, read.merged) == (len(LAYOUTS[name]), len(LAYOUTS[name]), 0, 0)


def test_a_csv_file_with_lines_inside_its_cells(tmp_path) -> None:
    data = b'prompt,chosen,rejected\r\nq1,"two\r\nlines, ""quoted""",b\r\nq2,only two\r\nq3,"a",b'
    (tmp_path / "a.csv").write_bytes(data)
    read = dw.read_pairs(tmp_path / "a.csv")
    assert [(p.prompt, p.chosen) for p in read.pairs] == [("q1", 'two\r\nlines, "quoted"'), ("q3", "a")]
    assert (read.rows, read.refused) == (3, 1)


def test_every_field_of_a_saved_pair_comes_back(tmp_path) -> None:
    scores = {"chosen_score": 1.0, "rejected_score": 0.25, "weight": 0.5, "rejected_finished": False}
    facts = {"chosen_from": "reference", "rejected_from": "own", "failure": "loop", "group": "g", **scores}
    pair = dw.Pair("p1", "q\u2028\n", "a é", "b\x85", **facts)
    path = dw.Pairs([pair]).save(tmp_path / "a.jsonl")
    assert list(dw.Pairs.load(path)) == list(dw.read_pairs(path).pairs) == [pair]


ROW = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
TEXT = json.dumps(ROW)
MALFORMED = {  # the third line of a file, and words that the message must hold
    "not JSON": ("prompt: hi", ["JSON"]),
    "cut": (TEXT[:30], ["JSON"]),
    "single quotes": ("{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}", ["JSON"]),
    "NaN": (TEXT[:-1] + ', "weight": NaN}', ["NaN"]),
    "a key twice": (TEXT[:-1] + ', "chosen": "other"}', ["chosen"]),
    "a list": ("[1]", []),
    "no answer": (json.dumps({"prompt": Q, "chosen": GOOD}), ["rejected"]),
    "misspelt": (json.dumps({"prompt": Q, "choosen": GOOD, "rejected": BAD}), ["chosen", "choosen"]),
    "null": (json.dumps(ROW | {"chosen": None}), ["chosen"]),
    "empty": (json.dumps(ROW | {"chosen": " \n"}), ["chosen"]),
    "equal": (json.dumps(ROW | {"rejected": f" {GOOD}\n"}), ["rejected"]),
    "surrogate": (json.dumps(ROW | {"chosen": "half \ud83d of it"}), ["chosen"]),
    "role": (json.dumps({**ROW, "prompt": [{"role": "king", "content": "x"}]}), ["role"]),
    "weight": (json.dumps(ROW | {"weight": -1}), ["weight"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_row_is_refused_by_name_and_the_others_are_kept(tmp_path, case: str) -> None:
    line, words = MALFORMED[case]
    rows = [json.dumps(ROW | {"prompt": f"{Q} {k}"}) for k in range(2)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, line]) + "\n")
    read = dw.read_pairs(tmp_path / "a.jsonl")
    assert (read.rows, read.kept, read.refused, len(read.pairs)) == (3, 2, 1, 2)
    assert "a.jsonl:3" in repr(read) and all(word in repr(read) for word in words)
    (tmp_path / "b.jsonl").write_text(line + "\n")
    with pytest.raises(dw.WorkbenchError, match=r"b\.jsonl"):
        dw.read_pairs(tmp_path / "b.jsonl").pairs  # noqa: B018


@pytest.mark.parametrize(
    ("name", "data"), [("none.jsonl", None), ("a.jsonl", b""), ("a.jsonl", b" \n"), ("a.jsonl", TEXT.encode("utf-16"))]
)
def test_a_file_without_rows_is_one_error(tmp_path, name: str, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(dw.WorkbenchError, match=name):
        dw.read_pairs(tmp_path / name)


def test_copies_count_once_and_a_mark_at_the_start_is_no_fault(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{TEXT}\r\n{TEXT}\r\n".encode())
    read = dw.read_pairs(tmp_path / "a.jsonl")
    assert (read.rows, read.kept, read.merged, len(read.pairs)) == (2, 1, 1, 1)


def test_splits_keep_groups_whole_whatever_the_order_of_the_rows() -> None:
    rows = [dw.Pair(f"p{k}", f"question {k}", "yes", "no", group=f"g{k % 30}") for k in range(120)]
    parts = dw.split_pairs(dw.Pairs(rows))
    assert {name: len(part) for name, part in parts.items()} == {"train": 96, "dev": 12, "test": 12}
    assert sorted(p.id for part in parts.values() for p in part) == sorted(p.id for p in rows)
    groups = [{p.group for p in part} for part in parts.values()]
    assert sum(map(len, groups)) == 30
    again = dw.split_pairs(dw.Pairs(rows[::-1]))
    assert {n: {p.id for p in part} for n, part in again.items()} == {n: {p.id for p in v} for n, v in parts.items()}
    other = dw.split_pairs(dw.Pairs(rows), seed=1)
    assert {p.id for p in other["test"]} != {p.id for p in parts["test"]}
    with pytest.raises(dw.WorkbenchError):
        dw.split_pairs(dw.Pairs(rows[:2]))


def test_leaks_between_splits_are_found_and_cleaned() -> None:
    train = [f"rain in town {k} falls on the plain {k * 7} times a year and rises {k * 3}" for k in range(30)]
    test = [f"a dog of breed {k} runs {k * 5} km a day behind a cat which sleeps {k * 2} hours" for k in range(30)]
    assert not dw.find_leaks({"train": train, "test": test}).leaks
    test[3] = "  " + train[5].upper()
    test[4] = train[9] + " indeed"
    found = dw.find_leaks({"train": train, "test": test})
    assert sorted((leak.kind, leak.ids) for leak in found.leaks) == [("exact", ("6", "4")), ("near", ("10", "5"))]
    cleaned = found.clean()
    assert len(cleaned["train"]) == 28 and cleaned["test"] == test
    assert not dw.find_leaks(cleaned).leaks

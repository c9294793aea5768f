"""The advice fits the fault: for each code of a refused row, a row changed as the advice says is read without error."""

import json
from typing import Any

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.codes import CODES
from dpo_workbench.pairs.pair import Pairs, read_pairs


def user(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


def said(text: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


ROW = {"prompt": "Which metal rusts?", "chosen": "Iron does.", "rejected": "Gold does."}
OTHER = {"prompt": "Which metal is liquid?", "chosen": "Mercury is.", "rejected": "Lead is."}
CHAT = {"prompt": user("a"), "chosen": said("b"), "rejected": said("c")}
TALK = {"chosen": user("a", "b"), "rejected": user("a", "c")}
GOOD = json.dumps(ROW)
OPENAI = {"input": {"messages": user("q")}, "preferred_output": said("b"), "non_preferred_output": said("c")}

# code: (row, words of its advice, the row as the advice has it)
CASES: list[tuple[str, Any, str, Any]] = [
    ("P101", GOOD[:-1] + ",}", "no comma before a closing bracket", GOOD),
    ("P103", GOOD.encode().replace(b"Iron", b"\xffron"), "Write these bytes again as UTF-8", GOOD),
    ("P104", GOOD[:-1] + ', "weight": NaN}', "write null", GOOD[:-1] + ', "weight": null}'),
    ("P105", GOOD[:-1] + ', "chosen": "Tin."}', "Keep the one", GOOD),
    ("P106", "[1]", "Write {...}", GOOD),
    ("P107", {"prompt": "q", "chosen": "a"}, "Add the field", ROW),
    ("P107", {"prompt": "q", "choosen": "a", "rejected": "b"}, "Rename `choosen` to `chosen`", ROW),
    ("P108", ROW | {"chosen": 5}, "Write text", ROW),
    ("P108", ROW | {"weight": "heavy"}, "number above 0", ROW | {"weight": 2}),
    ("P108", ROW | {"rejected_finished": "x"}, "true or false", ROW | {"rejected_finished": "true"}),
    ("P108", ROW | {"id": [1]}, "Write text", ROW | {"id": "1"}),
    ("P201", CHAT | {"chosen": []}, "Add them", CHAT),
    ("P202", CHAT | {"prompt": [{"role": "king", "content": "a"}]}, "Rename the role", CHAT),
    ("P203", CHAT | {"prompt": user("a", "b")}, "Remove later messages", CHAT),
    ("P203", CHAT | {"prompt": user("a", "b")}, "add the user's next one", CHAT | {"prompt": user("a", "b", "d")}),
    ("P204", CHAT | {"prompt": user("a") * 2}, "Join the two messages", CHAT | {"prompt": user("a\na")}),
    ("P205", CHAT | {"chosen": said(None)}, "Write text", CHAT),
    (
        "P207",
        CHAT | {"chosen": [{"role": "system", "content": "s"}, *said("b")]},
        "Move earlier messages to `prompt`",
        CHAT | {"prompt": [{"role": "system", "content": "s"}, *user("a")]},
    ),
    ("P208", {"chosen": user("a", "b"), "rejected": user("x", "c")}, "Start both with the prompt", TALK),
    ("P207", TALK | {"chosen": user("a", "b", "d", "e")}, "cut later ones", TALK),
    ("P207", CHAT | {"chosen": user("x", "b")}, "Move earlier messages", CHAT | {"chosen": said("b")}),
    ("P301", ROW | {"chosen": " "}, "Write the text", ROW),
    ("P301", {"chosen": "", "rejected": ""}, "Write the text", TALK),
    ("P302", ROW | {"rejected": "Iron does."}, "edit one of the two", ROW),
    ("P302", {"chosen": "q\na", "rejected": "q\na"}, "edit one of the two", TALK),
    ("P302", {"chosen": user("a", "b"), "rejected": user("a", "b")}, "edit one of the two", TALK),
    ("P304", ROW | {"chosen": "Iron \ud800"}, "Write the character again", ROW),
    ("P310", {"chosen": "Dr. Smith knows it.", "rejected": "Dr. Smyth knows it."}, "to a column `prompt`", ROW),
    ("P310", {"chosen": "Yes.", "rejected": "No."}, "to a column `prompt`", ROW),
]
FILES = {  # codes that need other rows: the file, and the same as the advice has it
    "P102": (f"{GOOD}\n{json.dumps(OTHER)[:40]}", f"{GOOD}\n{json.dumps(OTHER)}"),
    "P111": ("prompt,chosen,rejected\nq,a,b, c\n", 'prompt,chosen,rejected\nq,a,"b, c"\n'),
    "P402": (
        "\n".join(json.dumps(row | {"id": "a"}) for row in (ROW, OTHER)),
        "\n".join(json.dumps(row | {"id": name}) for row, name in ((ROW, "a"), (OTHER, "b"))),
    ),
}


def errors(result) -> list:
    return [f for f in result.findings if f.severity == "error"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[2]}")
def test_a_row_changed_as_the_advice_says_is_clean(tmp_path, case) -> None:
    code, bad, advice, good = case
    neighbours = (
        [OTHER, OTHER | {"chosen": "It is mercury."}] if "prompt" in str(bad) or not isinstance(bad, dict) else []
    )
    results = []
    for k, row in enumerate((bad, good)):
        row = json.dumps(row) if isinstance(row, dict) else row
        lines = [*(json.dumps(r).encode() for r in neighbours), row if isinstance(row, bytes) else row.encode()]
        path = tmp_path / f"{k}.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        results.append(read_pairs(path))
    assert [f.code for f in errors(results[0])] == [code] and advice in errors(results[0])[0].fix
    assert errors(results[1]) == []


@pytest.mark.parametrize("code", FILES)
def test_a_file_changed_as_the_advice_says_is_clean(tmp_path, code: str) -> None:
    path = tmp_path / ("a.csv" if code == "P111" else "a.jsonl")
    found = []
    for text in FILES[code]:
        path.write_text(text)
        found.append([f.code for f in errors(read_pairs(path))])
    assert found == [[code], []]


def test_every_error_has_a_case() -> None:
    wanted = {code for code, facts in CODES.items() if facts.severity == "error"}
    assert {case[0] for case in CASES} | set(FILES) == wanted


def test_a_prompt_that_was_read_is_not_called_unknown() -> None:
    result = read_pairs([TALK, TALK | {"rejected": user("a", "d")}, ROW])
    assert result.layout.startswith("trl-implicit") and result.refused == 0
    assert "P110" not in result.counts and ("Which metal rusts?", "Iron does.") in {
        (p.prompt, p.chosen) for p in result.found
    }


UNKNOWN = {
    "GSM8K": {"question": "How many eggs are left?", "answer": "9 * 2 = 18 #### 18"},
    "people": {"question": "Is it red?", "answer": "yes", "annotator1": "yes", "annotator2": "no"},
    "instruction tuning": {"prompt": "Name an ore.", "answer": "Galena"},
    "classes": {"input": "a fine film", "text": "a fine film", "label": "positive"},
    "names of their own": {"ask": "q", "good": "a", "poor": "b"},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_layout_is_not_given_a_name(tmp_path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(UNKNOWN[name]) + "\n")
    with pytest.raises(WorkbenchError, match="unknown layout") as caught:
        read_pairs(tmp_path / "a.jsonl")
    text = str(caught.value)
    assert f"with the columns {', '.join(UNKNOWN[name])}" in text and "labelstudio" not in text
    assert "mapping={'prompt': ..., ...}" in text and "--map prompt=..." in text


def test_the_mapping_that_is_shown_works_and_its_own_mistakes_are_named() -> None:
    rows = [UNKNOWN["names of their own"]]
    mapping = {"prompt": "ask", "chosen": "good", "rejected": "poor"}
    (pair,) = read_pairs(rows, mapping=mapping).pairs
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", "a", "b")
    with pytest.raises(WorkbenchError, match="must name columns of the file. Got 'god' .*ask, good, poor"):
        read_pairs(rows, mapping=mapping | {"chosen": "god"})


def test_what_loading_left_out_or_interpreted_is_printed(tmp_path, capsys) -> None:
    rows = [{"prompt": p, "completion": c, "label": up} for p, c, up in (("p", "a", 1), ("p", "b", 0), ("q", "c", 1))]
    path = tmp_path / "thumbs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [(p.chosen, p.rejected) for p in Pairs.load(path)] == [("a", "b")]
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "P411, 1 time: " in out and "Add one to use the row" in out
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(
        WorkbenchError, match="must have a row that can be used. Got 0 refused and 1 skipped of 1: .*P411"
    ):
        Pairs.load(path)

"""Readers: each layout found and read right, every format, counts that add up, exports and back, and `check`."""

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs import layouts_in, reader
from dpo_workbench.pairs.checks import length_auc
from dpo_workbench.pairs.codes import CODES, Refusal
from dpo_workbench.pairs.conversations import split_texts
from dpo_workbench.pairs.pair import Pair, Pairs, read_pairs

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("fuzz_readers", ROOT / "benchmarks" / "fuzz_readers.py")
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)
EXAMPLES, QUESTION, GOOD, BAD = fuzz.EXAMPLES, fuzz.QUESTION, fuzz.GOOD, fuzz.BAD
NAMES = {
    **{"own": "trl", "trl messages": "trl", "labelstudio min": "compared"},
    **dict.fromkeys(("trl-implicit messages", "hh"), "trl-implicit"),
    **dict.fromkeys(("ultrafeedback", "score list", "ranked", "ranks within"), "list"),
    **dict.fromkeys([name for name in EXAMPLES if name.startswith("compared")], "compared"),
}


def texts(read) -> list[tuple[str, str, str]]:
    return [(p.prompt.strip(), p.chosen, p.rejected) for p in read.found]


def codes(read, severity: str = "error") -> list[str]:
    return [f.code for f in read.findings if f.severity == severity]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_layout_is_recognised_and_read_right(name: str) -> None:
    read = read_pairs(EXAMPLES[name])
    layout = NAMES.get(name, name)
    assert read.layout.startswith(f"{layout} (") and codes(read) == []
    assert texts(read) == [(QUESTION, GOOD, BAD)] and read.kept == read.rows == len(EXAMPLES[name])


def test_the_examples_cover_all_layouts() -> None:
    assert {NAMES.get(name, name) for name in EXAMPLES} == set(layouts_in.LAYOUTS)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("form", ["jsonl", "json", "gz", "parquet", "pandas", "datasets"])
def test_each_layout_in_each_format(tmp_path, name: str, form: str) -> None:
    rows = EXAMPLES[name]
    if form == "pandas":
        import pandas

        source = pandas.DataFrame(rows)
    elif form == "datasets":
        datasets = pytest.importorskip("datasets")
        source = datasets.Dataset.from_list(rows)
    else:
        source = tmp_path / {"gz": "a.jsonl.gz"}.get(form, f"a.{form}")
        data = fuzz.encode(rows, form)
        source.write_bytes(gzip.compress(data) if form == "gz" else data)
    assert texts(read_pairs(source)) == [(QUESTION, GOOD, BAD)]


@pytest.mark.parametrize("name", fuzz.FLAT)
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_flat_layouts_in_csv(tmp_path, name: str, form: str) -> None:
    (tmp_path / f"a.{form}").write_bytes(fuzz.encode(EXAMPLES[name], form))
    read = read_pairs(tmp_path / f"a.{form}")
    assert texts(read) == [(QUESTION, GOOD, BAD)] and ", csv" in read.layout


def test_rows_may_come_one_by_one() -> None:
    """As from a streamed set."""
    read = read_pairs(row for row in EXAMPLES["openai"] * 2)
    assert (read.rows, read.kept, read.merged) == (2, 1, 1)


def test_messages_survive_a_csv_file(tmp_path) -> None:
    row = {key: json.dumps(value) for key, value in EXAMPLES["trl messages"][0].items()}
    (tmp_path / "a.csv").write_bytes(fuzz.encode([row], "csv"))
    assert texts(read_pairs(tmp_path / "a.csv")) == [(QUESTION, GOOD, BAD)]
    answer = '[{"content": 1}]'  # an answer that is JSON itself stays text
    (tmp_path / "a.csv").write_bytes(fuzz.encode([{"prompt": "q", "chosen": answer, "rejected": "[]"}], "csv"))
    assert texts(read_pairs(tmp_path / "a.csv")) == [("q", answer, "[]")]


def test_a_csv_row_keeps_its_physical_line(tmp_path) -> None:
    data = b'\r\nprompt,chosen,rejected\r\nq1,"two\r\nlines, ""quoted""",b\r\n\r\nq2,only two\r\nq3,"a",b'
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    read = read_pairs(path)
    assert texts(read) == [("q1", 'two\r\nlines, "quoted"', "b"), ("q3", "a", "b")]
    (finding,) = [f for f in read.findings if f.severity == "error"]
    assert (finding.code, finding.line) == ("P111", 6) and "2 cells of 3" in finding.excerpt
    path.write_bytes(b'prompt,chosen,rejected\nq1,a,b\nq2,"never closed,b\nq3,a,b\n')
    read = read_pairs(path)
    assert codes(read) == ["P111"] and (read.rows, read.kept) == (2, 1)


def test_spaces_after_the_delimiters_of_a_header_belong_to_no_cell(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt, chosen, rejected\nq1, "a, b", c\n"q2", d, "e"\n')
    assert texts(read_pairs(path)) == [("q1", "a, b", "c"), ("q2", "d", "e")]
    path.write_text("prompt,chosen,rejected\nq1, a,b\n")
    assert texts(read_pairs(path)) == [("q1", " a", "b")]


@pytest.mark.parametrize("data", [bz2.compress(b"{}"), lzma.compress(b"{}"), b"PK\3\4", b"(\xb5/\xfd"])
def test_other_compressed_files_and_saved_sets_are_refused_with_advice(tmp_path, data: bytes) -> None:
    path = tmp_path / "a.jsonl.packed"
    path.write_bytes(data)
    with pytest.raises(WorkbenchError, match="a compressed file .*P001.*Unpack it first"):
        read_pairs(path)
    with pytest.raises(WorkbenchError, match="a folder .*P001.*datasets.load_from_disk"):
        read_pairs(tmp_path)


def test_a_json_array_is_read_row_by_row(tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([EXAMPLES["trl"][0], {"prompt": 3}, EXAMPLES["trl"][0]], indent=1))
    read = read_pairs(path)
    assert [(f.code, f.line) for f in read.findings[:2]] == [("P107", 2), ("P401", 3)]
    path.write_text('[{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q"')
    with pytest.raises(WorkbenchError, match="P102"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Give JSON.\n", '{"a": 1}', '{"b": 1}'),
        ("Name all.\n", "SELECT name FROM t", "SELECT * FROM t"),
        ("Give JSON.\n", '{\n  "a": 1', '{\n  "b": 1'),
        ("Give JSON.\n", '```json\n{\n  "a": 1', '```json\n{\n  "b": 1'),
        ("Name all\n", "SELECT\n  name", "SELECT\n  id"),
        ("Think first\n", "<think>\nyes", "<think>\nno"),
        ("Read this.\nA note\n\n", "The note\nsays", "The note\nhas"),
        ("### Question\nWhy?\n### Response:\n", "So it is", "So what"),
        ("Spell it.\n", "interesting", "interested"),  # inside a word nothing is cut
    ],
)
def test_an_implicit_prompt_ends_before_what_the_answers_share(prompt, chosen, rejected) -> None:
    assert split_texts(prompt + chosen, prompt + rejected) == len(prompt)
    read = read_pairs([{"chosen": prompt + chosen, "rejected": prompt + rejected}])
    assert [(p.prompt, p.chosen, p.rejected) for p in read.found] == [(prompt, chosen, rejected)]


@pytest.mark.parametrize(
    "pair",
    [
        ("one", "two"),
        ("SELECT a", "SELECT b"),
        ("{\na", "{\nb"),
        ("Dr. Smith says so.", "Dr. Smyth says so."),
        ("Answer: yes", "Answer: no"),  # a mark, but no prompt before it
        ("Sure! " + "one " * 20, "Sure! " + "two " * 20),
        ("Here is a list.\n" + "one " * 20, "Here is a list.\n" + "two " * 20),  # short: it may belong to both answers
        ("There was a fox. It " + "ran " * 20, "There was a fox. He " + "ran " * 20),
    ],
)
def test_without_an_end_there_is_no_implicit_prompt(pair) -> None:
    with pytest.raises(Refusal, match="P310"):
        split_texts(*pair)
    assert codes(read_pairs([{"chosen": pair[0], "rejected": pair[1]}])) == ["P310"]


def test_dialogues_are_split_by_turn() -> None:
    def dialogue(*said: str) -> str:
        return "".join(f"\n\n{('Human', 'Assistant')[k % 2]}: {text}" for k, text in enumerate(said))

    read = read_pairs([{"chosen": dialogue("a", "b", "c", "d"), "rejected": dialogue("a", "b", "c", "e")}])
    (pair,) = read.pairs
    assert pair.prompt == (("user", "a"), ("assistant", "b"), ("user", "c")) and (pair.chosen, pair.rejected) == (
        "d",
        "e",
    )
    read = read_pairs([{"chosen": dialogue("a", "b", "c", "d"), "rejected": dialogue("a", "x", "c", "d")}])
    assert codes(read) == ["P207"]


def test_many_answers_become_all_strict_pairs() -> None:
    row = {"id": "u", "prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [0.5, 1, 0.5, 0]}
    read = read_pairs([row])
    assert {(p.chosen, p.rejected) for p in read.found} == {("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d")}
    assert {p.split_key for p in read.found} == {"q"} and read.found[0].chosen_score == 1
    assert read_pairs([row | {"scores": [0.5, 7, 0.5, 0]}]).found[0].chosen_score == 7  # any scale
    answers = [f"a{k}" for k in range(50)]
    many = read_pairs([{"prompt": "q", "answers": answers}])  # best first: each of the rest against the best
    assert [(p.chosen, p.rejected) for p in many.found] == [("a0", a) for a in answers[1:]]
    assert codes(read_pairs([row | {"scores": [1, 1, 1, 1]}]), "skipped") == ["P412"]
    assert codes(read_pairs([row | {"scores": [1, 2]}])) == ["P108"]


def test_parts_and_other_names_of_messages_are_read() -> None:
    parts = [{"type": "text", "text": "A beetle "}, {"type": "text", "text": "has six legs."}]
    asked = [{"from": "human", "value": QUESTION}]
    row = {"prompt": asked, "chosen": [{"role": "assistant", "content": parts}], "rejected": fuzz.said(BAD)}
    assert texts(read_pairs([row])) == [(QUESTION, GOOD, BAD)]
    parts.append({"type": "image_url", "image_url": "x"})
    assert codes(read_pairs([row])) == ["P205"]


def test_columns_without_a_value_are_as_if_they_were_not_there() -> None:
    """Arrow gives all rows the same columns: those of another source hold None, also inside messages."""
    question = [{"role": None, "content": None, "from": "human", "value": "Q?"}]
    answers = {"responses": None, "completions": [{"output": "a", "score": None, "rating": r} for r in (2, 1)]}
    answers["completions"][1]["output"] = "b"
    both = {"chosen": "a", "rejected": "b"}
    for row in ({"prompt": None, "question": "Q?", **both}, {"prompt": question, **both}, {"prompt": "Q?", **answers}):
        (pair,) = read_pairs([row]).pairs
        assert (pair.prompt, pair.chosen, pair.rejected) == ("Q?", "a", "b")
    (grouped,) = read_pairs([{"prompt": "Q?", **both, "group": None, "prompt_id": "g1"}]).pairs
    assert grouped.group == "g1"
    assert read_pairs([{"prompt": None, **both}]).counts["P108"] == 1


def test_an_answer_may_be_one_message() -> None:
    """As in LLaMA-Factory (`conversations`) and axolotl (`messages`), whose prompt column has no other meaning then."""
    human, asked = {"from": "human", "value": "Q?"}, {"role": "user", "content": "Q?"}
    one = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    both = {name: [asked, {"role": "assistant", "content": m["value"]}] for name, m in one.items()}
    rows = [one | {"conversations": [human]}, one | {"messages": [asked]}, one | {"prompt": asked}]
    for row in (*rows, both | {"messages": both["chosen"]}):  # the last as in UltraFeedback: the chosen conversation
        (pair,) = read_pairs([row]).pairs
        assert (pair.prompt, pair.chosen, pair.rejected) == ("Q?", "a", "b")


def test_earlier_turns_are_part_of_the_prompt() -> None:
    both = {"system": "Be brief.", "history": [["What is 2 + 2?", "4"]], "chosen": "8", "rejected": "9"}
    (pair,) = read_pairs([both | {"instruction": "And twice that?", "input": ""}]).pairs
    system, earlier = ("system", "Be brief."), (("user", "What is 2 + 2?"), ("assistant", "4"))
    assert pair.prompt == (system, *earlier, ("user", "And twice that?"))
    asked = [{"role": "user", "content": "And twice that?"}]
    for messages in (asked, [{"role": "system", "content": "Be brief."}, *asked]):  # with the column's text, or without
        (pair,) = read_pairs([both | {"prompt": messages, "history": None}]).pairs
        assert pair.prompt == (system, ("user", "And twice that?"))
    for empty in (None, [], "a text"):
        (pair,) = read_pairs([both | {"instruction": "Q?", "system": "", "history": empty}]).pairs
        assert pair.prompt == "Q?"
    talk = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}, "system": "Be brief."}
    (pair,) = read_pairs([talk | {"conversations": [{"from": "human", "value": "Q?"}]}]).pairs
    assert pair.prompt == (system, ("user", "Q?"))


def test_ties_and_disagreement_never_become_pairs() -> None:
    (row,) = EXAMPLES["compared"]
    read = read_pairs([row | {"better_response_id": "Tie"}, row])
    assert (read.counts["P412"], read.skipped, read.refused, read.kept) == (1, 1, 0, 1)
    assert codes(read_pairs([row | {"better_response_id": "C"}])) == ["P108"]


def test_votes_of_several_people_are_counted() -> None:
    (task,) = EXAMPLES["labelstudio"]
    both = [fuzz._pairwise("left"), fuzz._pairwise("right")]
    assert codes(read_pairs([task | {"annotations": both}]), "skipped") == ["P412"]
    assert texts(read_pairs([task | {"annotations": [*both, fuzz._pairwise("right")]}])) == [(QUESTION, BAD, GOOD)]
    assert codes(read_pairs([task, {"id": 4, "data": [{"x": 1}], "annotations": both}])) == ["P107"]
    cancelled = fuzz._pairwise("right") | {"was_cancelled": True}
    assert texts(read_pairs([task | {"annotations": [fuzz._pairwise("left"), cancelled]}])) == [(QUESTION, GOOD, BAD)]


def test_unpaired_answers_are_paired_within_a_prompt_or_skipped() -> None:
    def thumb(prompt: str, text: str, up: bool) -> dict:
        return {"prompt": prompt, "completion": text, "label": up}

    rows = [thumb("p", "a", True), thumb("q", "b", False), thumb("p", "c", False), thumb("p", "d", False)]
    rows += [thumb("p", "a", True), thumb("q", "e", False)]
    read = read_pairs(rows)
    assert texts(read) == [("p", "a", "c"), ("p", "a", "d")] and codes(read, "skipped") == ["P411", "P411"]
    assert (read.rows, read.kept, read.refused, read.merged, read.skipped) == (6, 3, 0, 1, 2)
    assert [f.line for f in read.findings if f.code == "P411"] == [2, 6] and len(read.pairs) == 2
    read = read_pairs([*rows, thumb("p", " ", False)])
    assert codes(read) == ["P301"] and (read.refused, read.skipped) == (1, 2)


@pytest.mark.parametrize("form", [json.dumps, str], ids=["JSON", "Python"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "rows"])
def test_text_that_spells_out_messages_is_decoded(tmp_path, form, suffix: str) -> None:
    row = {key: form(value) for key, value in EXAMPLES["trl messages"][0].items()}
    source = [row]
    if suffix != "rows":
        source = tmp_path / f"a.{suffix}"
        source.write_bytes(fuzz.encode([row], suffix))
    read = read_pairs(source)
    assert texts(read) == [(QUESTION, GOOD, BAD)] and read.counts["P210"] == 3
    read = read_pairs([{key: form(value) for key, value in EXAMPLES["trl-implicit messages"][0].items()}])
    assert texts(read) == [(QUESTION, GOOD, BAD)]


def test_text_that_only_looks_like_messages() -> None:
    (row,) = EXAMPLES["trl"]
    array = "[{'role': 'assistant', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]"  # as NumPy prints it
    (finding,) = [f for f in read_pairs([row | {"chosen": array}]).findings if f.severity == "error"]
    assert finding.code == "P108" and "JSON list of objects" in finding.fix
    for other in ('[{"value": 3}]', '[{"role": "x"}]', "[{'from': 1}", "[1]", "{'role': 'user', 'content': 'a'}"):
        read = read_pairs([row | {"chosen": other}])
        assert texts(read) == [(QUESTION, other, BAD)] and codes(read) == []


def test_a_saved_text_is_never_decoded(tmp_path) -> None:
    text = json.dumps(fuzz.said("a"))
    pairs = Pairs([Pair("a", "Write a message as JSON.", text, "no")])
    assert Pairs.load(pairs.save(tmp_path / "a.jsonl")).rows == pairs.rows


def test_equal_answers_of_a_list_make_one_pair() -> None:
    read = read_pairs([{"prompt": "q", "answers": ["a", "b", "b", "c"]}])
    assert texts(read) == [("q", "a", "b"), ("q", "a", "c"), ("q", "b", "c")]
    assert read.counts["P212"] == 1  # no scores: best first


def test_ids_are_kept_as_they_are_written() -> None:
    (row,) = EXAMPLES["trl"]

    def ids(*given) -> list[str]:
        return [p.id for p in read_pairs([row | {"prompt": f"{g} {k}", "id": g} for k, g in enumerate(given)]).found]

    assert ids(3.0, 4, "5", None, "") == ["3.0", "4", "5", "row-4", "row-5"]
    assert ids("row-2", None) == ["row-2", "row-2-auto"]
    assert ids(None, "row-1") == ["row-1-auto", "row-1"]
    assert codes(read_pairs([row | {"id": True}])) == ["P108"]


def test_a_mapping_gives_columns_their_names() -> None:
    rows = [{"ask": "q", "good": "a", "poor": "b"}]
    with pytest.raises(WorkbenchError, match="P007"):
        read_pairs(rows)
    assert texts(read_pairs(rows, mapping={"prompt": "ask", "chosen": "good", "rejected": "poor"})) == [("q", "a", "b")]
    for name in layouts_in.PROMPTS:
        assert texts(read_pairs([{name: "q", "chosen": "a", "rejected": "b"}])) == [("q", "a", "b")]


def test_an_input_goes_behind_its_instruction() -> None:
    row = {"instruction": "Name the ore.", "input": "Fe2O3"}
    for answers in ({"chosen": GOOD, "rejected": BAD}, {"output_1": BAD, "output_2": GOOD, "preference": 2.0}):
        assert texts(read_pairs([row | answers])) == [("Name the ore.\n\nFe2O3", GOOD, BAD)]


def test_a_winner_is_named_in_many_ways() -> None:
    row = {"prompt": QUESTION, "answer_a": BAD, "answer_b": GOOD}
    for key, value in {"winner": "model_b", "preference": "B", "label": "answer_b", "better": "right"}.items():
        assert texts(read_pairs([row | {key: value}])) == [(QUESTION, GOOD, BAD)]
    for tie in ("tie", "tie (bothbad)", "Both", None):
        assert codes(read_pairs([row | {"winner": tie}]), "skipped") == ["P412"]
    for odd in ("model_c", 3, ["x"], {"y": 1}):
        assert codes(read_pairs([row | {"winner": odd}])) == ["P108"]


def test_what_stands_beside_the_texts_is_kept() -> None:
    (row,) = EXAMPLES["trl"]
    beside = {"prompt_id": 7, "score_chosen": "0.9", "score_rejected": 0.1, "weight": 2, "failure": "loop"}
    (pair,) = read_pairs([row | beside | {"rejected_finished": False}]).found
    assert (pair.group, pair.chosen_score, pair.rejected_score, pair.weight) == ("7", 0.9, 0.1, 2.0)
    assert (pair.failure, pair.rejected_finished) == ("loop", False)
    assert [p.id for p in read_pairs([row | {"id": " a\n"}]).found] == ["a"]
    (pair,) = read_pairs([row | {"system": "Be brief."}]).found
    assert pair.prompt == (("system", "Be brief."), ("user", QUESTION))
    for name, value in {"weight": 0, "score_chosen": "high", "group": [], "rejected_finished": "perhaps"}.items():
        assert codes(read_pairs([row | {name: value}])) == ["P108"]


def test_odd_keys_are_shown_harmlessly() -> None:
    odd = {"prompt": "q", "chosen\x1b": "a", "rejected": "b", "\ud800": 1}
    read = read_pairs([*EXAMPLES["trl"], odd])
    assert repr(read).isascii() and "\x1b" not in repr(read) and "Rename `chosen\\x1b` to `chosen`" in repr(read)
    with pytest.raises(WorkbenchError, match="P007") as caught:
        read_pairs([odd])
    assert str(caught.value).isascii() and "\x1b" not in str(caught.value)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(WorkbenchError, match="Got int"):
        read_pairs(3)
    with pytest.raises(WorkbenchError, match="must have rows"):
        read_pairs([])


def test_a_hub_set_is_read(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or iter(EXAMPLES["openai"]))
    assert texts(read_pairs("hub:owner/name@test")) == [(QUESTION, GOOD, BAD)]
    assert read_pairs("hub:owner/name").source == "hub:owner/name"
    assert texts(read_pairs("hub:owner/name@part/test")) == [(QUESTION, GOOD, BAD)]
    parts = ((None, "test"), (None, "train"), ("part", "test"))
    assert asked == [(("owner/name", part), {"split": split}) for part, split in parts]


def test_the_hub_without_a_network_is_one_error() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(WorkbenchError, match=r"hub:nobody/nothing, P001\)\. Check the name, the split"):
        read_pairs("hub:nobody/nothing")


ODD = "abcXYZ 012 \n\t\r{}[]()<>|\"'\\/,;:.?!#&$%*-_=+ éß日本€😀\u2028\u200b\u0301\x85\xa0"


def random_pairs(n: int) -> list[Pair]:
    rng = random.Random(0)

    def text() -> str:
        return "x" + "".join(rng.choices(ODD, k=rng.randint(1, 60))) + "y"

    pairs = [Pair(f"p{k}", f"{k} {text()}", text(), text() + "z") for k in range(n)]
    return [
        replace(p, weight=rng.choice([1.0, 0.25]), group=f"g{k % 7}", chosen_score=0.5) for k, p in enumerate(pairs)
    ]


def test_a_thousand_rows_through_save_and_back_with_every_field(tmp_path) -> None:
    pairs = random_pairs(1000)
    path = Pairs(pairs).save(tmp_path / "a.jsonl")
    assert read_pairs(path).found == pairs and Pairs.load(path).rows == pairs
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(vars(pairs[0])))
    writer.writeheader()
    writer.writerows(vars(p) for p in pairs)
    (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
    assert read_pairs(tmp_path / "a.csv").found == pairs


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(fuzz.KEYS), inner, max_size=4),
    max_leaves=12,
)
_BASE = st.sampled_from([row for rows in EXAMPLES.values() for row in rows])
_KEY = st.sampled_from([*fuzz.KEYS, "comparison", "input", "answers", "preference.responses", "completion"])
_ROW = st.builds(lambda row, key, value: {**row, key: value}, _BASE, _KEY, _JSON) | _BASE | _JSON


@given(st.lists(_ROW, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_counts_add_up_for_any_rows(rows) -> None:
    try:
        read = read_pairs(rows)
    except WorkbenchError as error:
        assert "(" in str(error)
        return
    assert read.rows == len(rows) == read.kept + read.refused + read.merged + read.skipped
    assert all(p.chosen.strip() for p in read.found)


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "gz", "txt"]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_a_result_or_one_error(tmp_path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"prompt,chosen,rejected\n" * (suffix == "csv") + data)
    try:
        read = read_pairs(path)
    except WorkbenchError:
        return
    assert read.rows == read.kept + read.refused + read.merged + read.skipped


def test_a_hundred_mutated_files() -> None:
    """A short run of benchmarks/fuzz_readers.py."""
    done = fuzz.run(100, seed=1)
    assert done["failures"] == [] and sum(done["ends"].values()) == 100 and len(done["ends"]) == 3


def test_the_count_is_asserted(monkeypatch) -> None:
    """Negative control: a reader that forgets a row cannot give a result."""
    monkeypatch.setattr(reader.Reader, "_refuse", lambda self, *_: None)
    with pytest.raises(AssertionError, match="2 != 1 [+] 0 [+] 0 [+] 0"):
        read_pairs([*EXAMPLES["trl"], {"prompt": "q"}])


def test_the_fuzzing_can_fail(monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "read_pairs", lambda source: {}["bug"])
    done = fuzz.run(3)
    assert done["ends"] == {"FAILED": 3} and "KeyError" in done["failures"][0]


def test_length_auc_by_hand() -> None:
    """Chosen of 1 and 3 signs, rejected of 2 and 3: (1,2) 0, (1,3) 0, (3,2) 1, (3,3) a half: 1.5 of 4."""
    pairs = [Pair("a", "q", "a", "bb"), Pair("b", "q", "ccc", "ddd")]
    assert length_auc(pairs) == 1.5 / 4


def test_answers_of_equal_length_are_no_shortcut() -> None:
    rows = [{"prompt": f"q {k}", "chosen": f"yes {k:02}", "rejected": f"not {k:02}"} for k in range(60)]
    assert read_pairs(rows).counts == {}
    longer = [{**row, "chosen": f"{row['chosen']} indeed"} for row in rows]
    assert read_pairs(longer).counts == {"P405": 1}


def test_a_result_shows_itself(tmp_path) -> None:
    rows = [{"prompt": "<b>q</b>", "chosen": "<script>a", "rejected": 3}, *EXAMPLES["trl"]]
    read = read_pairs(rows)
    assert "list: layout trl (" in repr(read) and "2 rows read = 1 kept + 1 refused + 0 merged; 1 pairs" in repr(read)
    assert "P108 error, 1 time" in repr(read) and "list:1 `rejected`: int: 3" in repr(read)
    assert read.counts == {"P108": 1, "P409": 1} and isinstance(read.pairs, Pairs)
    with pytest.raises(WorkbenchError, match="must have a row that can be used. Got 1 refused of 1"):
        read_pairs(rows[:1]).pairs  # noqa: B018


def test_load_reads_other_layouts_and_names_what_is_wrong(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(fuzz.encode(EXAMPLES["openai"], "jsonl"))
    assert [(p.prompt, p.chosen) for p in Pairs.load(path)] == [(QUESTION, GOOD)]
    path.write_bytes(b"\xef\xbb\xbf" + fuzz.encode(EXAMPLES["own"], "jsonl"))
    assert Pairs.load(path)[0].id == "b1"
    path.write_bytes(fuzz.encode([*EXAMPLES["openai"], {"input": 3}], "jsonl"))
    with pytest.raises(WorkbenchError, match=r"Got 1 refused of 2: .*a.jsonl:2: P107 .*dpo-workbench check"):
        Pairs.load(path)


def test_an_answer_that_is_there_twice_costs_no_more_than_its_own_pair() -> None:
    read = read_pairs([{"prompt": "q", "answers": ["a", "b", " a"], "scores": [0.9, 0.5, 0.1]}])
    assert {(p.chosen, p.rejected) for p in read.found} == {("a", "b"), ("b", " a")}
    read = read_pairs([{"prompt": "q", "answers": ["a", "a "], "scores": [0.9, 0.5]}])
    assert read.counts == {"P302": 1} and not read.found


def test_check_prints_layout_findings_and_totals(run, tmp_path) -> None:
    (row,) = EXAMPLES["own"]
    good = json.dumps(row)
    second = json.dumps(row | {"id": " b2 ", "rejected": "Ten [red]or[/] so."})
    bad = "{'id': 1}"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([good, bad, good, second]).encode())
    code, out, err = run("check", "a.jsonl", "--save", "b.jsonl")
    assert code == 1 and err == "2 pairs: b.jsonl\n"
    assert out.startswith("a.jsonl: layout trl (") and "\nP101 error, 1 time: " in out
    assert "    a.jsonl:2: " in out and out.endswith("4 rows read = 2 kept + 1 refused + 1 merged; 2 pairs\n")
    assert [p.id for p in Pairs.load(tmp_path / "b.jsonl")] == ["b1", "b2"]
    assert run("check", "b.jsonl")[0] == 0  # negative control of the exit code


def test_check_names_columns(run, tmp_path) -> None:
    (tmp_path / "a.csv").write_text("ask,good,poor\nq,a,b\n")
    code, _, err = run("check", "a.csv")
    assert code == 1 and "--map prompt=..." in err
    code, out, _ = run("check", "a.csv", "--map", "prompt=ask", "--map", "chosen=good", "--map", "rejected=poor")
    assert code == 0 and "1 pairs" in out
    code, _, err = run("check", "a.csv", "--map", "prompt")
    assert code == 1 and "`--map` takes NAME=VALUE. Got 'prompt'" in err


def test_check_refuses_what_it_cannot_read(run) -> None:
    code, out, err = run("check", "none.jsonl")
    assert code == 1 and out == "" and "Got no file (none.jsonl, P001). Check the path" in err


def test_the_page_on_data_lists_every_layout_and_code() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    wanted = [f"| `{name}` | {layout.what} |" for name, layout in layouts_in.LAYOUTS.items()]
    wanted += [f"| {code} | {' | '.join(facts)} |" for code, facts in CODES.items()]
    missing = "\n".join(line for line in wanted if line not in page)
    assert not missing, f"write these rows to docs/data.md:\n{missing}"
    assert page.count("\n| P") == len(CODES)


def test_a_row_of_very_many_keys_is_read_in_no_time(tmp_path) -> None:
    """What took the square of their number: the search for a repeated key, and for a misspelling of each."""
    (row,) = EXAMPLES["trl"]
    many = {f"weights{k}": k for k in range(50_000)}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | many) + "\n" + json.dumps(row | many)[:-1] + ', "weights7": 1}')
    read = read_pairs(tmp_path / "a.jsonl")
    assert codes(read) == ["P105"] and read.kept == 1


def test_labels_that_pandas_turned_to_floats() -> None:
    rows = [row | {"label": float(row["label"])} for row in EXAMPLES["thumbs"]]
    assert texts(read_pairs(rows)) == [(QUESTION, GOOD, BAD)]

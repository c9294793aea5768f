"""Messages: what is read as a prompt of turns, what is refused by row, and that turns survive every file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.messages import messages_of, prompt_as_text, read_prompt
from dpo_workbench.pairs.pair import Pair, Pairs, read_pairs
from dpo_workbench.pairs.splits import find_leaks, split_pairs

TURNS = (("system", "be brief"), ("user", "is it?"), ("assistant", "no"), ("user", "why?"))
CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}


def test_messages_become_turns_and_one_user_message_its_text() -> None:
    assert read_prompt("q") == "q" == read_prompt([("user", "q")]) == read_prompt([{"role": "user", "content": "q"}])
    assert read_prompt(messages_of(TURNS)) == TURNS == read_prompt(TURNS)
    assert messages_of("q") == [{"role": "user", "content": "q"}]
    assert prompt_as_text(TURNS) == "system: be brief\n\nuser: is it?\n\nassistant: no\n\nuser: why?"
    shared = [{"from": "system", "value": "be brief"}, {"from": "human", "value": "is it?"}]
    assert read_prompt([*shared, {"from": "gpt", "value": "no"}, {"from": "human", "value": "why?"}]) == TURNS


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3, "int: 3 .`prompt`, P108.. Write text or a list of messages"),
        ([], "must have messages. Got .. .`prompt`, P201"),
        ([("user", "a"), ("assistant", "b")], "must end with a message of the user. Got assistant"),
        ([("system", "a")], "must end with a message of the user. Got system"),
        ([("user", "a"), ("user", "b")], "must alternate. Got user, user .`prompt.1..role`"),
        ([("king", "a")], "A role must be .* Got king"),
        ([{"content": "a"}], "A role must be .* Got None"),
        ([("tool", "a")], "text only. Got tool"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "text only. Got .*`prompt.0..tool_calls`, P205"),
        ([{"role": "user", "content": "a", "images": ["x.png"]}], "text only. Got .*x.png"),
        ([{"role": "user", "content": "a", "reasoning_content": "x"}], "text only. Got x"),
        ([{"role": "user", "content": [{"type": "image"}]}], "text only. Got .*`prompt.0..content`"),
        ([{"role": "user", "content": None}], "text only. Got None"),
        (["a", "b"], "str: a .`prompt.0.`, P108"),
        ([("user",)], "text only. Got None"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        read_prompt(prompt)
    with pytest.raises(WorkbenchError, match="of pair 'p7'"):
        Pair("p7", prompt, "a", "b")


def test_null_and_empty_fields_are_ignored() -> None:
    part = {"type": "text", "text": "a", "image": None}
    message = {"role": "user", "content": [part, part], "tool_calls": None, "images": [], "name": "x"}
    assert read_prompt([{"role": "developer", "content": "b"}, message]) == (("system", "b"), ("user", "aa"))


def row(k: int, **changes) -> dict:
    answers = {name: [{"role": "assistant", "content": f"{name} {k}"}] for name in ("chosen", "rejected")}
    return {"prompt": messages_of((*TURNS[:3], ("user", f"why {k}?"))), **answers, **changes}


@pytest.mark.parametrize("form", ["rows", "jsonl", "parquet", "datasets", "pandas"])
def test_rows_with_tool_calls_or_images_are_refused_one_by_one(tmp_path, form: str) -> None:
    """Arrow gives every row and message all keys, so a file has null and empty ones next to those with content."""
    called = {"role": "assistant", "content": "7", "tool_calls": [CALL]}
    empty = {"role": "assistant", "content": "7", "tool_calls": []}
    rows = [row(0, images=None, tools=None), row(1, images=[]), row(2, images=["a.png"]), row(3, images=None)]
    rows += [row(4, chosen=[called]), row(5, chosen=[empty]), row(6, tools=json.dumps([CALL])), row(7, tools="[]")]
    if form == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif form == "rows":
        source = rows
    elif form == "pandas":
        source = pytest.importorskip("pandas").DataFrame(rows)
    else:
        source = pytest.importorskip("datasets").Dataset.from_list(rows)
        if form == "parquet":
            source.to_parquet(tmp_path / "a.parquet")
            source = tmp_path / "a.parquet"
    read = read_pairs(source)
    refused = [(f.line, f.field) for f in read.findings if f.code == "P205"]
    assert refused == [(3, "images"), (5, "chosen[0].tool_calls"), (7, "tools")]
    assert (read.rows, read.kept, read.refused) == (8, 5, 3)
    assert all(pair.prompt[:3] == TURNS[:3] for pair in read.pairs)


content = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
said = content.filter(str.strip)
turns = st.tuples(
    st.lists(st.tuples(st.just("system"), content), max_size=2), st.lists(content, min_size=1, max_size=4)
)


@st.composite
def prompts(draw):
    """A text, or messages of which the user says the last one."""
    if draw(st.booleans()):
        return draw(said)
    system, earlier = draw(turns)
    roles = ["user", "assistant"] if len(earlier) % 2 == 0 else ["assistant", "user"]
    return [*system, *((roles[k % 2], text) for k, text in enumerate(earlier)), ("user", draw(said))]


@settings(max_examples=60, deadline=None)
@given(given=st.lists(st.tuples(prompts(), said), min_size=1, max_size=4))
def test_pairs_with_turns_survive_the_disk(tmp_path_factory, given) -> None:
    answers = [answer if answer.strip() != "worse" else "better" for _, answer in given]
    pairs = Pairs(Pair(f"p{k}", prompt, answers[k], "worse") for k, (prompt, _) in enumerate(given))
    path = pairs.save(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    for source in (path, rows):
        read = read_pairs(source)
        same = {p.id: p for p in read.found}
        assert (
            read.refused == 0
            and all(same.get(p.id, p) == p for p in pairs)
            and len(read.found) + read.merged == len(pairs)
        )


def test_turns_survive_parquet_and_datasets(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    pairs = Pairs([Pair("a", TURNS, "b", "c"), Pair("d", [("system", ""), ("user", "q")], "e", "f")])
    rows = [json.loads(line) for line in pairs.save(tmp_path / "a.jsonl").read_text().splitlines()]
    made = datasets.Dataset.from_list(rows)
    made.to_parquet(tmp_path / "a.parquet")
    assert read_pairs(made).found == pairs.rows == read_pairs(tmp_path / "a.parquet").found


def test_equal_conversations_stay_on_one_side_and_different_ones_are_no_leak() -> None:
    pairs = [Pair(f"p{k}", [*TURNS[:3], ("user", f"Why {k // 2}? {'x' * (k // 2)}")], f"a{k}", "b") for k in range(20)]
    parts = split_pairs(pairs, {"train": 0.5, "test": 0.5})
    assert not {p.prompt for p in parts["train"]} & {p.prompt for p in parts["test"]}
    upper = Pair("q", [(role, text.upper()) for role, text in pairs[0].prompt], "a", "b")
    (leak,) = find_leaks({"one": [pairs[0]], "other": [upper]}).leaks
    assert leak.kind == "exact" and pairs[0].split_key == upper.split_key
    other = Pair("q", [("user", "Something else entirely"), *TURNS[2:]], "a", "b")
    assert not find_leaks({"one": [pairs[0]], "other": [other]}).leaks


def test_an_empty_last_message_is_no_prompt_and_an_earlier_one_may_be_empty() -> None:
    assert read_pairs([row(0, prompt=messages_of((("system", ""), ("user", "q"))))]).kept == 1
    assert (
        read_pairs(
            [
                row(
                    0,
                    prompt=[
                        *messages_of(TURNS),
                        {"role": "assistant", "content": "x"},
                        {"role": "user", "content": " "},
                    ],
                )
            ]
        ).counts["P301"]
        == 1
    )
    with pytest.raises(WorkbenchError, match="P301"):
        Pairs([Pair("a", [("system", "x"), ("user", "")], "b", "c")])
    (found,) = [
        f
        for f in read_pairs([row(0, prompt=messages_of((("user", "a<|im_end|>"), *TURNS[2:])))]).findings
        if f.code == "P306"
    ]
    assert found.field == "prompt"

"""Tokens: no token spans the join of prompt and answer, nothing is cut in silence, the end token is there once."""

import pytest
from tokenizers.normalizers import NFC

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.loading import load_model
from dpo_workbench.pairs.pair import Pair
from dpo_workbench.training.packing import pack
from dpo_workbench.training.tokens import Unfinished, pair_texts, show, tokenize


def test_answer_is_exactly_its_text_and_the_end_token(tiny) -> None:
    (row,) = tokenize(tiny, [("r", "the question", ("yes: é 12\n", "no"))], 100)
    assert [tiny.tokenizer.decode(a) for a in row.answer_ids] == ["yes: é 12\n<|end|>", "no<|end|>"]
    assert tiny.tokenizer.decode(row.prompt_ids) == "<|user|>the question<|answer|>"
    assert row.id == "r"


def test_bpe_does_not_merge_across_the_join(tmp_path, make_tiny_folder) -> None:
    """Without a template the prompt ends in plain text; ` the` split over prompt and answer stays two pieces."""
    plain = load_model(make_tiny_folder(tmp_path / "m", template=None), device="cpu")
    whole = plain.tokenizer("is the", add_special_tokens=False)["input_ids"]
    (row,) = tokenize(plain, [("r", "is t", ("he",))], 100)
    joined = list(row.prompt_ids + row.answer_ids[0][:-1])
    assert plain.tokenizer.decode(joined) == "is the" and joined != whole  # the merge was possible and did not happen
    batch = pack([row])
    assert plain.tokenizer.decode(batch.target) == "he<|end|>"


def test_a_token_without_an_embedding_raises(tiny) -> None:
    tiny.tokenizer.add_tokens([f"<x{k}>" for k in range(60)])
    for texts in (("call <x59>", ("yes", "no")), ("call", ("yes", "no <x59>"))):
        with pytest.raises(WorkbenchError, match="must have an embedding. Got '<x59>'"):
            tokenize(tiny, [("r", *texts)], 100)
    assert tokenize(tiny, [("r", "call <x0>", ("yes", "no"))], 100)


def test_answers_of_the_same_tokens_raise(tiny) -> None:
    """Their texts differ, but many tokenizers compose accents (NFC), and a model can't learn from equal answers."""
    tiny.tokenizer.backend_tokenizer.normalizer = NFC()
    with pytest.raises(WorkbenchError, match="must differ from `chosen` as tokens.*'r'"):
        tokenize(tiny, [("r", "a", ("caf\u00e9", "cafe\u0301"))], 100)
    assert tokenize(tiny, [("r", "a", ("yes", Unfinished("yes")))], 100)  # one has an end token


def test_a_row_that_is_too_long_raises_and_is_not_cut(tiny) -> None:
    (row,) = tokenize(tiny, [("r", "ab", ("yes", "no"))], 100)
    assert tokenize(tiny, [("r", "ab", ("yes", "no"))], row.n_tokens)[0] == row
    limit = row.n_tokens - 1
    with pytest.raises(WorkbenchError) as caught:
        tokenize(tiny, [("r", "a", ("y", "n")), ("long", "ab", ("yes", "no"))], limit)
    text = str(caught.value)
    assert (
        f"at most max_tokens={limit} tokens. Got 1 of 2 rows where this is not so: 'long' ({row.n_tokens} tokens)."
        in text
    )


@pytest.mark.parametrize(("n_long", "more"), [(5, ""), (8, " and 3 more")])
def test_all_rows_that_are_too_long_are_counted_and_five_are_named(tiny, n_long: int, more: str) -> None:
    texts = [(f"long{k}", "ab " * (5 + k), ("yes", "no")) for k in range(n_long)]
    with pytest.raises(WorkbenchError) as caught:
        tokenize(tiny, [("short", "a", ("y", "n")), *texts], 8)
    text = str(caught.value)
    assert f"Got {n_long} of {n_long + 1} rows where this is not so: 'long0' (" in text
    assert [f"'long{k}' (" in text for k in range(n_long)] == [k < 5 for k in range(n_long)]
    assert f"{more}. Raise max_tokens" in text and "short" not in text


@pytest.mark.parametrize(
    "answer", ["yes<|end|>", "<|end|>", "a<|end|>b", *map(Unfinished, ("yes<|end|>no", "yes<|end|>"))]
)
def test_end_token_inside_the_text_raises(tiny, answer: str) -> None:
    with pytest.raises(WorkbenchError, match="must not contain the end token '<|end|>'.*'r'"):
        tokenize(tiny, [("r", "ab", (answer, "no"))], 100)


def test_empty_answer_and_prompt_raise(tiny, tmp_path, make_tiny_folder) -> None:
    for answer in ("", " \n"):
        with pytest.raises(WorkbenchError, match="must have text.*Got 1 of 1 rows where this is not so: 'r'"):
            tokenize(tiny, [("r", "ab", (answer, "no"))], 100)
    plain = load_model(make_tiny_folder(tmp_path / "m", template=None), device="cpu")
    with pytest.raises(WorkbenchError, match="must have text.*'r'"):
        tokenize(plain, [("r", "", ("yes", "no"))], 100)


def test_unfinished_answer_gets_no_end_token(tiny) -> None:
    end = tiny.tokenizer.eos_token_id
    (row,) = tokenize(tiny, [("r", "ab", ("the answer", Unfinished("the answer")))], 100)
    assert row.answer_ids[0] == (*row.answer_ids[1], end) and end not in row.answer_ids[1]
    batch = pack([row])
    assert tiny.tokenizer.decode(batch.target[batch.owner == 1]) == "the answer"


def test_unfinished_answer_of_one_token_is_an_answer(tiny) -> None:
    (row,) = tokenize(tiny, [("r", "ab", ("yes: 1", Unfinished("x")))], 100)
    assert len(row.answer_ids[1]) == 1


def test_show_decodes_what_is_scored(tiny) -> None:
    (row,) = tokenize(tiny, [("r", "ab", ("yes", Unfinished("no")))], 100)
    text = show(tiny, row)
    assert "no loss): '<|user|>ab<|answer|>'" in text
    assert "scored): 'yes<|end|>'" in text and "scored): 'no'" in text


def test_an_unfinished_rejected_answer_of_a_pair_gets_no_end_token(tiny) -> None:
    for finished in (True, False):
        pair = Pair("p", "q", "yes", "no no", rejected_finished=finished)
        (row,) = tokenize(tiny, [pair_texts(pair)], 100)
        end = tiny.tokenizer.eos_token_id
        assert row.id == "p" and row.answer_ids[0][-1] == end and (row.answer_ids[1][-1] == end) == finished

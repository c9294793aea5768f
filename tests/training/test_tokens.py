"""Tokens: no token spans the join of prompt and answer, nothing is cut in silence, the end token is there once."""

import pytest
import torch
from tokenizers.normalizers import NFC
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.loading import load_model
from dpo_workbench.models.rows import Unfinished
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.studies.logps import sum_logps
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.packing import pack
from dpo_workbench.training.run import train
from dpo_workbench.training.tokens import pair_texts, tokenize


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
    """The limit is for the prompt with one of its answers: the longer one, whichever it is."""
    for answers in (("yes, it is", "no"), ("no", "yes, it is")):
        (row,) = tokenize(tiny, [("r", "ab", answers)], 100)
        assert row.length == len(row.prompt_ids) + max(map(len, row.answer_ids)) < row.n_tokens
        assert tokenize(tiny, [("r", "ab", answers)], row.length)[0] == row
        limit = row.length - 1
        with pytest.raises(WorkbenchError) as caught:
            tokenize(tiny, [("r", "a", ("y", "n")), ("long", "ab", answers)], limit)
        found = f"Got 1 of 2 rows where this is not so: 'long' ({row.length} tokens)."
        assert f"at most max_tokens={limit} tokens. {found}" in str(caught.value)


@pytest.mark.parametrize("kind", ["learned positions", "rotary positions"])
def test_a_row_that_the_model_has_no_positions_for_raises(tiny, tmp_path, kind: str) -> None:
    sizes = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
    learned = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, **sizes)
    narrow = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = learned if kind == "learned positions" else LlamaConfig(**narrow, max_position_embeddings=32, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype=torch.float32)
    pairs = Pairs([Pair(f"p{k}", f"{k}", "yes", "no " * n) for k, n in enumerate((5, 40, 5, 50, 5, 60))])
    with pytest.raises(WorkbenchError, match="into the model's 32 positions. Got 3 of 6 rows where.*: 'p") as caught:
        train(model, pairs, TrainConfig(held_out=0.5, probes=0), show=False)  # also those that are held out
    assert sorted(caught.value.rows) == ["p1", "p3", "p5"]
    with pytest.raises(WorkbenchError, match="Got 3 of 6 rows"):
        sum_logps(model, [p.prompt for p in pairs], [[p.rejected] for p in pairs])
    long = list(range(33))
    if kind == "learned positions":  # what happens without the check
        with pytest.raises(IndexError):
            model.network(torch.tensor([long]))
    else:
        assert model.network(torch.tensor([long])).logits.isfinite().all()


def test_rows_that_break_different_rules_are_reported_together(tiny) -> None:
    rows = [("empty", "q", (" ", "no")), ("long", "ab " * 50, ("yes", "no")), ("fine", "q", ("yes", "no"))]
    with pytest.raises(WorkbenchError, match="must have text.*'empty'.*max_tokens=50 tokens.*'long'") as caught:
        tokenize(tiny, rows, 50)
    assert caught.value.rows == ["empty", "long"]


@pytest.mark.parametrize(("n_long", "more"), [(20, ""), (23, " and 3 more")])
def test_all_rows_that_are_too_long_are_counted_and_twenty_are_named(tiny, n_long: int, more: str) -> None:
    texts = [(f"long{k}", "ab " * (5 + k), ("yes", "no")) for k in range(n_long)]
    with pytest.raises(WorkbenchError) as caught:
        tokenize(tiny, [("short", "a", ("y", "n")), *texts], 8)
    text = str(caught.value)
    assert f"Got {n_long} of {n_long + 1} rows where this is not so: 'long0' (" in text
    assert [f"'long{k}' (" in text for k in range(n_long)] == [k < 20 for k in range(n_long)]
    assert caught.value.rows == [f"long{k}" for k in range(n_long)]
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


def test_an_unfinished_rejected_answer_of_a_pair_gets_no_end_token(tiny) -> None:
    for finished in (True, False):
        pair = Pair("p", "q", "yes", "no no", rejected_finished=finished)
        (row,) = tokenize(tiny, [pair_texts(pair)], 100)
        end = tiny.tokenizer.eos_token_id
        assert row.id == "p" and row.answer_ids[0][-1] == end and (row.answer_ids[1][-1] == end) == finished

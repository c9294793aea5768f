"""Generation: transformers' own greedy answers, samples with the model's probabilities, and base weights unharmed."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import adapter as lora
from dpo_workbench.models import generation
from dpo_workbench.models.chat import Chat
from dpo_workbench.models.generation import Sampler, generate
from dpo_workbench.models.loading import load_model

PROMPTS = ["ab", "the answer to the question is yes: 12", *(f"question {k} {'and more ' * (k % 4)}" for k in range(9))]


def theirs(model, prompt: str, limit: int) -> tuple[str, int, bool]:
    """Greedy answer by transformers' `generate`, one prompt at a time."""
    ids = torch.tensor([model.chat.prompt_ids(prompt)])
    with model.active() as network:
        out = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit
        )
    new = out[0, ids.shape[1] :].tolist()
    ended = new[-1] in model.chat.stop_ids
    return model.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True), len(new), ended


def plain(answers) -> list[tuple[str, int, bool]]:
    return [(a.text, a.n_tokens, a.finished) for (a,) in answers]


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The number of answers in each forward pass of the network."""
    sizes: list[int] = []
    honest = Sampler.__call__

    def counted(self, logits, drawn):
        sizes.append(len(logits))
        return honest(self, logits, drawn)

    monkeypatch.setattr(Sampler, "__call__", counted)
    return sizes


@pytest.mark.parametrize("handle", ["tiny", "moved"])
def test_greedy_equals_transformers(request, handle: str) -> None:
    model = request.getfixturevalue(handle)
    want = [theirs(model, p, 24) for p in PROMPTS]
    for rows in (1, 3, 64):
        assert plain(generate(model, PROMPTS, max_new_tokens=24, rows=rows)) == want
    lengths = {n for _, n, _ in want}
    assert len(lengths) > 3, "the answers must end at different places for this test to mean something"


def test_some_answers_end_and_some_are_cut(tiny) -> None:
    answers = [a for (a,) in generate(tiny, PROMPTS, max_new_tokens=16)]
    assert {a.finished for a in answers} == {True, False}
    assert all(a.n_tokens == 16 for a in answers if not a.finished) and all(a.n_tokens <= 16 for a in answers)
    assert "<|end|>" not in "".join(a.text for a in answers)


def test_finished_answers_leave_the_batch_and_change_no_other(tiny, monkeypatch, batches) -> None:
    left = {}
    for every in (1, 5, 1000):
        monkeypatch.setattr(generation, "CHECK_EVERY", every)
        batches.clear()
        left[every] = generate(tiny, PROMPTS, max_new_tokens=40)
        assert batches[0] == len(PROMPTS) and batches == sorted(batches, reverse=True)
        assert (batches[-1] < len(PROMPTS)) == (every < 1000)  # at 1000 no one leaves: the negative control
    assert left[1] == left[5] == left[1000]


def test_generation_stops_when_every_answer_has_finished(tiny, monkeypatch, batches) -> None:
    monkeypatch.setattr(generation, "CHECK_EVERY", 1)
    answers = generate(tiny, PROMPTS, max_new_tokens=24)
    ends = [p for p, (answer,) in zip(PROMPTS, answers, strict=True) if answer.finished and answer.n_tokens < 20]
    batches.clear()
    generate(tiny, ends, max_new_tokens=1000)
    assert ends and len(batches) < 30


def test_results_come_in_the_order_of_prompts(tiny) -> None:
    forward = generate(tiny, PROMPTS, max_new_tokens=12)
    assert forward[::-1] == generate(tiny, PROMPTS[::-1], max_new_tokens=12)
    assert [generate(tiny, [p], max_new_tokens=12)[0] for p in PROMPTS] == forward


def test_samples_follow_the_seed(tiny) -> None:
    def draw(seed: int):
        return generate(tiny, PROMPTS[:4], samples=3, temperature=1.0, max_new_tokens=16, seed=seed)

    one = draw(1)
    assert [len(answers) for answers in one] == [3] * 4
    assert draw(1) == one and draw(2) != one
    assert len({a.text for a in one[0]}) > 1  # the samples of one prompt differ
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert draw(1) == one  # the global generator is neither used nor moved
    assert torch.equal(before, torch.get_rng_state())


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; tokens that are expected fewer than 5 times count as one."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    keep = expected > 0
    return float(((counts - expected)[keep] ** 2 / expected[keep]).sum()), int(keep.sum()) - 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_tokens_are_drawn_with_the_models_probabilities(temperature: float) -> None:
    """20,000 draws from eight logits. By chance the statistic is above its mean plus 4.5 deviations in 1 of 10,000."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, -1e9]).repeat(20_000, 1)
    sampler = Sampler(temperature, 1.0, torch.Generator().manual_seed(3))
    counts = torch.bincount(sampler(logits, torch.zeros(20_000, 0, dtype=torch.long)), minlength=8).double()
    right, df = chi_square(counts, (logits[0].double() / temperature).softmax(0))
    assert right < df + 4.5 * (2 * df) ** 0.5
    assert counts[-1] == 0  # a token of probability 0
    wrong, df = chi_square(counts, (logits[0].double() / temperature / 1.1).softmax(0))
    assert wrong > df + 4.5 * (2 * df) ** 0.5  # negative control: a temperature that is 10 % off


@pytest.mark.parametrize("way", ["own loop", "transformers"])
def test_second_tokens_of_samples_follow_their_first(tiny, monkeypatch, way: str) -> None:
    """The pairs of tokens that 3,000 samples begin with, against p(first) p(second | first) from two passes."""
    if way == "transformers":
        monkeypatch.setattr(generation, "_has_kv_cache", lambda network: False)
    drawn = []
    monkeypatch.setattr(Chat, "answer_text", lambda chat, prompt_ids, tokens: drawn.append(tuple(tokens)))
    generate(tiny, ["ab"], samples=3000, temperature=0.7, max_new_tokens=2, rows=3000, seed=5)
    prompt = tiny.chat.prompt_ids("ab")
    with tiny.active() as network, torch.no_grad():
        first = (network(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(0)
        likely = first.topk(12).indices.tolist()
        ids = torch.tensor([[*prompt, token] for token in likely])
        second = (network(ids).logits[:, -1] / 0.7).softmax(-1)
    counts = Counter(drawn)
    pairs = [(a, b) for a in likely if a not in tiny.chat.stop_ids for b in range(second.shape[1])]
    seen = torch.tensor([counts[pair] for pair in pairs]).double()
    want = torch.tensor([float(first[a] * second[likely.index(a), b]) for a, b in pairs]).double()
    rest = torch.tensor([len(drawn) - seen.sum()]), torch.tensor([1 - want.sum()])
    statistic, df = chi_square(torch.cat([seen, rest[0]]), torch.cat([want, rest[1]]))
    assert df > 10 and statistic < df + 4.5 * (2 * df) ** 0.5


def test_an_answer_that_is_begun_continues_as_it_would_have(tiny) -> None:
    """Greedy answers cut anywhere and continued are the same answers: text, length and limit."""
    whole = [a for (a,) in generate(tiny, PROMPTS, max_new_tokens=24)]
    ids = [tiny.tokenizer(a.text, add_special_tokens=False)["input_ids"] for a in whole]
    same = [k for k, (a, i) in enumerate(zip(whole, ids, strict=True)) if len(i) + a.finished == a.n_tokens]
    assert len(same) > 1  # answers whose text is tokenized into the tokens that were drawn
    for share in (0.3, 0.8):
        begun = [ids[k][: int(share * len(ids[k]))] for k in same]
        again = generate(tiny, [PROMPTS[k] for k in same], begun=begun, max_new_tokens=24)
        assert [a for (a,) in again] == [whole[k] for k in same]


def test_begun_answers_may_fill_the_limit(tiny) -> None:
    ids = tiny.chat.answer_ids("ab", "no ab yes")[:-1]
    (full,), (longer,) = generate(tiny, ["ab", "cd"], begun=[ids, ids[:1]], max_new_tokens=len(ids))
    assert (full.text, full.n_tokens, full.finished) == ("no ab yes", len(ids), False)
    assert longer.n_tokens <= len(ids)


@pytest.mark.parametrize("way", ["own loop", "transformers"])
def test_begun_answers_longer_than_the_limit_are_refused(tiny, monkeypatch, way: str) -> None:
    if way == "transformers":
        monkeypatch.setattr(generation, "_has_kv_cache", lambda network: False)
    ids = tiny.chat.answer_ids("ab", "no ab yes")[:-1]
    with pytest.raises(
        WorkbenchError, match=f"`begun` must not exceed max_new_tokens={len(ids) - 1}. Got {len(ids)} tokens"
    ):
        generate(tiny, ["ab", "cd"], begun=[ids, []], max_new_tokens=len(ids) - 1)
    ((full,),) = generate(tiny, ["ab"], begun=[ids], max_new_tokens=len(ids))  # nothing is left to generate
    assert full.text == "no ab yes"


def test_stop_tokens_of_the_generation_settings_end_an_answer(tiny) -> None:
    """Some models end a turn with another token than their tokenizer's end token."""
    (before,) = generate(tiny, ["ab"], max_new_tokens=24)[0]
    drawn = tiny.tokenizer(before.text, add_special_tokens=False)["input_ids"]
    other = drawn[2]
    assert not (drawn[:2].count(other))
    tiny.network.generation_config.eos_token_id = [tiny.tokenizer.eos_token_id, other]
    tiny = replace(tiny, chat=Chat(tiny.tokenizer, None, tiny.network.generation_config))
    (after,) = generate(tiny, ["ab"], max_new_tokens=24)[0]
    assert (after.text, after.n_tokens, after.finished) == (tiny.tokenizer.decode(drawn[:2]), 3, True)
    assert plain(generate(tiny, PROMPTS, max_new_tokens=24)) == [theirs(tiny, p, 24) for p in PROMPTS]


@pytest.mark.parametrize("none", [-1, [-1]])
def test_minus_one_is_no_stop_token(tiny, none: int | list[int]) -> None:
    """Some generation settings say so; as padding of shorter prompts it has no embedding."""
    before = generate(tiny, PROMPTS, max_new_tokens=8)
    tiny.network.generation_config.eos_token_id = none
    assert generate(tiny, PROMPTS, max_new_tokens=8) == before


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_transformers_generate_gives_the_same_answers(tiny, monkeypatch, penalty: float) -> None:
    """The way for models that the own loop cannot run: limits, begun answers, penalty and seeds mean the same."""
    begun = [tiny.chat.answer_ids("ab", "no ab yes")[: k % 4] for k in range(len(PROMPTS))]
    settings = {"max_new_tokens": 24, "begun": begun, "repetition_penalty": penalty}
    want = generate(tiny, PROMPTS, **settings)
    monkeypatch.setattr(generation, "_has_kv_cache", lambda network: False)
    monkeypatch.setattr(generation, "_decode", None)
    counts: list[int] = []
    assert generate(tiny, PROMPTS, **settings, on_answers=counts.append) == want
    assert sum(counts) == len(PROMPTS)
    before = torch.get_rng_state()
    drawn = [generate(tiny, PROMPTS, samples=2, temperature=1.0, **settings, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0][0] != drawn[0][0][1]
    assert torch.equal(before, torch.get_rng_state())  # the global generator is as it was


@pytest.mark.parametrize("way", ["own loop", "transformers"])
def test_sampling_settings_of_the_model_do_not_count(tiny, monkeypatch, way: str) -> None:
    """Many models ship top_k, top_p and a penalty. Samples follow the arguments of `generate` alone."""
    if way == "transformers":
        monkeypatch.setattr(generation, "_has_kv_cache", lambda network: False)
    settings = {"samples": 60, "temperature": 1.5, "max_new_tokens": 3}
    want = generate(tiny, ["ab"], **settings)
    assert len({a.text for a in want[0]}) > 20
    own = tiny.network.generation_config
    own.top_k, own.top_p, own.repetition_penalty, own.min_new_tokens = 1, 0.1, 5.0, 2
    assert generate(tiny, ["ab"], **settings) == want
    assert tiny.network.generation_config is own and own.top_k == 1  # and they are left as they were


def test_repetition_penalty_forbids_what_was_said(tiny, monkeypatch) -> None:
    drawn: list[list[int]] = []
    monkeypatch.setattr(Chat, "answer_text", lambda chat, prompt_ids, tokens: drawn.append(tokens))
    for penalty, repeats in ((1e9, False), (1.0, True)):
        drawn.clear()
        generate(tiny, PROMPTS, max_new_tokens=20, repetition_penalty=penalty)
        assert any(len(set(tokens)) < len(tokens) for tokens in drawn) == repeats


def test_penalty_lowers_only_what_was_said() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0], [2.0, -2.0, 1.0, -1.0]])
    said = torch.tensor([[0, 1], [0, 0]])
    got = Sampler(0.0, 2.0, torch.Generator()).penalize(logits, said)
    assert got.tolist() == [[1.0, -4.0, 1.0, -1.0], [1.0, -2.0, 1.0, -1.0]]


def test_no_sequence_of_n_tokens_occurs_twice(tiny) -> None:
    rule = Sampler(0.0, 1.0, torch.Generator(), no_repeat_ngram=2)
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    assert rule(logits, torch.tensor([[1, 3, 1], [1, 2, 1]])).tolist() == [2, 3]  # 1 3 would occur twice
    plain = generate(tiny, PROMPTS, max_new_tokens=40)
    ruled = generate(tiny, PROMPTS, max_new_tokens=40, no_repeat_ngram=1)
    assert plain != ruled
    with pytest.raises(WorkbenchError, match="no_repeat_ngram"):
        generate(tiny, PROMPTS, no_repeat_ngram=-1)


def test_out_of_memory_halves_the_batch_and_changes_no_answer(tiny, monkeypatch, capsys, batches) -> None:
    want = generate(tiny, PROMPTS, max_new_tokens=24)
    honest, failed = generation._decode, []

    def decode(network, ids, *rest):
        if len(ids) > 6:
            failed.append(len(ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return honest(network, ids, *rest)

    monkeypatch.setattr(generation, "_decode", decode)
    counts: list[int] = []
    batches.clear()
    assert generate(tiny, PROMPTS, max_new_tokens=24, on_answers=counts.append) == want
    assert failed == [len(PROMPTS)] and max(batches) == len(PROMPTS) // 2 and sum(counts) == len(PROMPTS)
    assert "memory ran out" in capsys.readouterr().out


def test_out_of_memory_with_one_prompt_is_an_error(moved, monkeypatch) -> None:
    def decode(network, ids, *rest):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    before = state(moved)
    monkeypatch.setattr(generation, "_decode", decode)
    with pytest.raises(WorkbenchError, match="one prompt's samples.*CUDA out of memory"):
        generate(moved, PROMPTS[:2], max_new_tokens=24)
    assert equal(state(moved), before)


def test_other_errors_are_not_taken_for_memory(tiny, monkeypatch) -> None:
    calls = []

    def decode(network, ids, *rest):
        calls.append(1)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(generation, "_decode", decode)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        generate(tiny, PROMPTS, max_new_tokens=4)
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["own loop", "transformers"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_raise(tiny, monkeypatch, way: str, temperature: float) -> None:
    """The most likely token of NaN logits is number 0, here the end token: every answer would be empty and finished."""
    if way == "transformers":
        monkeypatch.setattr(generation, "_has_kv_cache", lambda network: False)
    with torch.no_grad():
        tiny.network.model.layers[1].mlp.down_proj.weight[0] = float("inf")
    with pytest.raises(WorkbenchError, match="Got NaN while generating.*dtype=torch.float32"):
        generate(tiny, PROMPTS[:2], max_new_tokens=4, temperature=temperature)


def test_more_tokens_than_learned_positions_raise(tiny, tmp_path) -> None:
    """In GPT-2 a position is an index into a table: past its end, CUDA stops the whole process."""
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype=torch.float32)
    room = 32 - len(model.chat.prompt_ids(PROMPTS[1]))
    ((answer,),) = generate(model, [PROMPTS[1]], max_new_tokens=room)
    assert answer.n_tokens <= room  # so prompt and answer can also be trained on
    with pytest.raises(WorkbenchError, match=r"into the 32 positions.*Got 1 of 2 that do not: prompts\[1\] \(\d+ tok"):
        generate(model, PROMPTS[:2], max_new_tokens=room + 1)
    with pytest.raises(WorkbenchError, match="Got 30 of 30 that do not.* and 10 more. Lower max_new_tokens") as caught:
        generate(model, PROMPTS[:1] * 30, max_new_tokens=32)
    assert caught.value.rows == [f"prompts[{k}]" for k in range(30)]


def test_a_token_without_an_embedding_raises(tiny) -> None:
    tiny.tokenizer.add_tokens([f"<x{k}>" for k in range(60)])
    assert generate(tiny, ["call <x0>"], max_new_tokens=2)  # there are spare embeddings
    with pytest.raises(WorkbenchError, match="must have an embedding. Got '<x59>' with id .*320 embeddings"):
        generate(tiny, ["call <x59>"], max_new_tokens=2)


def test_no_prompts_raise(tiny) -> None:
    with pytest.raises(WorkbenchError, match="at least one prompt"):
        generate(tiny, [])


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_new_tokens": n} for n in (0, -1, 2.5)),
        *({"samples": n, "temperature": 1.0} for n in (0, -1, 1.5)),
        *({"temperature": t} for t in (-1.0, float("nan"), float("inf"))),
        *({"repetition_penalty": p} for p in (0.0, -1.0, float("nan"))),
    ],
)
def test_settings_that_no_answer_can_be_drawn_with_are_refused(tiny, settings: dict) -> None:
    with pytest.raises(WorkbenchError, match=f"`{next(iter(settings))}` must be"):
        generate(tiny, ["a"], **settings)


def test_several_samples_at_temperature_zero_raise(tiny) -> None:
    with pytest.raises(WorkbenchError, match="temperature above 0.*samples=2"):
        generate(tiny, ["ab"], samples=2, temperature=0.0)
    assert len(generate(tiny, ["ab"], samples=1, temperature=0.0, max_new_tokens=2)[0]) == 1


def test_every_answer_is_counted_once(tiny) -> None:
    counts: list[int] = []
    generate(tiny, PROMPTS, samples=2, temperature=1.0, max_new_tokens=16, rows=6, on_answers=counts.append)
    assert sum(counts) == 2 * len(PROMPTS)


def state(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_adapter_is_merged_while_generating_and_taken_out_bit_for_bit(moved, monkeypatch, error) -> None:
    before, inside = state(moved), []
    honest = generation._decode

    def decode(network, ids, *rest):
        assert not any(isinstance(m, lora.PeftModel) for m in [network])
        inside.append(state(moved))
        if error:
            raise error
        return honest(network, ids, *rest)

    monkeypatch.setattr(generation, "_decode", decode)
    if error:
        with pytest.raises(error):
            generate(moved, PROMPTS[:3], max_new_tokens=4)
    else:
        generate(moved, PROMPTS[:3], max_new_tokens=4)
    assert equal(state(moved), before)
    assert not equal(inside[0], before)  # negative control: inside they differ
    monkeypatch.undo()
    ids = torch.tensor([moved.chat.prompt_ids("ab")])
    with moved.active() as network, torch.no_grad():
        assert (network(ids).logits - moved._causal()(ids).logits).abs().max() == 0  # the adapter is switched on again


def test_merged_weights_compute_what_the_adapter_does(moved) -> None:
    ids = torch.tensor([moved.chat.prompt_ids("the question")])
    with torch.no_grad():
        with moved.active() as network:
            want = network(ids).logits
        with moved.merged() as network:
            torch.testing.assert_close(network(ids).logits, want, rtol=1e-4, atol=1e-4)
        with moved.active() as network:
            assert torch.equal(network(ids).logits, want)


def test_without_room_for_merged_weights_the_adapter_is_applied_separately(moved, monkeypatch) -> None:
    want, before = generate(moved, PROMPTS[:4], max_new_tokens=12), state(moved)
    monkeypatch.setattr(lora, "room_for_copies", lambda weights: False)
    for kind in {type(m) for m in moved.network.modules() if isinstance(m, lora.LoraLayer)}:
        monkeypatch.setattr(kind, "get_delta_weight", lambda *_: pytest.fail("merged"))
    assert generate(moved, PROMPTS[:4], max_new_tokens=12) == want
    assert equal(state(moved), before)


def test_a_handle_without_adapter_generates_with_the_base_weights(tiny, moved) -> None:
    """Both handles share one network: the one without adapter must not see the other's."""
    base = generate(tiny, PROMPTS[:4], max_new_tokens=12)
    assert base != generate(moved, PROMPTS[:4], max_new_tokens=12)
    assert generate(tiny, PROMPTS[:4], max_new_tokens=12) == base

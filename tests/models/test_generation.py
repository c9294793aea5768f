"""Generation: transformers' own greedy answers, reproducible samples, rows that leave the batch, and merged weights."""

from collections import Counter

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import generation
from dpo_workbench.models.adapter import merged_weights
from dpo_workbench.models.attention import Front
from dpo_workbench.models.generation import generate
from dpo_workbench.models.guesses import guesses

PROMPTS = ["ab", "the answer to the question is yes: 12", *(f"question {k} {'and more ' * (k % 4)}" for k in range(9))]


@pytest.fixture
def tiny(tiny):
    """How it can be read is found out before passes are counted."""
    assert generation._reading(tiny) == generation.FRONTS
    return tiny


def theirs(model, prompt: str, limit: int) -> tuple[str, int, bool]:
    """Greedy answer by transformers' `generate`, one prompt at a time."""
    ids = torch.tensor([model.prompt_ids(prompt)])
    with model.active() as network:
        out = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit
        )
    new = out[0, ids.shape[1] :].tolist()
    ended = new[-1] == model.tokenizer.eos_token_id
    return model.tokenizer.decode(new, skip_special_tokens=True), len(new), ended


@pytest.mark.parametrize("handle", ["tiny", "moved"])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_greedy_equals_transformers(request, handle: str, rows: int) -> None:
    model = request.getfixturevalue(handle)
    got = generate(model, PROMPTS, max_new_tokens=24, rows=rows)
    want = [theirs(model, p, 24) for p in PROMPTS]
    assert [(a.text, a.n_tokens, a.finished) for (a,) in got] == want
    lengths = {a.n_tokens for (a,) in got}
    assert len(lengths) > 3, "rows must end at different places for this test to say something"


def test_some_answers_end_and_some_are_cut(tiny) -> None:
    answers = [a for (a,) in generate(tiny, PROMPTS, max_new_tokens=16)]
    assert {a.finished for a in answers} == {True, False}
    assert all(a.n_tokens == 16 for a in answers if not a.finished) and all(a.n_tokens <= 16 for a in answers)
    assert "<|end|>" not in "".join(a.text for a in answers)


def test_rows_that_ended_leave_the_batch(tiny, monkeypatch) -> None:
    sizes, step = [], generation._next
    monkeypatch.setattr(
        generation, "_next", lambda network, ids, *rest: sizes.append(len(ids)) or step(network, ids, *rest)
    )
    dropped = generate(tiny, PROMPTS, max_new_tokens=24)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 2 and sizes[0] > len(PROMPTS) / 2
    assert dropped == generate(tiny, PROMPTS, max_new_tokens=24, rows=1)


def test_unwritten_memory_is_not_seen(moved, monkeypatch) -> None:
    """What lies in the buffers beyond a row's own tokens must not reach an answer."""
    want = generate(moved, PROMPTS, max_new_tokens=24)
    zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda x, *shape: zeros(x, *shape).fill_(50))
    assert generate(moved, PROMPTS, max_new_tokens=24) == want
    assert (torch.ones(1).new_zeros(2) == 50).all()  # the trap was set


@pytest.mark.parametrize("ahead", [0, 1, 3, 12])
def test_guesses_change_no_answer_and_save_passes(tiny, monkeypatch, ahead: int) -> None:
    """Rows that repeat themselves: with guesses the same answers come in fewer passes, one token at a time in none."""
    passes, step = [], generation._next
    monkeypatch.setattr(generation, "_next", lambda *args: passes.append(1) or step(*args))
    monkeypatch.setattr(generation, "AHEAD", 0)
    prompts = [p + " ab ab ab ab" for p in PROMPTS]
    want = generate(tiny, prompts, max_new_tokens=40)
    alone = len(passes)
    passes.clear()
    monkeypatch.setattr(generation, "AHEAD", ahead)
    assert generate(tiny, prompts, max_new_tokens=40) == want
    assert len(passes) < alone if ahead else len(passes) == alone


def test_sampled_guesses_keep_the_distribution(tiny) -> None:
    """The second and third token of many samples, drawn with guesses and without, in total variation."""

    def drawn(seed: int, penalty: float) -> Counter[str]:  # a penalty other than 1, however small, forbids guesses
        (answers,) = generate(
            tiny, ["ab ab"], samples=6000, temperature=0.5, max_new_tokens=3, rows=6000, seed=seed,
            repetition_penalty=penalty,
        )  # fmt: skip
        return Counter(a.text for a in answers)

    def distance(one: Counter[str], other: Counter[str]) -> float:
        return sum(abs(one[k] - other[k]) for k in {*one, *other}) / 12000

    alone = drawn(0, 1.0 + 1e-9)
    assert distance(drawn(1, 1.0), alone) < 1.25 * distance(drawn(2, 1.0 + 1e-9), alone)


TEXT = torch.tensor([[1, 2, 3, 9, 2, 3, 8, 1, 2, 3, 0, 0, 0], [5, 7, 5, 6, 5, 0, 0, 0, 0, 0, 0, 0, 0]])
LENGTHS, YES = torch.tensor([10, 5]), torch.tensor([True, True])


def test_a_guess_is_what_followed_the_longest_and_latest_match() -> None:
    none, aim = TEXT[:, :1] * 0, torch.tensor([0, 0])
    assert guesses(TEXT, LENGTHS, 2, none, aim, YES)[:, 0].tolist() == [[9, 2], [6, 5]]
    assert guesses(TEXT, LENGTHS, 1, none, aim, YES)[:, 0].tolist() == [[9], [6]]


def test_a_guess_from_the_hint_is_the_longest_match_and_the_nearest_to_where_the_answer_is() -> None:
    hint = torch.tensor([[4, 2, 3, 6, 1, 2, 0, 0], [7, 5, 4, 4, 7, 5, 2, 2]])  # shorter than the text's match; as long
    for near, want in ((1, [4, 4]), (5, [2, 2])):
        found = guesses(TEXT, LENGTHS, 2, hint, torch.tensor([near, near]), YES)
        assert found.tolist() == [[[9, 2], [9, 2], [6, 1]], [want, [6, 5], want]]  # taken, of the text, of the hint
    found = guesses(TEXT, LENGTHS, 2, hint, torch.tensor([1, 1]), ~YES)
    assert found[:, 0].tolist() == [[9, 2], [6, 5]]  # of two as long, the one that is trusted


@pytest.mark.parametrize("rows", [6, 64])
@pytest.mark.parametrize("temperature", [1e-5, 1.0])
def test_samples_that_share_their_prompt_are_those_of_copied_prompts(tiny, monkeypatch, rows, temperature) -> None:
    """Keys and values of a prompt kept once for its samples, or once for each: the same answers."""
    fronts, step = [], generation._next
    monkeypatch.setattr(generation, "_next", lambda *args: fronts.append(args[-1]) or step(*args))
    reads, read = Counter(), Front.read
    monkeypatch.setattr(Front, "read", lambda front, *args: reads.update([id(front)]) or read(front, *args))
    begun = [tiny.answer_ids("no ab yes")[: k % 4] for k in range(len(PROMPTS))]
    settings = {"samples": 3, "temperature": temperature, "max_new_tokens": 24, "rows": rows, "begun": begun}
    shared = generate(tiny, PROMPTS, **settings)
    layers = tiny.network.config.num_hidden_layers
    assert all(reads[id(front)] >= layers for some in fronts for front in some) and all(fronts)
    fronts.clear()
    monkeypatch.setattr(generation, "_reading", lambda model: generation.COPIES)
    assert generate(tiny, PROMPTS, **settings) == shared
    assert not any(fronts)
    assert len({a.n_tokens for answers in shared for a in answers}) > 3  # rows left the batch at different places


@pytest.mark.parametrize("samples", [1, 2])
def test_drafts_change_no_answer_and_save_passes(tiny, monkeypatch, samples: int) -> None:
    """Right drafts, drafts of other prompts, and none: the same answers, in fewer passes where they are right."""
    passes, step = [], generation._next
    monkeypatch.setattr(generation, "_next", lambda *args: passes.append(1) or step(*args))
    settings = {"max_new_tokens": 40, "samples": samples, "temperature": 1e-5 if samples > 1 else 0.0}
    want = generate(tiny, PROMPTS, **settings)
    alone = len(passes)
    texts = [answers[0].text for answers in want]
    for drafts, fewer in ((texts, True), (texts[::-1], False), ([""] * len(texts), False)):
        passes.clear()
        assert generate(tiny, PROMPTS, **settings, drafts=drafts) == want
        assert not fewer or len(passes) < 0.8 * alone  # these answers are not of whole characters, nor the drafts


def test_a_draft_that_ends_where_the_answer_goes_round_does_not_slow_it_down(tiny, monkeypatch) -> None:
    """Once the answer repeats itself, its own text is the better guide: the one that was right last is followed."""
    one, two = 40, 41
    following = torch.arange(len(tiny.tokenizer))
    following[one], following[two] = two, one  # a model that says two tokens in turn, for ever
    monkeypatch.setattr(type(tiny), "answer_ids", lambda model, text: [one, two] * 8 + [42, 43])
    passes = []

    def forward(network, tokens, positions, mask, cache, places, **kwargs) -> torch.Tensor:
        for layer in cache.layers:
            layer.update(*[torch.zeros(*tokens.shape, 1)[:, None]] * 2)
        passes.append(1)
        return torch.nn.functional.one_hot(following[tokens[:, places]], len(following)).float()

    monkeypatch.setattr(generation, "_forward", forward)
    (want,) = generate(tiny, ["ab"], max_new_tokens=200, begun=[[one]])
    alone = len(passes)
    passes.clear()
    assert generate(tiny, ["ab"], max_new_tokens=200, begun=[[one]], drafts=["both, and then others"]) == [want]
    assert len(passes) <= alone + 3 < 80  # one pass a token would be 199


def test_samples_follow_the_seed(tiny) -> None:
    def draw(seed: int, prompts=PROMPTS[:4]):
        return generate(tiny, prompts, samples=3, temperature=1.0, max_new_tokens=16, seed=seed)

    one = draw(1)
    assert [len(answers) for answers in one] == [3] * 4
    assert draw(1) == one and draw(2) != one
    assert len({a.text for a in one[0]}) > 1  # the samples of one prompt differ
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert draw(1) == one  # the global generator is neither used nor moved
    assert torch.equal(before, torch.get_rng_state())


def test_samples_have_the_models_probabilities(tiny) -> None:
    """The first tokens of 4000 samples against softmax(logits / T), in total variation."""
    with tiny.active() as network, torch.no_grad():
        logits = network(torch.tensor([tiny.prompt_ids("ab")])).logits[0, -1]
    want = (logits / 1.5).softmax(0)
    (answers,) = generate(tiny, ["ab"], samples=4000, temperature=1.5, max_new_tokens=1, rows=4000)
    texts = [tiny.tokenizer.decode([i], skip_special_tokens=True) for i in range(len(want))]
    got, expected = {}, {}
    for text, p in zip(texts, want.tolist(), strict=True):
        expected[text] = expected.get(text, 0.0) + p
    for a in answers:
        got[a.text] = got.get(a.text, 0.0) + 1 / len(answers)
    distance = sum(abs(expected.get(k, 0) - got.get(k, 0)) for k in {*expected, *got}) / 2
    assert distance < 0.15
    flat = sum(abs(1 / len(expected) - got.get(k, 0)) for k in expected) / 2
    assert flat > 0.3  # negative control: a uniform draw would be found out


def test_results_come_in_the_order_of_prompts(tiny) -> None:
    forward = generate(tiny, PROMPTS, max_new_tokens=12)
    assert forward[::-1] == generate(tiny, PROMPTS[::-1], max_new_tokens=12)
    assert [generate(tiny, [p], max_new_tokens=12)[0] for p in PROMPTS] == forward


def test_a_begun_answer_goes_on_as_it_would_have(tiny) -> None:
    """Greedy answers cut anywhere and taken up again are the same answers: text, length and limit."""
    whole = [a for (a,) in generate(tiny, PROMPTS, max_new_tokens=24)]
    ids = [tiny.tokenizer(a.text, add_special_tokens=False)["input_ids"] for a in whole]
    same = [k for k, (a, i) in enumerate(zip(whole, ids, strict=True)) if len(i) + a.finished == a.n_tokens]
    assert len(same) > 1  # answers whose text is cut into the tokens that were drawn
    for share in (0.3, 0.8):
        begun = [ids[k][: int(share * len(ids[k]))] for k in same]
        again = generate(tiny, [PROMPTS[k] for k in same], begun=begun, max_new_tokens=24)
        assert [a for (a,) in again] == [whole[k] for k in same]


@pytest.mark.parametrize("reading", ["padded", "alone"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_generate_of_transformers_gives_the_same_answers(tiny, monkeypatch, reading: str, penalty: float) -> None:
    """The way for models that cannot be read otherwise: limits, begun answers, penalty and seeds as here."""
    begun = [tiny.answer_ids("no ab yes")[: k % 4] for k in range(len(PROMPTS))]
    settings = {"max_new_tokens": 24, "begun": begun, "repetition_penalty": penalty}
    want = generate(tiny, PROMPTS, **settings)
    counts: list[int] = []
    monkeypatch.setattr(generation, "_reading", lambda model: reading)
    monkeypatch.setattr(generation, "_batch", None)
    assert generate(tiny, PROMPTS, **settings, on_answers=counts.append) == want
    assert sum(counts) == len(PROMPTS)
    before = torch.get_rng_state()
    drawn = [generate(tiny, PROMPTS, samples=2, temperature=1.0, **settings, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0][0] != drawn[0][0][1]
    assert torch.equal(before, torch.get_rng_state())  # the global generator is as it was


def test_repetition_penalty_forbids_what_was_said(tiny) -> None:
    (plain,), (without) = (
        generate(tiny, ["ab"], max_new_tokens=20)[0],
        generate(tiny, ["ab"], max_new_tokens=20, repetition_penalty=1e9)[0],
    )
    ids = tiny.tokenizer(without[0].text, add_special_tokens=False)["input_ids"]
    assert plain.text != without[0].text or len(set(ids)) == len(ids)
    assert len(set(ids)) >= 0.8 * len(ids)  # text can be cut into other tokens than were drawn


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


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_merged_weights_come_back_bit_for_bit(moved, error) -> None:
    def state() -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in moved.network.state_dict().items()}

    before, inside = state(), {}
    try:
        with merged_weights(moved.network, moved.adapter):
            inside = state()
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    after = state()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert any(not torch.equal(before[k], inside[k]) for k in before)  # negative control: inside they differ
    with moved.active() as network:
        assert any(p.data_ptr() for p in network.parameters())


def test_merged_weights_compute_what_the_adapter_does(moved) -> None:
    ids = torch.tensor([moved.prompt_ids("the question")])
    with torch.no_grad():
        with moved.active() as network:
            want = network(ids).logits
        with moved.merged() as network:
            torch.testing.assert_close(network(ids).logits, want, rtol=1e-4, atol=1e-4)
        with moved.active() as network:
            assert torch.equal(network(ids).logits, want)


def test_rows_follow_from_the_memory_of_keys_and_values(tiny, monkeypatch) -> None:
    config = tiny.network.config
    one = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tiny.dtype.itemsize
    longest = max(len(tiny.prompt_ids(p)) for p in PROMPTS) + 24
    sizes = []
    batch = generation._batch
    monkeypatch.setattr(
        generation,
        "_batch",
        lambda network, prompts, *rest: sizes.append(len(prompts)) or batch(network, prompts, *rest),
    )
    whole = generate(tiny, PROMPTS, max_new_tokens=24)
    monkeypatch.setattr(generation, "KEYS", 2 * one * longest)
    assert generate(tiny, PROMPTS, max_new_tokens=24) == whole
    assert sizes[0] == len(PROMPTS) and max(sizes[1:]) <= 3 and sum(sizes[1:]) == len(PROMPTS)

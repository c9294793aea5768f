"""Batched generation: the prompt is read once for its k samples, finished answers leave the batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.attention import Front
from dpo_workbench.models.cache import Buffer
from dpo_workbench.models.guesses import MATCH, guesses, look_ahead
from dpo_workbench.models.loading import Model
from dpo_workbench.models.plain_generation import Sampler, answers_of_generate, pads, same_scores

ROWS = 96  # answers in one batch, where their keys and values fit into
KEYS = 2**30  # about so many bytes on a CPU; on a GPU a quarter of its memory
AHEAD = 7  # tokens guessed in one pass at most
PASS = {"cpu": 35}  # what a pass costs by itself, in units of one token's products
SLICE = 16  # rows whose keys a CPU reads up to the longest of them; the batch is sorted by prompt length
PREFILL = 8  # prompts read at one time; few, so that their activations stay in the processor's cache


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    n_tokens: int
    finished: bool  # False: cut off at the token limit


def check_decoding(samples: int, temperature: float, max_new_tokens: int, repetition_penalty: float = 1.0) -> None:
    """Refuse settings that no answer can be drawn with.

    Raises:
        WorkbenchError: a number out of its range, or several samples at temperature 0.
    """
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if not isinstance(value, Integral) or value < 1:
            raise WorkbenchError(f"`{name}` must be a whole number from 1 on. Got {value!r}.")
    if not 0 <= temperature < math.inf:
        raise WorkbenchError(f"`temperature` must be 0 (greedy) or more. Got {temperature!r}.")
    if not 0 < repetition_penalty < math.inf:
        raise WorkbenchError(f"`repetition_penalty` must be above 0 (1: none). Got {repetition_penalty!r}.")
    if samples > 1 and temperature == 0:
        raise WorkbenchError(
            f"Several samples need a temperature above 0, or all are the same. Got samples={samples}, "
            f"temperature={temperature}. Set temperature=1.0."
        )


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    repetition_penalty: float = 1.0,
    rows: int = ROWS,
    begun: Sequence[Sequence[int]] | None = None,
    drafts: Sequence[str] | None = None,
    on_answers: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """Sample answers; the result is in the order of `prompts`, `samples` answers each.

    Prompts are sorted by length and generated in batches of about `rows` answers. The same arguments on the same
    machine give the same answers: each batch draws from a generator of its own.

    Answers that copy (fields of a document, rows of JSON, loops) are guessed a few tokens ahead: what followed the last
    tokens where they stood before is checked in one pass, and kept up to the first token that the model would not have
    drawn. The distribution is that of one token at a time (speculative decoding, arXiv 2211.17192, with a draft looked
    up in prompt, answer and `drafts`).

    All this is asked of a model once, on a short text against its plain forward pass. One that cannot do it (recurrent
    layers, a cache or positions of its own) is sampled by transformers' `generate`, without guesses.

    Args:
        model: the handle to sample from.
        prompts: at least one.
        samples: answers a prompt; more than one needs a temperature above 0.
        temperature: 0 takes the likeliest token (greedy).
        max_new_tokens: an answer that is not finished by then is cut off.
        seed: of the draws.
        repetition_penalty: above 1 divides (or, below zero, multiplies) the scores of tokens that the answer already
            has (CTRL, arXiv 1909.05858, equation 13; here the prompt's tokens are not counted, as copying is the job).
        rows: about how many answers in a batch (at most half as many again), or as many as memory holds; lower it if
            memory runs out all the same.
        begun: for each prompt the token ids that its answers begin with, fewer than `max_new_tokens`; they count as
            part of the answer. None: nothing is given.
        drafts: for each prompt an answer that these may resemble, such as another model's, to look guesses up in. It
            saves time and changes no answer, apart from ties that rounding decides.
        on_answers: called with the number of answers that just finished.

    Raises:
        WorkbenchError: no prompts, or what `check_decoding` raises.
    """
    if not prompts:
        raise WorkbenchError("`prompts` must have at least one prompt. Got none. Choose a split with examples.")
    check_decoding(samples, temperature, max_new_tokens, repetition_penalty)
    given = [list(b) for b in begun] if begun is not None else [[] for _ in prompts]
    ids = [model.prompt_ids(p) + b for p, b in zip(prompts, given, strict=True)]
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    answers: list[list[Answer]] = [[] for _ in ids]
    end = model.tokenizer.eos_token_id
    reading, longest = _reading(model), max(map(len, ids))
    window = getattr(model.network.config.get_text_config(), "sliding_window", None) or 2**62
    apart = samples > 1 and reading == FRONTS and longest + max_new_tokens + AHEAD < window
    rows = min(rows, _rows_in_memory(model, (longest // samples if apart else longest) + max_new_tokens))
    n_batches = max(1, round(len(ids) * samples / rows))  # of equal size: a small last one costs as many passes
    per_batch = -(-len(ids) // n_batches)
    with model.merged() as network, torch.inference_mode():
        for number, start in enumerate(range(0, len(order), per_batch)):
            chosen = order[start : start + per_batch]
            generator = torch.Generator(model.device).manual_seed(seed * 1_000_003 + number)
            sampler = Sampler(temperature, repetition_penalty, generator)
            texts, said = [ids[i] for i in chosen], [len(given[i]) for i in chosen]
            if reading in (FRONTS, COPIES):
                known = [(prompts[i], drafts[i]) for i in chosen] if drafts else []
                hints = [model.prompt_ids(prompt)[-MATCH:] + model.answer_ids(draft) for prompt, draft in known]
                tokens, finished = _batch(
                    network, texts, said, hints, samples, max_new_tokens, sampler, end, apart, on_answers
                )
            else:
                tokens, finished = answers_of_generate(
                    network, texts, said, samples, max_new_tokens, sampler, end, reading == PADDED, on_answers
                )
            done = _answers(model, tokens, finished)
            for place, i in enumerate(chosen):
                answers[i] = done[place * samples : (place + 1) * samples]
    return answers


def _rows_in_memory(model: Model, length: int) -> int:
    """How many answers' keys and values of `length` tokens may be held at one time."""
    config, device = model.network.config.get_text_config(), model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    one = 2 * config.num_hidden_layers * heads * size * length * model.dtype.itemsize
    room = torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else KEYS
    return max(1, room // one)


def _batch(
    network: nn.Module,
    prompts: list[list[int]],
    begun: list[int],
    hints: list[list[int]],
    samples: int,
    limit: int,
    sampler: Sampler,
    end: int,
    apart: bool,
    on_answers: Callable[[int], None] | None,
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of the answers of one batch, `samples` in a row for each prompt, and whether each ended by itself.

    The last `begun` tokens of a prompt are its answer's first. `hints`: for each prompt what its guesses are looked up
    in besides; or none. `apart`: prompts are kept in `Front`s.
    """
    device = sampler.generator.device
    n_rows, most = len(prompts) * samples, AHEAD if sampler.penalty == 1.0 else 0
    lengths = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(samples)
    starts = lengths - torch.tensor(begun, device=device).repeat_interleave(samples)
    text = torch.full((n_rows, int(starts.max()) + limit + most + 1), end, device=device)  # prompts, then answers
    for r, prompt in enumerate(prompts):
        text[r * samples : (r + 1) * samples, : len(prompt)] = torch.tensor(prompt, device=device)
    hint = torch.full((n_rows, max(map(len, hints), default=1)), end, device=device)
    for r, ids in enumerate(hints):
        hint[r * samples : (r + 1) * samples, : len(ids)] = torch.tensor(ids, device=device)
    cache, fronts, logits = _prefill(network, prompts, samples, limit + most + 1, end, device, apart)
    before = lengths.clone() if apart else torch.zeros_like(lengths)  # tokens of a row that are not in `cache`
    finished = torch.zeros(n_rows, dtype=torch.bool, device=device)
    active = torch.arange(n_rows, device=device)  # rows of `text` that the cache still holds
    guess, luck = text.new_empty(n_rows, 0), 0.5
    guessed = text.new_full((n_rows, 3, 1), -1)  # the one taken, from the text, from the hint
    by_hint = torch.ones_like(finished)  # which of two is taken: the one that was right for longer when they differed
    while True:
        length, start = lengths[active], starts[active]
        said = int((length - start).max()) if sampler.penalty != 1.0 else 0  # only the penalty looks back
        back = torch.arange(said, device=device)
        history = text[active[:, None], start[:, None] + back]
        drawn = sampler(logits, history, back < (length - start)[:, None])  # (R, 1 + guessed)
        right = (drawn[:, :-1] == guess).long().cumprod(1).sum(1) + 1  # the right guesses, and one more
        told = torch.arange(guessed.shape[2], device=device) < right[:, None]  # where `drawn` is what comes next
        hits = ((guessed == drawn[:, None, : guessed.shape[2]]) & told[:, None]).long().cumprod(2)
        luck += 0.2 * (hits[:, 0, 0].float().mean().item() - luck)
        _, in_text, in_hint = hits.sum(2).unbind(1)
        by_hint = torch.where(in_text == in_hint, by_hint, in_text < in_hint)
        ended = (drawn == end).long()
        to_end = torch.where(ended.any(1), ended.argmax(1) + 1, limit + 1)
        new = torch.minimum(torch.minimum(right, to_end), start + limit - length)
        new[finished[active] | (length - start >= limit)] = 0
        places = length[:, None] + torch.arange(drawn.shape[1], device=device)
        kept = torch.arange(drawn.shape[1], device=device) < new[:, None]
        text[active[:, None], places] = torch.where(kept, drawn, text[active[:, None], places])
        lengths[active] = length = length + new
        finished[active] |= (to_end <= new) & (new > 0)
        running = ~finished[active] & (length - start < limit)
        if on_answers and (new > 0).any():
            on_answers(int(((new > 0) & ~running).sum()))
        if not running.any():
            break
        if running.float().mean() < 0.85:
            keep = running.nonzero()[:, 0]
            for layer in cache.layers:
                layer.take(keep.tolist())  # type: ignore[attr-defined]
            for front in fronts:
                front.keep(keep)
            active, length, by_hint = active[keep], length[keep], by_hint[keep]
        ahead = look_ahead(luck, len(active), most, PASS.get(device.type, 500))
        aim = MATCH - 1 + length - starts[active]  # where the hint has as many of the answer's tokens
        guessed = guesses(text[active], length, max(1, ahead), hint[active], aim, by_hint)
        guess = guessed[:, 0, :ahead]
        tokens = torch.cat([text[active, length - 1][:, None], guess], dim=1)
        logits = _next(network, tokens, length - 1, cache, before[active], fronts)
    tokens_of = [row[a:b] for row, a, b in zip(text.tolist(), starts.tolist(), lengths.tolist(), strict=True)]
    return tokens_of, finished.tolist()


def _answers(model: Model, tokens: list[list[int]], finished: list[bool]) -> list[Answer]:
    texts = model.tokenizer.batch_decode(
        [row[:-1] if done else row for row, done in zip(tokens, finished, strict=True)],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [Answer(t, len(row), done) for t, row, done in zip(texts, tokens, finished, strict=True)]


def _prefill(
    network: nn.Module, prompts: list[list[int]], samples: int, more: int, pad: int, device: torch.device, apart: bool
) -> tuple[Cache, list[Front], Tensor]:
    """Read each prompt once, a few at a time.

    Returns:
        A cache with room for `more` tokens a row; what its rows begin with, if that is kept `apart`, or nothing where
        the cache itself holds the prompts; and the logits of the first answer token (R, 1, V).
    """
    n_rows, longest = len(prompts) * samples, max(map(len, prompts))
    layers = range(network.config.get_text_config().num_hidden_layers)
    cache = Cache(layers=[Buffer(more if apart else longest + more) for _ in layers])
    logits, fronts = [], []
    for start in range(0, len(prompts), PREFILL):
        part = prompts[start : start + PREFILL]
        lengths = [len(p) for p in part]
        ids = torch.full((len(part), max(lengths)), pad, device=device)
        for r, prompt in enumerate(part):  # padded at the end, where a causal model does not look: no mask is needed
            ids[r, : len(prompt)] = torch.tensor(prompt, device=device)
        ends = sorted(set(lengths))
        small = [Buffer(ids.shape[1]) for _ in layers]
        positions = torch.arange(ids.shape[1], device=device)[None].expand(len(part), -1)
        out = _forward(network, ids, positions, None, Cache(layers=small), [n - 1 for n in ends])  # (rows, ends, V)
        rows = torch.arange(start * samples, (start + len(part)) * samples, device=device).view(len(part), samples)
        if apart:
            kept = torch.tensor(lengths, device=device)
            fronts.append(Front([x.keys for x in small], [x.values for x in small], kept, rows))
        else:
            for layer, read in zip(cache.layers, small, strict=True):
                layer.lay(read, lengths, start * samples, n_rows, samples)  # type: ignore[attr-defined]
        last = torch.stack([out[r, ends.index(n)] for r, n in enumerate(lengths)])
        logits.append(last.repeat_interleave(samples, 0))
    return cache, fronts, torch.cat(logits)[:, None]


def _next(
    network: nn.Module, tokens: Tensor, first: Tensor, cache: Cache, apart: Tensor, fronts: list[Front]
) -> Tensor:
    """Logits after each of the tokens, which stand from place `first` of their rows, whose first `apart` tokens are in
    `fronts`. (R, n) (R,) -> (R, n, V)."""
    positions = first[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (R, n)
    places = positions - apart[:, None]
    stop = int(places.max()) + 1
    for layer in cache.layers:
        layer.places, layer.length = places, stop  # type: ignore[attr-defined]
    mask = torch.arange(stop, device=tokens.device) <= places[..., None]  # (R, n, stop)
    extra: dict[str, Any] = {"fronts": fronts} if fronts else {"at": places}
    if tokens.device.type == "cpu" and not fronts:
        longest = [int(part.max()) + 1 for part in places[:, -1].split(SLICE)]
        extra["reach"] = [(slice(k * SLICE, (k + 1) * SLICE), n) for k, n in enumerate(longest)]
    return _forward(network, tokens, positions, mask[:, None], cache, list(range(tokens.shape[1])), **extra)


def _forward(
    network: nn.Module,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    cache: Cache,
    places: list[int],
    **kwargs: Any,
) -> Tensor:
    """Logits of the named places. Shape (R, places, V)."""
    return network(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        use_cache=True,
        # an index, not a count: a slice is no contiguous tensor, and the product would copy the head for each row
        logits_to_keep=torch.tensor(places, device=ids.device),
        **{_cache_name(type(causal_lm(network)).forward): cache},
        **kwargs,
    ).logits


@lru_cache
def _cache_name(forward: Callable[..., Any]) -> str:
    """What a causal LM calls its cache: `past_key_values`, or `cache` in models of transformers 5.24 and later."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


FRONTS, COPIES, PADDED, ALONE = "fronts", "copies", "padded", "alone"


def _reading(model: Model) -> str:
    """How a model can be read: `FRONTS` for samples, `COPIES` of their prompt, or `generate` with padding or without.

    Found out once for a network: the logits of short texts, their ends read after their beginnings, must be the plain
    ones.
    """
    shared = model._shared
    if shared.reading is None:
        ids = model.prompt_ids("Is a text that is read in two parts the text that was read in one?")[-24:]
        texts = [ids, ids[len(ids) // 2 :]]
        with model.active() as network, torch.inference_mode():
            plain = (
                causal_lm(network)(input_ids=torch.tensor([t], device=model.device), use_cache=False) for t in texts
            )
            want = torch.stack([out.logits[0, -4:] for out in plain])
            fits = [how for how in (FRONTS, COPIES) if _reads(model, network, texts, want, how == FRONTS)]
            shared.reading = fits[0] if fits else PADDED if pads(network, ids, want[0, -1]) else ALONE
        if not fits:
            print(f"{model.name}: sampled by transformers' generate, as it keeps more than keys and values (slower)")
    return shared.reading


def _reads(model: Model, network: nn.Module, texts: list[list[int]], want: Tensor, apart: bool) -> bool:
    """Are the logits at the texts' last four tokens (2, 4, V) those wanted, if the last three are read afterwards?"""
    device, end = model.device, model.tokenizer.eos_token_id
    prompts = [text[:-3] for text in texts]
    new = torch.tensor([text[-3:] for text in texts], device=device).repeat_interleave(2, 0)
    before = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(2)
    try:
        cache, fronts, first = _prefill(network, prompts, 2, 8, end, device, apart)
        rest = _next(network, new, before, cache, before if apart else torch.zeros_like(before), fronts)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
        return False
    return same_scores(torch.cat([first, rest], dim=1), want.repeat_interleave(2, 0))

"""Batched generation: the prompt is read once for its k samples, finished answers leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from dpo_workbench.models.loading import Model
from dpo_workbench.runtime.errors import WorkbenchError

ROWS = 64  # answers in one batch
PREFILL = 8  # prompts read at one time; few, so that their activations stay in the processor's cache


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    n_tokens: int
    finished: bool  # False: cut off at the token limit


class _Buffer(DynamicLayer):
    """A layer's keys and values in one buffer that is written in place, where the default one is copied each token."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, heads, new, dim = key_states.shape
        if self.length == 0:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys = key_states.new_empty(rows, heads, self.capacity, dim)
            self.values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
            self.is_initialized = True
        stop = self.length + new
        self.keys[:, :, self.length : stop] = key_states
        self.values[:, :, self.length : stop] = value_states
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self.length

    def lay(self, read: _Buffer, lengths: list[int], first: int, n_rows: int, width: int, samples: int) -> None:
        """Copy freshly read prompts into the rows from `first`, right-aligned to `width`, `samples` times each."""
        if self.length == 0:
            for name in ("keys", "values"):
                old = getattr(read, name)
                setattr(self, name, old.new_zeros(n_rows, old.shape[1], self.capacity, old.shape[3]))
            self.dtype, self.device, self.is_initialized = read.dtype, read.device, True
        self.length = width
        for r, n in enumerate(lengths):
            rows = slice(first + r * samples, first + (r + 1) * samples)
            self.keys[rows, :, width - n : width] = read.keys[r, :, :n]
            self.values[rows, :, width - n : width] = read.values[r, :, :n]

    def take(self, rows: Tensor) -> None:
        """Keep the named rows, in that order."""
        old, n = (self.keys, self.values), self.length
        self.keys = old[0].new_empty(len(rows), *old[0].shape[1:])
        self.values = old[1].new_empty(len(rows), *old[1].shape[1:])
        self.keys[:, :, :n] = old[0][rows, :, :n]
        self.values[:, :, :n] = old[1][rows, :, :n]


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
    on_answers: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """Sample answers; the result is in the order of `prompts`, `samples` answers each.

    Prompts are sorted by length and generated in batches of about `rows` answers. The same arguments on the same
    machine give the same answers: each batch draws from a generator of its own.

    Args:
        model: the handle to sample from.
        prompts: at least one.
        samples: answers a prompt; more than one needs a temperature above 0.
        temperature: 0 takes the likeliest token (greedy).
        max_new_tokens: an answer that is not finished by then is cut off.
        seed: of the draws.
        repetition_penalty: above 1 divides (or, below zero, multiplies) the scores of tokens that the answer already
            has (CTRL, arXiv 1909.05858, equation 13; here the prompt's tokens are not counted, as copying is the job).
        rows: about how many answers in a batch (at most half as many again); lower it if memory runs out.
        on_answers: called with the number of answers that just finished.

    Raises:
        WorkbenchError: no prompts, or several samples at temperature 0.
    """
    if not prompts:
        raise WorkbenchError("`prompts` must have at least one prompt. Got none. Choose a split with examples.")
    if samples > 1 and temperature <= 0:
        raise WorkbenchError(
            f"Several samples need a temperature above 0, or all are the same. Got samples={samples}, "
            f"temperature={temperature}. Set temperature=1.0."
        )
    ids = [model.prompt_ids(p) for p in prompts]
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    answers: list[list[Answer]] = [[] for _ in ids]
    n_batches = max(1, round(len(ids) * samples / rows))  # of equal size: a small last one costs as many passes
    per_batch = -(-len(ids) // n_batches)
    with model.merged() as network, torch.inference_mode():
        for number, start in enumerate(range(0, len(order), per_batch)):
            chosen = order[start : start + per_batch]
            generator = torch.Generator(model.device).manual_seed(seed * 1_000_003 + number)
            sampler = _Sampler(temperature, repetition_penalty, generator)
            done = _batch(model, network, [ids[i] for i in chosen], samples, max_new_tokens, sampler, on_answers)
            for place, i in enumerate(chosen):
                answers[i] = done[place * samples : (place + 1) * samples]
    return answers


@dataclass
class _Sampler:
    temperature: float
    penalty: float
    generator: torch.Generator

    def __call__(self, logits: Tensor, history: Tensor) -> Tensor:  # (R, V) (R, t) -> (R,)
        logits = logits.float()
        if self.penalty != 1.0 and history.shape[1]:
            seen = logits.gather(1, history)
            seen = torch.where(seen > 0, seen / self.penalty, seen * self.penalty)
            logits = logits.scatter(1, history, seen)
        if self.temperature <= 0:
            return logits.argmax(dim=1)
        mass = (logits / self.temperature).softmax(dim=1).cumsum(dim=1)  # one draw a row: far cheaper than multinomial
        draw = torch.rand(len(mass), 1, generator=self.generator, device=mass.device) * mass[:, -1:]
        return torch.searchsorted(mass, draw, right=True)[:, 0].clamp(max=mass.shape[1] - 1)


def _batch(
    model: Model,
    network: nn.Module,
    prompts: list[list[int]],
    samples: int,
    limit: int,
    sampler: _Sampler,
    on_answers: Callable[[int], None] | None,
) -> list[Answer]:
    """Answers of one batch, `samples` in a row for each prompt."""
    device, end = model.device, model.tokenizer.eos_token_id
    cache, logits, real, position = _prefill(network, prompts, samples, limit, end, device)
    n_rows = len(prompts) * samples
    tokens = torch.full((n_rows, limit), end, device=device)
    lengths = torch.full((n_rows,), limit)
    finished = torch.zeros(n_rows, dtype=torch.bool)
    active = torch.arange(n_rows, device=device)  # rows of `tokens` that the cache still holds
    running = torch.ones(n_rows, dtype=torch.bool, device=device)
    for t in range(limit):
        token = sampler(logits, tokens[active, :t])
        tokens[active, t] = token
        ended = running & (token == end)
        if ended.any():
            rows = active[ended].cpu()
            lengths[rows], finished[rows] = t + 1, True
            running = running & ~ended
            if on_answers:
                on_answers(int(ended.sum()))
            if not running.any():
                break
            if running.float().mean() < 0.85:
                keep = running.nonzero()[:, 0]
                _keep(cache, keep)
                active, token, position, real, running = (x[keep] for x in (active, token, position, real, running))
        if t + 1 == limit:
            break
        position = position + 1
        real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
        logits = _forward(network, token[:, None], position[:, None], real[:, None, None, :], cache, [0])[:, 0]
    if on_answers:
        on_answers(int((~finished).sum()))
    texts = model.tokenizer.batch_decode(
        [
            row[: n - int(done)]
            for row, n, done in zip(tokens.tolist(), lengths.tolist(), finished.tolist(), strict=True)
        ],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [Answer(text, n, done) for text, n, done in zip(texts, lengths.tolist(), finished.tolist(), strict=True)]


def _prefill(
    network: nn.Module, prompts: list[list[int]], samples: int, limit: int, pad: int, device: torch.device
) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """Read each prompt once, a few at a time, and lay its keys and values down for all its samples.

    Returns:
        The cache, logits of the first answer token (R, V), which places are real (R, width), last position (R,).
    """
    width, n_rows = max(map(len, prompts)), len(prompts) * samples
    layers = range(network.config.num_hidden_layers)
    cache = Cache(layers=[_Buffer(width + limit) for _ in layers])
    real = torch.zeros((n_rows, width), dtype=torch.bool, device=device)
    logits = []
    for start in range(0, len(prompts), PREFILL):
        part = prompts[start : start + PREFILL]
        lengths = [len(p) for p in part]
        ids = torch.full((len(part), max(lengths)), pad, device=device)
        for r, prompt in enumerate(part):  # padded at the end, where a causal model does not look: no mask is needed
            ids[r, : len(prompt)] = torch.tensor(prompt, device=device)
            first = (start + r) * samples
            real[first : first + samples, width - len(prompt) :] = True
        ends = sorted(set(lengths))
        small = Cache(layers=[_Buffer(ids.shape[1]) for _ in layers])
        positions = torch.arange(ids.shape[1], device=device)[None].expand(len(part), -1)
        out = _forward(network, ids, positions, None, small, [n - 1 for n in ends])  # (rows, ends, V)
        for layer, read in zip(cache.layers, small.layers, strict=True):
            layer.lay(read, lengths, start * samples, n_rows, width, samples)  # type: ignore[attr-defined]
        last = torch.stack([out[r, ends.index(n)] for r, n in enumerate(lengths)])
        logits.append(last.repeat_interleave(samples, 0))
    last_places = torch.tensor([len(p) - 1 for p in prompts], device=device).repeat_interleave(samples)
    return cache, torch.cat(logits), real, last_places


def _forward(
    network: nn.Module, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache, places: list[int]
) -> Tensor:
    """Logits of the named places. Shape (R, places, V)."""
    return network(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        # an index, not a count: a slice is no contiguous tensor, and the product would copy the head for each row
        logits_to_keep=torch.tensor(places, device=ids.device),
    ).logits


def _keep(cache: Cache, rows: Tensor) -> None:
    for layer in cache.layers:
        layer.take(rows)  # type: ignore[attr-defined]

"""Batched generation: one prefill for all samples of a prompt, then one token a step for every unfinished answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList

from dpo_workbench.common.errors import WorkbenchError, listed
from dpo_workbench.common.memory import within_memory
from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.decoding import Answer, Sampler, check_decoding
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.messages import Prompt

ROWS = 64  # answers in one batch
CHECK_EVERY = 16  # steps between two looks at which answers have finished; on a GPU each look waits for the device


@dataclass(frozen=True)
class Decoding:
    """What to draw for a batch of prompts; `report` is called now and then, so that a caller can stop the work."""

    samples: int
    limit: int  # new tokens at most
    stop_ids: list[int]
    sampler: Sampler
    report: Callable[[int], None]


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    rows: int = ROWS,
    begun: Sequence[Sequence[int]] | None = None,
    on_answers: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """Sample answers. The same arguments on the same machine give the same answers.

    Args:
        model: the handle to sample from.
        prompts: at least one; each a text, or messages with their roles.
        samples: answers for each prompt; more than one needs a temperature above 0.
        temperature: 0 takes the most likely token (greedy decoding).
        max_new_tokens: an answer that has not finished by then is cut off.
        seed: of the random draws.
        repetition_penalty: above 1 lowers the logits of tokens in the answer, not the prompt (CTRL, arXiv 1909.05858).
        no_repeat_ngram: no sequence of this many tokens occurs twice in an answer; 0 allows all.
        rows: answers in one batch (at least all samples of one prompt). It is halved when memory runs out.
        begun: for each prompt, the token ids that its answers begin with; the penalty does not count them.
        on_answers: called with the number of answers that are done, and now and then with 0 in between.

    Returns:
        For each prompt, in the order given, a list of `samples` answers.
    """
    if not prompts:
        raise WorkbenchError("`prompts` must have at least one prompt. Got none. Choose a split with examples.")
    check_decoding(samples, temperature, max_new_tokens, repetition_penalty, no_repeat_ngram)
    given = [list(tokens) for tokens in begun] if begun is not None else [[] for _ in prompts]
    _check_lengths(model, asked := list(map(model.chat.prompt_ids, prompts)), given, max_new_tokens)
    ids = [prompt + tokens for prompt, tokens in zip(asked, given, strict=True)]
    model.check_ids(ids)
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))  # prompts of similar length need little padding
    answers: list[list[Answer]] = [[] for _ in ids]
    report, done, n_prompts = on_answers or (lambda n: None), 0, min(max(1, rows // samples), len(ids))

    def next_batch(n_prompts: int) -> list[list[int]]:
        batch = order[done : done + n_prompts]
        generator = torch.Generator(model.device).manual_seed(seed * 1_000_003 + done)
        sampler = Sampler(float(temperature), repetition_penalty, generator, no_repeat_ngram)
        decoding = Decoding(samples, max_new_tokens, model.chat.stop_ids, sampler, report)
        return _answer_ids(network, [ids[i] for i in batch], [given[i] for i in batch], decoding)

    with model.merged() as network, torch.inference_mode():
        while done < len(order):
            drawn, n_prompts = within_memory(next_batch, n_prompts, 1, "prompts per batch", "one prompt's samples")
            for row, tokens in enumerate(drawn):
                place = order[done + row // samples]
                text, finished = model.chat.answer_text(asked[place], tokens), tokens[-1] in model.chat.stop_ids
                answers[place].append(Answer(text, len(tokens), finished))
            done += len(drawn) // samples
            report(len(drawn))
    return answers


def _check_lengths(model: Model, prompts: list[list[int]], given: list[list[int]], max_new_tokens: int) -> None:
    limit = model.max_positions
    if (longest := max(map(len, given))) > max_new_tokens:
        raise WorkbenchError(
            f"`begun` must not exceed max_new_tokens={max_new_tokens}. Got {longest} tokens. Raise max_new_tokens."
        )
    if too_long := {f"prompts[{k}]": n for k, n in enumerate(map(len, prompts)) if n + max_new_tokens > limit}:
        named = listed([f"{name} ({n} tokens)" for name, n in too_long.items()])
        raise WorkbenchError(
            f"A prompt with max_new_tokens={max_new_tokens} must fit into the {limit} positions of {model.name}. Got "
            f"{len(too_long)} of {len(prompts)} that do not: {named}. Lower max_new_tokens, or drop these prompts.",
            list(too_long),
        )


def _answer_ids(
    network: nn.Module, prompts: list[list[int]], given: list[list[int]], decoding: Decoding
) -> list[list[int]]:
    """The token ids of each answer up to its first stop token, `samples` in a row for each prompt."""
    device, stop_ids = next(network.parameters()).device, decoding.stop_ids
    limits = [decoding.limit - len(tokens) for tokens in given for _ in range(decoding.samples)]
    ids, mask = _pad_left(prompts, stop_ids[0], device)
    decode = _decode if _has_kv_cache(network) else _transformers_generate
    drawn = decode(network, ids, mask, replace(decoding, limit=max(1, *limits)))
    decoding.sampler.check()
    answers = []
    for number, (row, limit) in enumerate(zip(drawn.tolist(), limits, strict=True)):
        end = next((k + 1 for k, token in enumerate(row[:limit]) if token in stop_ids), limit)
        answers.append(given[number // decoding.samples] + row[:end])
    return answers


def _pad_left(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of prompts that all end in the last column. Shapes (P, T)."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, dtype=torch.long, device=device), torch.tensor(mask, device=device)


def _decode(network: nn.Module, ids: Tensor, mask: Tensor, decoding: Decoding) -> Tensor:
    """Token ids drawn with a key-value cache, shape (P * samples, limit); what follows a stop token is arbitrary."""
    parameters = inspect.signature(causal_lm(network).forward).parameters
    cache = DynamicCache(config=causal_lm(network).config)
    extra: dict[str, Any] = {"past_key_values" if "past_key_values" in parameters else "cache": cache}

    def next_logits(ids: Tensor, mask: Tensor) -> Tensor:  # new tokens (R, n), mask of all tokens (R, m) -> (R, V)
        if "position_ids" in parameters:
            extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return network(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **extra).logits[:, -1]

    logits = next_logits(ids, mask).repeat_interleave(decoding.samples, 0)
    cache.batch_repeat_interleave(decoding.samples)
    mask = mask.repeat_interleave(decoding.samples, 0)  # (R, T), R = P * samples
    stop = torch.tensor(decoding.stop_ids, device=mask.device)
    tokens = torch.full((len(mask), decoding.limit), decoding.stop_ids[0], device=mask.device)
    active = torch.arange(len(mask), device=mask.device)  # rows of `tokens` that are still in the batch
    running = torch.ones(len(mask), dtype=torch.bool, device=mask.device)  # those of them that have not finished
    for n in range(decoding.limit):
        new = decoding.sampler(logits, tokens[active, :n])
        tokens[active, n] = new
        running &= ~torch.isin(new, stop)
        if n + 1 == decoding.limit:
            break
        if (n + 1) % CHECK_EVERY == 0:
            decoding.report(0)
            rows = running.nonzero()[:, 0]
            if not len(rows):
                break
            if len(rows) < len(active):
                cache.batch_select_indices(rows)
                active, mask, new, running = active[rows], mask[rows], new[rows], running[rows]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        logits = next_logits(new[:, None], mask)
    return tokens


def _has_kv_cache(network: nn.Module) -> bool:
    """True for models whose whole state is keys and values. Recurrent layers (Mamba, linear attention) keep others."""
    causal = causal_lm(network)
    parameters = inspect.signature(causal.forward).parameters
    layer_types = getattr(causal.config.get_text_config(), "layer_types", None) or []
    attention_only = all(k.endswith("attention") and "linear" not in k and "compressed" not in k for k in layer_types)
    return attention_only and ("past_key_values" in parameters or "cache" in parameters)


def _transformers_generate(network: nn.Module, ids: Tensor, mask: Tensor, decoding: Decoding) -> Tensor:
    """The same by transformers' own `generate`, for models that `_decode` cannot run."""
    decoding.report(0)
    sampler, device, width = decoding.sampler, ids.device, ids.shape[1]
    # top_k=0, because transformers replaces None by the model's own setting, or by 50.
    drawing = {
        "do_sample": sampler.temperature > 0,
        "temperature": sampler.temperature or None,
        "top_k": 0,
        "top_p": 1.0,
    }
    ends = {"eos_token_id": decoding.stop_ids, "pad_token_id": decoding.stop_ids[0], "max_new_tokens": decoding.limit}
    config = GenerationConfig(num_return_sequences=decoding.samples, **drawing, **ends)

    def penalize(tokens: Tensor, logits: Tensor) -> Tensor:
        logits = sampler.adjust(logits, tokens[:, width:])
        sampler.check()  # before transformers draws
        return logits

    seed = int(torch.randint(2**31, (1,), generator=sampler.generator, device=device))
    causal = causal_lm(network)
    own = causal.generation_config
    causal.generation_config = GenerationConfig()  # the model's penalties and limits must not be added to ours
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            rules = LogitsProcessorList([penalize])
            return causal.generate(ids, config, rules, attention_mask=mask)[:, width:]
    finally:
        causal.generation_config = own

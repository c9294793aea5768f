"""Sampling by transformers' own `generate`, for models that `models.generation` cannot read its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList


@dataclass
class Sampler:
    """How a token is drawn from its logits."""

    temperature: float
    penalty: float
    generator: torch.Generator

    def __call__(self, logits: Tensor, tokens: Tensor, said: Tensor) -> Tensor:
        """(R, n, V), tokens (R, t) of which those count that are `said` (R, t) -> (R, n)."""
        logits = logits.float()
        if self.penalty != 1.0:
            logits = _penalised(logits[:, 0], tokens, said, self.penalty)[:, None]
        if self.temperature <= 0:
            return logits.argmax(dim=-1)
        mass = (logits / self.temperature).softmax(-1).cumsum(-1)  # one draw a place: far cheaper than multinomial
        draw = torch.rand(*mass.shape[:2], 1, generator=self.generator, device=mass.device) * mass[..., -1:]
        return torch.searchsorted(mass, draw, right=True)[..., 0].clamp(max=mass.shape[-1] - 1)


def answers_of_generate(
    network: nn.Module,
    prompts: Sequence[list[int]],
    begun: Sequence[int],
    samples: int,
    limit: int,
    sampler: Sampler,
    end: int,
    padded: bool,
    on_answers: Callable[[int], None] | None,
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each answer, `samples` in a row for each prompt, and whether it ended by itself.

    Args:
        network: a causal LM.
        prompts: sorted by length; the last `begun` tokens of each are its answer's first.
        limit: tokens of an answer, the begun ones counted.
        sampler: its generator gives the seeds.
        end: id of the end token.
        padded: prompts of several lengths may be read together, padded at the left.
        on_answers: called with the number of answers that just finished.
    """
    tokens: list[list[int]] = []
    finished: list[bool] = []
    for _, group in groupby(zip(prompts, begun, strict=True), key=lambda row: padded or len(row[0])):
        part = list(group)
        seed = int(torch.randint(2**31, (1,), generator=sampler.generator, device=sampler.generator.device))
        settings = {"num_return_sequences": samples, "max_new_tokens": limit - min(said for _, said in part)}
        if sampler.temperature > 0:
            settings |= {"do_sample": True, "temperature": sampler.temperature, "top_k": 0, "top_p": 1.0}  # type: ignore[dict-item]
        starts = [len(prompt) - said for prompt, said in part]
        width = max(len(prompt) for prompt, _ in part)
        firsts = [width - len(p) + start for (p, _), start in zip(part, starts, strict=True) for _ in range(samples)]
        rules = [_Penalty(sampler.penalty, firsts)] if sampler.penalty != 1.0 else []
        out = _run(network, [prompt for prompt, _ in part], end, seed, settings, rules)
        for row, first in zip(out.sequences.tolist(), firsts, strict=True):
            answer = row[first : first + limit]
            said = width - first
            stop = answer.index(end, said) + 1 if end in answer[said:] else len(answer)
            tokens.append(answer[:stop])
            finished.append(answer[stop - 1] == end)
        if on_answers:
            on_answers(len(part) * samples)
    return tokens, finished


def pads(network: nn.Module, ids: list[int], want: Tensor) -> bool:
    """Does a text have the logits (V,) of its end beside a longer one, too?"""
    end = int(network.get_input_embeddings().weight.shape[0]) - 1  # type: ignore[operator, union-attr]
    out = _run(network, [ids, ids[:1] * 5 + ids], end, 0, {"max_new_tokens": 1, "output_logits": True}, [])
    return same_scores(out.logits[0][:1], want[None])


def same_scores(got: Tensor, want: Tensor) -> bool:
    """Do logits (..., V) give the probabilities of others, within the noise of their dtype?"""
    noise = 1e-3 if want.dtype == torch.float32 else 0.1
    return bool((got.float().softmax(-1) - want.float().softmax(-1)).abs().max() <= noise)


def _penalised(scores: Tensor, tokens: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Scores (R, V), lowered where a token was said."""
    again = torch.zeros_like(scores).scatter_add(1, tokens, said.to(scores.dtype)) > 0
    return torch.where(again, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


class _Penalty(LogitsProcessor):
    """The repetition penalty of `Sampler`: only what the answer has said counts."""

    def __init__(self, penalty: float, firsts: list[int]):
        self.penalty, self.firsts = penalty, firsts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        said = places >= torch.tensor(self.firsts, device=input_ids.device)[:, None]
        return _penalised(scores, input_ids, said, self.penalty)


def _run(
    network: nn.Module,
    prompts: list[list[int]],
    end: int,
    seed: int,
    settings: dict[str, Any],
    rules: list[LogitsProcessor],
) -> Any:
    """`generate` on prompts padded at the left, with the settings and no others, and without a trace in the RNG."""
    width = max(map(len, prompts))
    device = next(network.parameters()).device
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    plain = {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": end, "pad_token_id": end}
    config = GenerationConfig(**plain | settings, return_dict_in_generate=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return network.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(rules)
        )

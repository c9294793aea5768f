"""Sampling by transformers' own `generate`, for models that `models.generation` cannot read its way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList


def answers_of_generate(
    network: nn.Module,
    prompts: Sequence[list[int]],
    begun: Sequence[int],
    samples: int,
    limit: int,
    temperature: float,
    penalty: float,
    generator: torch.Generator,
    padded: bool,
    end: int,
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each answer, `samples` in a row for each prompt, and whether it ended by itself.

    Args:
        network: a causal LM.
        prompts: sorted by length; the last `begun` tokens of each are its answer's first.
        limit: tokens of an answer, the begun ones counted.
        temperature, penalty: as in `generation.generate`; the penalty looks at the answer alone.
        generator: gives the seeds.
        padded: prompts of several lengths may be read together, padded at the left.
        end: id of the end token.
    """
    tokens: list[list[int]] = []
    finished: list[bool] = []
    for _, group in groupby(zip(prompts, begun, strict=True), key=lambda row: padded or len(row[0])):
        part = list(group)
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        settings = {"num_return_sequences": samples, "max_new_tokens": limit - min(said for _, said in part)}
        if temperature > 0:
            settings |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}  # type: ignore[dict-item]
        starts = [len(prompt) - said for prompt, said in part]
        width = max(len(prompt) for prompt, _ in part)
        firsts = [width - len(p) + start for (p, _), start in zip(part, starts, strict=True) for _ in range(samples)]
        rules = [_Penalty(penalty, firsts)] if penalty != 1.0 else []
        out = _run(network, [prompt for prompt, _ in part], end, seed, settings, rules)
        for row, first in zip(out.sequences.tolist(), firsts, strict=True):
            answer = row[first : first + limit]
            said = width - first
            stop = answer.index(end, said) + 1 if end in answer[said:] else len(answer)
            tokens.append(answer[:stop])
            finished.append(answer[stop - 1] == end)
    return tokens, finished


def pads(network: nn.Module, ids: list[int], want: Tensor) -> bool:
    """Does a text have the logits (V,) of its end beside a longer one, too?"""
    end = int(network.get_input_embeddings().weight.shape[0]) - 1  # type: ignore[operator, union-attr]
    out = _run(network, [ids, ids[:1] * 5 + ids], end, 0, {"max_new_tokens": 1}, [])
    return same_scores(out.logits[0][:1], want[None])


def same_scores(got: Tensor, want: Tensor) -> bool:
    """Do logits (..., V) give the probabilities of others, within the noise of their dtype?"""
    noise = 1e-3 if want.dtype == torch.float32 else 0.1
    return bool((got.float().softmax(-1) - want.float().softmax(-1)).abs().max() <= noise)


class _Penalty(LogitsProcessor):
    """The repetition penalty of `generation._Sampler`: only what the answer has said counts."""

    def __init__(self, penalty: float, firsts: list[int]):
        self.penalty, self.firsts = penalty, firsts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        own = places >= torch.tensor(self.firsts, device=input_ids.device)[:, None]
        said = torch.zeros_like(scores).scatter_add(1, input_ids, own.to(scores.dtype)) > 0
        return torch.where(said, torch.where(scores > 0, scores / self.penalty, scores * self.penalty), scores)


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
    config = GenerationConfig(**plain | settings, return_dict_in_generate=True, output_logits=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return network.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(rules)
        )

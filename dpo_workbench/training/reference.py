"""Log-probabilities of the reference model, computed once, and checks that they and packing are right."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder
from dpo_workbench.common.memory import out_of_memory
from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.loading import Model
from dpo_workbench.training.batches import micro_batches, rows_of_step, steps_per_epoch
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite
from dpo_workbench.training.logps import answer_logps, answer_sums, token_logps
from dpo_workbench.training.losses import PairLogps, sigmoid
from dpo_workbench.training.packing import Row, lay_out, pack

Reference = dict[str, tuple[float, float]]  # by pair id: log-probabilities of the chosen and the rejected answer


def reference_logps(
    model: Model,
    rows: Sequence[Row],
    config: TrainConfig,
    folder: Path | None,
    on_rows: Callable[[int], None] | None = None,
) -> Reference:
    """Log-probabilities of both answers of each row under the model that training starts from.

    Rows are computed in the micro-batches of the first epoch. At the first step the policy repeats exactly this
    arithmetic, so it must give the same values (`check_start`).

    Args:
        model: the starting point of the policy; its outputs stay fixed in the loss.
        rows: pairs as token ids.
        config: seed, batch size and micro_tokens decide the micro-batches.
        folder: where to cache the values, under a hash of everything they depend on. None caches nothing.
        on_rows: called with the number of rows just done.

    Raises:
        WorkbenchError: a value is not finite.
    """
    cached = folder / _key(model, rows, config) / "logps.safetensors" if folder else None
    reference = _read(cached, rows) if cached else None
    if reference is not None:
        return reference
    reference = {}
    with model.active() as network, torch.no_grad():
        for step in range(steps_per_epoch(len(rows), config)):
            for batch in micro_batches(rows_of_step(rows, config, step), model, config):
                sums = answer_logps(network, batch).view(-1, 2)  # (rows, 2)
                terms = dict(zip(("reference chosen logps", "reference rejected logps"), sums.T.tolist(), strict=True))
                check_finite("reference logps", sums.sum().item(), batch.ids, terms)
                reference.update(zip(batch.ids, map(tuple, sums.tolist()), strict=True))
                if on_rows:
                    on_rows(len(batch.ids))
    if cached:
        with replace_folder(cached.parent) as fresh:
            save_file({"logps": torch.tensor([reference[row.id] for row in rows])}, fresh / cached.name)
    return reference


def _read(cached: Path, rows: Sequence[Row]) -> Reference | None:
    """The values of a complete cache file, or None if it is missing or damaged."""
    if not cached.is_file():
        return None
    try:
        values = load_file(cached)["logps"]
        if torch.isfinite(values).all():
            return {row.id: (c, r) for row, (c, r) in zip(rows, values.tolist(), strict=True)}
    except (SafetensorError, KeyError, ValueError, TypeError):
        pass
    print(f"reference cache {cached} is damaged: computing it again")
    return None


def _key(model: Model, rows: Sequence[Row], config: TrainConfig) -> str:
    data = [(row.id, row.prompt_ids, row.answer_ids) for row in rows]
    batches = (config.seed, config.batch_size, config.micro_tokens, config.packing)
    facts = (model.fingerprint(), str(model.dtype), data, batches, torch.__version__, torch.get_num_threads())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def choose_packing(model: Model, rows: Sequence[Row], config: TrainConfig) -> TrainConfig:
    """The config, with `packing` off (and a printed line) if packed rows do not give the values of plain sequences.

    Recurrent layers, attention with capped scores and short sliding windows cannot take a pack. To find out, a
    shortened row is packed twice, the second time with its answers in reverse order. Each answer must have the same
    value at both places, and the value of its plain sequence within the rounding of the dtype.

    Raises:
        WorkbenchError: the model changes its logits in a way that `token_logps` does not know.
    """
    longest = max(rows, key=lambda row: row.n_tokens)
    settings = model.network.config.get_text_config()
    windows = [getattr(settings, name, None) or longest.n_tokens for name in ("sliding_window", "attention_chunk_size")]
    short = _shortened(longest)
    plain = _plain_logps(model, short)
    if not config.packing:
        return config
    problem = "the row is longer than its attention window" if longest.n_tokens > min(windows) else ""
    problem = problem or _packing_problem(model, short, plain)
    if not problem:
        return config
    print(f"{model.name} cannot take packed rows ({problem}): each answer gets its own sequence (slower, same result)")
    return replace(config, packing=False)


def _shortened(row: Row) -> Row:
    """At most 32 tokens of the prompt, and of each answer 16 tokens from where the answers differ."""
    answers = tuple(answer[row.n_shared :][:16] or answer[-1:] for answer in row.answer_ids)
    return replace(row, prompt_ids=row.prompt_ids[-32:], answer_ids=answers)


def _packing_problem(model: Model, row: Row, plain: Tensor) -> str:
    """Why this model cannot take a pack, or ""."""
    reverse = replace(row, answer_ids=row.answer_ids[::-1])
    with model.active() as network, torch.no_grad():
        try:
            packed = answer_logps(network, pack([row, reverse], model.device, model.uses_flex_attention)).view(2, -1)
        except (TypeError, ValueError, RuntimeError) as error:  # its forward method takes no such mask or positions
            if out_of_memory(error):
                raise
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
    lengths = torch.tensor([len(answer) for answer in row.answer_ids], device=model.device)
    between_places = (packed[0] - packed[1].flip(0)).abs() / lengths  # what surrounds a row must not matter
    from_plain = (packed[0] - plain).abs() / lengths
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-2
    if (between_places <= tolerance).all() and (from_plain <= _rounding(model)).all():
        return ""
    return "its attention does not follow the mask of a pack"


def _plain_logps(model: Model, row: Row) -> Tensor:
    """Log-probabilities of the row's answers as plain sequences, compared with the model's own logits.

    Raises:
        WorkbenchError: they differ.
    """
    batch = lay_out([row], model.tokenizer.eos_token_id, model.device)
    with model.active() as network, torch.no_grad():
        ours = token_logps(network, batch)
        logits = causal_lm(network)(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.source]
    theirs = logits.float().log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
    worst = float((ours - theirs).abs().max())
    if worst > 2 * _rounding(model):
        raise WorkbenchError(
            f"Log-probabilities must be those of the model's own logits. For {model.name} a token's differs by "
            f"{worst:.2g} nats: its output head does something that this package does not know. Train another model, "
            "and please report this one."
        )
    return answer_sums(ours, batch)


def _rounding(model: Model) -> float:
    """By how many nats a token two ways of computing the same thing may differ in the model's dtype.

    For 16 bits: up to 0.25 nats on rows of a few tokens (SmolLM2-135M in bf16, 12 rows shortened in three ways).
    """
    return 1e-3 if model.dtype == torch.float32 else 0.5


def check_start(logps: PairLogps, ids: Sequence[str], beta: float, dtype: torch.dtype) -> None:
    """Check that the policy equals the reference before the first update, where DPO's loss is log 2.

    In 16 bits, packs of different sizes round differently: the same answer of 75 tokens got values 0.84 nats apart in
    packs of one and of four rows (SmolLM2-135M, bf16, a CPU with AMX). That noise grows with the root of the length.

    Args:
        logps: of the pairs of a micro-batch of the first step.
        ids: their ids.
        beta: for the loss that the message gives.
        dtype: of the model.

    Raises:
        WorkbenchError: they differ by more than 0.01 nats a token (in 16 bits: plus 0.25 times the root of the length).
    """
    gaps = torch.stack([logps.chosen_logratios, logps.rejected_logratios]).detach().abs()  # (2, B)
    gaps = gaps.where(gaps.isfinite(), 0.0)  # values that are not finite are reported by the step itself
    lengths = torch.stack([logps.chosen_lengths, logps.rejected_lengths])
    noise = 0.25 if dtype.itemsize < 4 else 0.0
    if (gaps > 0.01 * lengths + noise * lengths.sqrt()).any():
        loss = sigmoid(logps, beta).mean().item()
        raise WorkbenchError(
            f"Before the first update the policy must equal the reference (loss {math.log(2):.4f}). Got a difference "
            f"of {gaps.max().item():.2f} nats and a loss of {loss:.4f} on rows {', '.join(ids[:4])}. Delete the run's "
            "`reference` folder and start again."
        )

"""Log-probabilities of the reference model, computed once, and the choice between packed and plain sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.common.memory import out_of_memory
from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.loading import Model
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite
from dpo_workbench.training.logps import answer_logps, answer_sums, token_logps
from dpo_workbench.training.losses import Reference
from dpo_workbench.training.packing import Row, first_epoch, lay_out, pack

# By how many nats a token two ways of computing the same thing may differ, by bytes of the dtype. In 16 bits up to 0.25
# nats were seen on rows of a few tokens (SmolLM2-135M in bf16, 12 rows shortened in three ways).
ROUNDING = {8: 1e-3, 4: 1e-3, 2: 0.5}


def reference_logps(
    model: Model,
    rows: Sequence[Row],
    config: TrainConfig,
    folder: Path | None,
    on_rows: Callable[[int], None] = lambda n_rows: None,
) -> Reference:
    """Log-probabilities of both answers of each row under the model that training starts from.

    Rows are computed in the micro-batches of the first epoch. At the first step the policy repeats exactly this
    arithmetic, so it must give the same values (`check_start`).

    Args:
        folder: where to cache the values, under a hash of everything they depend on. None caches nothing.
        on_rows: called with the number of rows just done.

    Raises:
        WorkbenchError: a value is not finite.
    """
    batches = (config.seed, config.batch_size, config.tokens_at_once, config.packing)
    facts = (model.fingerprint(), str(model.dtype), rows, batches, torch.__version__, torch.get_num_threads())
    cached = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json" if folder else None
    if cached and cached.is_file():
        try:
            return {i: (c, r) for i, (c, r) in json.loads(cached.read_text(encoding="utf-8")).items()}
        except ValueError:
            print(f"reference cache {cached} is damaged: computing it again")
    reference: Reference = {}
    with model.active() as network, torch.no_grad():
        for batch in first_epoch(rows, model, config):
            chosen, rejected = answer_logps(network, batch).view(-1, 2).T.tolist()
            check_finite(batch.ids, {"reference chosen logps": chosen, "reference rejected logps": rejected})
            reference |= zip(batch.ids, zip(chosen, rejected, strict=True), strict=True)
            on_rows(len(batch.ids))
    if cached:
        write_json(cached, reference)
    return reference


def choose_packing(model: Model, rows: Sequence[Row], config: TrainConfig) -> TrainConfig:
    """The config, with `packing` off (and a printed line) if packed rows do not give the values of plain sequences.

    Recurrent layers, attention with capped scores and short sliding windows cannot take a pack. To find out, a
    shortened row is packed twice, the second time with its answers in reverse order. Each answer must have the same
    value at both places, and the value of its plain sequence within the rounding of the dtype. A model that changes its
    logits in a way that `token_logps` does not know is refused.
    """
    longest = max(rows, key=lambda row: row.n_tokens)
    # at most 32 tokens of the prompt, and of each answer 16 tokens from where the answers differ
    answers = tuple(answer[longest.n_shared :][:16] or answer[-1:] for answer in longest.answer_ids)
    short = replace(longest, prompt_ids=longest.prompt_ids[-32:], answer_ids=answers)
    plain = _plain_logps(model, short)
    if not config.packing:
        return config
    settings = model.network.config.get_text_config()
    windows = [getattr(settings, name, None) or longest.n_tokens for name in ("sliding_window", "attention_chunk_size")]
    too_long = longest.n_tokens > min(windows)
    problem = "the row is longer than its attention window" if too_long else _packing_problem(model, short, plain)
    if not problem:
        return config
    print(f"{model.name} cannot take packed rows ({problem}): each answer gets its own sequence (slower, same result)")
    return replace(config, packing=False)


def _plain_logps(model: Model, row: Row) -> Tensor:
    """Log-probabilities of the row's answers as plain sequences, after a comparison with the model's own logits."""
    batch = lay_out([row], model.chat.end_id, model.device)
    with model.active() as network, torch.no_grad():
        ours = token_logps(network, batch)
        logits = causal_lm(network)(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.source]
    worst = float((ours + cross_entropy(logits.float(), batch.target, reduction="none")).abs().max())
    if worst > 2 * ROUNDING[model.dtype.itemsize]:
        raise WorkbenchError(
            f"Log-probabilities must be those of the model's own logits. For {model.name} a token's differs by "
            f"{worst:.2g} nats: its output head does something that this package does not know. Train another model, "
            "and please report this one."
        )
    return answer_sums(ours, batch)


def _packing_problem(model: Model, row: Row, plain: Tensor) -> str:
    """Why this model cannot take a pack, or ""."""
    reverse = replace(row, answer_ids=row.answer_ids[::-1])
    with model.active() as network, torch.no_grad():
        try:
            packed = answer_logps(network, pack([row, reverse], model.device, model.uses_flex_attention)).view(2, -1)
        except (TypeError, ValueError, RuntimeError) as error:  # its forward method takes no such mask or positions
            if out_of_memory(error):
                raise
            return f"{type(error).__name__}: {str(error).strip()[:120]}".splitlines()[0]
    lengths = torch.tensor([len(answer) for answer in row.answer_ids], device=model.device)
    between_places = (packed[0] - packed[1].flip(0)).abs() / lengths  # what surrounds a row must not matter
    from_plain = (packed[0] - plain).abs() / lengths
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-2
    same = (between_places <= tolerance).all() and (from_plain <= ROUNDING[model.dtype.itemsize]).all()
    return "" if same else "its attention does not follow the mask of a pack"

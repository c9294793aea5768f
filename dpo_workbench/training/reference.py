"""Reference log-probabilities: computed once before training, kept under a hash of all they depend on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_workbench.common import parallel
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder
from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.models.loading import Model
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import check_finite
from dpo_workbench.training.logps import answer_logps, answer_sums, token_logps
from dpo_workbench.training.loop import Reference, batch_rows, micro_batches, steps_per_epoch
from dpo_workbench.training.losses import PairLogps, sigmoid
from dpo_workbench.training.packing import Row, lay_out, pack


def reference_logps(
    model: Model,
    rows: Sequence[Row],
    config: TrainConfig,
    folder: Path | None,
    on_rows: Callable[[int], None] | None = None,
    without: Collection[str] = (),
) -> Reference:
    """logps of both answers of each row under the model that training starts from.

    Rows are computed in the micro-batches of the first epoch, so at step 0 the policy repeats the same arithmetic and
    must give the same values. The cache file is named by a hash of model, adapter, dtype, token ids and batch layout;
    a damaged one is computed again.

    Args:
        model: the start of the policy, whose outputs stay fixed in the loss.
        rows: pairs as token ids.
        folder: where to keep the cache; None keeps nothing.
        on_rows: called with the number of rows just done.
        without: ids of rows that are left out.
    """
    kept = [row for row in rows if row.id not in without]
    cached = folder / _key(model, rows, config, without) / "logps.safetensors" if folder else None
    found = parallel.from_first(lambda: _read(cached, kept) if cached else None)
    if found is not None:
        return found
    found = {}
    with parallel.agreed(), model.active() as network, torch.no_grad():
        for step in range(steps_per_epoch(len(rows), config)):
            together = [row for row in batch_rows(rows, config, step) if row.id not in without]
            for batch in micro_batches(together, model, config):
                sums = answer_logps(network, batch).view(-1, 2)
                seen = dict(zip(("reference chosen logps", "reference rejected logps"), sums.T.tolist(), strict=True))
                check_finite("reference logps", sum(map(sum, seen.values())), batch.ids, seen)
                found.update(zip(batch.ids, map(tuple, sums.tolist()), strict=True))
                if on_rows:
                    on_rows(len(batch.ids) * parallel.size())
    found = {row_id: values for part in parallel.gathered(found) for row_id, values in part.items()}
    with parallel.agreed():
        if cached and parallel.rank() == 0:
            with replace_folder(cached.parent) as fresh:
                save_file({"logps": torch.tensor([found[row.id] for row in kept])}, fresh / cached.name)
    return found


def _read(cached: Path, rows: Sequence[Row]) -> Reference | None:
    """The values of a whole cache file; None when it is missing or damaged."""
    if not cached.is_file():
        return None
    try:
        values = load_file(cached)["logps"]
        if torch.isfinite(values).all():
            return {row.id: (c, r) for row, (c, r) in zip(rows, values.tolist(), strict=True)}
    except (SafetensorError, KeyError, ValueError, TypeError):
        pass
    print(f"reference cache {cached} is damaged: computed again")
    return None


def _key(model: Model, rows: Sequence[Row], config: TrainConfig, without: Collection[str]) -> str:
    parts = (model.fingerprint(), str(model.dtype), [(r.id, r.prompt_ids, r.answer_ids) for r in rows])
    machine = (torch.__version__, torch.get_num_threads(), parallel.size())
    layout = (config.seed, config.batch_size, config.micro_tokens, config.packing, sorted(without), *machine)
    return hashlib.sha256(repr((parts, layout)).encode()).hexdigest()[:32]


def prove_packing(model: Model, rows: Sequence[Row], config: TrainConfig) -> TrainConfig:
    """`config`, with `packing` off (and a line that says so) where packed rows do not give the values of plain ones.

    Attention that does not go through transformers' attention interface, recurrent layers and short windows cannot
    take a pack. The longest row, cut to a few tokens, is packed twice, once with its answers in the other order: each
    answer must get the same value at both places, and that of its plain sequence within the noise of the dtype, which
    in bf16 is up to 0.25 nats a token on so few of them (`smol`, 12 rows cut in three ways).

    Raises:
        WorkbenchError: the model does something to its scores that `Head` does not know.
    """
    row = max(rows, key=lambda r: r.n_tokens)
    settings = model.network.config.get_text_config()
    windows = [getattr(settings, name, None) or row.n_tokens for name in ("sliding_window", "attention_chunk_size")]
    short = shortened(row)
    plain = _prove_head(model, short)
    if not config.packing or (row.n_tokens <= min(windows) and _packs(model, short, plain)):
        return config
    print(
        f"{model.name}: cannot take packed rows, so each answer is computed with its own prompt (slower, same result)"
    )
    return replace(config, packing=False)


def shortened(row: Row) -> Row:
    """At most 32 tokens of the prompt and 16 of each answer, from where they differ."""
    answers = tuple(a[row.n_shared :][:16] or a[-1:] for a in row.answer_ids)
    return replace(row, prompt_ids=row.prompt_ids[-32:], answer_ids=answers)


def _packs(model: Model, row: Row, plain: Tensor) -> bool:
    turned = replace(row, answer_ids=row.answer_ids[::-1])
    with model.active() as network, torch.no_grad():
        try:
            packed = answer_logps(network, pack([row, turned], model.device)).view(2, -1)
        except (TypeError, ValueError, AttributeError, RuntimeError):  # its forward has no place for a layout
            return False
    lengths = torch.tensor([len(answer) for answer in row.answer_ids], device=model.device)
    leaks = (packed[0] - packed[1].flip(0)).abs() / lengths  # what is around a row must not matter
    most = 1e-4 if model.dtype == torch.float32 else 1e-2
    return bool((leaks <= most).all() and ((packed[0] - plain).abs() / lengths <= _noise(model)).all())


def _prove_head(model: Model, row: Row) -> Tensor:
    """Answer tokens must have the log-probabilities that the model's own scores give them. Gives the answers' sums."""
    batch = lay_out([row], model.tokenizer.eos_token_id, model.device)
    with model.active() as network, torch.no_grad():
        ours = token_logps(network, batch)
        scores = causal_lm(network)(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.source]
    theirs = scores.float().log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
    worst = float((ours - theirs).abs().max())
    if worst > 2 * _noise(model):
        raise WorkbenchError(
            f"Log-probabilities must be those of the model's own scores. Of {model.name} some token's differs by "
            f"{worst:.2g} nats: its head does more than is known here. Train another model, and please report this one."
        )
    return answer_sums(ours, batch)


def _noise(model: Model) -> float:
    """By how many nats a token two ways to compute the same thing may differ in the model's dtype."""
    return 1e-3 if model.dtype == torch.float32 else 0.5


def prove_start(
    logps: PairLogps, ids: Sequence[str], config: TrainConfig, rounded: torch.dtype = torch.float32
) -> None:
    """The step-0 proof: before the first update the policy must equal the reference, so DPO's loss is log 2.

    Products of other sizes round otherwise: in bf16, packs of one and of four rows gave the same answer of 75 tokens
    values 0.84 nats apart (`smol`, a processor with AMX). That is noise, which grows with the root of the length.

    Args:
        logps: of the pairs of a micro-batch of the first step.
        ids: their ids.
        rounded: the model's dtype where the reference may come from packs of another size; fp32 where it does not.

    Raises:
        WorkbenchError: they differ by more than 0.01 nats a token (and, rounded to 16 bits in other packs, 0.25 times
            the root of the length); training would start from a wrong reference.
    """
    gaps = torch.stack([logps.chosen_logratios, logps.rejected_logratios]).detach().abs()
    gaps = gaps.where(gaps.isfinite(), 0.0)  # these the step itself refuses
    lengths = torch.stack([logps.chosen_lengths, logps.rejected_lengths])
    noise = 0.25 if rounded.itemsize < 4 else 0.0
    if (gaps > 0.01 * lengths + noise * lengths.sqrt()).any():
        loss = sigmoid(logps, config.beta).mean().item()
        raise WorkbenchError(
            f"At step 0 the policy must equal the reference (loss {math.log(2):.4f}). Got a difference of "
            f"{gaps.max().item():.2f} nats and a loss of {loss:.4f} on rows {', '.join(ids[:4])}. Delete the run's "
            "`reference` folder and start again."
        )

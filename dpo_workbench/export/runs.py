"""From a run here to other engines: a TRL + Accelerate project, merged weights, the pairs in other formats."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder, write_json, write_text
from dpo_workbench.models.loading import Model, load_adapter, load_model
from dpo_workbench.pairs.layouts import to_lines
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.loop import batch_rows, learning_rate, steps_per_epoch
from dpo_workbench.training.losses import loss_terms
from dpo_workbench.training.record import RECORD
from dpo_workbench.training.run import _row, hold_out
from dpo_workbench.training.tokens import tokenise

IN_TRL = {  # losses here whose value, pair by pair, is a loss_type of TRL's DPOTrainer
    **{name: name for name in ("sigmoid", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard")},
    **{name: name for name in ("apo_zero", "apo_down", "discopop", "sigmoid_norm")},
    "nll": "sft",  # one pair at a time on a device: TRL's mean over tokens is then this loop's mean of an answer
}
REQUIREMENTS = "torch\ntransformers>=5.23\npeft>=0.21\ndatasets\naccelerate>=1.15\ntrl>=1.16\n"


@dataclass(frozen=True)
class Exported:
    """A folder for another engine, and what its reader must know."""

    folder: Path
    notes: list[str]

    def __repr__(self) -> str:
        return "\n".join([f"Exported: {self.folder}", *(f"  {note}" for note in self.notes)])


def export_trl(run_folder: str | Path, out: str | Path, *, force: bool = False) -> Exported:
    """Write a project that goes on with TRL under Accelerate: `accelerate launch train.py` in the new folder.

    Same token ids, row order, learning rates, start adapter and reference (TRL's frozen copy of the start), so its
    losses are this loop's up to rounding (fp32: 1e-4; tested with two processes). `config.json` holds the settings,
    `pairs.jsonl` each pair as text and ids, `steps.jsonl` the rows and learning rate of each step.

    Args:
        run_folder: of `dpo-workbench train` or `demo`, or one with a record by `record_run`.
        out: new folder.
        force: replace a folder that is not empty.

    Raises:
        WorkbenchError: TRL lacks the loss, `out` is not empty, or the model is not the one that the run began with.
    """
    folder, record = _record(run_folder)
    config = TrainConfig.from_dict(record["config"])
    terms = loss_terms(config)
    if lacking := [name for name in terms if name not in IN_TRL]:
        raise WorkbenchError(
            f"TRL's DPOTrainer must have the run's loss. Got {lacking[0]!r}, which it lacks or computes over a whole "
            f"batch. Train with some of {', '.join(IN_TRL)}, or stay with this loop."
        )
    _check_free(out, folder, force)
    start = _start(folder, record)
    _, kept = hold_out(list(Pairs.load(folder / "pairs.jsonl")), config)
    rows = tokenise(start, map(_row, kept), config.max_tokens)
    policy = start.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    n_steps = steps_per_epoch(len(rows), config) * config.epochs
    steps = [
        {
            "lr_share": learning_rate(step, n_steps, config) / config.lr,
            "pairs": [row.id for row in batch_rows(rows, config, step)],
        }
        for step in range(n_steps)
    ]
    mean = sum(p.weight for p in kept) / len(kept)
    texts = [
        {
            "id": p.id,
            "weight": p.weight / mean,
            "prompt": p.prompt,
            "chosen": p.chosen,
            "rejected": p.rejected,
            "prompt_ids": r.prompt_ids,
        }
        | dict(zip(("chosen_ids", "rejected_ids"), r.answer_ids, strict=True))
        for p, r in zip(kept, rows, strict=True)
    ]
    here = Path(start.source).is_dir()  # then the weights go along; a Hub id is fetched again
    tokenizer, network = start.tokenizer, policy.network
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with replace_folder(Path(out)) as fresh:
        file = policy.save(fresh / "adapter") / "adapter_config.json"
        tokenizer.save_pretrained(fresh / "tokenizer")
        base: Any = network.unload()  # type: ignore[operator]
        if here:
            base.save_pretrained(fresh / "model")
        base_args = {
            "pretrained_model_name_or_path": "model" if here else start.source,
            "revision": getattr(base.config, "_commit_hash", None) or "main",
            "dtype": record["dtype"],
        }
        origin = {"base_model_name_or_path": base_args["pretrained_model_name_or_path"]}
        write_json(file, json.loads(file.read_text(encoding="utf-8")) | origin)
        settings = {"model": base_args, "batch_size": config.batch_size, "trl": _dpo_config(config, terms, n_steps)}
        write_json(fresh / "config.json", settings)
        _write_lines(fresh / "pairs.jsonl", texts)
        _write_lines(fresh / "steps.jsonl", steps)
        write_text(fresh / "requirements.txt", REQUIREMENTS)
        write_text(fresh / "train.py", Path(__file__).with_name("trl_train.txt").read_text(encoding="utf-8"))
    notes = [
        f"{len(kept)} pairs, {n_steps} steps of {config.batch_size}: pip install -r requirements.txt, then accelerate "
        "launch train.py",
        "trained/ takes the last adapter: TRL does not answer dev prompts on the way (dpo-workbench evaluate does)",
    ]
    return Exported(Path(out), notes)


def export_merged(run_folder: str | Path, out: str | Path, *, force: bool = False) -> Exported:
    """Write the run's model with its adapter added into the weights: a folder that plain transformers or vLLM loads.

    Safetensors in the run's dtype, config, generation config (the end token of training stops it), tokenizer and chat
    template. Arguments and errors as in `export_trl`.
    """
    folder, record = _record(run_folder)
    if not (folder / "adapter").is_dir():
        raise WorkbenchError(
            f"A run folder must hold the trained adapter. {folder / 'adapter'} is missing. Let the run end, or save it "
            "there with `run.model.save(...)`."
        )
    _check_free(out, folder, force)
    trained = load_adapter(_start(folder, record), folder / "adapter")
    end = trained.tokenizer.eos_token_id
    try:
        merged: Any = trained.network.merge_and_unload(safe_merge=True, adapter_names=[trained.adapter])  # type: ignore[operator]
    except ValueError as error:
        raise WorkbenchError(
            f"Merged weights must be finite. {folder / 'adapter'}: {error}. Train it again."
        ) from error
    ends = merged.generation_config.eos_token_id
    if end not in (ends if isinstance(ends, list) else [ends]):
        merged.generation_config.eos_token_id = end
    with replace_folder(Path(out)) as fresh:
        merged.save_pretrained(fresh)
        trained.tokenizer.save_pretrained(fresh)
    return Exported(Path(out), [f"{record['model']} with {folder / 'adapter'}, {record['dtype']}"])


def export_pairs(run_folder: str | Path, out: str | Path, layout: str = "trl", *, force: bool = False) -> Exported:
    """Write a run's pairs as `pairs.jsonl` in the format of TRL, OpenAI or Together (see `layouts.to_lines`).

    What the format cannot hold is counted in the notes and kept in `left_out.jsonl`.

    Args:
        run_folder: with `pairs.jsonl` in it, or that file itself.
        out, force: as in `export_trl`.
        layout: `trl`, `openai` or `together`.
    """
    folder = _run_folder(run_folder)
    file = folder / "pairs.jsonl" if folder.is_dir() else folder
    record = _record(folder)[1] if (folder / RECORD).is_file() else {"chat": True}
    pairs = Pairs.load(file)
    made = to_lines(pairs, layout, chat=record["chat"])
    _check_free(out, folder, force)
    with replace_folder(Path(out)) as fresh:
        write_text(fresh / "pairs.jsonl", "".join(line + "\n" for line in made.lines))
        if made.left_out:
            _write_lines(fresh / "left_out.jsonl", map(asdict, made.left_out))
    return Exported(Path(out), [f"{len(made.lines)} of {len(pairs)} pairs in {layout}'s format", *made.notes])


def _dpo_config(config: TrainConfig, terms: dict[str, float], n_steps: int) -> dict[str, Any]:
    """Arguments of TRL's DPOConfig, with one pair at a time on a device (see `IN_TRL`)."""
    return {
        "loss_type": [IN_TRL[name] for name in terms],
        "loss_weights": list(terms.values()),
        "beta": config.beta,
        "label_smoothing": config.label_smoothing,
        "learning_rate": config.lr,
        "max_steps": n_steps,
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": config.max_grad_norm,
        "max_length": None,
        "bf16": False,  # no autocast: the weights have the run's dtype, the adapter is fp32
        "seed": config.seed,
        "logging_steps": 1,
        "save_total_limit": 2,
        "report_to": "none",
    }


def _run_folder(path: str | Path) -> Path:
    """A demo's DPO run lies in its folder `dpo`."""
    inside = Path(path) / "dpo"
    return inside if (inside / RECORD).is_file() else Path(path)


def _record(path: str | Path) -> tuple[Path, dict[str, Any]]:
    folder = _run_folder(path)
    file = folder / RECORD
    if not file.is_file():
        raise WorkbenchError(
            f"A run folder must hold {RECORD}. {folder} has none. Name the folder of `dpo-workbench train` or `demo`; "
            "the same command on a run of an older version writes it."
        )
    try:
        return folder, json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkbenchError(f"{file} must be JSON. {error}. Run the training command again.") from error


def _start(folder: Path, record: dict[str, Any]) -> Model:
    """The model as training began with it.

    Raises:
        WorkbenchError: base weights or start adapter have changed since.
    """
    model = load_model(record["model"], device="cpu", dtype=getattr(torch, record["dtype"]))
    model = load_adapter(model, folder / "start") if record["start"] else model
    if model.fingerprint() != record["fingerprint"]:
        raise WorkbenchError(
            f"The model must be the one that the run began with. The weights of {record['model']!r} or of "
            f"{folder / 'start'} have changed since. Put them back, or train again."
        )
    return model


def _check_free(out: str | Path, run: Path, force: bool) -> None:
    path = Path(out)
    if path.resolve() in (run.resolve(), *run.resolve().parents):
        raise WorkbenchError(f"The new folder must not take the run's place. Got {path}. Choose another.")
    if path.exists() and not force and (not path.is_dir() or any(path.iterdir())):
        raise WorkbenchError(
            f"The new folder must be empty. {path} is not. Choose another, or replace it with force=True (--force)."
        )


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

"""Take a run to other engines: a project for TRL and Accelerate, or merged weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import check_new_folder, replace_folder, write_json, write_text
from dpo_workbench.models.adapter import dequantized_and_merged
from dpo_workbench.models.loading import Model, load_adapter, load_model
from dpo_workbench.models.publish import read_record
from dpo_workbench.pairs.pair import Pair, Pairs, pair_rows
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import hold_out
from dpo_workbench.training.loop import learning_rate
from dpo_workbench.training.losses import loss_terms
from dpo_workbench.training.packing import Row, rows_of_step, steps_per_epoch
from dpo_workbench.training.run import RECORD
from dpo_workbench.training.tokens import pair_texts, tokenize

SAME_IN_TRL = (  # losses with the same name and the same value for a pair in TRL's DPOTrainer
    "sigmoid", "robust", "hinge", "ipo", "nca_pair", "bco_pair", "apo_zero", "apo_down", "discopop",
    "sigmoid_norm",
)  # fmt: skip
# `sft` of TRL is a mean over the tokens of a micro-batch. With one pair at a time it equals the NLL term here.
IN_TRL = {name: name for name in SAME_IN_TRL} | {"nll": "sft"}
HERE = Path(__file__).parent
RECORDED = ("model", "dtype", "device", "start", "fingerprint", "config")
REQUIREMENTS = "torch\ntransformers>=5.23\npeft>=0.21\ndatasets\naccelerate>=1.15\ntrl>=1.16\n"


@dataclass(frozen=True)
class Exported:
    """The new folder, and what its reader should know."""

    folder: Path
    notes: list[str]

    def __repr__(self) -> str:
        return "\n".join([f"Exported: {self.folder}", *(f"  {note}" for note in self.notes)])


def export_trl(run_folder: str | Path, out: str | Path, *, force: bool = False) -> Exported:
    """Write a project that runs the same training with TRL on one or several GPUs: `accelerate launch train.py`.

    The project contains the token ids, the pairs and learning rate of every step, the adapter that the run started
    with, and a README. Its losses equal the losses of the run up to rounding (1e-4 in fp32, tested with two processes).

    Args:
        run_folder: of `dpo-workbench train` or `demo`, or a folder for which `record_run` was called.
        out: the new folder.
        force: replace a folder that is not empty.
    """
    folder, record = read_record(run_folder, RECORD, *RECORDED)
    config = TrainConfig.from_dict(record["config"])
    terms = loss_terms(config)
    if missing := [name for name in terms if name not in IN_TRL]:
        raise WorkbenchError(
            f"TRL's DPOTrainer must have the run's loss. Got {missing[0]!r}, which TRL lacks or computes differently. "
            f"Train with {', '.join(IN_TRL)}, or train here."
        )
    _check_out(out, folder, force)
    start = _start(folder, record)
    _, pairs = hold_out(list(Pairs.load(folder / "pairs.jsonl")), config)
    rows = tokenize(start, map(pair_texts, pairs), config.max_tokens)
    n_steps = steps_per_epoch(len(rows), config) * config.epochs
    shares = [learning_rate(step, n_steps, config) / config.lr for step in range(n_steps)]
    names = [[row.id for row in rows_of_step(rows, config, step)] for step in range(n_steps)]
    policy = start.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    with replace_folder(Path(out)) as fresh:
        base = _save_model(policy, fresh, record["dtype"])
        trl = _dpo_config(config, terms, n_steps)
        write_json(fresh / "config.json", {"model": base, "batch_size": config.batch_size, "trl": trl})
        _write_lines(fresh / "pairs.jsonl", _pair_lines(pairs, rows))
        steps = zip(shares, names, strict=True)
        _write_lines(fresh / "steps.jsonl", ({"lr_share": share, "pairs": ids} for share, ids in steps))
        write_text(fresh / "requirements.txt", REQUIREMENTS + ("bitsandbytes>=0.46.1\n" if start.quantize else ""))
        write_text(fresh / "train.py", (HERE / "trl_train.txt").read_text(encoding="utf-8"))
        readme = (HERE / "trl_readme.md").read_text(encoding="utf-8").replace("BATCH_SIZE", str(config.batch_size))
        write_text(fresh / "README.md", readme.replace("N_STEPS", str(n_steps)).replace("N_PAIRS", str(len(pairs))))
    notes = [
        f"{len(pairs)} pairs, {n_steps} steps of {config.batch_size}",
        "pip install -r requirements.txt, then accelerate launch train.py; README.md explains several GPUs",
        "trained/ will hold the last adapter, not the best one: TRL does not score dev prompts during training",
    ]
    return Exported(Path(out), notes)


def _save_model(policy: Model, folder: Path, dtype: str) -> dict[str, Any]:
    """Write adapter, tokenizer and, for a local model, the base weights; return how `train.py` loads the base model."""
    tokenizer = policy.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(policy.chat.end_id)
    tokenizer.save_pretrained(folder / "tokenizer")
    adapter_config = policy.save(folder / "adapter") / "adapter_config.json"
    network: Any = policy.network
    base = network.unload()
    name = policy.source
    if Path(policy.source).is_dir():  # a Hub id is downloaded again instead
        name = "model"
        base.save_pretrained(folder / name)
    content = json.loads(adapter_config.read_text(encoding="utf-8"))
    write_json(adapter_config, content | {"base_model_name_or_path": name})
    revision = getattr(base.config, "_commit_hash", None) or "main"
    settings = {"pretrained_model_name_or_path": name, "revision": revision, "dtype": dtype}
    if policy.quantize and name != "model" and not base.hf_quantizer.pre_quantized:
        settings["quantization_config"] = base.config.quantization_config.to_dict()
    return settings


def _pair_lines(pairs: Sequence[Pair], rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    """Each pair as text, or messages, and as token ids. Weights are scaled to a mean of 1, as in training."""
    mean = sum(pair.weight for pair in pairs) / len(pairs)
    for pair, row, plain in zip(pairs, rows, pair_rows(pairs), strict=True):
        chosen_ids, rejected_ids = row.answer_ids
        texts = {name: plain[name] for name in ("prompt", "chosen", "rejected")}
        ids = {"prompt_ids": row.prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
        yield {"id": pair.id, "weight": pair.weight / mean, **texts, **ids}


def _dpo_config(config: TrainConfig, terms: dict[str, float], n_steps: int) -> dict[str, Any]:
    """Arguments of TRL's DPOConfig, with one pair at a time on each device (see `IN_TRL`)."""
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


def export_merged(run_folder: str | Path, out: str | Path, *, force: bool = False) -> Exported:
    """Write the run's model with the adapter merged into the weights, for plain transformers or vLLM.

    The folder contains safetensors in the run's dtype, tokenizer, chat template with the run's arguments, and a
    generation config that stops at the tokens that ended answers here. 4-bit weights are dequantized, since the adapter
    was trained on their rounded values. Arguments and errors as in `export_trl`.
    """
    folder, record = read_record(run_folder, RECORD, *RECORDED)
    adapter = folder / "adapter"
    if not adapter.is_dir():
        raise WorkbenchError(f"A run folder must contain the trained adapter. Got no {adapter}. Let the run finish.")
    _check_out(out, folder, force)
    trained = load_adapter(_start(folder, record), adapter)
    network: Any = trained.network
    notes = [f"{record['model']} with {adapter}, {record['dtype']}"]
    if trained.quantize:
        notes.append(
            "the base weights are the dequantized 4-bit ones that the adapter was trained on, not the originals"
        )
    with replace_folder(Path(out)) as fresh:
        try:
            if trained.quantize:
                (weights := fresh.parent / "weights").mkdir()  # removed together with the folder that `fresh` is in
                merged = dequantized_and_merged(network, str(trained.adapter), weights)
            else:
                merged = network.merge_and_unload(safe_merge=True, adapter_names=[trained.adapter])
        except ValueError as error:
            raise WorkbenchError(f"Merged weights must be finite. {adapter}: {error}. Train it again.") from error
        merged.save_pretrained(fresh)
        trained.tokenizer.save_pretrained(fresh)
    return Exported(Path(out), notes)


def _start(folder: Path, record: dict[str, Any]) -> Model:
    """The model that training started with, with end tokens and template as an export saves them."""
    dtype, quantize = getattr(torch, record["dtype"]), record.get("quantize")
    device = None if quantize else "cpu"  # a GPU and a CPU round differently when they quantize
    model = load_model(record["model"], device=device, dtype=dtype, quantize=quantize, template=record.get("template"))
    model, network = replace(model, chat=model.chat.dated(record.get("date"))), model.network
    network.generation_config.eos_token_id = model.chat.stop_ids  # type: ignore[union-attr]
    if model.chat.arguments:
        model.tokenizer.chat_template = model.chat.template
    model = load_adapter(model, folder / "start") if record["start"] else model
    if quantize and model.device.type != record["device"]:
        print(f"quantized on {model.device.type}, in the run on {record['device']}: 4-bit weights may differ a little")
    elif model.fingerprint() != record["fingerprint"]:
        raise WorkbenchError(
            f"The model must be the one that the run started with. The weights of {record['model']!r} or of "
            f"{folder / 'start'} have changed since. Restore them, or train again."
        )
    return model


def _check_out(out: str | Path, run: Path, force: bool) -> None:
    path = Path(out)
    if path.resolve() in (run.resolve(), *run.resolve().parents):
        raise WorkbenchError(f"The new folder must not replace the run. Got {path}. Choose another folder.")
    check_new_folder(path, force)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

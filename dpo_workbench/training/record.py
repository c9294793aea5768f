"""`record_run`: what a run folder needs so that the run can be exported later."""

from __future__ import annotations

from pathlib import Path

from dpo_workbench.common.files import write_json
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.training.config import TrainConfig

RECORD = "run.json"


def record_run(folder: str | Path, model: Model, pairs: Pairs, config: TrainConfig) -> None:
    """Write settings, pairs, the model's name and its start adapter into a run folder, for `dw.export_trl` and others.

    Args:
        folder: the run folder, as given to `dw.train`.
        model, pairs, config: what `dw.train` gets.
    """
    folder = Path(folder)
    is_own_folder = Path(model.source).is_dir() and model.name not in ("nano", "smol")
    if model.adapter is not None:
        model.save(folder / "start")
    pairs.save(folder / "pairs.jsonl")
    record = {
        "model": str(Path(model.name).resolve()) if is_own_folder else model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "start": model.adapter is not None,
        "fingerprint": model.fingerprint(),
        "chat": bool(model.tokenizer.chat_template),
        "config": config.to_dict(),
    }
    write_json(folder / RECORD, record)

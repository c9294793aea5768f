"""One of the processes of `test_parallel`: runs the scenes that its arguments name, and writes what came of them.

torchrun --nproc-per-node 2 tests/common/parallel_job.py MODEL FOLDER
"""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dpo_workbench import cli
from dpo_workbench.common import parallel
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.loading import load_model
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.task import Example, Score, Task
from dpo_workbench.training import loop
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import Run, train

CONFIG = TrainConfig(lr=2e-2, batch_size=5, epochs=2, rank=4, alpha=8, probes=2, held_out=0.2, micro_tokens=80)


def score(example: Example, answer: str) -> Score:
    return Score(len(set(answer)) / 100)


def pairs() -> Pairs:
    rows = [Pair(f"p{k}", f"question {k}", f"yes: {k}", f"no: {'cd ' * (k % 3 + 1)}{k}") for k in range(13)]
    dev = [Example(f"dev{k}", f"question dev {k}", "yes", f"g{k}") for k in range(3)]
    return Pairs(rows, Task("toy", {"train": [], "dev": dev}, score, max_new_tokens=6))


def go(model: str, folder: Path | None, config: TrainConfig = CONFIG) -> Run:
    return train(load_model(model, device="cpu", dtype=torch.float32), pairs(), config, folder=folder, show=False)


def told(model: str, folder: Path | None = None) -> str:
    try:
        return f"finished {go(model, folder).finished}"
    except WorkbenchError as error:
        return str(error)


def at_row(row: str, act) -> None:
    """From now on `act` is called in the process that has the row, when the row is trained on."""
    honest = HONEST

    def poisoned(network, batch):
        sums = honest(network, batch)
        return act(batch, sums) if row in batch.ids and torch.is_grad_enabled() else sums

    loop.answer_logps = poisoned


def out_of_memory(batch, sums):
    if batch.input_ids.numel() > 50:
        raise MemoryError("none left")
    return sums


def interrupted(batch, sums):
    CALLS.append(1)
    if len(CALLS) == 2:
        signal.raise_signal(signal.SIGINT)
    return sums


HONEST, CALLS = loop.answer_logps, []


def command(model: str, folder: Path) -> None:
    """`dpo-workbench train` in this process."""
    loop.answer_logps = HONEST
    if parallel.rank() == 0:
        pairs().save(folder / "pairs.jsonl")
    parallel.gathered(None)  # wait for the file
    out = ("--out", str(folder / "command"), "--model", model, "-a", "none", "--task", "")
    sys.argv = ["dpo-workbench", "train", str(folder / "pairs.jsonl"), *out]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end.code


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    parallel.join()
    run = go(model, folder / "whole")
    said = {"history": run.history, "probes": run.probes, "size": parallel.size()}
    said["share"] = parallel.share([1, 2, 3])
    at_row("p4", lambda batch, sums: sums * float("nan"))
    said["nan"] = told(model)
    at_row("p4", out_of_memory)
    less = go(model, None, replace(CONFIG, micro_tokens=100_000))
    said["memory"] = {"history": less.history, "micro_tokens": less.config.micro_tokens}
    at_row("p4", interrupted)
    said["interrupt"] = told(model, folder / "cut")
    command(model, folder)
    (folder / f"said-{parallel.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()

"""Training runs in processes of their own, which kill themselves or are killed; used by test_training.py.

    python tests/oracles/killed_runs.py MODEL_FOLDER WORK_FOLDER

The imports are done once; each run is a fork. Prints one JSON object: for each case what the finished run ended in.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process and a pool of threads do not go together

import torch

import dpo_workbench as dw

CONFIG = dw.TrainConfig(
    lr=2e-2, batch_size=4, epochs=3, rank=4, alpha=8, probes=3, held_out=0.2, nll_weight=0.1, checkpoint_seconds=0
)


def make_pairs(stop: tuple[int, int] | None = None) -> tuple[dw.Pairs, list[int]]:
    """Pairs with a task whose scorer counts its calls and sends this process a signal at call number stop[0]."""
    calls = [0]

    def score(example: dw.Example, answer: str) -> dw.Score:
        calls[0] += 1
        if stop and calls[0] == stop[0]:
            os.kill(os.getpid(), stop[1])
        return dw.Score(len(answer) % 7 / 7, "short")

    def examples(split: str, n: int) -> list[dw.Example]:
        return [dw.Example(f"{split}-{k}", f"question {split} {k}", f"yes: {k}", f"{split}-g{k}") for k in range(n)]

    splits = {name: examples(name, n) for name, n in (("train", 12), ("dev", 4), ("test", 4))}
    task = dw.Task("toy", splits, score, max_new_tokens=8)
    rows = [
        dw.Pair(f"p{k}", e.prompt, f"yes: {k}", f"no: {'cd ' * (k % 3 + 1)}{k}", group=e.group)
        for k, e in enumerate(splits["train"])
    ]
    return dw.Pairs(rows, task), calls


def train_once(model: Path, folder: Path, stop: tuple[int, int] | None) -> None:
    """One run in this process; what it ended in goes to result.json."""
    pairs, calls = make_pairs(stop)
    run = dw.train(dw.load_model(model, device="cpu", dtype=torch.float32), pairs, CONFIG, folder=folder, show=False)
    bits = hashlib.sha256()
    for name, values in sorted(run.model.adapter_tensors().items()):
        bits.update(name.encode() + values.numpy().tobytes())
    found = {"adapter": bits.hexdigest(), "history": run.history, "finished": run.finished, "scored": calls[0]}
    (folder / "result.json").write_text(json.dumps(found))


def forked(model: Path, folder: Path, stop: tuple[int, int] | None = None, after: float | None = None) -> int:
    """Fork a run, kill it so many seconds after its next checkpoint, and give its exit status as os.waitpid does."""
    saved = {path.name for path in folder.glob("checkpoints/*/step-*")}
    child = os.fork()
    if child == 0:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        try:
            train_once(model, folder, stop)
        finally:
            sys.stdout.flush()
            os._exit(0 if (folder / "result.json").is_file() else 1)
    if after is not None:
        while saved.issuperset(path.name for path in folder.glob("checkpoints/*/step-*")):
            time.sleep(0.001)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # of a child that has ended by itself nothing is left to kill
    return os.waitpid(child, 0)[1]


def main(model: Path, work: Path) -> None:
    rng, found = random.Random(0), {}
    make_pairs(), dw.load_model, dw.train  # noqa: B018 - names are imported when they are first used: here, not in each fork

    def case(name: str, stops: list[tuple[int, int] | None] = (), times: list[float] = ()) -> None:
        folder, ends = work / name, []
        folder.mkdir()
        for stop in stops:
            ends.append(forked(model, folder, stop=stop))
        for after in times:
            ends.append(forked(model, folder, after=after))
        (folder / "result.json").unlink(missing_ok=True)
        status = forked(model, folder)
        result = json.loads((folder / "result.json").read_text()) if status == 0 else {}
        found[name] = {**result, "ends": [end & 0x7F for end in ends]}

    case("whole")
    scored = found["whole"]["scored"]
    for share in (0.4, 0.7, 0.95):
        case(f"killed in a probe at {share}", [(round(share * scored), signal.SIGKILL)])
    case("interrupted", [(round(0.6 * scored), signal.SIGINT)])
    case("killed at any moment", times=[rng.uniform(0, 0.01) for _ in range(4)])
    print(json.dumps(found))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    main(Path(sys.argv[1]), Path(sys.argv[2]))

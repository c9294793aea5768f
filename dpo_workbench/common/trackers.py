"""`track`: send the metrics of a run to trackio, Weights & Biases or TensorBoard, through accelerate's trackers."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_text

# name -> the packages of which it needs one
TRACKERS = {"none": (), "trackio": ("trackio",), "wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}
PROJECT = "dpo-workbench"


def check_tracker(name: str) -> None:
    """Raise WorkbenchError if the tracker's package is not installed."""
    if (packages := TRACKERS[name]) and not any(map(find_spec, packages)):
        raise WorkbenchError(
            f"`report_to` must name a tracker that is installed. Got {name!r}, which needs the package "
            f"{' or '.join(packages)}. Type: pip install {packages[0]}"
        )


@contextmanager
def track(
    name: str,
    settings: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    probes: Sequence[Mapping[str, float]],
    folder: str | Path | None,
) -> Iterator[Callable[[], None]]:
    """Inside the `with` block: a function that sends what `history` and `probes` have gained since its last call.

    Metrics have the names that TRL gives them in a tracker: `train/loss`, `eval/rewards/margins` and so on. A run that
    continues in its folder continues its run of the tracker, which a file in the folder names. If sending fails (no
    network), one warning says so, nothing more is sent, and training goes on.

    Raises:
        WorkbenchError: the tracker does not start, for example because nobody is logged in.
    """
    if name == "none":
        yield lambda: None
        return
    file = Path(folder) / f"{name}_run.txt" if folder else None
    run, done = f"{Path(folder or 'dpo').name}-{uuid.uuid4().hex[:8]}", 0
    if history and file and file.is_file():
        run, done = file.read_text(encoding="utf-8"), len(history)
    try:
        tracker = _start(name, run, settings, folder, done)
    except Exception as error:  # these libraries raise many kinds of errors
        raise WorkbenchError(
            f"The tracker {name!r} must start. It says: {type(error).__name__}: {error}. Do that, or leave "
            "`report_to` at 'none'."
        ) from error
    if file:
        write_text(file, run)
    sent, works = (done, len(probes) if done else 0), True

    def send() -> None:
        nonlocal sent
        new = [*(("train", entry) for entry in history[sent[0] :])]
        new += [("eval", _as_in_trl(entry, settings["beta"])) for entry in probes[sent[1] :]]
        sent = len(history), len(probes)
        for kind, entry in sorted(new, key=lambda item: item[1]["step"]):
            tracker.log({f"{kind}/{k}": v for k, v in entry.items() if k != "step"}, step=int(entry["step"]))

    def attempt(work: Callable[[], None]) -> None:
        nonlocal works
        try:
            if works:
                work()
        except Exception as error:  # the same; a lost connection must not cost the run
            works = False
            text = f"{name} failed ({type(error).__name__}: {error}). Nothing more is sent to it. Training goes on."
            warnings.warn(text, stacklevel=3)

    try:
        attempt(send)
        yield partial(attempt, send)
    finally:
        attempt(tracker.finish)


def _as_in_trl(probe: Mapping[str, float], beta: float) -> dict[str, float]:
    """A probe with the held-out pairs' log-ratios as rewards."""
    entry = dict(probe)
    if "preferred" in entry:
        chosen, rejected = beta * entry.pop("chosen_logratio"), beta * entry.pop("rejected_logratio")
        entry |= {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
        entry["rewards/accuracies"] = entry.pop("preferred")
    return entry


def _start(name: str, run: str, settings: Mapping[str, Any], folder: str | Path | None, done: int) -> Any:
    """The tracker for a run of which it has seen `done` steps."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # without it the trackers can't log
    options: dict[str, Any] = {"name": run, "resume": "allow"} | ({"id": run} if name == "wandb" else {})
    if name == "tensorboard":
        options = {"logging_dir": Path(folder or "runs") / name / run}
    tracker = LOGGER_TYPE_TO_CLASS[name](PROJECT, **options)
    tracker.start()
    if not done:
        tracker.store_init_configuration({k: str(v) if isinstance(v, dict) else v for k, v in settings.items()})
    return tracker

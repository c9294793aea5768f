"""`track`: send the metrics of a run to trackio, Weights & Biases or TensorBoard, through accelerate's trackers."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError

# name -> the packages of which it needs one
TRACKERS = {"none": (), "trackio": ("trackio",), "wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}
PROJECT = "dpo-workbench"


def check_tracker(name: str) -> None:
    """Raise WorkbenchError if the tracker's package is not installed."""
    if (packages := TRACKERS[name]) and not any(map(find_spec, packages)):
        raise WorkbenchError(
            f"`report_to={name!r}` needs the package {' or '.join(packages)}. Type: pip install {packages[0]}"
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
    continues in its folder becomes a new run of the tracker, with its earlier steps. If sending fails (no network), one
    warning says so, nothing more is sent, and training goes on.

    Raises:
        WorkbenchError: the tracker does not start, for example because nobody is logged in.
    """
    if name == "none":
        yield lambda: None
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    run = f"{Path(folder or 'dpo').name}-{uuid.uuid4().hex[:8]}"
    in_files = name == "tensorboard"
    options: dict[str, Any] = {"logging_dir": Path(folder or "runs") / name / run} if in_files else {"name": run}
    try:
        PartialState()  # without it the trackers can't log
        tracker: Any = LOGGER_TYPE_TO_CLASS[name](PROJECT, **options)
        tracker.start()
        tracker.store_init_configuration({k: str(v) if isinstance(v, dict) else v for k, v in settings.items()})
    except Exception as error:  # these libraries raise many kinds of errors
        raise WorkbenchError(
            f"{name!r} must start. It says: {type(error).__name__}: {error}. Do that, or set report_to='none'."
        ) from error
    sent, works = (0, 0), True

    def send(last: bool = False) -> None:
        nonlocal sent, works
        new = [("train", entry) for entry in history[sent[0] :]]
        new += [("eval", _as_in_trl(entry, settings["beta"])) for entry in probes[sent[1] :]]
        sent = len(history), len(probes)
        try:
            for kind, entry in sorted(new, key=lambda item: item[1]["step"]) if works else ():
                tracker.log({f"{kind}/{k}": v for k, v in entry.items() if k != "step"}, step=int(entry["step"]))
            if last and works:
                tracker.finish()
        except Exception as error:  # the same; a lost connection must not cost the run
            works = False
            text = f"{name} failed ({type(error).__name__}: {error}). Nothing more is sent to it. Training goes on."
            warnings.warn(text, stacklevel=3)

    send()
    try:
        yield send
    finally:
        send(last=True)


def _as_in_trl(probe: Mapping[str, float], beta: float) -> dict[str, float]:
    """A probe with the held-out pairs' log-ratios as rewards."""
    entry = dict(probe)
    if "preferred" in entry:
        chosen, rejected = beta * entry.pop("chosen_logratio"), beta * entry.pop("rejected_logratio")
        entry |= {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
        entry["rewards/accuracies"] = entry.pop("preferred")
    return entry

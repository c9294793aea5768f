"""What stops a run before it does harm: values that are not finite, and a reference that is not the policy's start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dpo_workbench.runtime.errors import WorkbenchError


def check_finite(what: str, value: Tensor, ids: Iterable[str], seen: dict[str, list[float]]) -> None:
    """Raise when a loss, gradient or logps value is NaN or infinite, before anything is updated.

    Raises:
        WorkbenchError: names the rows of the batch and the terms that are not finite.
    """
    if torch.isfinite(value).all():
        return
    bad = [key for key, values in seen.items() if not all(map(_finite, values))]
    raise WorkbenchError(
        f"The {what} must be finite. Got {float(value.detach().sum())} in a batch with rows {', '.join(list(ids)[:8])}"
        f"{' (terms: ' + ', '.join(bad) + ')' if bad else ''}. The model was not changed by this batch. Look at these "
        "rows; if they are sound, lower lr or load the model with dtype=torch.float32."
    )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")

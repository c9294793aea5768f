"""`Answer`, and the limits of decoding settings: what generation here and at a server have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from dpo_workbench.common.errors import WorkbenchError


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    n_tokens: int
    finished: bool  # False: cut off at the token limit


def check_decoding(samples: int, temperature: float, max_new_tokens: int, repetition_penalty: float = 1.0) -> None:
    """Check the decoding settings.

    Raises:
        WorkbenchError: a number out of its range, or several samples at temperature 0.
    """
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if not isinstance(value, Integral) or value < 1:
            raise WorkbenchError(f"`{name}` must be a whole number of at least 1. Got {value!r}.")
    if not 0 <= temperature < math.inf:
        raise WorkbenchError(f"`temperature` must be 0 (greedy) or more. Got {temperature!r}.")
    if not 0 < repetition_penalty < math.inf:
        raise WorkbenchError(f"`repetition_penalty` must be above 0 (1 means none). Got {repetition_penalty!r}.")
    if samples > 1 and temperature == 0:
        raise WorkbenchError(
            f"Several samples need a temperature above 0, otherwise they are all equal. Got samples={samples}, "
            f"temperature={temperature}. Set temperature=1.0."
        )

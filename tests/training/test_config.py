"""`TrainConfig`: unknown settings and impossible values are refused with the way out."""

import json

import numpy
import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.training.config import SFT_CONFIG, TrainConfig


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(WorkbenchError, match="no setting 'learning_rte'. (Did you mean|Known)"):
        TrainConfig.from_dict({"learning_rte": 1})
    with pytest.raises(WorkbenchError, match="no setting 'bata'. Did you mean 'beta'"):
        TrainConfig.from_dict({"bata": 0.1})
    with pytest.raises(WorkbenchError, match="Known: loss, beta"):
        TrainConfig.from_dict({"zzz": 0.1})


def test_plain_values_there_and_back() -> None:
    config = TrainConfig(beta=0.3, loss="ipo")
    assert TrainConfig.from_dict(config.to_dict()) == config != SFT_CONFIG


def test_numbers_of_numpy_become_plain_ones() -> None:
    """A sweep over `numpy.array([4, 8])` must not end in a checkpoint that JSON can't write."""
    config = TrainConfig(rank=numpy.int64(4), lr=numpy.float32(0.5), packing=numpy.True_)
    assert json.dumps(config.to_dict()) == json.dumps(TrainConfig(rank=4, lr=0.5).to_dict())


ABOVE = ["beta", "lr", "epochs", "batch_size", "micro_tokens", "rank", "alpha", "max_tokens"]
OUTSIDE = [
    *((name, value, "must be (above 0|a whole number)") for name in ABOVE for value in (0, -1, float("nan"))),
    *((name, -0.1, "must be 0 or more") for name in ("nll_weight", "dpop_lambda", "checkpoint_seconds")),
    *((name, value, "must be a share") for name in ("warmup", "held_out") for value in (-0.1, 1.5, float("nan"))),
    *((name, value, "must be a whole number") for name in ("epochs", "rank", "seed") for value in (0.5, "1", True)),
    *(("lr", value, "must be a number") for value in ("1e-4", None, True)),
    ("probes", -1, "must be 0 or more"),
    ("held_out", 1.0, "must be a share"),
]


@pytest.mark.parametrize(("name", "value", "message"), OUTSIDE)
def test_values_out_of_range(name: str, value: object, message: str) -> None:
    with pytest.raises(WorkbenchError, match=f"`{name}` {message}"):
        TrainConfig(**{name: value})

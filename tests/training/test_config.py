"""`TrainConfig`: unknown settings and impossible values are refused with the way out."""

import pytest

from dpo_workbench.runtime.errors import WorkbenchError
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


@pytest.mark.parametrize("name", ["beta", "lr", "epochs", "batch_size", "micro_tokens", "rank", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_values_that_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(WorkbenchError, match=f"`{name}` must be above 0"):
        TrainConfig(**{name: value})

"""Values that are not finite are named with their rows and terms."""

import pytest
import torch

from dpo_workbench.runtime.errors import WorkbenchError
from dpo_workbench.training.guards import check_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(value: float) -> None:
    seen = {"logps/chosen": [1.0, value], "logps/rejected": [2.0]}
    with pytest.raises(WorkbenchError) as caught:
        check_finite("loss", torch.tensor([1.0, value]), ["a", "b"], seen)
    text = str(caught.value)
    assert "The loss must be finite" in text and "rows a, b" in text and "(terms: logps/chosen)" in text


def test_finite_is_silent() -> None:
    assert check_finite("loss", torch.tensor([1.0, -1e30]), ["a"], {}) is None

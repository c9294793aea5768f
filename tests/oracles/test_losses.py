"""Every loss keeps its values and gradients: compared with numbers that were stored in fp64."""

import importlib.util
import json
from pathlib import Path

import pytest

import dpo_workbench as dw

_spec = importlib.util.spec_from_file_location("make_losses", Path(__file__).with_name("make_losses.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)
STORED = json.loads(made.FILE.read_text(encoding="utf-8"))


def test_no_loss_is_missing() -> None:
    assert set(STORED["losses"]) <= set(dw.LOSSES) and len(STORED["losses"]) == 17


@pytest.mark.parametrize("name", STORED["losses"])
def test_values_and_gradients_are_the_stored_ones(name: str) -> None:
    for settings, want in zip(STORED["settings"], STORED["losses"][name], strict=True):
        got = made.compute(name, STORED["inputs"], settings)
        for key, values in want.items():
            assert got[key] == pytest.approx(values, rel=1e-9, abs=1e-12), (key, settings)


@pytest.mark.parametrize("name", STORED["losses"])
def test_a_small_change_of_the_inputs_is_seen(name: str) -> None:
    """Negative control: 0.001 nats on one pair change the values by more than the tolerance."""
    inputs = {key: list(values) for key, values in STORED["inputs"].items()}
    inputs["policy_chosen_logps"][2] += 1e-3
    got = made.compute(name, inputs, STORED["settings"][0])["values"]
    assert got != pytest.approx(STORED["losses"][name][0]["values"], rel=1e-9, abs=1e-12)

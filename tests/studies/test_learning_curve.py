"""How much data: forecasts that hold in simulation, advice from known curves, nested subsets that share their start."""

import json

import numpy as np
import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.plots.learning_curve import CurveDisplay
from dpo_workbench.studies import learning_curve as module
from dpo_workbench.studies.learning_curve import (
    FAMILIES,
    Curve,
    advise,
    forecast,
    learning_curve,
    nested,
)
from dpo_workbench.training.config import TrainConfig

SIZES = (0, 8, 16, 32, 64)


def drawn(truth, noise: float = 0.01, seed: int = 0, sizes=SIZES, better: bool = True) -> Curve:
    rng = np.random.default_rng(seed)
    rows = [tuple(np.clip(truth(n) + noise * rng.standard_normal(3), 0, 1)) for n in sizes]
    return Curve(sizes, tuple(tuple(map(float, row)) for row in rows), higher_is_better=better)


def rising(n: float) -> float:
    return 0.4 + 0.4 * (1 - np.exp(-n / 60))


def test_each_family_rises_from_nothing_to_no_more_than_all():
    n = np.array([0.0, 1, 10, 100, 1000])
    for way, shapes in FAMILIES.values():
        for c in shapes:
            values = way(n, 30.0, c)
            assert values[0] == pytest.approx(0) and (np.diff(values) > 0).all() and values[-1] <= 1 + 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_finds_its_own_curve(family):
    way, shapes = FAMILIES[family]
    curve = drawn(lambda n: 0.3 + 0.4 * way(np.array(float(n)), 20.0, shapes[0]), noise=0.004)
    truth = 0.3 + 0.4 * way(np.array(128.0), 20.0, shapes[0])
    seen = forecast(curve, 128, only=[family])
    assert seen.low <= truth <= seen.high and seen.families == {family: pytest.approx(1)}
    pooled = forecast(curve, 128)
    assert sum(pooled.families.values()) == pytest.approx(1)
    assert abs(pooled.estimate - truth) < 0.05


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng, held = np.random.default_rng(3), 0
    for k in range(120):
        start, way, scale = rng.uniform(0.2, 0.6), rng.uniform(0, 0.35), float(np.exp(rng.uniform(2, 5)))
        truth = lambda n, a=start, b=way, s=scale: a + b * (1 - np.exp(-((n / s) ** 0.8)))  # noqa: E731
        seen = forecast(drawn(truth, 0.015, seed=k), 128)
        held += seen.low <= truth(128) <= seen.high
    assert 0.68 <= held / 120 <= 0.97


def test_further_ahead_and_fewer_points_are_less_sure():
    curve = drawn(rising)
    near, far = forecast(curve, 80), forecast(curve, 640)
    assert far.high - far.low > near.high - near.low
    less = Curve(curve.sizes[:3], curve.values[:3])
    assert forecast(less, 128).high - forecast(less, 128).low > forecast(curve, 128).high - forecast(curve, 128).low
    assert forecast(curve, 128, runs=1).high > forecast(curve, 128).high  # the noise of one run on top


def test_advice_from_known_curves():
    up = advise(drawn(lambda n: 0.3 + 0.005 * n, noise=0.005), 64)
    assert up.decision == "label more" and str(up).startswith("label 64 more: +") and "(80 %)" in str(up)
    flat = advise(drawn(lambda n: 0.4 + 0.3 * (n > 0), noise=0.002), 64)
    assert flat.decision == "enough", str(flat)
    noisy = advise(drawn(lambda n: 0.4 + 0.02 * (n > 10), noise=0.05), 64)
    assert noisy.decision == "cannot tell"
    down = advise(drawn(lambda n: 0.7 - rising(n) / 2, noise=0.004, better=False), 64)
    assert down.decision == "label more" and down.forecast.gain > 0 and down.forecast.estimate < 0.4


def test_ill_behaved_curves_are_flagged_and_get_no_advice():
    peak = advise(drawn(lambda n: 0.7 if n == 16 else 0.4, noise=0.004), 64)
    assert peak.decision == "cannot tell" and "better at 16 pairs than at 64" in str(peak)
    wild = drawn(rising, noise=0.2, seed=4)
    assert any("seeds differ" in flag for flag in wild.flags())


@pytest.mark.parametrize(
    ("sizes", "values"),
    [
        ((8, 16), ((0.1,), (0.2,))),
        ((8, 16, 16), ((0.1,), (0.2,), (0.3,))),
        ((8, 16, 32), ((0.1,), (), (0.3,))),
        ((8, 16, 32), ((0.1,), (float("nan"),), (0.3,))),
        ((-1, 16, 32), ((0.1,), (0.2,), (0.3,))),
    ],
)
def test_broken_curves_are_refused(sizes, values):
    with pytest.raises(WorkbenchError, match="three sizes or more"):
        Curve(sizes, values)


def test_a_forecast_needs_a_known_family():
    with pytest.raises(WorkbenchError, match="exponential, power"):
        forecast(drawn(rising), 128, only=["cubic"])


def test_subsets_are_nested_and_differ_by_seed(toy_pairs):
    small, large = ({p.id for p in nested(toy_pairs, n, 1)} for n in (4, 9))
    assert len(small) == 4 and small < large
    assert {p.id for p in nested(toy_pairs, 4, 2)} != small


def test_a_learning_curve_is_continued_from_its_folder(tiny, toy_pairs, toy_task, tmp_path, monkeypatch):
    config = TrainConfig(lr=1e-3, epochs=2, batch_size=4, probes=0)
    given = {"sizes": (3, 6, 9), "seeds": (0, 1), "folder": tmp_path / "curve", "target": ("wrong",), "show": False}
    done = learning_curve(tiny, toy_pairs, toy_task.test, config, **given)
    assert [p["size"] for p in done.points] == [0, 3, 3, 6, 6, 9, 9]
    assert done.curve("failed").sizes == (0, 3, 6, 9) and not done.curve("mined").higher_is_better
    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("a finished run ran again"))
    again = learning_curve(tiny, toy_pairs, toy_task.test, config, **given)
    assert again.points == done.points
    assert json.loads((tmp_path / "curve" / "curve.json").read_text(encoding="utf-8")) == list(done.points)
    with pytest.raises(WorkbenchError, match="at most the 12 pairs"):
        learning_curve(tiny, toy_pairs, toy_task.test, config, **(given | {"sizes": (3, 6, 90)}))


def test_the_display_has_its_numbers_as_text():
    display = CurveDisplay.from_curve(drawn(rising), 128).plot()
    assert "128 pairs" in display.title and "80 % interval" in str(display)
    assert len(display.ax_.lines) >= 2

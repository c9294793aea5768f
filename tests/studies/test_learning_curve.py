"""How much data: intervals and advice from known curves, nested subsets, runs that are read from the folder."""

import numpy as np
import pytest

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.statistics import over_seeds, paired_difference
from dpo_workbench.studies import learning_curve as module
from dpo_workbench.studies.learning_curve import LearningCurve, learning_curve, nested
from dpo_workbench.training.config import TrainConfig

SIZES = (0, 16, 32, 64)


def drawn(truth, seeds: int = 3, n: int = 400, noise: float = 0.01, seed: int = 0, sizes=SIZES) -> LearningCurve:
    """Passed prompts: each has a difficulty that all runs share, and each run a pass rate of its own."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(n)

    def run(size: int) -> list[float]:
        harder = difficulty + 0.1 * rng.standard_normal(n)
        return (harder < truth(size) + noise * rng.standard_normal()).astype(float).tolist()

    values = {size: [run(size) for _ in range(seeds if size else 1)] for size in sizes}
    return LearningCurve(values, [f"g{k}" for k in range(n)])


@pytest.mark.parametrize("seeds", (1, 3))
def test_advice_from_known_curves(seeds):
    up = drawn(lambda n: 0.3 + 0.007 * n, seeds).advice()
    assert up.decision == "label more" and up.sizes == (32, 64)
    assert str(up).startswith("label more: from 32 to 64 pairs +") and "(95 % interval +" in str(up)
    assert drawn(lambda n: 0.7 - 0.004 * n, seeds).advice().decision == "stop"
    flat = LearningCurve({8: [[0.0, 1.0] * 50] * seeds, 16: [[1.0, 0.0] * 50] * seeds}, [str(k) for k in range(100)])
    assert flat.advice().decision == "cannot tell" and flat.advice(worth=0.5).decision == "stop"


def test_a_clear_gain_that_is_not_worth_it_is_no_reason_to_label():
    values = {8: [[0.5] * 200], 16: [[0.51] * 100 + [0.505] * 100]}
    curve = LearningCurve(values, [str(k) for k in range(200)])
    assert curve.advice(worth=0.05).decision == "stop" and curve.advice(worth=0.001).decision == "label more"


def test_intervals_are_those_of_the_statistics():
    curve = drawn(lambda n: 0.4 + 0.002 * n, seeds=3)
    start, *_, last = curve.means()
    zeros = [0.0] * 400
    assert start == paired_difference(zeros, curve.values[0][0], curve.groups)
    assert last == over_seeds([zeros], curve.values[64], curve.groups)
    assert curve.advice().gain == over_seeds(curve.values[32], curve.values[64], curve.groups)


@pytest.mark.slow
def test_the_interval_of_the_gain_covers_other_seeds_and_prompts():
    truth = lambda n: 0.4 + 0.15 * (n == 64)  # noqa: E731
    gains = [drawn(truth, n=150, noise=0.03, seed=k).advice().gain for k in range(200)]
    covered = np.mean([gain.low <= 0.15 <= gain.high for gain in gains])
    assert 0.9 <= covered <= 1


def test_without_a_size_of_at_most_half_there_is_no_advice():
    with pytest.raises(WorkbenchError, match="Run 32 pairs too"):
        drawn(lambda n: 0.5, sizes=(0, 40, 64)).advice()


def test_subsets_are_nested_and_differ_by_seed(toy_pairs):
    small, large = ({p.id for p in nested(toy_pairs, n, 1)} for n in (4, 9))
    assert len(small) == 4 and small < large
    assert {p.id for p in nested(toy_pairs, 4, 2)} != small


def test_a_learning_curve_is_continued_from_its_folder(tiny, toy_pairs, toy_task, tmp_path, monkeypatch):
    config = TrainConfig(lr=1e-3, epochs=2, batch_size=4, probes=0)
    given = {"sizes": (3, 6), "seeds": (0, 1), "folder": tmp_path / "curve", "show": False}
    done = learning_curve(tiny, toy_pairs, toy_task.test, config, **given)
    assert done.sizes == [0, 3, 6] and [len(done.values[n]) for n in done.sizes] == [1, 2, 2]
    first = dw.Evaluation.load(tmp_path / "curve" / "6-1.json")
    assert done.values[6][1] == [row.value for row in first.rows] and len(done.groups) == len(toy_task.test)
    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("a finished run ran again"))
    aimed = learning_curve(tiny, toy_pairs, toy_task.test, config, target=("wrong",), **given)
    assert aimed.metric == "share without wrong"
    assert aimed.values[6][1] == [float(row.failure != "wrong") for row in first.rows]
    with pytest.raises(WorkbenchError, match="at most the 12 pairs"):
        learning_curve(tiny, toy_pairs, toy_task.test, config, **(given | {"sizes": (3, 6, 90)}))


def test_the_curve_as_text_and_as_a_figure():
    curve = drawn(lambda n: 0.4 + 0.004 * n)
    assert curve.title in str(curve) and "with 64" in curve.title and str(curve).count("\n") == len(SIZES)
    assert list(curve.plot().lines[0].get_xdata()) == list(SIZES)

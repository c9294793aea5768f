"""Headroom by hand: 4 prompts with 4 samples.

    a: pass pass pass pass     (scores 1 1 1 1)
    b: pass loop loop wrong    (scores 1 0 0 0.4)   mixed
    c: wrong wrong wrong wrong (scores 0.5 0.5 0 0) never
    d: pass pass pass loop     (scores 1 1 1 0.2)   mixed

8 of 16 samples fail: 3 loops, all on mixed prompts, and 5 wrong, one on a mixed prompt. So the forecast is 4 / 8, 3 / 3
for loops and 1 / 5 for wrong. Mean score (4 + 1.4 + 1 + 3.2) / 16 = 0.6, best of 4 (1 + 1 + 0.5 + 1) / 4 = 0.875.
"""

import json

import pytest

from dpo_workbench.mining.headroom import Headroom

OK, LOOP = (1.0, None), (0.0, "loop")
ROWS = [
    [OK] * 4,
    [OK, LOOP, LOOP, (0.4, "wrong")],
    [(0.5, "wrong"), (0.5, "wrong"), (0.0, "wrong"), (0.0, "wrong")],
    [OK, OK, OK, (0.2, "loop")],
]


def test_by_hand() -> None:
    found = Headroom.of(ROWS)
    assert repr(found) == str(found)
    assert (found.n_prompts, found.samples) == (4, 4)
    assert found.mean_score == pytest.approx(0.6) and found.best_score == pytest.approx(0.875)
    assert (found.failed_share, found.mixed_share, found.never_share) == (0.5, 0.5, 0.25)
    assert found.forecast == 0.5 and found.classes == {"wrong": 0.2, "loop": 1.0}
    assert list(found.classes) == ["wrong", "loop"]  # the most frequent first
    assert found.advice == "go" and "50 % of the failures happen where the model also knows" in str(found)


@pytest.mark.parametrize(
    ("rows", "advice", "words"),
    [
        ([[OK] * 4] * 5, "nothing to fix", "too few failures"),
        ([[LOOP] * 4] * 5, "train more first", "lacks the skill (capability)"),
        ([[OK, LOOP]] + [[LOOP, LOOP]] * 5, "train more first", "lacks the skill"),
        ([[OK, LOOP]] * 2 + [[LOOP, LOOP]] * 3, "go", "Worth a try: 25 % of the failures"),
    ],
)
def test_advice(rows, advice: str, words: str) -> None:
    found = Headroom.of(rows)
    assert found.advice == advice and words in str(found)


def test_a_target_counts_only_its_classes() -> None:
    found = Headroom.of(ROWS, ("loop",))  # 3 loops, on b and d, which have other answers too
    assert (found.failed_share, found.mixed_share, found.never_share) == (3 / 16, 0.5, 0.0)
    assert found.forecast == 1.0 and found.classes == {"loop": 1.0} and found.target == ("loop",)
    assert "samples fail as loop. 50 % of the prompts" in str(found)
    assert found.mean_score == Headroom.of(ROWS).mean_score


def test_better_endings_count_as_answers_that_pass() -> None:
    found = Headroom.of(ROWS, ("wrong",), [False, False, True, False])  # c: all four wrong, one with a better ending
    assert (found.mixed_share, found.never_share, found.forecast) == (0.5, 0.0, 1.0)
    assert Headroom.of(ROWS, ("wrong",)).forecast == 0.2


def test_no_failures_forecast_nothing() -> None:
    found = Headroom.of([[OK, OK]])
    assert (found.forecast, found.classes, found.mixed_share, found.never_share) == (0.0, {}, 0.0, 0.0)


def test_plain_values_for_json() -> None:
    facts = json.loads(json.dumps(Headroom.of(ROWS).to_dict()))
    assert facts["advice"] == "go" and facts["classes"]["loop"] == 1.0 and facts["text"]

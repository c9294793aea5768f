"""Blind judging of two evaluations: nothing shows which is which, and it ends in a win rate."""

from __future__ import annotations

import json
import math

import pytest

import dpo_workbench as dw
from dpo_workbench.evaluation.statistics import prompts_needed, win_rate
from dpo_workbench.labelling.widget import card

N = 24


def evaluation(name, answers) -> dw.Evaluation:
    rows = [{"prompt": f"question {k}", "answer": answer} for k, answer in enumerate(answers)]
    return dw.Evaluation.from_rows(rows, name=name, task="answers", source="here")


BEFORE = evaluation("model-before", [f"bad {k}" for k in range(N)])
AFTER = evaluation("model-after", [f"good {k}" if k % 4 else f"bad {k}" for k in range(N)])  # 6 answers are equal
JUDGED = N - 6


def work(store, choose, n=JUDGED, rater="ann", before=BEFORE, after=AFTER):
    """Judge n pairs in plain text; `choose(answer A)` gives the command."""
    written, count = [], iter(range(n))

    def read(_: str) -> str:
        if next(count, None) is None:
            return "q"
        return choose(written[-1].split("[A]\n")[1].split("\n")[0])

    return dw.judge_blind(before, after, rater=rater, store=store, text=True, read=read, write=written.append), written


def for_good(a: str) -> str:
    return "a" if a.startswith("good") else "b"


def against(a: str) -> str:
    return "b" if for_good(a) == "a" else "a"


def test_it_ends_in_a_win_rate(tmp_path) -> None:
    blind, written = work(tmp_path / "b.jsonl", for_good)
    found = blind.win_rate
    assert (found.wins, found.losses, found.ties, found.equal, found.missing) == (JUDGED, 0, 0, 6, 0)
    assert found.interval == win_rate([0] * N, [1] * JUDGED + [0] * 6, [str(k) for k in range(N)])
    assert "win rate 0.88" in written[-1] and "'model-after' are clearly preferred" in written[-1]
    blind, written = work(tmp_path / "o.jsonl", against)
    assert blind.win_rate.losses == JUDGED and "'model-before' are clearly preferred" in written[-1]


def test_nothing_is_told_before_the_end(tmp_path) -> None:
    blind, written = work(tmp_path / "b.jsonl", for_good, n=5)
    assert "win rate is shown once all pairs are judged" in written[-1]
    assert not any("model-" in text for text in written)
    assert blind.win_rate.missing == JUDGED - 5 and blind.win_rate.interval.n == 11  # 5 and 6 equal ones
    _, written = work(tmp_path / "b.jsonl", for_good)  # the same call continues
    assert "clearly preferred" in written[-1]
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == JUDGED


def test_sides_and_order_are_random(tmp_path) -> None:
    firsts = []
    blind, _ = work(tmp_path / "b.jsonl", lambda a: firsts.append(a) or "a")
    n_good = sum(a.startswith("good") for a in firsts)
    assert 2 < n_good < JUDGED - 2
    numbers = [int(a.split()[1]) for a in firsts]
    assert numbers != sorted(numbers) and blind.win_rate.wins == n_good


def test_the_widget_shows_no_names_and_the_result_at_the_end(tmp_path) -> None:
    blind = dw.judge_blind(BEFORE, AFTER, rater="ann", store=tmp_path / "b.jsonl")
    screen = blind.screen
    screen.session.quick = 0.0
    for _ in range(JUDGED):
        shown = " ".join(part.value for part in screen.parts.values())
        assert "model-" not in shown and "win rate" not in shown
        screen.buttons[for_good(screen.session.answers[0])].click()
    assert "win rate 0.88" in screen.parts["message"].value and "model-" not in " ".join(card(screen.session).values())
    screen.buttons["u"].click()
    assert "win rate" not in screen.parts["message"].value


def test_several_people_count_by_majority(tmp_path) -> None:
    store = tmp_path / "b.jsonl"
    work(store, for_good, rater="ann")
    blind, _ = work(store, lambda a: "t", rater="ben")
    assert blind.win_rate.wins == JUDGED  # a vote and a tie: the vote
    blind, _ = work(store, against, rater="cat")
    assert (blind.win_rate.wins, blind.win_rate.ties) == (0, JUDGED)  # one against one
    assert "flip rate" in repr(dw.agreement(blind.labels))


def test_how_many_judgments_are_still_needed(tmp_path) -> None:
    votes = iter("aaaaaaaaaaabbbbbbb")  # for the answer after training, and against it
    blind, written = work(tmp_path / "c.jsonl", lambda a: for_good(a) if next(votes) == "a" else against(a))
    found = blind.win_rate
    assert (found.wins, found.losses) == (11, 7) and found.interval.low < 0.5
    assert found.needed(0.1) == prompts_needed(0.1, 18 / N) - N
    assert f"about {found.needed(0.1)} to detect a win rate of 0.55" in written[-1]
    assert f"{found.needed(4 / N)} to detect a win rate of 0.58" in written[-1]
    blind, written = work(tmp_path / "d.jsonl", lambda a: "t")
    assert (blind.win_rate.ties, blind.win_rate.interval.estimate) == (JUDGED, 0.5)
    assert "0.55" in written[-1] and "0.50." not in written[-1]


def test_skips_and_both_bad(tmp_path) -> None:
    blind, _ = work(tmp_path / "b.jsonl", lambda a: "x" if a.endswith(("1", "2")) else "s" if a.endswith("3") else "a")
    counted = blind.win_rate
    assert counted.missing == sum(k % 10 == 3 for k in range(N) if k % 4)
    assert counted.ties == sum(k % 10 in (1, 2) for k in range(N) if k % 4)


def test_bad_input(tmp_path) -> None:
    store = tmp_path / "b.jsonl"
    with pytest.raises(dw.WorkbenchError, match="same prompts"):
        dw.judge_blind(BEFORE, evaluation("other", ["x"] * 3), rater="ann", store=store)
    changed = [{"id": k, "prompt": f"q{k // 2}", "answer": "x"} for k in range(2)]
    one = dw.Evaluation.from_rows(changed, name="one", task="answers", source="here")
    two = dw.Evaluation.from_rows([r | {"prompt": "p"} for r in changed], name="two", task="answers", source="here")
    with pytest.raises(dw.WorkbenchError, match="2 examples differ, such as '0'"):
        dw.judge_blind(one, two, rater="ann", store=store)
    with pytest.raises(dw.WorkbenchError, match="only equal answers"):
        dw.judge_blind(BEFORE, BEFORE, rater="ann", store=store)
    blind, _ = work(store, for_good, n=0)
    with pytest.raises(dw.WorkbenchError, match="label file must exist"):
        blind.win_rate  # noqa: B018
    bad, good = evaluation("b", ["bad 0"]), evaluation("a", ["good 0"])
    single, written = work(tmp_path / "s.jsonl", for_good, before=bad, after=good)
    assert (single.win_rate.interval.low, single.win_rate.interval.high) == (0, 1)
    assert "Neither is clearly preferred" in written[-1] and not math.isnan(single.win_rate.interval.estimate)
    assert json.loads((tmp_path / "s.jsonl").read_text())["rater"] == "ann"

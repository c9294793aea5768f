"""The label file: every vote is on the disk, and is read again after damage, copies and kills, for each rater."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dpo_workbench as dw

PAIRS = [dw.Pair(f"p{k}", f"question {k}", f"right answer {k}", f"wrong answer {k}") for k in range(6)]


def label(path: Path, rater: str, *votes: bool | str) -> None:
    """Label in plain text: True for the right answer, False for the wrong one, or a typed command."""
    shown, left = [], iter([*votes, "q"])

    def read(_: str) -> str:
        vote = next(left)
        (*_, card) = (text for text in shown if "right answer" in text)
        right_first = card.index("right answer") < card.index("wrong answer")
        return vote if isinstance(vote, str) else "a" if vote == right_first else "b"

    dw.label_text(PAIRS, rater=rater, store=path, read=read, write=shown.append)


def said(*paths: Path) -> dict[tuple[str, str], int | None]:
    """(rater, pair id) -> 1 where the right answer won, -1 where the wrong one did."""
    return {(vote.event.rater, vote.pair.id): vote.value for vote in dw.read_labels(paths, PAIRS).votes}


def test_votes_are_events_in_a_file_and_become_pairs(tmp_path) -> None:
    path = tmp_path / "l.jsonl"
    label(path, "ann", *[True] * 6)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["rater"], line["action"]) for line in lines] == [("ann", "label")] * 6
    assert len({line["id"] for line in lines}) == 6 and set(said(path).values()) == {1}
    pairs = dw.read_labels(path, PAIRS).pairs()
    assert sorted((p.prompt, p.chosen) for p in pairs) == [(p.prompt, p.chosen) for p in PAIRS]


def test_a_stopped_session_goes_on_and_undo_takes_back(tmp_path) -> None:
    path = tmp_path / "l.jsonl"
    label(path, "ann", True, True)
    label(path, "ann", True)
    assert len(said(path)) == 3
    label(path, "ann", "u")
    assert len(said(path)) == 2


def test_two_raters_share_a_file_and_disagree(tmp_path) -> None:
    path = tmp_path / "l.jsonl"
    label(path, "ann", *[True] * 6)
    label(path, "bob", *[False] * 3, *[True] * 3)
    found, values = dw.read_labels(path, PAIRS), said(path)
    assert found.raters == ["ann", "bob"] and len(found.votes) == 12
    agreed = {p.prompt for p in PAIRS if values["bob", p.id] == values["ann", p.id] == 1}
    assert len(agreed) == 3 and {p.prompt for p in found.pairs()} == agreed
    assert 0 < found.flip_rate().estimate <= 0.5


@pytest.mark.parametrize(
    "damage", [b'{"id": "x", "action": "lab', b"nonsense\n", b"[]\nnull\n", b"\xed\xa0\x80\n", b"[" * 100_000 + b"\n"]
)
def test_damage_costs_no_other_label(tmp_path, damage: bytes) -> None:
    path = tmp_path / "l.jsonl"
    label(path, "ann", True, True)
    with path.open("ab") as file:
        file.write(damage)
    assert len(said(path)) == 2
    label(path, "ann", True, True)
    assert list(said(path).values()) == [1] * 4 and dw.read_labels(path, PAIRS).damaged >= 1


def test_lines_in_any_order_and_copies_say_the_same(tmp_path) -> None:
    path, other = tmp_path / "l.jsonl", tmp_path / "m.jsonl"
    label(path, "ann", True, False, True)
    label(path, "bob", False, False)
    lines = path.read_bytes().splitlines(keepends=True)
    other.write_bytes(b"".join(lines[::-1] + lines[:2]))
    assert said(other) == said(path) == said(path, other) and len(said(path)) == 5


def test_a_killed_session_loses_no_vote(tmp_path) -> None:
    """The fifth question kills the process: four votes were given before."""
    path = tmp_path / "l.jsonl"
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(importlib.util.find_spec("dpo_workbench").origin).parents[1])]!r}
import dpo_workbench as dw
pairs = [dw.Pair(f"p{{k}}", f"question {{k}}", f"right answer {{k}}", f"wrong answer {{k}}") for k in range(6)]
asked = iter("aaaa")
dw.label_text(pairs, rater="ann", store={str(path)!r}, read=lambda _: next(asked, None) or os.kill(os.getpid(), 9))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == -9
    assert len(said(path)) == 4
    label(path, "ann", True, True)
    assert len(said(path)) == 6


def test_labels_of_other_pairs_are_refused(tmp_path) -> None:
    label(tmp_path / "l.jsonl", "ann", True)
    with pytest.raises(dw.WorkbenchError, match="pairs"):
        dw.read_labels(tmp_path / "l.jsonl", [dw.Pair("x", "another question", "a", "b")])
    with pytest.raises(dw.WorkbenchError, match=r"none\.jsonl"):
        dw.read_labels(tmp_path / "none.jsonl", PAIRS)

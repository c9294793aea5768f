"""The label file: nothing lost, nothing doubled, whatever happens to it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dpo_workbench as dw
from dpo_workbench.labelling.events import Event, Store, answer_key, item_key, replay
from dpo_workbench.labelling.session import Session

PAIRS = [dw.Pair(f"p{k}", f"question {k}", f"right answer {k}", f"wrong answer {k}") for k in range(12)]


def session(path: Path, rater: str = "ann", **more) -> Session:
    return Session(PAIRS, rater, path, **{"quick": 0.0, **more})


def labels(path: Path) -> dict:
    return {key: event.choice for key, event in Store(path).labels.items()}


def test_a_vote_is_in_the_file_before_the_next_item_is_shown(tmp_path):
    work = session(tmp_path / "l.jsonl")
    first = work.item
    work.do("a")
    assert labels(tmp_path / "l.jsonl") == {("ann", first): "a"}
    assert work.item != first


@pytest.mark.parametrize("seed", range(100))
def test_a_replay_of_the_file_is_the_state_of_the_session(tmp_path, seed):
    rng = random.Random(seed)
    work = session(tmp_path / "l.jsonl")
    for _ in range(rng.randint(5, 60)):
        work.do(rng.choice(["a", "b", "t", "x", "s", "u", "u", "<", ">", "g 3", "2", "n why", "what"]))
    again = Store(tmp_path / "l.jsonl")
    assert again.labels == work.store.labels
    shuffled = list(again.events.values())
    rng.shuffle(shuffled)
    assert replay(shuffled + shuffled[:5]) == replay(again.events.values())  # any order, some lines twice


def test_undo_goes_all_the_way(tmp_path):
    work = session(tmp_path / "l.jsonl")
    votes = ["a", "b", "t", "x", "s"]
    for vote in votes:
        work.do(vote)
    for _ in votes:
        assert work.do("u").startswith("Undone")
    assert labels(tmp_path / "l.jsonl") == {} and work.do("u") == "Nothing to undo."


def test_undo_of_a_second_vote_brings_the_first_back(tmp_path):
    work = session(tmp_path / "l.jsonl")
    work.do("a")
    work.do("g 1")
    work.do("b")
    assert list(labels(tmp_path / "l.jsonl").values()) == ["b"]
    work.do("u")
    assert list(labels(tmp_path / "l.jsonl").values()) == ["a"]


def test_two_windows_of_one_rater_see_each_other(tmp_path):
    one, other = session(tmp_path / "l.jsonl"), session(tmp_path / "l.jsonl")
    one.do("a")
    assert one.item != other.item
    other.do("b")  # the same item, judged again in the other window: one label stands, both are in the file
    other.do("t")
    one.do("b")
    store = Store(tmp_path / "l.jsonl")
    assert [e.choice for e in store.labels.values()] == ["b", "b"]
    assert one.store.labels == store.labels and len(one.store.events) == 4


def test_two_raters_share_a_file_and_copies_count_once(tmp_path):
    ann, bob = session(tmp_path / "l.jsonl"), session(tmp_path / "l.jsonl", "bob")
    for _ in range(4):
        ann.do("a"), bob.do("b")
    assert len(labels(tmp_path / "l.jsonl")) == 8
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((tmp_path / "l.jsonl").read_bytes() * 2)
    ann.do("t")
    merged = Store(tmp_path / "l.jsonl", copy)
    assert len(merged.labels) == 9
    with (tmp_path / "l.jsonl").open("ab") as file:  # the copy pasted into the file itself
        file.write(copy.read_bytes())
    assert len(labels(tmp_path / "l.jsonl")) == 9


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    code = (
        "import sys; from tests_helper import session\n"
        "work = session(sys.argv[1], sys.argv[2])\n"
        "for _ in range(12): work.do('a')\n"
    )
    (tmp_path / "tests_helper.py").write_text(
        "from pathlib import Path\nimport importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('store_test', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "def session(path, rater): return module.session(Path(path), rater)\n"
    )
    file = tmp_path / "l.jsonl"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(file), f"rater {k}"], env=env, cwd=tmp_path) for k in range(4)
    ]
    assert [p.wait(60) for p in running] == [0] * 4
    store = Store(file)
    assert len(store.labels) == 48 and store.damaged == 0
    clocks = [e.clock for e in store.events.values()]
    assert sorted(clocks) == list(range(1, 49))  # each writer had seen the ones before


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path):
    work = session(tmp_path / "l.jsonl")
    for vote in ("a", "b", "t"):
        work.do(vote)
    rows = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    for row, year in zip(rows, (2030, 2020, 1999), strict=True):
        row["time"] = row["time"].replace("2026", str(year))
    work.do("g 1"), work.do("b")
    old = labels(tmp_path / "l.jsonl")
    rows.append(json.loads((tmp_path / "l.jsonl").read_text().splitlines()[-1]))
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert labels(tmp_path / "l.jsonl") == old


def test_a_torn_line_is_counted_and_the_next_label_is_whole(tmp_path):
    work = session(tmp_path / "l.jsonl")
    work.do("a")
    with (tmp_path / "l.jsonl").open("ab") as file:
        file.write(b'{"id": "x", "action": "lab')
    again = session(tmp_path / "l.jsonl")
    again.do("b")
    store = Store(tmp_path / "l.jsonl")
    assert len(store.labels) == 2 and store.damaged == 1


@pytest.mark.parametrize(
    "line",
    [
        "nonsense", "[]", "null", '{"id": 3}', '{"id": "x", "action": "label"}', b"\xed\xa0\x80",
        '{"id": "x", "action": "vote", "rater": "r", "item": "i", "clock": 1}',
        '{"id": "x", "action": "label", "rater": "r", "item": "i", "clock": "1"}',
        '{"id": "x", "action": "label", "rater": "r", "item": "i", "clock": 1, "choice": "c"}',
        '{"id": "x", "action": "label", "rater": "r", "item": "i", "clock": 1, "note": [1]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_line_costs_no_other(tmp_path, line):
    work = session(tmp_path / "l.jsonl")
    work.do("a")
    with (tmp_path / "l.jsonl").open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    work.do("b")
    store = Store(tmp_path / "l.jsonl")
    assert len(store.labels) == 2 and store.damaged == 1


def test_a_full_disk_is_said_and_nothing_is_counted(tmp_path, monkeypatch):
    work = session(tmp_path / "l.jsonl")
    work.do("a")
    shown = work.item

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(dw.WorkbenchError, match="No space left"):
        work.do("b")
    monkeypatch.undo()
    assert work.item == shown and work.n_done == 1
    work.do("b")
    assert len(labels(tmp_path / "l.jsonl")) == 2


def test_the_file_must_be_a_file(tmp_path):
    with pytest.raises(dw.WorkbenchError, match="must be a file"):
        Store(tmp_path)


def test_an_item_is_its_content_whichever_answer_is_called_chosen(tmp_path):
    pair = PAIRS[0]
    turned = dw.Pair("other id", pair.prompt, pair.rejected, pair.chosen)
    assert item_key(pair) == item_key(turned)
    one, other = (Session([p], "ann", tmp_path / "l.jsonl") for p in (pair, turned))
    assert one.swapped != other.swapped and one.answers == other.answers  # the same text is on side A


def test_killed_at_any_moment_no_saved_label_is_lost_and_the_same_item_comes_back(tmp_path):
    """A short form of benchmarks/label_kill.py."""
    rng = random.Random(0)
    file = tmp_path / "l.jsonl"
    code = (
        "import sys, importlib.util\nfrom pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('store_test', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "work = module.session(Path(sys.argv[1]))\n"
        "print('shown', work.item, flush=True)\n"
        "while True:\n"
        "    key = work.item; work.do('a'); print('saved', key, flush=True)\n"
        "    print('shown', work.item, flush=True)\n"
        "    if work.finished: work.do('u')\n"
    )
    saved: set[str] = set()
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        told = [line.split() for line in child.communicate()[0].splitlines()]
        saved |= {line[1] for line in told if len(line) == 2 and line[0] == "saved"}
        have = {item for _, item in labels(file)} if file.is_file() else set()
        undone = {e.item for e in Store(file).events.values() if e.action == "undo"} if file.is_file() else set()
        assert saved <= have | undone
        fresh = session(file)
        assert fresh.finished or fresh.item == next(i for i in fresh.items if i not in have)


def test_events_know_their_winner():
    event = Event("1", "label", "r", "i", 1, choice="b", left="x", right="y")
    assert event.winner == "y" and Event("1", "label", "r", "i", 1, choice="tie", left="x", right="y").winner is None


def test_a_file_of_an_earlier_version_still_loads(tmp_path):
    """Earlier versions also saved votes by criterion, in `criteria`."""
    key = item_key(PAIRS[0])
    row = {
        "id": "1-2", "action": "label", "rater": "ann", "item": key, "clock": 1, "time": "2026-11-20T10:00:00+00:00",
        "choice": "b", "left": answer_key("right answer 0"), "right": answer_key("wrong answer 0"), "strength": 3,
        "criteria": {"correct": "a"}, "note": "edge", "rubric": "python-0123456789", "seconds": 4.2, "tool": "0.1.0",
    }  # fmt: skip
    (tmp_path / "l.jsonl").write_text(json.dumps(row) + "\n")
    read = dw.read_labels(tmp_path / "l.jsonl", PAIRS)
    assert [(v.value, v.event.note) for v in read.votes] == [(-1, "edge")] and read.damaged == 0
    assert [p.chosen for p in read.pairs("weighted")] == ["wrong answer 0"]

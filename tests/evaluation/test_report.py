"""The report: whole, harmless, without anything from outside; results.json: the same bytes for the same run."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.report import examples, results_json, write_report
from dpo_workbench.evaluation.verdict import verdict

HOSTILE = (
    "<script>alert(1)</script><img src=http://x/y onerror=alert(1)>\u202e$\\href{javascript:}{}$ {{ 7*7 }} {% raw %}"
)


@pytest.fixture
def evaluations(arm):
    def failures(k: int) -> list[str | None]:
        return ["loop" if i < k else "<b>odd</b>" if i == 59 else None for i in range(60)]

    made = {"base": arm("base", failures(50)), "start": arm("start", failures(30))}
    made |= {"DPO": arm("DPO", [None, *failures(4)[:-2], "loop"])}
    made |= {"control": arm("control", failures(20))}
    rows = tuple(replace(row, answer=HOSTILE, prompt=HOSTILE, explanation=HOSTILE) for row in made["start"].rows)
    other = tuple(replace(row, prompt=HOSTILE) for row in made["DPO"].rows)
    control = tuple(replace(row, prompt=HOSTILE) for row in made["control"].rows)
    base = tuple(replace(row, prompt=HOSTILE) for row in made["base"].rows)
    sides = dict(zip(made, (base, rows, other, control), strict=True))
    return {name: replace(e, rows=sides[name]) for name, e in made.items()}


@pytest.fixture
def results():
    return {
        "settings": {"model": "nano", "dpo": {"lr": 2e-4, "beta": 0.1}},
        "machine": {"cores": 2, "torch": "2.13"},
        "mined": {"headroom": {"text": "Worth a try: <i>54 %</i>", "forecast": 0.54}},
        "training": {
            "history": [{"step": i, "loss": 0.7 - 0.1 * i, "rewards/margins": 0.1 * i} for i in (1, 2, 3)],
            "probes": [{"step": k, "score": 0.6 + k / 10, "failed": 0.4, "chosen_logratio": -0.1} for k in (0, 3)],
            "best_step": 3,
        },
        "command": "dpo-workbench demo nano",
        "times": {"total_seconds": 12.5, "date": "2026-01-01"},
    }


class Page(HTMLParser):
    """Collects tags and attributes as a browser would see them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def write(folder, results, evaluations):
    decided = verdict(evaluations["start"], evaluations["DPO"], control=evaluations["control"])
    return write_report(folder, results, evaluations, decided), decided


def test_the_page_is_whole(tmp_path, results, evaluations):
    path, decided = write(tmp_path, results, evaluations)
    page = path.read_text(encoding="utf-8")
    for part in ("Worth it", "What got worse", "Arms on the same", "tokens on average", "Training", "Headroom", "kept"):
        assert part in page
    for part in (
        "fixed",
        "broken",
        "failed in both",
        "&quot;lr&quot;: 0.0002",
        "&quot;torch&quot;: &quot;2.13&quot;",
        "dpo-workbench demo nano",
    ):
        assert part in page
    assert page.index(decided.reason) < page.index("<table")
    assert page.count("data:image/svg+xml;base64,") == 2
    assert page.count("<details") > page.count("<table") - 1  # everything but the verdict's table is folded
    folded = page.index("<details><summary>More about the arms")
    assert page.index("Against the control") < page.index("<table") < page.index("What changed</h3>") < folded
    assert folded < page.index("Arms on the same")


def test_the_page_loads_and_runs_nothing(tmp_path, results, evaluations):
    path, _ = write(tmp_path, results, evaluations)
    page = path.read_text(encoding="utf-8")
    tags = Page(page).tags
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    seen = {tag for tag, _ in tags}
    assert not seen & {"script", "iframe", "link", "object", "form", "base", "b", "i", "a", "button"}
    attributes = {name for _, all_of_one in tags for name in all_of_one}
    assert not [a for a in attributes if a.startswith("on") or a in ("href", "srcdoc", "action")]
    assert all(a["src"].startswith("data:image/") for tag, a in tags if tag == "img")
    assert "49" not in re.findall(r"&#36; (.*?) raw", page) and "{{ 7*7 }}" in page
    assert "\\u202e" in page and "\u202e" not in page


def test_the_check_above_can_fail():
    assert ("script", {}) in Page(HOSTILE).tags


def test_both_colours_are_set_for_light_and_dark(tmp_path, results, evaluations):
    page = write(tmp_path, results, evaluations)[0].read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in page
    assert re.search(r"body \{ color: var\(--fg\); background: var\(--bg\)", page)
    assert page.count("--fg: ") == page.count("--bg: ") == 2


@pytest.mark.slow
def test_two_runs_differ_only_in_times(tmp_path, results, evaluations):
    write(tmp_path / "a", results, evaluations)
    later = json.loads(json.dumps(results)) | {"times": {"total_seconds": 99.0, "date": "2027-01-01"}}
    write(tmp_path / "b", later, evaluations)
    one, two = (json.loads((tmp_path / k / "results.json").read_text()) for k in "ab")
    assert one != two
    assert one.pop("times") != two.pop("times")
    assert one == two
    again = write(tmp_path / "c", results, evaluations)[0].read_bytes()
    assert again == (tmp_path / "a" / "report.html").read_bytes()


def test_results_json_is_plain_sorted_and_rounded():
    text = results_json({"b": np.float32(0.1), "a": (math.nan, 1 / 3, np.int64(4)), "c": {"y": (1, 2), "x": None}})
    assert json.loads(text) == {"a": [None, 0.333333, 4], "b": 0.1, "c": {"x": None, "y": [1, 2]}}
    assert list(json.loads(text)) == ["a", "b", "c"]


def test_examples_show_the_fixed_and_the_broken(evaluations):
    shown = {kind: (count, pairs) for kind, count, pairs in examples(evaluations["start"], evaluations["DPO"])}
    assert shown["broken"][0] == 0 and shown["fixed"][0] == 26 and len(shown["fixed"][1]) == 4
    assert all(was.failed and not now.failed for was, now in shown["fixed"][1])
    swapped = {kind: count for kind, count, _ in examples(evaluations["DPO"], evaluations["start"])}
    assert swapped["broken"] == 26


def test_without_verdict_training_and_headroom(tmp_path, evaluations):
    page = write_report(tmp_path, {}, evaluations).read_text(encoding="utf-8")
    assert "Arms on the same" in page and "Headroom" not in page and page.count("data:image/svg") == 0


def test_one_arm_alone_is_enough(tmp_path, arm):
    assert write_report(tmp_path, {}, {"base": arm("base", [None, "loop"])}).is_file()


def test_what_cannot_be_reported_is_refused(tmp_path, results, evaluations):
    with pytest.raises(WorkbenchError, match="at least one evaluation"):
        write_report(tmp_path, results, {})
    decided = verdict(evaluations["start"], evaluations["DPO"])
    with pytest.raises(WorkbenchError, match="is missing. Pass the evaluations"):
        write_report(tmp_path, results, {"base": evaluations["base"]}, decided)

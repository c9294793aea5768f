"""The page about a pair set: what stands on it, that it needs nothing else, and that hostile text stays text."""

import re

import matplotlib
import pytest

from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.pairs.readers import read_pairs
from dpo_workbench.studies.data_report import data_report

matplotlib.use("Agg")
ODD = '<script>alert(1)</script><img src=x onerror=alert(2)> "quoted" \x07 \u202e €'


@pytest.fixture
def odd() -> Pairs:
    return Pairs(Pair(f"p{k}{ODD if k == 3 else ''}", f"{ODD} {k}", f"yes {ODD}", f"no {k} {ODD}") for k in range(6))


def checked(page: str) -> str:
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"<script|<img src=x|https?://(?!www\.w3\.org)|\x07|\u202e", page)
    return page


def test_with_a_model(tiny, moved, odd, tmp_path) -> None:
    path = data_report(odd, tmp_path / "page.html", tiny, moved, show=False)
    page = checked(path.read_text(encoding="utf-8"))
    assert "6 preference pairs" in page and "AUC of length" in page and page.count("<figure>") == 3
    assert page.count("Training moved the chosen answer") == 5 and "Advice" in page
    again = data_report(odd, tmp_path / "again.html", tiny, moved, show=False)
    assert again.read_bytes() == path.read_bytes()


def test_without_a_model_and_with_findings(odd, tmp_path) -> None:
    page = checked(data_report(odd, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "<figure>" not in page and "The first pairs" in page
    file = tmp_path / "pairs.jsonl"
    odd.save(file)
    file.write_bytes(file.read_bytes() + b"{broken\n")
    page = checked(data_report(read_pairs(file), tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "1 refused" in page


def test_who_judged(tmp_path) -> None:
    rows = [{"prompt": f"q{k}", "answer_a": "a", "answer_b": "bb", "winner": "ab"[k % 2]} for k in range(8)]
    read = read_pairs([row | {"annotator": ("ada", f"<b>{ODD}")[k % 4 == 0]} for k, row in enumerate(rows)])
    page = checked(data_report(read, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Who judged" in page and page.index("ada") < page.index("&lt;b&gt;&lt;script") and "67% answer_b" in page


def test_from_the_command_line(run, tiny_folder, odd, tmp_path) -> None:
    odd.save(tmp_path / "pairs.jsonl")
    code, _, err = run("check", "pairs.jsonl", "--report", "page.html", "--model", str(tiny_folder))
    assert code == 0 and "report: page.html" in err
    assert "pairs, seen by" in checked((tmp_path / "page.html").read_text(encoding="utf-8"))

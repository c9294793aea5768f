"""The progress helper: a bar for a terminal, one plain line otherwise, silence on request."""

import sys

import pytest

from dpo_workbench.common import progress as module
from dpo_workbench.common.progress import progress


def count(total: int = 3, **kwargs) -> None:
    with progress(total, "answers", **kwargs) as advance:
        advance()
        advance(total - 1)


def test_ci_gets_one_plain_line(monkeypatch, capsys):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    count()
    assert capsys.readouterr() == ("", "answers: 3 of 3\n")


def test_a_file_gets_one_plain_line(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    count(done=0)
    assert capsys.readouterr().err == "answers: 3 of 3\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(module, "quiet", lambda: False)
    count()
    err = capsys.readouterr().err
    assert "answers" in err and "3/3" in err and "answers: 3 of 3\n" not in err


def test_show_false_is_silent(capsys):
    count(show=False)
    assert capsys.readouterr() == ("", "")


def test_an_error_passes_and_claims_nothing(capsys):
    with pytest.raises(ValueError, match="inside"), progress(3, "answers"):
        raise ValueError("inside")
    assert capsys.readouterr().err == ""


def test_going_on_counts_from_where_it_was(monkeypatch, capsys):
    monkeypatch.setenv("CI", "1")
    with progress(5, "training", done=3) as advance:
        advance(2)
    assert capsys.readouterr().err == "training: 5 of 5\n"


def test_a_test_is_no_notebook():
    assert not module.in_notebook()

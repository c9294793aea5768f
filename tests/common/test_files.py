"""Files and folders are whole or not there: errors in the middle and a full disk leave what was saved before."""

import errno
import json
import os

import pytest
from safetensors import SafetensorError

from dpo_workbench.common import files as run_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import replace_folder, write_json, write_text


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_text_makes_folders_and_keeps_signs_as_they_are(tmp_path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one\r\ntwo\u2028é")
    assert path.read_bytes() == "one\r\ntwo\u2028é".encode()
    write_text(path, "")
    assert path.read_bytes() == b"" and [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call: str) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(run_folder.os, call, full_disk)
    with pytest.raises(WorkbenchError, match="No space left on device.*untouched.*--out"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_text(path, "new")  # negative control
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_made_is_an_error_to_read(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkbenchError, match="must be written to"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(WorkbenchError, match="must be written to"), replace_folder(tmp_path / "file" / "folder"):
        pass
    assert (tmp_path / "file").read_text() == "in the way"


def test_json_refuses_nan_and_keeps_lone_surrogates(tmp_path) -> None:
    path = tmp_path / "a.json"
    value = {"text": "\ud800 é", "n": 1.5}
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == value


def filled(folder, text: str):
    with replace_folder(folder) as fresh:
        (fresh / "deep").mkdir()
        (fresh / "deep" / "a.txt").write_text(text)
    return folder


def content(folder) -> str:
    return (folder / "deep" / "a.txt").read_text()


def test_replace_folder_takes_the_old_ones_place(tmp_path) -> None:
    folder = filled(tmp_path / "x" / "run", "one")
    (folder / "stale.txt").write_text("of the first")
    filled(folder, "two")
    assert content(folder) == "two" and not (folder / "stale.txt").exists()
    assert list(folder.parent.iterdir()) == [folder]  # no scratch folder stays
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_old_folder(tmp_path, error: BaseException) -> None:
    folder = filled(tmp_path / "run", "one")
    with pytest.raises(type(error)), replace_folder(folder) as fresh:
        (fresh / "half.txt").write_text("half")
        raise error
    assert content(folder) == "one" and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_in_the_block_is_an_error_to_read(tmp_path, error: Exception) -> None:
    """safetensors reports the disk's errors in an exception of its own."""
    folder = filled(tmp_path / "run", "one")
    with pytest.raises(WorkbenchError, match="No space left.*untouched"), replace_folder(folder) as fresh:
        (fresh / "half.txt").write_text("half")
        raise error
    assert content(folder) == "one" and list(tmp_path.iterdir()) == [folder]


def test_full_disk_at_the_flush_leaves_the_old_folder(tmp_path, monkeypatch) -> None:
    folder = filled(tmp_path / "run", "one")
    monkeypatch.setattr(run_folder.os, "fsync", full_disk)
    with pytest.raises(WorkbenchError, match="No space left"):
        filled(folder, "two")
    assert content(folder) == "one" and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch, failing: int) -> None:
    folder, replace, calls = filled(tmp_path / "run", "one"), os.replace, []

    def sometimes(source, target) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(run_folder.os, "replace", sometimes)
    with pytest.raises(WorkbenchError, match="Input/output error"):
        filled(folder, "two")
    assert content(folder) == "one" and list(tmp_path.iterdir()) == [folder]

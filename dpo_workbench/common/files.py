"""Files and folders that are complete or absent: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dpo_workbench.common.errors import WorkbenchError


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, in one step: readers see the old file or the new one, never a part.

    A lone surrogate, which UTF-8 can't hold, is escaped.

    Raises:
        WorkbenchError: the disk is full or the folder is read-only; the old file is unchanged.
    """
    with _scratch(path) as scratch:
        fresh = scratch / path.name
        fresh.write_bytes(text.encode("utf-8", "backslashreplace"))
        _flush(fresh)
        os.replace(fresh, path)
        _flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check_new_folder(path: str | Path, force: bool = False) -> None:
    """Raise WorkbenchError if something is there that is not an empty folder, unless `force` allows to replace it."""
    path = Path(path)
    if path.exists() and not force and (not path.is_dir() or any(path.iterdir())):
        raise WorkbenchError(
            f"The new folder must be empty. Got {path}. Choose another, or replace an export by force."
        )


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Inside the `with` block: a new folder to fill. It replaces `path` at the end, or is removed after an error.

    Raises:
        WorkbenchError: the disk is full; `path` is unchanged.
    """
    with _scratch(path) as scratch:
        fresh, old = scratch / "new", scratch / "old"
        fresh.mkdir()
        yield fresh
        for part in (*fresh.rglob("*"), fresh):  # the folder's list of files must reach the disk too
            _flush(part)
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(fresh, path)
        except BaseException:  # Ctrl-C too
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        _flush(path.parent)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A new folder next to `path`, which is removed at the end. Errors of the disk become readable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True) as name:
            yield Path(name)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own exception
        raise WorkbenchError(
            f"Results must be written to {path.parent}. The system says: {getattr(error, 'strerror', None) or error}. "
            "What was saved before is untouched. Free some space or choose another folder with --out."
        ) from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot flush a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)

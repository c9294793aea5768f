"""Files and folders that are complete or absent: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dpo_workbench.common.errors import WorkbenchError


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_bytes` does. A lone surrogate, which UTF-8 can't hold, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old file or the new one, never a part.

    Raises:
        WorkbenchError: the disk is full or the folder is read-only; the old file is unchanged.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        _flush(path.parent)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Inside the `with` block: a new folder to fill. It replaces `path` at the end, or is removed after an error.

    Raises:
        WorkbenchError: the disk is full; `path` is unchanged.
    """
    fresh = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield fresh
        os.chmod(fresh, 0o755)
        for part in (*fresh.rglob("*"), fresh):  # the folder's list of files must reach the disk too
            _flush(part)
        _swap(fresh, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own exception
        raise _disk_error(path, error) from error
    finally:
        if fresh:
            shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, path: Path) -> None:
    """Replace `path` by `fresh`; if that fails, the old one is restored."""
    old = path.parent / f".{fresh.name}.old"
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(fresh, path)
    except BaseException:  # Ctrl-C too
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot flush a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _disk_error(path: Path, error: Exception) -> WorkbenchError:
    words = getattr(error, "strerror", None) or error
    return WorkbenchError(
        f"Results must be written to {path.parent}. The system says: {words}. What was saved before is untouched. Free "
        "some space or choose another folder with --out."
    )

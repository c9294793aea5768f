"""Files that are whole or not there: written under another name, flushed to the disk, then renamed."""

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
    """`write_bytes` of UTF-8; a lone surrogate, which JSON allows and UTF-8 does not, becomes JSON's own escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader sees the old file or the new one, never half of one.

    Raises:
        WorkbenchError: the disk is full or the folder cannot be written; the old file is untouched.
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
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A fresh folder to fill, which takes the place of `path` when the block ends well and vanishes otherwise.

    Raises:
        WorkbenchError: the disk is full; what stood at `path` is untouched.
    """
    fresh = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield fresh
        os.chmod(fresh, 0o755)
        for part in (*fresh.rglob("*"), fresh):  # a folder's own list of files must reach the disk too
            _flush(part)
        _swap(fresh, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors says "no space left" in an exception of its own
        raise _disk_error(path, error) from error
    finally:
        if fresh:
            shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, path: Path) -> None:
    """Put `fresh` in the place of `path`; what stood there comes back when that fails."""
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

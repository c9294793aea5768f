"""`progress`: the one progress bar. A bar for a person, one plain line for a file, silence when asked."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(total: int, what: str, show: bool = True, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Inside: a function `advance(n=1)` that counts what is done.

    A terminal and a notebook get a bar. With the variable CI set, or where stderr is a file, one plain line on stderr
    at the end is all. A notebook gets that line besides the bar: a bar does not survive in a saved notebook.

    Args:
        total: how many there will be.
        what: what is counted, such as "answers".
        show: False prints nothing at all.
        done: how many were done before, in a run that goes on.
    """
    bar = _bar(total, what, done) if show and not quiet() else None

    def advance(n: int = 1) -> None:
        nonlocal done
        done += n
        if bar is not None:
            bar.update(n)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
    if show and (bar is None or in_notebook()):
        print(f"{what}: {done} of {total}", file=sys.stderr)


def in_notebook() -> bool:
    """True in a Jupyter kernel, whose stderr is no terminal and can show a bar all the same."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


def quiet() -> bool:
    """True where a bar would only fill a file: with the variable CI set, or where stderr is no terminal."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return True
    return not in_notebook() and not (sys.stderr is not None and sys.stderr.isatty())


def _bar(total: int, what: str, done: int) -> Any:
    if in_notebook() and importlib.util.find_spec("ipywidgets") is None:
        from tqdm.std import tqdm  # tqdm.auto would warn that the widgets are missing
    else:
        from tqdm.auto import tqdm
    return tqdm(total=total, initial=done, desc=what, leave=not in_notebook(), dynamic_ncols=True)

"""`progress`: the one progress bar. A bar in a terminal or notebook, one plain line in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, what: str, show: bool = True, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Inside the `with` block: a function `advance(n=1)` that counts what is done.

    With the variable CI set, or where stderr is a file, one plain line at the end replaces the bar. A notebook gets
    both, because a saved notebook does not keep the bar.

    Args:
        total: how many there will be.
        what: what is counted, such as "answers".
        show: False prints nothing.
        done: how many were done earlier, in a run that is resumed.
    """
    from tqdm.auto import tqdm

    hidden, notebook = not show or quiet(), in_notebook()

    def advance(n: int = 1) -> None:
        nonlocal done
        done += n
        bar.update(n)

    with tqdm(total=total, initial=done, desc=what, disable=hidden, leave=not notebook, dynamic_ncols=True) as bar:
        yield advance
    if show and (hidden or notebook):
        print(f"{what}: {done} of {total}", file=sys.stderr)


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, which can show a bar although its stderr is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


def quiet() -> bool:
    """Whether a bar would only fill a file: the variable CI is set, or stderr is no terminal."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return True
    return not in_notebook() and not (sys.stderr is not None and sys.stderr.isatty())

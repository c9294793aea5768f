"""The one exception that users are meant to read."""

from __future__ import annotations

from collections.abc import Sequence


class WorkbenchError(Exception):
    """A problem that the user can fix. Its text says what must hold, what was found, where, and what to do.

    Where the text is about many rows and names only the first of them, `rows` has all their ids.
    """

    def __init__(self, text: str, rows: Sequence[str] = ()):
        super().__init__(text)
        self.rows = list(rows)


def listed(names: Sequence[str], limit: int = 20) -> str:
    """The names, or the first of them and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

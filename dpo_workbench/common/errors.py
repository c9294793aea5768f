"""The one exception that users are meant to read."""

from __future__ import annotations


class WorkbenchError(Exception):
    """A problem that the user can fix. Its text says what must hold, what was found, where, and what to do."""

"""The one exception that users are meant to read: what must hold, what was found, what to do."""

from __future__ import annotations


class WorkbenchError(Exception):
    """A problem that the user can mend. Its text is one paragraph and ends with the fix.

    The command line prints only this text and writes the traceback to the run's log.
    """

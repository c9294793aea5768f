"""The SQL part of a sandbox child: one SQLite database, read-only, one SELECT per request. `child.py` imports it."""

import sqlite3
import time
from functools import partial

# Functions that only compute. All others (load_extension, zeroblob, randomblob, readfile, ...) are refused.
_FUNCTIONS = frozenset(
    "abs avg cast ceil ceiling changes char coalesce concat concat_ws count cume_dist current_date current_time "
    "current_timestamp date datetime dense_rank exp first_value floor format glob group_concat hex ifnull iif instr "
    "json json_array json_array_length json_extract json_object json_type json_valid julianday lag last_value lead "
    "length like likelihood likely ln log log10 log2 lower ltrim max min mod nth_value ntile nullif octet_length "
    "percent_rank pi pow power printf quote random rank replace round row_number rtrim sign soundex sqrt strftime "
    "string_agg substr substring sum time timediff total trim trunc typeof unicode unixepoch unlikely upper "
    "-> ->>".split()
)
_ALLOWED = {20: "READ", 21: "SELECT", 33: "RECURSIVE"}  # SQLITE_READ, SQLITE_SELECT, SQLITE_RECURSIVE
_FUNCTION = 31


def _authorize(action, first, second, database, trigger):
    if action in _ALLOWED or (action == _FUNCTION and str(second).lower() in _FUNCTIONS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def serve(wire, order: dict) -> None:
    """Reply to each query with `v` [columns, rows, cut] or `q` [kind, message]."""
    connection = sqlite3.connect(f"file:{order['database']}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        wire.reply("q", ["database", str(error)[:500]])
        return
    if hasattr(connection, "setlimit"):  # Python 3.11
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, order["value_bytes"])
    if hasattr(connection, "setconfig"):  # Python 3.12
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # type: ignore[attr-defined]
    connection.set_authorizer(_authorize)
    wire.reply("l")
    while (query := wire.request()) is not None:
        end = time.monotonic() + order["seconds"]
        connection.set_progress_handler(partial(_is_past, end), 5000)
        try:
            wire.reply("v", _rows(connection, query, order), 2 * order["value_bytes"] + 1000)
        except MemoryError:
            wire.reply("q", ["too_large", "more memory than allowed"])
        except (sqlite3.Error, sqlite3.Warning, ValueError, UnicodeError) as error:
            late = "interrupted" in str(error)
            wire.reply("q", ["timeout" if late else "error", str(error)[:500]])


def _is_past(end: float) -> bool:
    """True once the monotonic clock has passed `end`; SQLite then interrupts the query."""
    return time.monotonic() > end


def _rows(connection, query: str, order: dict) -> list:
    """Columns, rows, and whether there were more rows than allowed."""
    rows: list = []
    bytes_left, cut = order["value_bytes"], False
    cursor = connection.execute(query)
    columns = [entry[0] for entry in cursor.description or ()]
    for row in cursor:
        bytes_left -= sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in row)
        if len(rows) >= order["rows"] or bytes_left < 0:
            cut = True
            break
        rows.append(list(row))
    cursor.close()
    return [columns, rows, cut]

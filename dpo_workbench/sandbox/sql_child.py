"""The code that `run_sql` runs in a sandbox child: a SQLite database, read-only, one SELECT for each call of `ask`."""

import sqlite3
import time

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


def open_database(path, value_bytes):
    """Open a database read-only, for `ask`; raises sqlite3.Error if it is none."""
    global connection
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if hasattr(connection, "setlimit"):  # Python 3.11
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, value_bytes)
    if hasattr(connection, "setconfig"):  # Python 3.12
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # type: ignore[attr-defined]
    connection.set_authorizer(_authorize)


def ask(query, seconds, most_rows, value_bytes):
    """Columns, rows, and whether there were more rows than allowed."""
    end = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > end, 5000)  # true: SQLite interrupts the query
    rows, bytes_left = [], value_bytes
    cursor = connection.execute(query)
    columns = [entry[0] for entry in cursor.description or ()]
    for row in cursor:
        bytes_left -= sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in row)
        if len(rows) >= most_rows or bytes_left < 0:
            cursor.close()
            return [columns, rows, True]
        rows.append(list(row))
    return [columns, rows, False]

"""Hostile SQL writes nothing and ends in time; ordinary queries give what plain sqlite3 gives."""

import hashlib
import sqlite3
from pathlib import Path

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.sql_runner import run_sql


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "shop.db"
    with sqlite3.connect(path) as db:
        db.executescript("""
            CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, kind TEXT);
            CREATE TABLE sale (item INTEGER REFERENCES item, day TEXT, n INTEGER);
        """)
        db.executemany(
            "INSERT INTO item VALUES (?, ?, ?, ?)", [(k, f"thing {k}", k * 1.25, "ab"[k % 2]) for k in range(40)]
        )
        db.executemany(
            "INSERT INTO sale VALUES (?, ?, ?)", [(k % 37, f"2024-01-{k % 28 + 1:02}", k % 5) for k in range(3000)]
        )
        db.execute("INSERT INTO item VALUES (99, NULL, NULL, NULL)")
    db.close()
    return path


HOSTILE = {
    "attach": "ATTACH '{folder}/evil.db' AS evil",
    "attach memory": "ATTACH ':memory:' AS evil",
    "vacuum into": "VACUUM INTO '{folder}/copy.db'",
    "vacuum": "VACUUM",
    "temp table": "CREATE TEMP TABLE t AS SELECT 1",
    "temp view": "CREATE TEMP VIEW v AS SELECT 1",
    "temp trigger": "CREATE TEMP TRIGGER t AFTER INSERT ON item BEGIN SELECT 1; END",
    "writable schema": "PRAGMA writable_schema=ON",
    "temp store directory": "PRAGMA temp_store_directory='{folder}'",
    "query only": "PRAGMA query_only=OFF",
    "journal mode": "PRAGMA journal_mode=DELETE",
    "pragma function": "SELECT * FROM pragma_database_list",
    "drop": "DROP TABLE item",
    "insert": "INSERT INTO item VALUES (1, 'x', 1, 'x')",
    "update": "UPDATE item SET price = 0",
    "delete": "DELETE FROM item",
    "returning": "DELETE FROM item RETURNING *",
    "replace": "REPLACE INTO item VALUES (1, 'x', 1, 'x')",
    "create index": "CREATE INDEX i ON item (name)",
    "alter": "ALTER TABLE item RENAME TO thing",
    "begin": "BEGIN EXCLUSIVE",
    "savepoint": "SAVEPOINT s",
    "load extension": "SELECT load_extension('{folder}/evil.so')",
    "read file": "SELECT readfile('/etc/passwd')",
    "write file": "SELECT writefile('{folder}/evil', 'x')",
    "edit": "SELECT edit('x', 'sh')",
    "recursive count": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
    "endless rows": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c",
    "zeroblob": "SELECT zeroblob(999999999)",
    "randomblob": "SELECT hex(randomblob(500000000))",
    "doubling text": "WITH RECURSIVE c(t) AS (SELECT 'x' UNION ALL SELECT t || t FROM c) SELECT max(length(t)) FROM c",
    "replace bomb": "SELECT replace(replace(replace(printf('%.10000c', 'a'), 'a', printf('%.10000c', 'b')), 'b', printf('%.10000c', 'c')), 'c', 'dd')",
    "printf width": "SELECT printf('%2000000000d', 1)",
    "group_concat": "SELECT group_concat(a.name || b.name || c.name || d.name) FROM item a, item b, item c, item d",
    "cross join": "SELECT count(*) FROM sale a, sale b, sale c",
    "cross join of rows": "SELECT * FROM sale a, sale b, sale c",
    "two statements": "SELECT 1; DROP TABLE item",
    "comment and statement": "SELECT 1 /* x */; -- y\nDELETE FROM item",
    "slow like": "SELECT count(*) FROM sale a, sale b WHERE a.day || b.day LIKE '%1%2%3%4%5%6%7%'",
    "deep expression": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "long in list": "SELECT 1 WHERE 1 IN (" + "1," * 200_000 + "1)",
    "null bytes": "SELECT 1\x00; DROP TABLE item",
    "lone surrogate": "SELECT '\ud800'",
    "not SQL": "I think the answer is 42",
    "empty": "",
    "only a comment": "-- nothing",
    "explain": "EXPLAIN QUERY PLAN DELETE FROM item",
}  # fmt: skip
MAY_ANSWER = {
    "endless rows",
    "cross join of rows",
    "empty",
    "only a comment",
    "printf width",
    "long in list",
    "group_concat",
}
MAY_ANSWER |= {"explain"}  # what would be done, not done


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sql_writes_nothing_and_ends(name: str, database: Path, strong) -> None:
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    (table,) = run_sql(database, [HOSTILE[name].replace("{folder}", str(database.parent))], seconds=0.5, rows=100)
    assert [p.name for p in database.parent.iterdir()] == ["shop.db"]
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    assert table.problem is not None or name in MAY_ANSWER, table
    assert len(table.rows) <= 100 and len(str(table.rows)) < 3 << 20
    assert table.cut == (name in ("endless rows", "cross join of rows"))


ORDINARY = [
    "SELECT * FROM item",
    "SELECT name, price FROM item WHERE price > 20 ORDER BY price DESC LIMIT 3",
    "SELECT count(*) FROM sale",
    "SELECT count(DISTINCT item) FROM sale",
    "SELECT kind, avg(price), min(price), max(price), sum(price) FROM item GROUP BY kind",
    "SELECT kind, count(*) FROM item GROUP BY kind HAVING count(*) > 5",
    "SELECT i.name, sum(s.n) FROM item i JOIN sale s ON s.item = i.id GROUP BY i.id ORDER BY 2 DESC, 1 LIMIT 5",
    "SELECT name FROM item WHERE id NOT IN (SELECT item FROM sale)",
    "SELECT name FROM item i WHERE EXISTS (SELECT 1 FROM sale s WHERE s.item = i.id AND s.n = 4)",
    "SELECT i.name, s.day FROM item i LEFT JOIN sale s ON s.item = i.id AND s.n = 4 WHERE i.id > 35",
    "SELECT id FROM item UNION SELECT item FROM sale",
    "SELECT id FROM item EXCEPT SELECT item FROM sale",
    "SELECT id FROM item INTERSECT SELECT item FROM sale",
    "WITH top AS (SELECT item, sum(n) t FROM sale GROUP BY item) SELECT max(t) FROM top",
    "SELECT CASE WHEN price > 20 THEN 'dear' ELSE 'cheap' END AS c, count(*) FROM item GROUP BY c",
    "SELECT strftime('%m', day), count(*) FROM sale GROUP BY 1",
    "SELECT upper(name) || '!' FROM item WHERE name LIKE '%7'",
    "SELECT name FROM item WHERE price BETWEEN 5 AND 10",
    "SELECT name FROM item WHERE name IS NULL",
    "SELECT coalesce(name, 'none'), ifnull(price, 0) FROM item WHERE id = 99",
    "SELECT name, rank() OVER (ORDER BY price DESC) FROM item",
    "SELECT round(price, 1), CAST(price AS INTEGER) FROM item",
    "SELECT group_concat(name, ';') FROM (SELECT name FROM item ORDER BY id LIMIT 3)",
    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 10) SELECT n FROM c",
    "SELECT name FROM sqlite_master WHERE type = 'table'",
    "SELECT name FROM item ORDER BY price LIMIT 1 OFFSET 3;",
    "SELECT substr(day, 1, 7) AS month, total(n) FROM sale GROUP BY month -- by month",
]  # fmt: skip


def test_ordinary_queries_equal_sqlite(database: Path) -> None:
    found = run_sql(database, ORDINARY, seconds=30, allow_weak_sandbox=True)
    with sqlite3.connect(database) as db:
        for query, table in zip(ORDINARY, found, strict=True):
            cursor = db.execute(query)
            assert table.problem is None and not table.cut, (query, table)
            assert table.columns == tuple(entry[0] for entry in cursor.description)
            assert list(table.rows) == cursor.fetchall(), query
    db.close()


def test_a_query_that_kills_the_child_costs_only_itself(database: Path) -> None:
    tables = run_sql(
        database, ["SELECT 1", HOSTILE["group_concat"], "SELECT 2"], seconds=5, memory_mib=256, allow_weak_sandbox=True
    )
    assert tables[0].rows == ((1,),) and tables[2].rows == ((2,),)


@pytest.mark.parametrize(
    ("query", "kind"),
    [("SELEC 1", "syntax_error"), ("SELECT x FROM item", "unknown_name"), ("SELECT 1 FROM items", "unknown_name"),
     ("SELECT foo(1)", "unknown_name"), ("DELETE FROM item", "refused"), ("SELECT load_extension('x')", "refused"),
     ("SELECT 1; SELECT 2", "refused"), ("SELECT id FROM item JOIN item b", "unknown_name"),
     ("SELECT count(*) FROM sale a, sale b, sale c", "timeout")],
)  # fmt: skip
def test_kinds_of_problem(query: str, kind: str, database: Path) -> None:
    (table,) = run_sql(database, [query], seconds=0.5, allow_weak_sandbox=True)
    assert table.problem is not None and table.problem.kind == kind, table


@pytest.mark.parametrize("content", [None, b"", b"no database at all, but longer than a header of sqlite" * 20])
def test_a_database_that_does_not_open(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.db"
    if content is not None:
        path.write_bytes(content)
    if content == b"":  # SQLite takes an empty file for an empty database
        assert run_sql(path, ["SELECT 1 FROM t"], allow_weak_sandbox=True)[0].problem
        return
    with pytest.raises(WorkbenchError, match=r"x\.db"):
        run_sql(path, ["SELECT 1"], allow_weak_sandbox=True)

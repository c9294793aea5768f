"""Which rows and orders a reference query allows: ties, limits, inner orders."""

import sqlite3

import pytest

from dpo_workbench.tasks import scores
from dpo_workbench.tasks.examples import Example
from dpo_workbench.tasks.sql_scores import Allowed


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    path = tmp_path_factory.mktemp("sql") / "town.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript("""
            CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, town TEXT, n INTEGER);
            INSERT INTO person (name, town, n) VALUES
                ('ada', 'X', -3), ('Bob', 'X', 2), ('cyd', 'Y', 1), ('Dee', 'Y', 2), ('eve', 'Z', 5), ('Flo', 'X', 4);
        """)
    db.close()
    score = scores.sql_result(database=path, allow_weak_sandbox=True)

    def failure(reference: str, answer: str) -> str | None:
        return score(Example("e", "p", reference, "g"), answer).failure

    return failure


COUNTS = "SELECT town, count(*) FROM person GROUP BY town"
CASES = [
    # the outer order counts, however it is written
    (f"{COUNTS} ORDER BY count(*) DESC, town", f"{COUNTS} ORDER BY count(*), town", "wrong_result"),
    (f"{COUNTS} ORDER BY count(*) DESC, town", f"{COUNTS} ORDER BY 2 DESC, 1", None),
    ("SELECT name FROM person ORDER BY abs(n), id", "SELECT name FROM person ORDER BY n", "wrong_result"),
    ("SELECT name FROM person ORDER BY lower(name)", "SELECT name FROM person ORDER BY name", "wrong_result"),
    ("SELECT name FROM person ORDER BY lower(name)", "SELECT name FROM person ORDER BY name COLLATE NOCASE", None),
    ("SELECT name FROM person ORDER BY id -- (by id)", "SELECT name FROM person ORDER BY id DESC", "wrong_result"),
    ("SELECT name FROM person ORDER BY id /* (x) */", "SELECT name FROM person ORDER BY -id", "wrong_result"),
    ("SELECT name FROM person ORDER BY CASE WHEN n > 2 THEN (0) ELSE (1) END, id", "SELECT name FROM person ORDER BY id", "wrong_result"),
    ("SELECT name FROM person UNION SELECT town FROM person ORDER BY 1", "SELECT name FROM person UNION SELECT town FROM person ORDER BY 1 DESC", "wrong_result"),
    ("WITH p AS (SELECT * FROM person) SELECT name FROM p ORDER BY (id)", "SELECT name FROM person ORDER BY id DESC", "wrong_result"),
    # an inner order does not
    ("SELECT name FROM (SELECT name FROM person ORDER BY n)", "SELECT name FROM person ORDER BY id DESC", None),
    ("WITH p AS (SELECT name FROM person ORDER BY n LIMIT 9) SELECT name FROM p", "SELECT name FROM person", None),
    ("SELECT name, rank() OVER (ORDER BY n, id) FROM person", "SELECT name, rank() OVER (ORDER BY n, id) FROM person ORDER BY name", None),
    ("SELECT name FROM person WHERE n = (SELECT n FROM person ORDER BY n DESC LIMIT 1)", "SELECT name FROM person WHERE n = 5", None),
    ("SELECT name FROM person WHERE name <> 'order by (n)'", "SELECT name FROM person ORDER BY name", None),
    # rows that tie may come in any order
    ("SELECT name FROM person ORDER BY town", "SELECT name FROM person ORDER BY town, name DESC", None),
    ("SELECT name FROM person ORDER BY town", "SELECT name FROM person ORDER BY town DESC", "wrong_result"),
    ("SELECT name, n FROM person ORDER BY n DESC", "SELECT name, n FROM person ORDER BY n DESC, id DESC", None),
    ("SELECT name AS who, n AS k FROM person ORDER BY k", "SELECT name, n FROM person ORDER BY n, name", None),
    ("SELECT DISTINCT town, n > 0 FROM person ORDER BY town", "SELECT DISTINCT town, n > 0 FROM person ORDER BY town, 2 DESC", None),
    ("SELECT name FROM person ORDER BY town COLLATE NOCASE", "SELECT name FROM person ORDER BY town, n", None),
    # a limit that cuts through ties keeps any of them
    ("SELECT name FROM person ORDER BY town LIMIT 2", "SELECT name FROM person WHERE town = 'X' ORDER BY n DESC LIMIT 2", None),
    ("SELECT name FROM person ORDER BY town LIMIT 2", "SELECT name FROM person WHERE town = 'Y'", "wrong_result"),
    ("SELECT name FROM person ORDER BY town LIMIT 2", "SELECT name FROM person WHERE town = 'X'", "wrong_result"),
    ("SELECT name FROM person ORDER BY n DESC LIMIT 3", "SELECT name FROM person ORDER BY n DESC, id DESC LIMIT 3", None),
    ("SELECT name FROM person ORDER BY n DESC LIMIT 3", "SELECT 'eve' UNION ALL SELECT 'Flo' UNION ALL SELECT 'ada'", "wrong_result"),
    ("SELECT name FROM person ORDER BY town LIMIT 2 OFFSET 2", "SELECT name FROM (SELECT * FROM person ORDER BY town, n) LIMIT 2, 2", None),
    ("SELECT name FROM person LIMIT 2", "SELECT name FROM person ORDER BY name DESC LIMIT 2", None),
    ("SELECT name FROM person LIMIT 2", "SELECT town FROM person LIMIT 2", "wrong_result"),
    ("SELECT name FROM person LIMIT 2", "SELECT 'ada' UNION ALL SELECT 'ada'", "wrong_result"),
    ("SELECT count(*) FROM person LIMIT 1", "SELECT count(*) FROM person", None),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer", "failure"), CASES)
def test_orders_and_ties(judge, reference: str, answer: str, failure: str | None) -> None:
    assert judge(reference, reference) is None
    assert judge(reference, answer) == failure


def allowed(*rows: tuple, ordered: bool = False) -> Allowed:
    return Allowed([[row] for row in rows] if ordered else [list(rows)], 0, len(rows))


def test_rows_without_an_order_are_compared_as_multisets() -> None:
    pair = ((1, "a"), (2, "b"))
    assert allowed(*pair).accepts(pair[::-1]) and not allowed(*pair, ordered=True).accepts(pair[::-1])
    assert not allowed((1,), (1,), (2,)).accepts([(1,), (2,), (2,)])
    assert allowed((1.0,), (None,)).accepts([(None,), (1,)])
    assert allowed((0.1 + 0.2,)).accepts([(0.3,)]) and not allowed((1,)).accepts([("1",)])
    assert not allowed((1, 2)).accepts([(1,)]) and not allowed((1,)).accepts([(1,), (1,)])
    assert not allowed((1.0001,)).accepts([(1.0002,)]) and not allowed((10**17,)).accepts([(10**17 + 1,)])

"""Which rows and orders a reference query allows: outer and inner orders, limits."""

import sqlite3

import pytest

from dpo_workbench.tasks import scores
from dpo_workbench.tasks.examples import Example
from dpo_workbench.tasks.sql_scores import same_rows


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
    # with an order, rows that tie must come as in the reference; without one, in any order
    ("SELECT name FROM person ORDER BY town", "SELECT name FROM person ORDER BY town DESC", "wrong_result"),
    ("SELECT name AS who, n AS k FROM person ORDER BY k, id", "SELECT name, n FROM person ORDER BY n, name COLLATE NOCASE", None),
    ("SELECT name FROM person ORDER BY town, id LIMIT 2", "SELECT name FROM person WHERE town = 'X' ORDER BY id LIMIT 2", None),
    ("SELECT name FROM person ORDER BY town, id LIMIT 2", "SELECT name FROM person WHERE town = 'X'", "wrong_result"),
    ("SELECT name FROM person ORDER BY n DESC LIMIT 3", "SELECT 'eve' UNION ALL SELECT 'Flo' UNION ALL SELECT 'ada'", "wrong_result"),
    ("SELECT name FROM person LIMIT 2", "SELECT town FROM person LIMIT 2", "wrong_result"),
    ("SELECT name FROM person LIMIT 2", "SELECT 'ada' UNION ALL SELECT 'ada'", "wrong_result"),
    ("SELECT count(*) FROM person LIMIT 1", "SELECT count(*) FROM person", None),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer", "failure"), CASES)
def test_orders(judge, reference: str, answer: str, failure: str | None) -> None:
    assert judge(reference, reference) is None
    assert judge(reference, answer) == failure


def test_rows_without_an_order_are_compared_as_multisets() -> None:
    pair = ((1, "a"), (2, "b"))
    assert same_rows(pair, pair[::-1], in_order=False) and not same_rows(pair, pair[::-1], in_order=True)
    different = [
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)]), ([(1,)], [("1",)]), ([(1, 2)], [(1,)]), ([(1,)], [(1,), (1,)]),
        ([(1.0001,)], [(1.0002,)]), ([(10**17,)], [(10**17 + 1,)]),
    ]  # fmt: skip
    equal = [([(1.0,), (None,)], [(None,), (1,)]), ([(0.1 + 0.2,)], [(0.3,)])]
    for one, other in different:
        assert not same_rows(one, other, in_order=False) and not same_rows(other, one, in_order=False)
    for one, other in equal:
        assert same_rows(one, other, in_order=False)

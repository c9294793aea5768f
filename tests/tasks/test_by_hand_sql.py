"""A hundred answers to `sql`, judged by hand on its databases: right ones written otherwise, and near misses."""

import pytest

from dpo_workbench.tasks import sql
from dpo_workbench.tasks.task import Example

TASK = sql.load(allow_weak_sandbox=True)
ANSWERS = {
    ("bakery", "SELECT COUNT(*) FROM loaf WHERE grain = 'rye'"): [
        ("SELECT COUNT(*) FROM loaf WHERE grain = 'rye'", None),
        ("select count(id) from loaf where grain='rye';", None),
        ("SELECT COUNT(1) AS n FROM loaf AS l WHERE l.grain = 'rye'", None),
        ("SELECT SUM(grain = 'rye') FROM loaf", None),
        ("```sql\nSELECT COUNT(*)\nFROM loaf\nWHERE grain LIKE 'rye'\n```", None),
        ("SELECT COUNT(*) FROM loaf WHERE grain IN ('rye')", None),
        ("The query is SELECT COUNT(*) FROM loaf WHERE grain = 'rye'", None),
        ("SELECT COUNT(*) FROM loaf", "wrong_result"),
        ("SELECT COUNT(*) FROM loaf WHERE grain = 'oat'", "wrong_result"),
        ("SELECT COUNT(*) FROM loaf WHERE grain = 'Rye'", "wrong_result"),
        ("SELECT COUNT(DISTINCT grain) FROM loaf WHERE grain = 'rye'", "wrong_result"),
        ("SELECT * FROM loaf WHERE grain = 'rye'", "all_columns"),
        ("SELECT label FROM loaf WHERE grain = 'wheat'", "empty_result"),
        ("SELECT COUNT(*) FROM loaves WHERE grain = 'rye'", "unknown_name"),
        ("SELECT COUNT(*) FROM loaf WHERE kind = 'rye'", "unknown_name"),
        ("SELECT NUMBER(*) FROM loaf WHERE grain = 'rye'", "unknown_name"),
        ("SELECT COUNT(* FROM loaf WHERE grain = 'rye'", "syntax_error"),
        ("COUNT loaf rye", "syntax_error"),
        ("DELETE FROM loaf WHERE grain = 'rye'", "refused"),
        ("SELECT COUNT(*) FROM loaf WHERE grain = 'rye'; DROP TABLE loaf", "refused"),
    ],
    ("bakery", "SELECT name FROM baker ORDER BY wage DESC LIMIT 3"): [
        ("SELECT name FROM baker ORDER BY wage DESC LIMIT 3", None),
        ("SELECT b.name FROM baker b ORDER BY b.wage DESC LIMIT 0, 3", None),
        ("SELECT name FROM (SELECT name, wage FROM baker ORDER BY wage DESC) LIMIT 3", None),
        ("WITH t AS (SELECT name, wage FROM baker) SELECT name FROM t ORDER BY wage DESC LIMIT 3", None),
        ("SELECT name FROM baker ORDER BY -wage LIMIT 3", None),
        ("SELECT name FROM baker ORDER BY wage LIMIT 3", "wrong_result"),
        ("SELECT name FROM baker ORDER BY wage DESC", "wrong_result"),
        ("SELECT name FROM baker ORDER BY wage DESC LIMIT 2", "wrong_result"),
        ("SELECT name, wage FROM baker ORDER BY wage DESC LIMIT 3", "wrong_columns"),
        ("SELECT id FROM baker ORDER BY wage DESC LIMIT 3", "wrong_result"),
        ("SELECT name FROM (SELECT name, wage FROM baker ORDER BY wage DESC LIMIT 3) ORDER BY wage", "wrong_result"),
        ("SELECT name FROM baker ORDER BY wage DESC LIMIT 0", "empty_result"),
        ("SELECT name FROM baker ORDER BY salary DESC LIMIT 3", "unknown_name"),
        ("SELECT TOP 3 name FROM baker ORDER BY wage DESC", "syntax_error"),
        ("SELECT name FROM baker ORDER BY wage DESC LIMIT three", "unknown_name"),
    ],
    ("railway", "SELECT line.name, COUNT(*) FROM line JOIN station ON station.line_id = line.id GROUP BY line.id"): [
        ("SELECT line.name, COUNT(*) FROM line JOIN station ON station.line_id = line.id GROUP BY line.id", None),
        ("SELECT l.name, COUNT(s.id) FROM station s JOIN line l ON l.id = s.line_id GROUP BY l.name", None),
        ("SELECT name, n FROM line JOIN (SELECT line_id, COUNT(*) n FROM station GROUP BY 1) ON line_id = id", None),
        ("SELECT l.name, COUNT(*) FROM line l, station s WHERE s.line_id = l.id GROUP BY l.id ORDER BY 2", None),
        ("SELECT l.name, COUNT(*) * 1.0 FROM line l JOIN station s ON s.line_id = l.id GROUP BY l.id", None),
        ("SELECT l.name, COUNT(s.id) FROM line l LEFT JOIN station s ON s.line_id = l.id GROUP BY l.id", "wrong_result"),
        ("SELECT COUNT(*), l.name FROM line l JOIN station s ON s.line_id = l.id GROUP BY l.id", "wrong_result"),
        ("SELECT line_id, COUNT(*) FROM station GROUP BY line_id", "wrong_result"),
        ("SELECT l.name FROM line l JOIN station s ON s.line_id = l.id GROUP BY l.id", "wrong_columns"),
        ("SELECT l.name, COUNT(*) FROM line l JOIN station s ON s.id = l.id GROUP BY l.id", "wrong_result"),
        ("SELECT l.name, COUNT(*) FROM line l JOIN station s GROUP BY l.id", "wrong_result"),
        ("SELECT name, COUNT(*) FROM line JOIN station ON line_id = line.id GROUP BY line.id", "unknown_name"),
        ("SELECT l.name, COUNT(*) FROM lines l JOIN station s ON s.line_id = l.id GROUP BY l.id", "unknown_name"),
        ("SELECT l.name COUNT(*) FROM line l JOIN station s ON s.line_id = l.id GROUP BY l.id", "syntax_error"),
        ("SELECT l.name, COUNT(*) FROM line l JOIN station s ON s.line_id = l.id GROUP l.id", "syntax_error"),
    ],
    ("theatre", "SELECT AVG(tickets) FROM show WHERE stage = 'main'"): [
        ("SELECT AVG(tickets) FROM show WHERE stage = 'main'", None),
        ("SELECT SUM(tickets) * 1.0 / COUNT(*) FROM show WHERE stage = 'main'", None),
        ("SELECT TOTAL(tickets) / COUNT(tickets) FROM show WHERE stage='main'", None),
        ("SELECT AVG(CASE WHEN stage = 'main' THEN tickets END) FROM show", None),
        ("SELECT AVG(tickets) FROM show GROUP BY stage HAVING stage = 'main'", None),
        ('SELECT AVG("tickets") FROM "show" WHERE "stage" = \'main\'', None),
        ("SELECT AVG(tickets) FROM show WHERE stage != 'main'", "wrong_result"),
        ("SELECT SUM(tickets) FROM show WHERE stage = 'main'", "wrong_result"),
        ("SELECT AVG(tickets) FROM show", "wrong_result"),
        ("SELECT AVG(fee) FROM show WHERE stage = 'main'", "wrong_result"),
        ("SELECT MEAN(tickets) FROM show WHERE stage = 'main'", "unknown_name"),
        ("SELECT AVG(tickets) FROM show WHERE hall = 'main'", "unknown_name"),
        ("SELECT AVG tickets FROM show WHERE stage = 'main'", "unknown_name"),
        ("SELECT AVG(tickets FROM show", "syntax_error"),
        ("UPDATE show SET tickets = 0", "refused"),
    ],
    ("theatre", "SELECT name FROM director WHERE id NOT IN (SELECT director_id FROM show)"): [
        ("SELECT name FROM director WHERE id NOT IN (SELECT director_id FROM show)", None),
        ("SELECT name FROM director d WHERE NOT EXISTS (SELECT 1 FROM show s WHERE s.director_id = d.id)", None),
        ("SELECT d.name FROM director d LEFT JOIN show s ON s.director_id = d.id WHERE s.id IS NULL", None),
        ("SELECT name FROM director WHERE id IN (SELECT id FROM director EXCEPT SELECT director_id FROM show)", None),
        ("SELECT DISTINCT name FROM director WHERE id NOT IN (SELECT DISTINCT director_id FROM show)", None),
        ("SELECT name FROM director WHERE id IN (SELECT director_id FROM show)", "wrong_result"),
        ("SELECT name FROM director", "wrong_result"),
        ("SELECT name FROM director WHERE id NOT IN (SELECT id FROM show)", "empty_result"),
        ("SELECT COUNT(*) FROM director WHERE id NOT IN (SELECT director_id FROM show)", "wrong_result"),
        ("SELECT id FROM director WHERE id NOT IN (SELECT director_id FROM show)", "wrong_result"),
        ("SELECT title FROM director WHERE id NOT IN (SELECT director_id FROM show)", "unknown_name"),
        ("SELECT name FROM director WHERE id NOT (SELECT director_id FROM show)", "syntax_error"),
        ("PRAGMA table_info(director)", "refused"),
        ("ATTACH ':memory:' AS x", "refused"),
        ("", "syntax_error"),
    ],
    ("railway", "SELECT DISTINCT gauge FROM line"): [
        ("SELECT DISTINCT gauge FROM line", None),
        ("SELECT gauge FROM line GROUP BY gauge", None),
        ("SELECT gauge FROM line UNION SELECT gauge FROM line", None),
        ("SELECT DISTINCT gauge FROM line ORDER BY gauge DESC", None),
        ("SELECT gauge FROM line", "wrong_result"),
        ("SELECT DISTINCT zone FROM station", "wrong_result"),
        ("SELECT DISTINCT gauge, name FROM line", "wrong_columns"),
        ("SELECT COUNT(DISTINCT gauge) FROM line", "wrong_result"),
        ("SELECT UNIQUE gauge FROM line", "syntax_error"),
        ("SELECT DISTINCT gauges FROM line", "unknown_name"),
    ],
    ("railway", "SELECT COUNT(*) FROM station WHERE opened > '2023-06-01'"): [
        ("SELECT COUNT(*) FROM station WHERE opened > '2023-06-01'", None),
        ("SELECT COUNT(*) FROM station WHERE date(opened) > date('2023-06-01')", None),
        ("SELECT COUNT(*) FROM station WHERE julianday(opened) > julianday('2023-06-01')", None),
        ("SELECT COUNT(*) FROM station WHERE NOT opened <= '2023-06-01'", None),
        ("SELECT COUNT(*) FROM station WHERE opened < '2023-06-01'", "wrong_result"),
        ("SELECT COUNT(*) FROM station WHERE opened > 2023-06-01", "wrong_result"),
        ("SELECT COUNT(*) FROM station WHERE opened > '2022-06-01'", "wrong_result"),
        ("SELECT COUNT(*) FROM station WHERE open > '2023-06-01'", "unknown_name"),
        ("SELECT COUNT(*) FROM station WHERE opened > '2023-06-01", "syntax_error"),
        ("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT COUNT(*) FROM c", "timeout"),
    ],
}  # fmt: skip
CASES = [(base, gold, *case) for (base, gold), cases in ANSWERS.items() for case in cases]


def test_there_are_a_hundred() -> None:
    assert len(CASES) == 100


@pytest.mark.parametrize(("database", "gold", "answer", "failure"), CASES)
def test_the_verifier_agrees(database: str, gold: str, answer: str, failure: str | None) -> None:
    example = Example("e", "p", gold, "g", {"database": database})
    score = TASK._score(example, answer)
    assert score.failure == failure and (score.value == 1.0) == (failure is None), score

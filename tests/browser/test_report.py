"""The report in a real browser: on a desk, on a phone, on paper."""

import pytest

from dpo_workbench.evaluation.report import write_report
from dpo_workbench.evaluation.run import Evaluation, Judged
from dpo_workbench.evaluation.verdict import verdict

pytestmark = pytest.mark.slow

# cells whose first word is broken: a word is one line, however narrow its column
BROKEN = """() => [...document.querySelectorAll("th, td")].filter((cell) => {
  const text = cell.firstChild, range = document.createRange();
  if (!text || text.nodeType !== 3) return false;
  range.setStart(text, 0);
  range.setEnd(text, text.data.match(/^\\S*/)[0].length);
  return range.getClientRects().length > 1;
}).map((cell) => cell.textContent)"""
CLASSES = (
    "invented_value",
    "loop",
    "missing_field",
    "missing_item",
    "repeated_item",
    "truncated",
    "wrong_schema",
    None,
)


def arm(name: str, shift: int) -> Evaluation:
    rows = tuple(
        Judged(f"t-{i}", f"g{i}", "prompt " * 40, "answer" * 40, 30, True, 0.4 if f else 1.0, f, "why")
        for i, f in enumerate(None if i < shift else CLASSES[i % 8] for i in range(48))
    )
    return Evaluation(name, task="receipts", split="test", model="nano", decoding={}, rows=rows)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    arms = {name: arm(name, 8 * k) for k, name in enumerate(("start", "control", "DPO"))}
    decided = verdict(arms["start"], arms["DPO"], control=arms["control"])
    facts = {"settings": {"command": "x" * 300}, "command": "dpo-workbench demo"}
    tables = [("A word that is too long for any line", ["word"], [["x" * 300]])]
    return write_report(tmp_path_factory.mktemp("report"), facts, arms, decided, tables)


@pytest.mark.parametrize("width", (1280, 390))
@pytest.mark.parametrize("media", ("screen", "print"))
def test_no_word_is_broken_and_nothing_sticks_out(browser, report, width, media):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.emulate_media(media=media)
    page.goto(report.as_uri())
    assert page.evaluate(BROKEN) == ["x" * 300]  # the negative control
    if media == "screen":
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()

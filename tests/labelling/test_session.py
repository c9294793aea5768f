"""What a rater sees and does: commands, the widget without a front end, plain text, rubrics."""

import json

import pytest

import dpo_workbench as dw
from dpo_workbench.labelling import widget as view
from dpo_workbench.labelling.rubric import Rubric
from dpo_workbench.labelling.session import HELP, Session
from dpo_workbench.labelling.widget import BUTTONS, MOVES

PAIRS = [
    dw.Pair(f"p{k}", f"question {k}", f"right {k}", f"wrong {k}", chosen_from="reference", rejected_from="own",
            chosen_score=1.0, rejected_score=0.25, failure="wrong_value")
    for k in range(8)
]  # fmt: skip


def make(tmp_path, quick=0.0) -> Session:
    return Session(PAIRS, "ann", tmp_path / "l.jsonl", "python", quick=quick)


def test_a_double_click_never_labels_the_next_item(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    work = make(tmp_path, quick=0.3)
    now[0] += 5
    work.do("a")
    for wait in (0.0, 0.1, 0.19):
        now[0] += wait
        assert work.do("a").startswith("Too quick") and work.n_done == 1
    now[0] += 0.05
    assert work.do("a").startswith("Saved") and work.n_done == 2


def test_strength_and_note_go_with_the_vote_and_not_to_the_next(tmp_path):
    work = make(tmp_path)
    work.do("3"), work.do("n because of\tthe edge")
    work.do("b")
    (event,) = work.store.events.values()
    assert (event.choice, event.strength, event.note) == ("b", 3, "because of\tthe edge")
    assert event.rubric == work.rubric.version
    assert work.strength is None and work.note == ""
    work.do("u")
    assert work.strength == 3 and work.note == "because of\tthe edge"  # to be changed, not typed again


def test_a_strength_says_nothing_about_a_tie(tmp_path):
    work = make(tmp_path)
    work.do("2"), work.do("t"), work.do("1"), work.do("a")
    assert [e.strength for e in work.store.labels.values()] == [None, 1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "Not a command"), ("ab", "Not a command"), ("4", "Not a command"), ("g 99", "items 1 to 8"),
        ("g 0", "items 1"), ("x" * 10_000, "Not a command"),
        ("<", "items 1 to 8"), ("n", "Not a command"),
        ("r", "Not a command"), ("u", "Nothing to undo"), ("<script>", "Not a command"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_changes_nothing(tmp_path, command, said):
    work = make(tmp_path)
    assert said in work.do(command)
    assert work.position == 0 and not work.store.events


def test_moving(tmp_path):
    work = make(tmp_path)
    work.do(">"), work.do(">"), work.do("<")
    assert work.position == 1
    work.do("g 5")
    assert "Item 5 of 8" in work.status()


def test_nothing_on_the_card_says_where_an_answer_came_from(tmp_path):
    work = make(tmp_path)
    shown = " ".join(view.card(work).values()) + view.text_card(work)
    assert not any(word in shown for word in ("reference", "own", "0.25", "1.00", "wrong_value", "chosen", "rejected"))


def test_all_done_is_said(tmp_path):
    work = make(tmp_path)
    for _ in PAIRS:
        said = work.do("a")
    assert said.endswith("All items are labelled.") and work.finished and "8 labelled" in work.status()


def test_the_widget_does_what_its_buttons_say(tmp_path):
    widget = dw.label(PAIRS, rubric="python", rater="ann", store=tmp_path / "l.jsonl")
    widget.session.quick = 0.0
    for key in BUTTONS:
        widget.buttons[key].click()
    choices = [e.choice for e in widget.session.store.labels.values()]
    assert choices == ["a", "b", "tie", "bad", "skip"] and widget.progress.value == 5
    widget.buttons["u"].click()
    assert widget.progress.value == 4 and "Undone" in widget.parts["message"].value
    widget.buttons["<"].click(), widget.buttons[">"].click()
    assert widget.session.position == 4
    assert set(widget.buttons) == {*BUTTONS, *MOVES}


def test_the_vote_is_directly_below_the_answers_and_small_things_come_last(tmp_path):
    widget = dw.label(PAIRS, rubric="python", rater="ann", store=tmp_path / "l.jsonl")
    rows = widget.box.children
    (at,) = (k for k, row in enumerate(rows) if widget.parts["a"] in getattr(row, "children", ()))
    assert list(rows[at + 1].children) == [widget.buttons[key] for key in BUTTONS]
    assert rows[at + 2] is widget.strength and {widget.note, widget.typed} < set(rows[-1].children)
    assert all(widget.buttons[key] in rows[-1].children for key in MOVES)
    assert widget.parts["rubric"].value.startswith("<details>")  # folded


def test_the_box_takes_keys_at_once(tmp_path):
    widget = dw.label(PAIRS, rubric="python", rater="ann", store=tmp_path / "l.jsonl")
    widget.session.quick = 0.0
    for key in ("2", "A"):
        widget.typed.value = key
        assert widget.typed.value == ""
    (event,) = widget.session.labels.values()
    assert (event.choice, event.strength) == ("a", 2)


def test_what_is_set_on_the_widget_goes_with_the_vote(tmp_path):
    widget = dw.label(PAIRS, rubric="python", rater="ann", store=tmp_path / "l.jsonl")
    widget.session.quick = 0.0
    widget.strength.value, widget.note.value = 3, "edge"
    widget.buttons["a"].click()
    (event,) = widget.session.labels.values()
    assert (event.strength, event.note) == (3, "edge")
    assert widget.strength.value == 0 and widget.note.value == ""


def test_a_failure_in_a_callback_is_shown(tmp_path, monkeypatch):
    widget = dw.label(PAIRS, rater="ann", store=tmp_path / "l.jsonl")
    monkeypatch.setattr(widget.session, "do", lambda command: 1 / 0)
    widget.buttons["a"].click()
    assert "ZeroDivisionError" in widget.parts["message"].value and widget.session.n_done == 0


def test_plain_text_does_the_same(tmp_path):
    commands, written = iter(["a", "2", "b", "nonsense", "u", "t", "", "q"]), []
    work = dw.label_text(
        PAIRS, rater="ann", store=tmp_path / "l.jsonl", read=lambda _: next(commands), write=written.append
    )
    assert [e.choice for e in work.store.labels.values()] == ["a", "tie"]
    assert HELP in written[0] and "2 of 8 labelled" in written[-1]


@pytest.mark.parametrize("end", (KeyboardInterrupt, EOFError))
def test_plain_text_ends_well(tmp_path, end):
    commands = iter(["a"])

    def read(_):
        for command in commands:
            return command
        raise end

    work = dw.label_text(PAIRS, rater="ann", store=tmp_path / "l.jsonl", read=read, write=lambda text: None)
    assert work.n_done == 1


def test_a_terminal_gets_no_control_characters(tmp_path):
    pair = dw.Pair("p", "q\x1b[2Jq", "a\x1b]0;title\x07\u202e", "b\x00b")
    work = Session([pair], "ann", tmp_path / "l.jsonl")
    shown = view.text_card(work)
    assert "\\u001b" in shown and "\\u202e" in shown
    assert not any(ord(c) < 32 and c != "\n" for c in shown) and "\u202e" not in shown


def test_no_text_becomes_an_element():
    from html.parser import HTMLParser

    allowed = {"pre", "mark", "details", "summary", "p", "table", "thead", "tbody", "tr", "th", "td", "h4"}

    class Looks(HTMLParser):
        found: set[str] = set()

        def handle_starttag(self, tag, attrs):
            self.found.add(tag)
            assert not any(name.startswith("on") or name in ("src", "href", "srcdoc") for name, _ in attrs)

    payloads = [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "</pre><style>*{}",
        '<iframe srcdoc="x">', "<base href=//x>", "<!-- ", "<form action=x>", "$\\href{javascript:alert(1)}{x}$",
        json.dumps({"<b>": "<i>", "rows": [["<u>", "</table><script>"]]}), "x" * 5000 + "<b>", "\x1b[31m", "\u202e<b>",
    ]  # fmt: skip
    for payload in payloads:
        html = view.answer_html(payload, "other " + payload[::-1])
        Looks().feed(html + view.box(view.escape(payload)))
    assert Looks.found <= allowed


def test_a_difference_is_marked():
    marked = view.marked("the cat sat", "the dog sat")
    assert marked.count("<mark") == 1 and ">cat</mark>" in marked


def test_a_long_answer_scrolls():
    html = view.answer_html("word " * 2000, "word " * 1999 + "end ")
    assert "overflow: auto" in html and "<mark" not in html
    assert len(view.answer_html("x" * 10_000_000, "y")) < 60_000


@pytest.mark.parametrize("name", ("receipts", "python", "science", "briefs", "sql"))
def test_each_domain_has_a_rubric(name):
    text = repr(Rubric.load(name))
    assert all(text.count(f"  {grade}: ") == 3 for grade in ("strong", "weak", "failing")) and "For example" in text


def test_the_version_follows_what_the_rubric_says(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("Which?\n\nkind: It is kind.\n")
    one = Rubric.load(file)
    assert (one.question, one.criteria) == ("Which?", "kind: It is kind.")
    file.write_text("Which?\n\nkind: It is kinder.\n")
    assert one.version != Rubric.load(file).version and one.version.startswith("mine-")


@pytest.mark.parametrize("text", ("", " \n\n"))
def test_a_rubric_without_a_question_is_refused(tmp_path, text):
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(dw.WorkbenchError, match=r"must be the question.*r\.txt"):
        Rubric.load(tmp_path / "r.txt")


def test_wrong_beginnings(tmp_path):
    with pytest.raises(dw.WorkbenchError, match=r"template \(briefs, python"):
        dw.label(PAIRS, rubric="nope", rater="ann", store=tmp_path / "l.jsonl")
    with pytest.raises(dw.WorkbenchError, match="rater"):
        dw.label(PAIRS, rater=" ", store=tmp_path / "l.jsonl")
    with pytest.raises(dw.WorkbenchError, match="something to label"):
        dw.label([], rater="ann", store=tmp_path / "l.jsonl")

"""Each kind of constraint: met, unmet, and the edges. Bad rows are refused when a task is made."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks import scores
from dpo_workbench.tasks.constraint_scores import Constraints, problem
from dpo_workbench.tasks.constraints import CHECKS, COUNTS, met, met_loosely, sentences
from dpo_workbench.tasks.languages import LANGUAGES, language_of

YES_NO = ["I say yes.", "I say no."]
# (constraint, answers that meet it, answers that do not)
CASES = [
    ({"kind": "words", "at_most": 3}, ["a b c", "Don't do well", ""], ["a b c d", "well-known old hat"]),
    ({"kind": "words", "around": 50}, ["w " * 45, "w " * 55], ["w " * 44, "w " * 56]),
    ({"kind": "words", "at_least": 2, "at_most": 3}, ["a b", "a b c"], ["a", "a b c d"]),
    ({"kind": "sentences", "exactly": 2}, ["One. Two", "Dr. Hu came. I left!", "“Go.” He went."], ["One.", "A b. C d. E f."]),
    ({"kind": "longest_sentence", "at_most": 3}, ["a b c. d e f.", "1. a b"], ["a b c d.", "a. b c d e."]),
    ({"kind": "paragraphs", "exactly": 2}, ["a\n\nb", "a\n \n\n\nb\n\n"], ["a\nb", "a\n\nb\n\nc"]),
    ({"kind": "paragraphs", "exactly": 2, "mark": "***"}, ["a\n***\nb", "***\na *** b\n***"], ["a\n\nb", "a***b***c"]),
    ({"kind": "lines", "at_most": 2}, ["a\n\nb\n", "a"], ["a\nb\nc"]),
    ({"kind": "bullets", "exactly": 2}, ["- a\n- b", "x:\n * a\n * b\ny", "• a\n+ b"], ["- a", "-a\n-b", "---\n**a**", "1. a\n2. b"]),
    ({"kind": "numbered", "exactly": 2}, ["1. a\n2. b", "**1.** a\n 2) b"], ["1. a", "1.5 a\n2020. b", "- 1. a\n- 2. b"]),
    ({"kind": "headings", "at_least": 1}, ["# a\nb", "b\n### a"], ["#a", "a # b", "b"]),
    ({"kind": "sections", "heading": "Part", "exactly": 2}, ["Part 1\na\nPart 2\nb", "# PART 1:\n**part 2**"], ["as Part 1 and Part 2", "Part one\nPart two"]),
    ({"kind": "capital_words", "at_most": 1}, ["I am", "A-B is", "none"], ["I am BIG", "P.S. so"]),
    ({"kind": "commas", "at_most": 0}, ["a; b"], ["a, b", "a、b"]),
    ({"kind": "exclamations", "at_least": 2}, ["a! b!", "a!!"], ["a!"]),
    ({"kind": "questions", "at_most": 1}, ["Why?", "No."], ["Why? How?"]),
    ({"kind": "digits", "at_most": 0}, ["two"], ["2", "x٣"]),
    ({"kind": "letter", "letter": "k", "at_most": 2}, ["Kin", "kk", ""], ["Kkk"]),
    ({"kind": "keyword", "word": "cat", "at_least": 2}, ["Cat and cats", "cat-cat"], ["cat, concat", "ca t cat"]),
    ({"kind": "keyword", "word": "red fox", "at_least": 1}, ["a red\nfox", "Red foxes"], ["redfox", "red"]),
    ({"kind": "placeholders", "at_least": 2}, ["[name], [the day]"], ["[name] [ ]", "[name", "[a\nb] [c]"]),
    ({"kind": "highlights", "at_least": 2}, ["*a* and **b c**", "***a*** *b*"], ["*a*", "* a\n* b\n* c", "2 * 3 * 4 * 5", "*a\nb* *c*"]),
    ({"kind": "keywords", "words": ["sun", "red fox"]}, ["A red fox in the SUN"], ["sun", "a red fox", "redfox sun"]),
    ({"kind": "forbidden", "words": ["cat", "a b"]}, ["cats", "concat", "a, b"], ["The CAT.", "a  b"]),
    ({"kind": "lower_case"}, ["all small, 5"], ["All", "123", ""]),
    ({"kind": "upper_case"}, ["ALL BIG, 5"], ["ALl", "123", ""]),
    ({"kind": "quoted"}, ['"a"', ' "a b"\n', "“a”"], ['"a', "'a'", '"', '""', '"a" b']),
    ({"kind": "title"}, ["<<A b>>\nc", "x <<<y>>>"], ["<A>", "<< >>", "<<a\nb>>", ">>a<<"]),
    ({"kind": "starts_with", "phrase": "Once again"}, ["once again, ...", '"Once\nagain'], ["And once again", "Once"]),
    ({"kind": "ends_with", "phrase": "The end."}, ["It was the end.", '"So. The end."', "**The end.**"], ["The end. Bye", "end."]),
    ({"kind": "paragraph_start", "paragraph": 2, "word": "so"}, ["a\n\nSo, b", 'a\n\n"So" b\n\nc'], ["so a", "a\n\nsome b", "a\n\nso-called"]),
    ({"kind": "paragraph_start", "paragraph": 1, "word": "so", "paragraphs": 2}, ["so\n\nb"], ["so", "so\n\na\n\nb"]),
    ({"kind": "postscript"}, ["a\nP.S. b", "a p. s. b", "**P.S.** b"], ["a", "a\nP.S.", "P.P.S. b", "PS b"]),
    ({"kind": "postscript", "marker": "P.P.S"}, ["a\nP.P.S. b", "P. P. S b"], ["P.S. b"]),
    ({"kind": "json_only"}, ['{"a": 1}', "```json\n[1, 2]\n```", " {}\n"], ['{"a": }', '"a"', "3", 'Here: {"a": 1}', '{"a": 1} ok', "[" * 50_000]),
    ({"kind": "json_only", "keys": ["a", "b"]}, ['{"a": 1, "b": 2, "c": 3}'], ['{"a": 1}', '["a", "b"]']),
    ({"kind": "versions", "mark": "=="}, ["a\n==\nb", "==\na == b\n=="], ["a == a", "a", "a == b == c", "a == == b"]),
    ({"kind": "versions", "mark": "==", "number": 3}, ["a == b == c"], ["a == b", "a == b == a"]),
    ({"kind": "repeats_request", "request": "Say  it."}, ["say it. OK", "Say\nit."], ["OK. Say it.", "Say"]),
    ({"kind": "one_of", "answers": YES_NO}, ["I say no.", "Well, i say yes."], ["yes", "I say yes. I say no.", ""]),
    ({"kind": "language", "language": "fr"}, ["La pierre est dans le chemin et les oiseaux sont sur une branche."], ["The stone is in the road.", "42", ""]),
]  # fmt: skip


@pytest.mark.parametrize("constraint, good, bad", CASES, ids=[f"{k}-{case[0]['kind']}" for k, case in enumerate(CASES)])
def test_a_constraint_is_met_or_not(constraint, good, bad):
    assert problem(constraint) is None
    assert all(met(constraint, answer) for answer in good), [a for a in good if not met(constraint, a)]
    assert not any(met(constraint, answer) for answer in bad), [a for a in bad if met(constraint, a)]


def test_each_kind_is_tried_above_and_there_are_many():
    assert {case[0]["kind"] for case in CASES} == {*COUNTS, *CHECKS} and len({*COUNTS, *CHECKS}) >= 25


@pytest.mark.parametrize(
    "text, n",
    [("", 0), ("...", 0), ("no end", 1), ("Hi. It was 1912. Yes!", 3), ("1. I do.\n2. You go.", 2), ("a\n\nb.", 1),
     ("J. K. Hu wrote. So do I. Fine", 3), ("e.g. this. Ok?", 2), ("3.5 m. That is all.", 2), ("好。是。", 2), ("What?! No...", 2)],
)  # fmt: skip
def test_sentences_are_counted_as_people_do(text, n):
    assert sentences(text) == n


@pytest.mark.parametrize(
    "code, text",
    [("en", "The cat is in the house and it is not for you."), ("de", "Der Hund ist nicht in dem Haus, und das ist gut."),
     ("es", "El perro no está en la casa y eso es todo lo que sé."), ("pt", "O cão não está em casa e isso é tudo para mim."),
     ("it", "Il cane non è nella casa e questo è tutto per me."), ("nl", "De hond is niet in het huis en dat is het."),
     ("ru", "Это собака, и она не в доме."), ("uk", "Це собака, і вона не у домі, та це він."), ("hi", "यह एक छोटा पाठ है और यह हिंदी में है"),
     ("mr", "हा एक छोटा मजकूर आहे आणि तो मराठी मध्ये आहे"), ("ar", "هذا نص قصير من أجل أن يكون في اللغة"), ("fa", "این یک متن کوتاه است که از آن برای شما است"),
     ("ja", "これは短い文章です。日本語です。"), ("zh", "这是一个很短的文本。"), ("ko", "이것은 짧은 글입니다"), ("ta", "இது ஒரு சிறிய உரை"),
     ("vi", "Đây là một văn bản ngắn và nó được viết cho các bạn"), (None, "12 + 3"), (None, "Xyzzy plugh")],
)  # fmt: skip
def test_languages_are_told_by_script_and_frequent_words(code, text):
    assert language_of(text) == code and (code is None or code in LANGUAGES)


def test_loose_checking_forgives_a_first_or_last_line_and_asterisks():
    small, quoted = {"kind": "lower_case"}, {"kind": "quoted"}
    assert met_loosely(small, "Sure! Here it is:\nall small") and not met(small, "Sure! Here it is:\nall small")
    assert met_loosely(quoted, 'Sure:\n**"a"**\nBye') and met_loosely(quoted, '"a"')
    assert not met_loosely(small, "Sure!\nall small\nBye\nnow") and not met_loosely(small, "One line, Big")


@pytest.mark.parametrize(
    "constraint, why",
    [
        ("words", "the kind must be one of words"),
        ({"at_most": 3}, "the kind must be one of words"),
        ({"kind": ["words"]}, "the kind must be one of"),
        ({"kind": "wrods", "at_most": 3}, "the kind must be one of"),
        ({"kind": "words"}, "words needs one of at_least, at_most, exactly, around"),
        ({"kind": "words", "at_most": "3"}, "at_most must be a whole number, not '3'"),
        ({"kind": "words", "at_most": True}, "at_most must be a whole number"),
        ({"kind": "words", "at_most": -1}, "at_most must be a whole number"),
        ({"kind": "words", "at_least": 9, "at_most": 3}, "at_most must not be smaller than at_least"),
        ({"kind": "words", "max": 3}, "words has no max; it has at_least"),
        ({"kind": "title", "at_most": 3}, "title has no at_most; it has no parameters"),
        ({"kind": "sections", "exactly": 2}, "sections needs heading"),
        ({"kind": "letter", "letter": "ab", "at_most": 1}, "letter must be one character, not 'ab'"),
        ({"kind": "keywords", "words": "cat"}, "words must be a list of texts, not 'cat'"),
        ({"kind": "keywords", "words": []}, "words must be a list of texts"),
        ({"kind": "forbidden", "words": ["a", " "]}, "words must be a list of texts"),
        ({"kind": "versions", "mark": ""}, "mark must be a text"),
        ({"kind": "versions", "mark": "=", "number": 0}, "number must be a whole number"),
        ({"kind": "language", "language": "klingon"}, "language must be one of en, es"),
        ({"kind": "starts_with", "phrase": 3}, "phrase must be a text, not 3"),
    ],
)
def test_a_bad_constraint_is_named(constraint, why):
    assert why in problem(constraint)


def row(prompt, *constraints):
    return {"prompt": prompt, "constraints": list(constraints)}


def task_of(rows, score="constraints"):
    return dw.Task.from_jsonl({"test": rows}, prompt="prompt", score=score)


def test_bad_rows_are_refused_when_the_task_is_made_all_at_once():
    good = row("a", {"kind": "title"})
    assert len(task_of([good]).test) == 1
    bad = [
        good,
        row("b", {"kind": "x"}),
        row("c"),
        {"prompt": "d", "constraints": "no JSON"},
        row("e", {"kind": "words"}),
    ]
    with pytest.raises(WorkbenchError) as error:
        task_of(bad)
    assert "Got 4 that can't" in str(error.value) and all(f"-{k}: " in str(error.value) for k in (2, 3, 4, 5))
    assert "-1: " not in str(error.value)
    with pytest.raises(WorkbenchError, match="A verifier must be"):
        task_of([good], "constraints(losse=True)")
    with pytest.raises(WorkbenchError, match="must have references"):
        task_of([good], "exact_match")


def test_the_score_is_the_share_and_the_class_is_the_first_unmet_kind():
    task = task_of([row("Write.", {"kind": "title"}, {"kind": "commas", "at_most": 0}, {"kind": "lower_case"})])
    example = task.test[0]
    assert (task.score(example, "<<a>>\nb").value, task.score(example, "<<a>>\nb").failure) == (1.0, None)
    score = task.score(example, "<<A>>, b")
    assert (score.value, score.failure) == (
        pytest.approx(1 / 3),
        "commas",
    ) and '{"kind": "lower_case"}' in score.explanation
    assert task.score(example, "A, b").value == 0 and task.score(example, "A, b").failure == "title"


def test_an_answer_that_never_ends_or_says_nothing_gets_no_full_marks():
    task = task_of([row("Write.", {"kind": "commas", "at_most": 0})])
    example = task.test[0]
    for answer, finished, failure in (
        ("so it is " * 50, False, "loop"),
        ("A text", False, "truncated"),
        (" ", True, "empty"),
    ):
        score = task.score(example, answer, finished=finished)
        assert score.value < 1 and score.failure == failure
    assert task.score(example, "so it is " * 50).value == 1  # finished: this verifier has nothing against it


def test_an_answer_about_something_else_scores_0_if_the_row_names_its_subject():
    rows = [
        {**row("On bees.", {"kind": "commas", "at_most": 0}), "about": ["bee", "hive"]},
        row("x", {"kind": "title"}),
    ]
    task = task_of(rows, "constraints(about='about')")
    bees = next(e for e in task.test if "about" in e.extra)
    assert task.score(bees, "Bees, they fly").failure == "commas" and task.score(bees, "A HIVE").value == 1
    assert (task.score(bees, "Nothing").value, task.score(bees, "Nothing").failure) == (0.0, "off_subject")
    other = next(e for e in task.test if "about" not in e.extra)
    assert task.score(other, "<<a>>").value == 1
    assert task_of(rows).score(bees, "Nothing").value == 1


def test_constraints_may_be_json_text_and_tables_may_fill_in_nulls(tmp_path):
    listed = [{"kind": "words", "at_most": 2, "word": None}, {"kind": "keyword", "word": "a", "at_least": 1}]
    (tmp_path / "t.csv").write_text('prompt,constraints\nx,"' + json.dumps(listed).replace('"', '""') + '"\n')
    task = dw.Task.from_jsonl({"test": tmp_path / "t.csv"}, prompt="prompt", score="constraints(loose=True)")
    assert task.score(task.test[0], "a b").value == 1 and task.score(task.test[0], "c d e").value == 0
    assert task.test[0].reference == ""


ALL = [case[0] for case in CASES]
WORDS = "Part 1 * ** *** - # . ! ? \" “ ” ' [ ] < >> << { } \n \n\n P.S. cat == I say yes. 3 好 A b".split(" ")
texts = st.text(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)


@given(text=texts, loose=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_text_gets_a_score(text, loose):
    example = dw.Example("a", "Write.", "", "g", {"constraints": ALL})
    score = Constraints(loose)(example, text)
    assert 0 <= score.value <= 1 and (score.failure is None) == (score.value == 1)
    assert sum(score.answer) / len(ALL) == score.value
    if loose:  # what is met is met loosely, too
        assert (
            all(Constraints()(example, text).answer[k] <= ok for k, ok in enumerate(score.answer)) or not text.strip()
        )


HOSTILE = ("[", ".", "*", "*a", "<<", "\n", " ", "A. ", "P.S. ", "#", "'", ".'", '"', "- ", "1.", "1)\n", "a\n \n", "。",
           "1", '{"a":', "\t", "(a", "```", ".)", "a_", "=", "== ", "red ", "\ud800", "I say ", "a b ")  # fmt: skip


@pytest.mark.parametrize("kind", [*COUNTS, *CHECKS])
def test_no_hostile_text_takes_forever(kind):
    """A rule whose time grew with the square of the length would need minutes here instead of a blink."""
    constraint = next(one for one in ALL if one["kind"] == kind)
    assert {met(constraint, unit * (50_000 // len(unit)) + "a") for unit in HOSTILE} <= {True, False}


def test_the_verifier_is_ready_by_name():
    assert (
        isinstance(scores.named("constraints"), Constraints)
        and scores.named("constraints(loose=True)").met is met_loosely
    )

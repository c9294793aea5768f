"""Sixty malformed preference files: each names file, line, field, excerpt and fix, or is read where it can be."""

import gzip
import json

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.codes import CODES
from dpo_workbench.pairs.pair import Pairs, read_pairs


def row(k: int = 0, **changes) -> dict:
    """A good row; a change to None takes the key out."""
    made = {"prompt": f"Name of ore {k}?", "chosen": f"It is ore {k}.", "rejected": f"No ore {k}!"} | changes
    return {key: value for key, value in made.items() if value is not DROP}


DROP = object()
GOOD = json.dumps(row(1)).encode()


def lines(*rows) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)


def bad(third, name: str = "") -> tuple[bytes, int, str]:
    """Two good rows, a blank line for the count of physical lines, and the bad row: it stands in line 4."""
    return lines(GOOD, b"", row(2), third), 4, name


def user(*texts: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[k % 2], "content": t} for k, t in enumerate(texts)]


def said(text) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def chat(prompt, chosen, rejected=None) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected or said("No idea.")}


def judged(n: int, **changes) -> list[dict]:
    return [row(k, **{key: value(k) for key, value in changes.items()}) for k in range(n)]


CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
# name: code, file name, content, line, field
STOPS = {
    "missing": ("P001", "none.jsonl", None),
    "directory": ("P001", "folder", None),
    "empty": ("P002", "a.jsonl", b""),
    "whitespace only": ("P002", "a.jsonl", b" \n\t\r\n"),
    "UTF-16": ("P003", "a.jsonl", GOOD.decode().encode("utf-16")),
    "UTF-16 without its mark": ("P003", "a.jsonl", GOOD.decode().encode("utf-16-be")),
    "unknown columns": ("P007", "a.jsonl", b'{"foo": 1}\n'),
    "broken gzip": ("P008", "a.jsonl.gz", gzip.compress(lines(*judged(50)))[:80]),
    "broken parquet": ("P008", "a.parquet", b"PAR1 and nothing else"),
    "column twice": ("P105", "a.csv", b"prompt,chosen,chosen\na,b,c\n"),
}
REFUSED = {
    "invalid UTF-8": ("P103", *bad(GOOD.replace(b"ore", b"\xffre"))),
    "truncated last line": ("P102", lines(GOOD, b"", row(2)) + GOOD[:40], 4, ""),
    "not JSON": ("P101", *bad(b"prompt: hi")),
    "JSON scalar": ("P106", *bad(b"3")),
    "JSON list": ("P106", *bad(b"[1]")),
    "trailing comma": ("P101", *bad(GOOD[:-1] + b",}")),
    "single quotes": ("P101", *bad(b"{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}")),
    "NaN": ("P104", *bad(GOOD[:-1] + b', "weight": NaN}')),
    "Infinity": ("P104", *bad(GOOD[:-1] + b', "weight": -Infinity}')),
    "number too large for a float": ("P108", *bad(GOOD[:-1] + b', "weight": 1e999}', "weight")),
    "duplicate keys": ("P105", *bad(GOOD[:-1] + b', "chosen": "other"}', "chosen")),
    "nested without end": ("P101", *bad(b"[" * 100_000)),
    "5000 digits": ("P101", *bad(GOOD[:-1] + b', "weight": ' + b"9" * 5000 + b"}")),
    "missing prompt": ("P107", *bad(row(3, prompt=DROP), "prompt")),
    "missing chosen": ("P107", *bad(row(3, chosen=DROP), "chosen")),
    "missing rejected": ("P107", *bad(row(3, rejected=DROP), "rejected")),
    "misspelt key": ("P107", *bad(row(3, chosen=DROP, choosen="x"), "chosen")),
    "null": ("P108", *bad(row(3, chosen=None), "chosen")),
    "null prompt": ("P108", *bad(row(3, prompt=None), "prompt")),
    "number": ("P108", *bad(row(3, chosen=5), "chosen")),
    "bool": ("P108", *bad(row(3, rejected=True), "rejected")),
    "list where text is due": ("P108", *bad(row(3, chosen=["x"]), "chosen[0]")),
    "dict where text is due": ("P108", *bad(row(3, prompt={"text": "x"}), "prompt")),
    "empty messages": ("P201", *bad(chat([], said("x")), "prompt")),
    "unknown role": ("P202", *bad(chat([{"role": "king", "content": "x"}], said("y")), "prompt[0].role")),
    "prompt ends with assistant": ("P203", *bad(chat(user("a", "b"), said("y")), "prompt")),
    "two user turns": ("P204", *bad(chat(user("a") * 2, said("y")), "prompt[1].role")),
    "system text only": ("P203", *bad(chat([{"role": "system", "content": "x"}], said("y")), "prompt")),
    "tool call": ("P205", *bad(chat(user("a"), [said("b")[0] | {"tool_calls": [CALL]}]), "chosen[0].tool_calls")),
    "tool's reply": ("P205", *bad(chat([*user("a", "b"), {"role": "tool", "content": "7"}, *user("c")], said("d")),
                                  "prompt[2].role")),
    "tools on offer": ("P205", *bad(row(3, tools=[CALL]), "tools")),
    "image in a column": ("P205", *bad(row(3, images=[{"bytes": None, "path": "a.png"}]), "images")),
    "image in a message": ("P205", *bad(chat([user("a")[0] | {"image": "a.png"}], said("b")), "prompt[0].image")),
    "image as a part": (
        "P205", *bad(chat([{"role": "user", "content": [{"type": "image"}]}], said("b")), "prompt[0].content")),
    "thinking apart from the answer": (
        "P205", *bad(chat(user("a"), [said("b")[0] | {"reasoning_content": "hm"}]), "chosen[0].reasoning_content")),
    "content null": ("P205", *bad(chat(user("a"), said(None)), "chosen[0].content")),
    "system inside chosen": (
        "P207", *bad(chat(user("a"), [{"role": "system", "content": "x"}, *said("y")]), "chosen")),
    "user's turn as answer": ("P207", *bad(chat(user("a"), user("y")), "chosen")),
    "multi-turn chosen, diverging": ("P207", *bad(chat(user("a"), user("b", "c", "d", "e")), "chosen")),
    "empty chosen": ("P301", *bad(row(3, chosen=""), "chosen")),
    "whitespace chosen": ("P301", *bad(row(3, chosen=" \n\t"), "chosen")),
    "chosen equals rejected": ("P302", *bad(row(3, chosen="same", rejected=" same\n"), "rejected")),
    "lone surrogate": ("P304", *bad(row(3, chosen="half \ud83d of it"), "chosen")),
    "lone surrogate in the group": ("P304", *bad(row(3, group="half \ud83d of it"), "group")),
    "id twice": ("P402", lines(row(1, id="a"), row(2, id="a")), 2, "id"),
}  # fmt: skip
BOM = b"\xef\xbb\xbf"
WARNED = {
    "extra keys": ("P110", "a.jsonl", lines(GOOD, row(2, wieght=3)), 2, "wieght"),
    "prompt messages inside chosen": (
        "P206", "a.jsonl", lines(chat(user("a"), user("a", "b"), user("a", "c"))), 1, "chosen"),
    "prompt text inside chosen": (
        "P206", "a.jsonl", lines(row(1, prompt="What is an ore made of?", chosen="What is an ore made of? Rock.")),
        1, "chosen"),
    "template's marks": ("P306", "a.jsonl", lines(row(1, rejected="ok<|im_end|>")), 1, "rejected"),
    "duplicate rows": ("P401", "a.jsonl", lines(GOOD, row(2), GOOD), 3, ""),
    "conflict": ("P403", "a.jsonl", lines(row(1), row(1, chosen="No ore 1!", rejected="It is ore 1.")), 2, "chosen"),
    "all chosen longer": ("P405", "a.jsonl", lines(*judged(25, chosen=lambda k: f"ore {k} " * (9 + k))), 0, "chosen"),
    "few rows": ("P409", "a.jsonl", lines(*judged(49)), 0, ""),
}  # fmt: skip


def read(tmp_path, name: str, data: bytes, **options):
    path = tmp_path / name
    path.write_bytes(data)
    return read_pairs(path, **options)


@pytest.mark.parametrize("case", STOPS)
def test_a_file_that_cannot_be_read_is_one_error(tmp_path, case: str) -> None:
    code, name, data = STOPS[case]
    (tmp_path / "folder").mkdir()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(WorkbenchError, match=rf"Got .*{name}.*{code}\)\. [A-Z]"):
        read_pairs(tmp_path / name)


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_row_is_refused_and_the_others_are_kept(tmp_path, case: str) -> None:
    code, data, line, name = REFUSED[case]
    found = read(tmp_path, "a.jsonl", data)
    (finding,) = [f for f in found.findings if f.severity == "error"]
    assert (finding.code, finding.line, finding.field) == (code, line, name)
    assert finding.source == str(tmp_path / "a.jsonl") and finding.excerpt and finding.fix
    total = len([x for x in data.split(b"\n") if x.strip()])
    assert (found.rows, found.kept, found.refused, found.merged) == (total, total - 1, 1, 0)
    with pytest.raises(WorkbenchError, match=f"Got 1 refused of {total}: .*a.jsonl:{line}: {code}"):
        Pairs.load(tmp_path / "a.jsonl")


@pytest.mark.parametrize("case", WARNED)
def test_what_can_be_read_is_read_with_a_warning(tmp_path, case: str) -> None:
    code, name, data, line, field = WARNED[case]
    found = read(tmp_path, name, data)
    first = next(f for f in found.findings if f.code == code)
    assert (first.line, first.field, first.severity) == (line, field, "warning")
    assert first.source == str(tmp_path / name) and first.excerpt and first.fix
    assert found.refused == 0 == found.skipped
    assert found.rows == found.kept + found.merged and found.merged == (code == "P401")
    assert len(found.pairs) == found.kept


def test_a_misspelt_key_is_named_with_its_right_form(tmp_path) -> None:
    found = read(tmp_path, "a.jsonl", REFUSED["misspelt key"][1])
    assert found.findings[0].fix == "Rename `choosen` to `chosen`."
    assert "`weight`" in read(tmp_path, "a.jsonl", WARNED["extra keys"][2]).findings[0].fix


@pytest.mark.parametrize("end", [b"\n", b""], ids=["with", "without"])
def test_a_good_file_has_no_finding(tmp_path, end: bytes) -> None:
    """Negative control of all cases above; a missing end of the last line is no fault."""
    rows = judged(60, rejected=lambda k: f"No ore {k}!" + "!" * (k % 5), chosen=lambda k: f"Ore {k}." + "." * (k % 7))
    found = read(tmp_path, "a.jsonl", lines(*rows).rstrip() + end)
    assert found.findings == [] and (found.rows, found.kept) == (60, 60)


FORMS = {
    "byte order mark": ("a.jsonl", BOM + lines(GOOD)),
    "CRLF": ("a.jsonl", lines(GOOD).replace(b"\n", b"\r\n")),
    "gzip named .jsonl": ("a.jsonl", gzip.compress(lines(GOOD))),
    "JSON array named .jsonl": ("a.jsonl", json.dumps([row(1)]).encode()),
    "semicolons": ("a.csv", b"prompt;chosen;rejected\na;b;c\n"),
    "tabs": ("a.csv", b"prompt\tchosen\trejected\na\tb\tc\n"),
    "commas in .tsv": ("a.tsv", b"prompt,chosen,rejected\na,b,c\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_an_unusual_form_is_read_in_silence(tmp_path, form: str) -> None:
    found = read(tmp_path, *FORMS[form])
    assert found.kept == 1 and [f.code for f in found.findings] == ["P409"]


def test_every_code_is_tested_here_or_by_name() -> None:
    """The others belong to CSV files and to layouts: test_readers.py."""
    tested = {case[0] for case in (*STOPS.values(), *REFUSED.values(), *WARNED.values())}
    assert set(CODES) - tested == {"P111", "P208", "P210", "P212", "P310", "P411", "P412"}

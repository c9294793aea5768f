"""The one escape: fifteen hostile payloads become text and nothing else."""

from html.parser import HTMLParser

import pytest

from dpo_workbench.common.html import NO_MATH, escape, paragraph, pre, table

PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "img onerror": '<img src=x onerror="alert(1)">',
    "svg onload": "<svg onload=alert(1)>",
    "iframe srcdoc": "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "command linker": '<button data-commandlinker-command="terminal:create-new">go</button>',
    "form action": '<form action="https://x.example"><input name=a></form>',
    "javascript link": '<a href="javascript:alert(1)">x</a>',
    "overlay": '<div style="position:fixed;inset:0">x</div>',
    "closing pre": "</pre><style>body{display:none}</style>",
    "base href": '<base href="https://x.example/">',
    "open comment": "<!-- never closed",
    "mathjax": "$\\href{javascript:alert(1)}{x}$",
    "ansi": "\x1b[31mred\x1b[0m\x07",
    "bidi and zero width": "a\u202eb\u200bc\u2066d\ufeffe",
    "ten megabytes": "<b>" * 3_500_000,
}


class Tags(HTMLParser):
    """Tags, comments, and the text that a reader would see."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        self.tags.append("/" + tag)

    def handle_comment(self, data):
        self.tags.append("!")

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_becomes_text_and_nothing_else(name):
    payload = PAYLOADS[name]
    assert Tags(escape(payload)).tags == []
    assert Tags(pre(payload)).tags == ["pre", "/pre"]
    assert Tags(f'<p title="{escape(payload)}">').tags == ["p"]
    cells = {tag.removeprefix("/") for tag in Tags(table([payload], [[payload]])).tags}
    assert cells == {"table", "thead", "tbody", "tr", "th", "td"}
    seen = Tags(escape(payload)).text
    if payload.isascii() and payload.isprintable() and len(payload) < 1000:
        assert seen == payload
    assert all(c in "\n\t" or c.isprintable() for c in escape(payload))
    assert len(escape(payload)) < 130_000


@pytest.mark.parametrize("name", ["script", "img onerror", "closing pre", "base href"])
def test_the_check_can_fail(name):
    assert Tags(PAYLOADS[name]).tags


def test_hidden_characters_are_shown():
    assert escape("a\u202eb\u200bc\x1b[0m\r\ud800\u2028\U000e0041\u3164") == (
        "a\\u202eb\\u200bc\\u001b[0m\\u000d\\ud800\\u2028\\U000e0041\\u3164"
    )
    assert escape("zwölf Ärzte, 漢字, 5 €\n\tx") == "zwölf Ärzte, 漢字, 5 €\n\tx"


def test_mathematics_is_not_typeset():
    assert "$" not in escape("costs $5 and $6")
    for page in (pre("$x$"), table(["$x$"], [["$x$"]]), paragraph("$x$")):
        assert f'class="{NO_MATH}"' in page and "$" not in page


def test_long_text_is_folded_in_the_middle():
    folded = escape("a" * 700 + "b" * 1000 + "c" * 300, limit=1000)
    assert folded.startswith("a" * 700) and folded.endswith("c" * 250) and "[1,000 characters folded]" in folded
    assert escape("a" * 1000, limit=1000) == "a" * 1000


def test_anything_is_shown_as_text():
    assert escape(None) == "None" and escape(3.5) == "3.5"
    assert "right" in table(["n"], [["12 %"]]) and "right" not in table(["n"], [["loop"]])

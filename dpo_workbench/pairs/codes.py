"""What can be wrong with preference data: a code for each rule, `Finding` for each violation, `Refusal` for a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dpo_workbench.common.errors import WorkbenchError


class Code(NamedTuple):
    """stop: nothing is read. error: the row is refused. skipped: it is fine but makes no pair. warning: it is kept."""

    severity: str
    rule: str
    advice: str


_TABLE = """
P001 | stop | The source must be a file that can be read. | Check the path and its permissions.
P002 | stop | A file must have rows. | The file is empty: write it again.
P003 | stop | Text must be UTF-8. | Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW.
P007 | stop | The columns must match a known layout. | Name yours: mapping={'prompt': ..., ...}, or --map prompt=...
P008 | stop | A file must be complete. | Download or write it again.
P101 | error | A row must be JSON. | Fix the row: double quotes, no comma before a closing bracket.
P102 | error | The last row must be complete. | The file was cut off while it was written: write it again.
P103 | error | A row must be UTF-8. | Write these bytes again as UTF-8.
P104 | error | JSON has no NaN and no Infinity. | Leave the key out or write null.
P105 | error | A key must occur once. | Keep the one that you mean.
P106 | error | A row must be an object. | Write {...} with the keys of the layout.
P107 | error | A row must have every field of its layout. | Add the field or drop the row.
P108 | error | A field must have the type that its layout asks for. | Write text as text and numbers as numbers.
P110 | warning | Names of fields should be spelt right. | Rename the key; it was ignored.
P111 | error | A CSV row must have as many cells as the header. | Quote cells with delimiters or line breaks.
P201 | error | A conversation must have messages. | Add them or drop the row.
P202 | error | A role must be system, developer, user or assistant. | Rename the role.
P203 | error | A prompt must end with a message of the user. | Remove later messages or add the user's next one.
P204 | error | Messages of user and assistant must alternate. | Join the two messages or add the missing one.
P205 | error | Rows and messages must be text only. | Write text; tool calls and images can't be trained on here.
P206 | warning | An answer should not repeat its prompt. | Repeated messages were removed; repeated text stays: cut it.
P207 | error | An answer must be one message of the assistant. | Move earlier messages to `prompt`; cut later ones.
P208 | error | Both conversations must begin with the same messages. | Start both with the prompt, or drop the row.
P210 | warning | Messages should be lists, not text that spells out a list. | They were decoded; write lists of objects.
P212 | warning | A list of answers should have scores or ranks. | It was read as sorted, best answer first.
P301 | error | Texts must not be empty. | Write the text or drop the row.
P302 | error | `rejected` must differ from `chosen`. | Drop the row or edit one of the two.
P304 | error | Text must not contain half of a surrogate pair. | Write the character again.
P306 | warning | Text should not contain tokens of a chat template. | Remove them: a tokenizer ends the message there.
P310 | error | It must be clear where the prompt ends. | Move the prompt from both answers to a column `prompt`.
P401 | warning | A row should occur once. | Copies were merged into the first occurrence; --save writes it once.
P402 | error | Ids must differ. | Rename one of them.
P403 | warning | Labels should not contradict each other. | Decide, drop both, or use a loss for noisy labels.
P405 | warning | Length alone should not tell chosen from rejected. | Drop or add pairs until both kinds occur.
P409 | warning | Small sets show only large effects. | Label more pairs or claim little: 50 pairs are a start.
P411 | skipped | An answer needs another one to its prompt with a different label. | Add one to use the row.
P412 | skipped | A comparison needs a winner. | Ties and unlabelled rows make no pair; break the tie to use the row.
"""
CODES = {line[:4]: Code(*line.split(" | ")[1:]) for line in _TABLE.strip().splitlines()}
Note = tuple[str, str, str]  # code, field, excerpt


class Refusal(Exception):
    """A row that makes no pair: the code, the field, what was found there, and advice if the code's is too general."""

    def __init__(self, code: str, field: str = "", got: object = "", fix: str = ""):
        super().__init__(code)
        self.code, self.field, self.got, self.fix = code, field, got, fix


@dataclass(frozen=True)
class Finding:
    """One place where data breaks a rule."""

    code: str
    severity: str
    source: str
    line: int  # physical line of a text file, else number of the row, from 1; 0: the set as a whole
    field: str
    excerpt: str
    fix: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        name = f"`{self.field}`: " if self.field else ""
        got = f" Got {self.excerpt}" if self.excerpt else ""
        return f"{where}: {self.code} {name}{CODES[self.code].rule}{got}. {self.fix}"


def excerpt(got: object, limit: int = 60) -> str:
    """At most `limit` characters of a value; unprintable text is escaped."""
    if isinstance(got, bytes):
        got = got[: 2 * limit].decode("utf-8", "backslashreplace")
    text = str(got)[: limit + 1]
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def stop(code: str, got: object, where: str, fix: str = "") -> WorkbenchError:
    """The error for a source that cannot be read."""
    return WorkbenchError(f"{CODES[code].rule} Got {excerpt(got, 300)} ({where}, {code}). {fix or CODES[code].advice}")

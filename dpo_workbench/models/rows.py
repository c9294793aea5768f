"""A prompt and its answers as token ids, and the rules that they must follow to be trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from os.path import commonprefix

from dpo_workbench.common.errors import WorkbenchError, listed
from dpo_workbench.models.chat import Chat
from dpo_workbench.pairs.messages import Prompt
from dpo_workbench.pairs.preference import Pair


class Unfinished(str):
    """An answer that was cut off at the token limit. It gets no end token, since the model did not end it there."""


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt and its answers: two for a pair, one for supervised fine-tuning."""

    id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[tuple[int, ...], ...]  # each with its end token

    @cached_property
    def n_shared(self) -> int:
        """How many tokens the answers have in common at their beginning; 0 for a single answer."""
        return len(commonprefix(self.answer_ids)) if len(self.answer_ids) > 1 else 0

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longest answer, which `max_tokens` and the model's positions limit."""
        return len(self.prompt_ids) + max(map(len, self.answer_ids))

    @property
    def n_tokens(self) -> int:
        """Tokens of the packed row, in which the shared beginning occurs once."""
        return len(self.prompt_ids) + sum(map(len, self.answer_ids)) - self.n_shared * (len(self.answer_ids) - 1)


Texts = tuple[str, Prompt, tuple[str, ...]]  # id, prompt, answers
Broken = dict[tuple[str, str], dict[str, int]]  # (rule, what to do) -> ids of the rows that break it, and their tokens


def pair_texts(pair: Pair) -> Texts:
    """A pair as (id, prompt, (chosen, rejected))."""
    return pair.id, pair.prompt, (pair.chosen, pair.rejected if pair.rejected_finished else Unfinished(pair.rejected))


def encode(chat: Chat, row_id: str, prompt: Prompt, answers: Iterable[str]) -> Row:
    """The ids of the prompt, and of each answer with one end token (none after an `Unfinished` one)."""
    ids = [chat.answer_ids(prompt, answer, not isinstance(answer, Unfinished)) for answer in answers]
    return Row(row_id, tuple(chat.prompt_ids(prompt)), tuple(map(tuple, ids)))


def encode_all(chat: Chat, rows: Iterable[Texts], max_tokens: int, max_positions: int) -> tuple[list[Row], Broken]:
    """The rows that the template can write, and the rules that rows break; a row counts for its first rule only.

    A prompt with one answer must fit into `max_tokens` and into the model's positions. Prompts and answers must have
    text, the answers of a row must differ, and none may contain an end token.
    """
    made: list[Row] = []
    broken: Broken = defaultdict(dict)
    for row_id, prompt, answers in rows:
        try:
            made.append(row := encode(chat, row_id, prompt, answers))
        except WorkbenchError as error:
            broken[f"The chat template must be able to write every row ({error})", "Drop these rows."][row_id] = 0
            continue
        if rule := _broken_rule(chat, row, answers) or too_long(row, max_tokens, max_positions):
            broken[rule][row_id] = row.length
    return made, broken


def refuse(broken: Mapping[tuple[str, str], Mapping[str, int]], n_rows: int) -> None:
    """Raise a WorkbenchError that names all broken rules, if there are any. Its `rows` has the ids of all bad rows."""
    texts = []
    for (rule, advice), rows in broken.items():
        named = listed([f"{row_id!r} ({n} tokens)" if n else repr(row_id) for row_id, n in rows.items()])
        texts.append(f"{rule}. Got {len(rows)} of {n_rows} rows where this is not so: {named}. {advice}")
    if texts:
        raise WorkbenchError(" ".join(texts), [row_id for rows in broken.values() for row_id in rows])


def too_long(row: Row, max_tokens: int, max_positions: int) -> tuple[str, str] | None:
    """The limit that the prompt with the longer answer exceeds, and what to do."""
    cut = "Shorten or drop these rows; answers are never cut to fit."
    if row.length > max_positions:
        return f"A prompt with one answer must fit into the model's {max_positions} positions", cut
    if row.length > max_tokens:
        return f"A prompt with one answer must have at most max_tokens={max_tokens} tokens", f"Raise max_tokens. {cut}"
    return None


def _broken_rule(chat: Chat, row: Row, answers: Sequence[str]) -> tuple[str, str] | None:
    texts = [ids if isinstance(a, Unfinished) else ids[:-1] for a, ids in zip(answers, row.answer_ids, strict=True)]
    if not row.prompt_ids or not all(texts) or not all(map(str.strip, answers)):
        return "Prompt and answers must have text, also after the chat template has trimmed it", "Drop these rows."
    if len(set(row.answer_ids)) < len(answers):
        return "`rejected` must differ from `chosen` as tokens, also once the template trimmed both", "Drop these rows."
    if ends := set(chat.stop_ids).intersection(chain(*texts)):
        rule = f"An answer must not contain the end token {chat.tokenizer.decode(sorted(ends))!r}"
        return rule, "Remove it: the end token is added automatically."
    return None

"""Texts -> token ids, with what the loss counts made visible."""

from __future__ import annotations

from collections.abc import Iterable

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.loading import Model
from dpo_workbench.training.packing import Row


class Unfinished(str):
    """An answer that was cut off: the model never ended it, so the loss must not say that it did."""


def tokenise(model: Model, rows: Iterable[tuple[str, str, tuple[str, ...]]], max_tokens: int) -> list[Row]:
    """Rows `(id, prompt, answers)` as token ids: prompt and answers apart, one end token after each answer.

    An answer given as `Unfinished` was cut at the token limit and gets no end token. Nothing is cut here: a row that is
    too long is an error that names it, since a cut answer loses its end in silence.

    Raises:
        WorkbenchError: a row has more than `max_tokens`, an empty prompt, an empty answer, or the end token inside.
    """
    made = []
    end = model.tokenizer.eos_token_id
    for row_id, prompt, answers in rows:
        row = Row(row_id, tuple(model.prompt_ids(prompt)), tuple(_answer(model, a) for a in answers))
        texts = [ids if isinstance(a, Unfinished) else ids[:-1] for a, ids in zip(answers, row.answer_ids, strict=True)]
        if not row.prompt_ids or not all(texts):
            raise WorkbenchError(f"Prompt and answers must have text. Got an empty one in {row_id!r}. Drop the row.")
        if any(end in text for text in texts):
            raise WorkbenchError(
                f"An answer must not hold the end token {model.tokenizer.eos_token!r} in its text. Got one in "
                f"{row_id!r}. Remove it: the end token is added once, by itself."
            )
        if row.n_tokens > max_tokens:
            raise WorkbenchError(
                f"A row must have at most max_tokens={max_tokens} tokens. Got {row.n_tokens} in {row_id!r}. Raise "
                "max_tokens or drop the row; nothing is cut in silence."
            )
        made.append(row)
    return made


def _answer(model: Model, text: str) -> tuple[int, ...]:
    ids = model.answer_ids(text)
    return tuple(ids[:-1] if isinstance(text, Unfinished) else ids)


def show(model: Model, row: Row) -> str:
    """The row as the loss sees it: the prompt, then each answer decoded from exactly the tokens that are scored."""
    lines = [f"prompt ({len(row.prompt_ids)} tokens, no loss): {model.tokenizer.decode(row.prompt_ids)!r}"]
    for number, answer in enumerate(row.answer_ids, 1):
        lines.append(f"answer {number} ({len(answer)} tokens, scored): {model.tokenizer.decode(answer)!r}")
    return "\n".join(lines)

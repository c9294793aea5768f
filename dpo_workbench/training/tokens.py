"""From texts to token ids, and a view of what the loss counts."""

from __future__ import annotations

from collections.abc import Iterable

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pair
from dpo_workbench.training.packing import Row


class Unfinished(str):
    """An answer that was cut off at the token limit. It gets no end token, since the model did not end it there."""


Texts = tuple[str, str, tuple[str, ...]]  # id, prompt, answers


def pair_texts(pair: Pair) -> Texts:
    """A pair as (id, prompt, (chosen, rejected))."""
    return pair.id, pair.prompt, (pair.chosen, pair.rejected if pair.rejected_finished else Unfinished(pair.rejected))


def encode(model: Model, row_id: str, prompt: str, answers: Iterable[str]) -> Row:
    """The ids of the prompt, and of each answer with one end token (none after an `Unfinished` one)."""
    whole = ((tuple(model.answer_ids(answer)), isinstance(answer, Unfinished)) for answer in answers)
    return Row(row_id, tuple(model.prompt_ids(prompt)), tuple(ids[:-1] if cut else ids for ids, cut in whole))


def tokenize(model: Model, rows: Iterable[Texts], max_tokens: int) -> list[Row]:
    """Token ids of prompts and answers, as `encode` gives them, after checks.

    Nothing is cut to fit: a row that is too long is an error, because a cut answer would silently lose its end.

    Raises:
        WorkbenchError: rows with more than `max_tokens` tokens (all are counted, the first few are named); a row with
            an empty prompt, an empty answer, or an end token inside an answer.
    """
    made = []
    end = model.tokenizer.eos_token_id
    for row_id, prompt, answers in rows:
        row = encode(model, row_id, prompt, answers)
        texts = [ids if isinstance(a, Unfinished) else ids[:-1] for a, ids in zip(answers, row.answer_ids, strict=True)]
        if not row.prompt_ids or not all(texts):
            raise WorkbenchError(f"Prompt and answers must have text. Got an empty one in {row_id!r}. Drop the row.")
        if any(end in text for text in texts):
            raise WorkbenchError(
                f"An answer must not contain the end token {model.tokenizer.eos_token!r}. Got one in {row_id!r}. "
                "Remove it: the end token is added automatically."
            )
        made.append(row)
    if too_long := [row for row in made if row.n_tokens > max_tokens]:
        named = ", ".join(f"{row.id!r} ({row.n_tokens})" for row in too_long[:5])
        more = f" and {len(too_long) - 5} more" if len(too_long) > 5 else ""
        raise WorkbenchError(
            f"Every row must have at most max_tokens={max_tokens} tokens. Got {len(too_long)} of {len(made)} rows with "
            f"more: {named}{more}. Raise max_tokens or drop these rows; answers are never cut to fit."
        )
    return made


def show(model: Model, row: Row) -> str:
    """The row as the loss sees it: the prompt, then each answer decoded from exactly the tokens that are scored."""
    lines = [f"prompt ({len(row.prompt_ids)} tokens, no loss): {model.tokenizer.decode(row.prompt_ids)!r}"]
    for number, answer in enumerate(row.answer_ids, 1):
        lines.append(f"answer {number} ({len(answer)} tokens, scored): {model.tokenizer.decode(answer)!r}")
    return "\n".join(lines)

"""From texts to the rows that training takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dpo_workbench.models.chat import PROBLEMS
from dpo_workbench.models.loading import Model
from dpo_workbench.models.rows import Row, Texts, Unfinished, encode_all, refuse
from dpo_workbench.models.rows import pair_texts as pair_texts  # most callers of `tokenize` need both

CHECKED = 50  # rows whose texts are compared with what the chat template writes


def tokenize(model: Model, rows: Iterable[Texts], max_tokens: int, show: bool = False) -> list[Row]:
    """Token ids of prompts and answers, as `encode` gives them, after checks.

    Nothing is cut to fit: a row that is too long is an error, because a cut answer would silently lose its end. With
    `show`, a line says what the chat template changes in the answers of the first rows (`Chat.check`).

    Raises:
        WorkbenchError: rows break a rule of `encode_all`, or have a token without an embedding (`Model.check_ids`).
    """
    rows = list(rows)
    made, broken = encode_all(model.chat, rows, max_tokens, model.max_positions)
    refuse(broken, len(rows))
    model.check_ids([row.prompt_ids + answer for row in made for answer in row.answer_ids])
    texts = [(p, a) for _, p, answers in rows[:CHECKED] for a in answers if show and not isinstance(a, Unfinished)]
    if changes := Counter(kind for text in texts for kind in dict(model.chat.check(*text))):
        told = "; ".join(f"{n} of {len(texts)} answers {PROBLEMS[kind]}" for kind, n in changes.items())
        print(f"chat template: {told}", flush=True)
    return made

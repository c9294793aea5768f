"""From texts to token ids, and a view of what the loss counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models.chat import PROBLEMS
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.messages import Prompt
from dpo_workbench.pairs.pair import Pair
from dpo_workbench.training.packing import Row

CHECKED = 50  # rows whose texts are compared with what the chat template writes


class Unfinished(str):
    """An answer that was cut off at the token limit. It gets no end token, since the model did not end it there."""


Texts = tuple[str, Prompt, tuple[str, ...]]  # id, prompt, answers


def pair_texts(pair: Pair) -> Texts:
    """A pair as (id, prompt, (chosen, rejected))."""
    return pair.id, pair.prompt, (pair.chosen, pair.rejected if pair.rejected_finished else Unfinished(pair.rejected))


def encode(model: Model, row_id: str, prompt: Prompt, answers: Iterable[str]) -> Row:
    """The ids of the prompt, and of each answer with one end token (none after an `Unfinished` one)."""
    try:
        ids = [model.chat.answer_ids(prompt, answer, not isinstance(answer, Unfinished)) for answer in answers]
        return Row(row_id, tuple(model.chat.prompt_ids(prompt)), tuple(map(tuple, ids)))
    except WorkbenchError as error:
        raise WorkbenchError(f"Row {row_id!r}: {error}") from error


def tokenize(model: Model, rows: Iterable[Texts], max_tokens: int, show: bool = False) -> list[Row]:
    """Token ids of prompts and answers, as `encode` gives them, after checks.

    Nothing is cut to fit: a row that is too long is an error, because a cut answer would silently lose its end. With
    `show`, a line says what the chat template changes in the answers of the first rows (`Chat.check`).

    Raises:
        WorkbenchError: rows with more than `max_tokens` tokens, or with more than the model has positions; rows with
            an empty prompt or answer, equal answers, or an end token inside an answer (all are counted, and the first
            five are named); see also `Model.check_ids`.
    """
    made: list[Row] = []
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    rows = list(rows)
    for row_id, prompt, answers in rows:
        made.append(row := encode(model, row_id, prompt, answers))
        if problem := _problem(model, row, answers, max_tokens):
            wrong[problem].append(f"{row_id!r} ({row.n_tokens} tokens)")
    for (rule, advice), named in wrong.items():
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        found = f"Got {len(named)} of {len(made)} rows where this is not so: {', '.join(named[:5])}{more}"
        raise WorkbenchError(f"{rule}. {found}. {advice}")
    model.check_ids([row.prompt_ids + answer for row in made for answer in row.answer_ids])
    texts = [(p, a) for _, p, answers in rows[:CHECKED] for a in answers if show and not isinstance(a, Unfinished)]
    if changes := Counter(kind for text in texts for kind in dict(model.chat.check(*text))):
        told = "; ".join(f"{n} of {len(texts)} answers {PROBLEMS[kind]}" for kind, n in changes.items())
        print(f"chat template: {told}", flush=True)
    return made


def _problem(model: Model, row: Row, answers: Sequence[str], max_tokens: int) -> tuple[str, str] | None:
    """The first rule that the row breaks, and what to do."""
    cut = "Drop these rows; answers are never cut to fit."
    texts = [ids if isinstance(a, Unfinished) else ids[:-1] for a, ids in zip(answers, row.answer_ids, strict=True)]
    if not row.prompt_ids or not all(texts) or not all(map(str.strip, answers)):
        return "Prompt and answers must have text, also after the chat template has trimmed it", "Drop these rows."
    if len(set(row.answer_ids)) < len(answers):
        return "`rejected` must differ from `chosen` as tokens, also once the template trimmed both", "Drop these rows."
    if ends := set(model.chat.stop_ids).intersection(chain(*texts)):
        rule = f"An answer must not contain the end token {model.tokenizer.decode(sorted(ends))!r}"
        return rule, "Remove it: the end token is added automatically."
    if row.n_tokens > max_tokens:
        return f"Every row must have at most max_tokens={max_tokens} tokens", f"Raise max_tokens. {cut}"
    if len(row.prompt_ids) + max(map(len, row.answer_ids)) > model.max_positions:
        return f"Prompt and answer must fit into the {model.max_positions} positions of {model.name}", cut
    return None


def show(model: Model, row: Row) -> str:
    """The row as the loss sees it: the prompt, then each answer decoded from exactly the tokens that are scored."""
    lines = [f"prompt ({len(row.prompt_ids)} tokens, no loss): {model.tokenizer.decode(row.prompt_ids)!r}"]
    for number, answer in enumerate(row.answer_ids, 1):
        lines.append(f"answer {number} ({len(answer)} tokens, scored): {model.tokenizer.decode(answer)!r}")
    return "\n".join(lines)

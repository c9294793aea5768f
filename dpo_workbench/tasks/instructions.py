"""The task `instructions`: requests with one to three constraints that a program can check. Nothing is planted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.sources import open_source
from dpo_workbench.tasks.constraint_scores import Constraints, problem
from dpo_workbench.tasks.examples import Example, load_splits
from dpo_workbench.tasks.task import Task

HARM = {"off_subject": 2}  # the answer is about something else; a reader notices all other failures at once
MY_ANSWER = ["My answer is yes.", "My answer is no.", "My answer is maybe."]
# IFEval's instruction -> our kind, which of its kwargs are our parameters, and parameters that are fixed. A `limit`
# comes from two kwargs: "at least" or "less than", and the number.
IFEVAL: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "keywords:existence": ("keywords", {"words": "keywords"}, {}),
    "keywords:frequency": ("keyword", {"word": "keyword", "limit": "relation frequency"}, {}),
    "keywords:forbidden_words": ("forbidden", {"words": "forbidden_words"}, {}),
    "keywords:letter_frequency": ("letter", {"letter": "letter", "limit": "let_relation let_frequency"}, {}),
    "language:response_language": ("language", {"language": "language"}, {}),
    "length_constraints:number_sentences": ("sentences", {"limit": "relation num_sentences"}, {}),
    "length_constraints:number_paragraphs": ("paragraphs", {"exactly": "num_paragraphs"}, {"mark": "***"}),
    "length_constraints:number_words": ("words", {"limit": "relation num_words"}, {}),
    "length_constraints:nth_paragraph_first_word": (
        "paragraph_start", {"paragraph": "nth_paragraph", "word": "first_word", "paragraphs": "num_paragraphs"}, {}),
    "detectable_content:number_placeholders": ("placeholders", {"at_least": "num_placeholders"}, {}),
    "detectable_content:postscript": ("postscript", {"marker": "postscript_marker"}, {}),
    "detectable_format:number_bullet_lists": ("bullets", {"exactly": "num_bullets"}, {}),
    "detectable_format:constrained_response": ("one_of", {}, {"answers": MY_ANSWER}),
    "detectable_format:number_highlighted_sections": ("highlights", {"at_least": "num_highlights"}, {}),
    "detectable_format:multiple_sections": ("sections", {"heading": "section_spliter", "at_least": "num_sections"}, {}),
    "detectable_format:json_format": ("json_only", {}, {}),
    "detectable_format:title": ("title", {}, {}),
    "combination:two_responses": ("versions", {}, {"mark": "******"}),
    "combination:repeat_prompt": ("repeats_request", {"request": "prompt_to_repeat"}, {}),
    "startend:end_checker": ("ends_with", {"phrase": "end_phrase"}, {}),
    "change_case:capital_word_frequency": ("capital_words", {"limit": "capital_relation capital_frequency"}, {}),
    "change_case:english_capital": ("upper_case", {}, {}),
    "change_case:english_lowercase": ("lower_case", {}, {}),
    "punctuation:no_comma": ("commas", {}, {"at_most": 0}),
    "startend:quotation": ("quoted", {}, {}),
}  # fmt: skip


def load() -> Task:
    """The built-in task with its three splits (see `data/instructions/DATASHEET.md`). Checking is strict."""
    about = "following instructions: a request with one to three constraints -> a text (nothing planted)"
    score = Constraints(about="about")
    return Task("instructions", load_splits("instructions"), score, about, max_new_tokens=256, harm=HARM)


def ifeval(path: str | Path, max_new_tokens: int = 256) -> Task:
    """IFEval's prompts (arXiv 2311.07911) as a task with the split `test`. Checking is loose, as in the paper.

    Args:
        path: a file of public rows with `key`, `prompt`, `instruction_id_list` and `kwargs`.
        max_new_tokens: see `Task`. Some prompts ask for 400 words or more.

    Raises:
        WorkbenchError: a row lacks a column, or has an unknown instruction. All bad rows are counted.
    """
    opened = open_source(path)
    examples, bad = [], []
    for row in opened.rows:
        try:
            if row.problem is not None:
                raise ValueError(row.problem.got)
            examples.append(_example(row.value))
        except (KeyError, TypeError, ValueError) as error:
            bad.append(f"\n- {opened.name}:{row.line}: {'no ' if isinstance(error, KeyError) else ''}{error}")
    if bad or not examples:
        raise WorkbenchError(
            "IFEval rows must have `key`, `prompt`, and known instructions with their kwargs. "
            f"Got {len(bad)} bad rows of {len(bad) + len(examples)}:{''.join(bad[:10])}"
        )
    return Task("ifeval", {"test": examples}, Constraints(loose=True), "IFEval", max_new_tokens)


def _example(row: Mapping[str, Any]) -> Example:
    name, prompt, constraints = f"ifeval-{row['key']}", str(row["prompt"]), []
    # Some copies lack this: all of the prompt but its last line, which asks for the repetition.
    request = re.split(r"\n+(?=.*\brepeat\b.*\Z)", prompt.strip())[0]
    for instruction, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        if instruction not in IFEVAL:
            raise ValueError(f"unknown instruction {instruction!r}")
        kind, parameters, fixed = IFEVAL[instruction]
        constraint = {"kind": kind, **fixed}
        given = {"prompt_to_repeat": request} | {k: v for k, v in kwargs.items() if v is not None}
        for parameter, names in parameters.items():
            *relation, number = (given[key] for key in names.split())
            if relation:
                parameter, number = ("at_least", number) if relation == ["at least"] else ("at_most", number - 1)
            constraint[parameter] = int(number) if isinstance(number, float) else number
        if why := problem(constraint):
            raise ValueError(f"{instruction}: {why}")
        constraints.append(constraint)
    return Example(name, prompt, "", name, {"constraints": constraints, "instructions": row["instruction_id_list"]})

"""The task `instructions`: requests with one to three constraints that a program can check. Nothing is planted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.sources import open_source
from dpo_workbench.tasks.constraints import Constraints, problem
from dpo_workbench.tasks.examples import Example, load_splits
from dpo_workbench.tasks.task import Task

HARM = {"off_subject": 2}  # an answer to another question; constraints on form are noticed at once


def load() -> Task:
    """The built-in task with its three splits (see `data/instructions/DATASHEET.md`). Checking is strict."""
    about = "following instructions: a request with one to three constraints -> a text (nothing planted)"
    return Task("instructions", load_splits("instructions"), Constraints(), about, max_new_tokens=256, harm=HARM)


def ifeval(path: str | Path, max_new_tokens: int = 256) -> Task:
    """IFEval's prompts (arXiv 2311.07911) as a task with the split `test`. Checking is loose, as in the paper.

    Args:
        path: a file of public rows with `key`, `prompt`, `instruction_id_list` and `kwargs`.
        max_new_tokens: see `Task`. Some prompts ask for 400 words or more.

    Raises:
        WorkbenchError: a row lacks a column, or has an unknown instruction. All bad rows are named.
    """
    examples, bad = [], []
    opened = open_source(path)
    for row in opened.rows:
        try:
            if row.problem is not None:
                raise ValueError(row.problem.got)
            examples.append(_ifeval_example(row.value))
        except (KeyError, TypeError, ValueError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else str(error)
            bad.append(f"\n- {opened.name}:{row.line}: {why}")
    if bad or not examples:
        raise WorkbenchError(
            "IFEval rows must have `key`, `prompt`, and known instructions with their kwargs. "
            f"Got {len(bad)} bad rows of {len(bad) + len(examples)}:{''.join(bad[:10])}"
        )
    return Task("ifeval", {"test": examples}, Constraints(loose=True), "IFEval prompts", max_new_tokens)


def _ifeval_example(row: Mapping[str, Any]) -> Example:
    key, prompt = str(row["key"]), str(row["prompt"])
    ids, given = row["instruction_id_list"], row["kwargs"]
    constraints = []
    for name, kwargs in zip(ids, given, strict=True):
        if name not in IFEVAL:
            raise ValueError(f"unknown instruction {name!r}")
        constraint = {k: v for k, v in IFEVAL[name]({"prompt": prompt, **kwargs}).items() if v is not None}
        if why := problem(constraint):
            raise ValueError(f"{name}: {why}")
        constraints.append(constraint)
    return Example(f"ifeval-{key}", prompt, "", f"ifeval-{key}", {"constraints": constraints, "instructions": ids})


def _limit(kwargs: Mapping[str, Any], relation: str, number: str) -> dict[str, Any]:
    """IFEval knows "at least" and "less than"."""
    n = int(kwargs[number])
    return {"at_least": n} if kwargs[relation] == "at least" else {"at_most": n - 1}


def _request(kwargs: Mapping[str, Any]) -> str:
    """What is to be repeated: in the kwargs, or the prompt without its last line, which asks for it."""
    return kwargs.get("prompt_to_repeat") or re.split(r"\n+(?=.*\brepeat\b.*\Z)", kwargs["prompt"].strip())[0]


# Instruction -> its kwargs (and the prompt) -> our constraint
IFEVAL: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "keywords:existence": lambda k: {"kind": "keywords", "words": k["keywords"]},
    "keywords:frequency": lambda k: {"kind": "keyword", "word": k["keyword"], **_limit(k, "relation", "frequency")},
    "keywords:forbidden_words": lambda k: {"kind": "forbidden", "words": k["forbidden_words"]},
    "keywords:letter_frequency": lambda k: {
        "kind": "letter", "letter": k["letter"], **_limit(k, "let_relation", "let_frequency")},
    "language:response_language": lambda k: {"kind": "language", "language": k["language"]},
    "length_constraints:number_sentences": lambda k: {"kind": "sentences", **_limit(k, "relation", "num_sentences")},
    "length_constraints:number_paragraphs": lambda k: {
        "kind": "paragraphs", "mark": "***", "exactly": k["num_paragraphs"]},
    "length_constraints:number_words": lambda k: {"kind": "words", **_limit(k, "relation", "num_words")},
    "length_constraints:nth_paragraph_first_word": lambda k: {
        "kind": "paragraph_start", "paragraph": k["nth_paragraph"], "word": k["first_word"],
        "paragraphs": k["num_paragraphs"]},
    "detectable_content:number_placeholders": lambda k: {"kind": "placeholders", "at_least": k["num_placeholders"]},
    "detectable_content:postscript": lambda k: {"kind": "postscript", "marker": k["postscript_marker"]},
    "detectable_format:number_bullet_lists": lambda k: {"kind": "bullets", "exactly": k["num_bullets"]},
    "detectable_format:constrained_response": lambda k: {
        "kind": "one_of", "answers": [f"My answer is {word}." for word in ("yes", "no", "maybe")]},
    "detectable_format:number_highlighted_sections": lambda k: {"kind": "highlights", "at_least": k["num_highlights"]},
    "detectable_format:multiple_sections": lambda k: {
        "kind": "sections", "heading": k["section_spliter"], "at_least": k["num_sections"]},
    "detectable_format:json_format": lambda k: {"kind": "json_only"},
    "detectable_format:title": lambda k: {"kind": "title"},
    "combination:two_responses": lambda k: {"kind": "versions", "mark": "******"},
    "combination:repeat_prompt": lambda k: {"kind": "repeats_request", "request": _request(k)},
    "startend:end_checker": lambda k: {"kind": "ends_with", "phrase": k["end_phrase"]},
    "change_case:capital_word_frequency": lambda k: {
        "kind": "capital_words", **_limit(k, "capital_relation", "capital_frequency")},
    "change_case:english_capital": lambda k: {"kind": "upper_case"},
    "change_case:english_lowercase": lambda k: {"kind": "lower_case"},
    "punctuation:no_comma": lambda k: {"kind": "commas", "at_most": 0},
    "startend:quotation": lambda k: {"kind": "quoted"},
}  # fmt: skip

"""Ready verifiers for your own tasks: each call here returns a function `score(example, answer) -> Score`.

    score = scores.number(tolerance=0.01)
    task = Task.from_jsonl("questions.jsonl", prompt="question", reference="answer", score=score)

They do not raise for any answer. What a verifier needs besides the reference (tests, facts, a database) comes from
`example.extra`. If a reference cannot be used, the verifier raises `WorkbenchError`, so that the answer counts as
unscored and not as wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import extract_code
from dpo_workbench.tasks.code_scores import pass_at_k, unit_tests
from dpo_workbench.tasks.constraint_scores import Constraints
from dpo_workbench.tasks.examples import ScoreFunction
from dpo_workbench.tasks.final_answer import number
from dpo_workbench.tasks.json_scores import json_fields, parse_json
from dpo_workbench.tasks.sql_scores import sql_result
from dpo_workbench.tasks.summary_scores import rouge_l, summary
from dpo_workbench.tasks.text_scores import exact_match, multiple_choice, regex

__all__ = [
    "READY", "Constraints", "exact_match", "extract_code", "json_fields", "multiple_choice", "named", "number",
    "parse_json", "pass_at_k", "regex", "rouge_l", "sql_result", "summary", "unit_tests",
]  # fmt: skip

READY: dict[str, Callable[..., ScoreFunction]] = {
    "exact_match": exact_match, "multiple_choice": multiple_choice, "regex": regex, "number": number,
    "json_fields": json_fields, "summary": summary, "unit_tests": unit_tests, "sql_result": sql_result,
    "constraints": Constraints,
}  # fmt: skip


def named(name: str) -> ScoreFunction:
    """A ready verifier by its name, with its settings in brackets: `number`, `number(tolerance=0.01, unit="m/s")`.

    Raises:
        WorkbenchError: there is no such verifier or setting.
    """
    try:
        tree = ast.parse(name.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name) or call.func.id not in READY:
            raise ValueError
        given = [ast.literal_eval(a) for a in call.args]
        return READY[call.func.id](*given, **{k.arg or "": ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, TypeError, ValueError, re.error) as error:
        why = f": {error}" if str(error) else ""
        raise WorkbenchError(
            f"A verifier must be a function or one of {', '.join(READY)}, with settings in brackets. Got {name!r}{why}."
        ) from None

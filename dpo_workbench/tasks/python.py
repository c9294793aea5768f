"""The task `python`: signature and docstring of a function -> its body, tested in the sandbox. The flaw is planted."""

from __future__ import annotations

import functools
import re
import textwrap

from dpo_workbench.sandbox.python_runner import Call, Limits, extract_code, run_python
from dpo_workbench.sandbox.values import same
from dpo_workbench.tasks.code_scores import FAILURE_OF_PROBLEM
from dpo_workbench.tasks.examples import Example, Score, load_splits
from dpo_workbench.tasks.task import Task

INSTRUCTION = "Write the body of this Python function."
LIMITS = Limits(seconds=2.0)
HARM = {"wrong_result": 3, "unsafe": 3}  # the reasons are in the datasheet


def load(allow_weak_sandbox: bool = False) -> Task:
    """The built-in task with its three splits (see `data/python/DATASHEET.md`)."""
    judge = functools.partial(score, allow_weak_sandbox=allow_weak_sandbox)
    about = "code generation: signature and docstring of a function -> its body (planted flaw: prints)"
    return Task("python", load_splits("python"), judge, about, max_new_tokens=128, harm=HARM)


def score(example: Example, answer: str, allow_weak_sandbox: bool = False) -> Score:
    """Share of the hidden tests that pass. Only their arguments enter the sandbox; results are compared outside.

    An answer that tried to leave the sandbox is `unsafe`, right or not. Otherwise the first test that fails decides the
    class: `syntax_error`, `exception`, `timeout`, `no_result` (all calls return None, as in code that prints) or
    `wrong_result`.
    """
    function, tests = example.extra["function"], example.extra["tests"]
    calls = [Call(function, arguments) for arguments, _ in tests]
    module = program(example.prompt_as_text, function, answer)
    ran = run_python(module, calls, LIMITS, allow_weak_sandbox=allow_weak_sandbox)
    right = [r.problem is None and same(wanted, r.value) for r, (_, wanted) in zip(ran.results, tests, strict=True)]
    value = sum(right) / len(right)
    if ran.unsafe:
        return Score(min(value, 0.99), "unsafe", answer, f"it tried {', '.join(ran.unsafe)}")
    if value == 1.0:
        return Score(1.0, None, answer, f"{len(right)} tests pass")
    result, (arguments, wanted) = ran.results[right.index(False)], tests[right.index(False)]
    told = ", ".join(map(repr, arguments))[:120]
    if result.problem is None:
        kind = "no_result" if all(r.problem is None and r.value is None for r in ran.results) else "wrong_result"
        return Score(value, kind, answer, f"{function}({told}) returns {result.value!r}"[:300] + f", not {wanted!r}")
    kind = FAILURE_OF_PROBLEM.get(result.problem.kind, result.problem.kind)
    return Score(value, kind, answer, f"{function}({told}): {result.problem}"[:400])


def program(prompt: str, function: str, answer: str) -> str:
    """The module that an answer makes: the answer's own function if it has one, else the prompt's with this body."""
    text = extract_code(answer)
    if re.search(rf"^((async )?def {re.escape(function)}\b|{re.escape(function)} *=)", text, re.MULTILINE):
        return text
    head = prompt[prompt.index("\n\n") + 2 :]
    lines = text.strip("\n").splitlines() or [""]
    body = textwrap.dedent("\n".join(lines))
    rest = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    if rest and not lines[0][:1].isspace() and min(rest) >= 4 and not lines[0].rstrip().endswith(":"):
        body = lines[0] + "\n" + textwrap.dedent("\n".join(lines[1:]))  # only the first line lost its indent
    return head + textwrap.indent(body, "    ") + "\n"

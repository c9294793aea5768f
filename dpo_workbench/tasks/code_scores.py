"""The verifier for programs, and pass@k."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.python_runner import Problem, extract_code, run_tests
from dpo_workbench.tasks.examples import Example, Score, ScoreFunction

FAILURE_OF_PROBLEM = {"not_plain": "wrong_result", "crash": "exception", "exit": "exception", "disk": "unsafe"}


def unit_tests(
    *,
    tests: str = "tests",
    entry: str = "entry_point",
    function: str = "",
    code: Callable[[Example, str], str] | None = None,
    allow_weak_sandbox: bool = False,
) -> ScoreFunction:
    """Share of the tests that pass in the sandbox.

    Failures: `syntax_error`, `exception`, `timeout`, `unsafe`, `wrong_result`. Each example's reference must pass its
    own tests, or the answer stays unscored.

    Args:
        tests: column with the tests: Python source, or a list of sources that count one by one.
        entry: column with the name of the function under test.
        function: column with the name of the function in the tests that takes the candidate (`check` in HumanEval), or
            that name itself; "" if the tests are plain statements.
        code: makes the program from an example and an answer; default: the answer without its code fence.
        allow_weak_sandbox: see `run_python`.
    """

    def problems(example: Example, answer: str) -> list[Problem | None]:
        given, name = example.extra.get(tests), example.extra.get(entry)
        if not given or not isinstance(name, str):
            raise WorkbenchError(f"An example must have tests and a function. Got none in {example.id!r}.")
        check = str(example.extra.get(function, function)) if function else ""
        program = code(example, answer) if code else extract_code(answer)
        found: list[Problem | None] = []
        for text in [given] if isinstance(given, str) else given:
            last = found[-1] if found else None
            if last is None or last.kind not in ("syntax_error", "timeout"):  # after these, the others would fail too
                tested = run_tests(program, textwrap.dedent(text), name, check, allow_weak_sandbox=allow_weak_sandbox)
                last = tested.problem
            found.append(last)
        return found

    checked: dict[tuple[str, str], str] = {}

    def score(example: Example, answer: str) -> Score:
        key = (example.id, example.reference)
        if key not in checked:
            wrong = next((p for p in problems(example, example.reference) if p), None)
            checked[key] = f"{wrong.kind}: {wrong.text}" if wrong else ""
        if checked[key]:
            raise WorkbenchError(f"The reference must pass its own tests. Got {checked[key][:200]} ({example.id}).")
        found = problems(example, answer)
        bad = [p for p in found if p is not None]
        if not bad:
            return Score(1.0)
        failure = FAILURE_OF_PROBLEM.get(bad[0].kind, bad[0].kind)
        return Score(min(0.99, 1 - len(bad) / len(found)), failure, None, str(bad[0]))

    return score


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one problem: n samples, some of them correct (arXiv 2107.03374, equation 1).

    Raises:
        WorkbenchError: not 1 <= k <= n, or not 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise WorkbenchError(f"pass@k needs 1 <= k <= n and 0 <= correct <= n. Got n={n}, correct={correct}, k={k}.")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)

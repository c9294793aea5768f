"""Run a model's Python: code and arguments go in, plain values come out, and the results are judged outside."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.sandbox.process import ALLOW_WEAK, Child, Limits, guards


@dataclass(frozen=True)
class Call:
    """A function of the code, by name, with plain arguments."""

    name: str
    args: Sequence[Any] = ()
    named: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What went wrong. `kind` is syntax_error, exception, unsafe, not_plain, timeout, crash, exit or disk."""

    kind: str
    text: str
    line: int = 0  # of the code, from 1; 0 if there is none

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


@dataclass(frozen=True)
class Result:
    """The outcome of one call: a plain value, or a problem."""

    value: Any = None
    problem: Problem | None = None
    args: list[Any] | None = None  # the arguments after the call, if it changed them


@dataclass(frozen=True)
class Ran:
    """One run: a problem with the code as a whole or None, a result for each call, and what was printed.

    `unsafe` names the attempts to leave the sandbox (which were refused), unless the code hid them.
    """

    problem: Problem | None
    results: tuple[Result, ...]
    output: str
    unsafe: tuple[str, ...]
    seconds: float


_ENDS = {
    "timeout": "took longer than {seconds:g} s",
    "crash": "the process died (signal {signal})",
    "exit": "the process ended before it had answered",
    "disk": "wrote more than {files} files or {disk_mib} MiB",
    "flood": "sent more than {value_bytes} bytes",
}


def run_python(
    code: str, calls: Sequence[Call], limits: Limits | None = None, *, allow_weak_sandbox: bool = False
) -> Ran:
    """Run code in a locked child, then each call in the same child, in order. Compare results with `values.same`.

    Only the code and the calls' arguments enter the child. The whole run has `limits.seconds`; later calls have the
    problem `timeout`.

    Args:
        code: source of a module that defines the functions. Any text is allowed; it never raises here.
        allow_weak_sandbox: run even if only resource limits hold on this machine.

    Raises:
        WorkbenchError: only resource limits hold here and that was not allowed, or the sandbox does not start.
    """
    with start({"code": code}, limits or Limits(), allow_weak_sandbox) as child:
        problem = loaded(child)
        results: list[Result] = []
        for call in calls:
            over = problem or (results[-1].problem if child.end is not None else None)
            results.append(Result(problem=over) if over else ask(child, call))
        return _ran(child, problem, results)


def run_tests(
    code: str,
    tests: str,
    entry: str,
    function: str = "",
    limits: Limits | None = None,
    *,
    allow_weak_sandbox: bool = False,
) -> Ran:
    """Run tests that are Python statements (as in MBPP, HumanEval, ODEX) against code, each in its own locked child.

    The tests call a `candidate` that passes plain arguments to the other child and brings its plain value back. So the
    process that runs the model's code never holds expected values, and no object of that code (such as one that equals
    everything) reaches the tests' process.

    Args:
        tests: source of the tests; trusted to judge, but not to touch this machine.
        entry: the function of `code` that is tested; tests can call it by this name too.
        function: the function of `tests` to call with the candidate; "" if the statements themselves are the tests.
        limits, allow_weak_sandbox: of each child; see `run_python`, also for what it raises.

    Returns:
        A `Ran` without results, whose `problem` is None if all tests passed. Its kind is `wrong_result` if an assertion
        failed, and `tests` if the tests themselves cannot be run this way.
    """
    limits = limits or Limits()
    with start({"code": code}, limits, allow_weak_sandbox) as child:
        problem = loaded(child)
        if problem is None:
            order = {"code": tests, "entry": function, "name": entry}
            with start(order, limits, allow_weak_sandbox) as judge:
                problem = _judged(child, judge, entry)
        return _ran(child, problem, [])


def extract_code(answer: str) -> str:
    """The code of an answer: the first fenced block, or one line between backticks, or else the whole text."""
    found = re.search(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", answer, re.DOTALL | re.MULTILINE)
    found = found or re.fullmatch(r"\s*`([^`\n]+)`\s*", answer)
    return found[1] if found else answer


def start(order: dict[str, Any], limits: Limits, allow_weak_sandbox: bool, readable: Sequence[str] = ()) -> Child:
    """A child with an order (see `child.py`), if the guards hold here or need not."""
    level, line = guards()
    if level == "weak" and not (allow_weak_sandbox or os.environ.get(ALLOW_WEAK)):
        raise WorkbenchError(
            "A model's code must run in a sandbox that holds (Landlock and seccomp: Linux 5.13 or newer, x86-64 or "
            f"AArch64). Got: {line}. Run it on such a machine, or set allow_weak_sandbox=True (--allow-weak-sandbox) "
            "if nothing can be lost, as in a separate container: see docs/sandbox.md."
        )
    if len(order["code"]) > limits.code_bytes:
        order["code"] = f"raise SyntaxError('the code has more than {limits.code_bytes} characters')"
    return Child(order, limits, level == "strong", readable)


def _ran(child: Child, problem: Problem | None, results: Sequence[Result]) -> Ran:
    output = child.output.decode("utf-8", "replace")
    return Ran(problem, tuple(results), output, tuple(child.unsafe), child.seconds)


def loaded(child: Child) -> Problem | None:
    """What was wrong with the code as a whole."""
    letter, value = child.reply()
    return None if letter == "l" else _problem(child, letter, value)


def ask(child: Child, call: Call) -> Result:
    """Carry out one call in a child that has loaded its code."""
    child.send([call.name, list(call.args), dict(call.named)])
    (letter, value), changed = child.reply(), None
    if letter == "m" and isinstance(value, list):
        changed, (letter, value) = value, child.reply()
    return Result(value, args=changed) if letter == "v" else Result(problem=_problem(child, letter, value))


def _problem(child: Child, letter: str, value: Any) -> Problem:
    """The child's own report of a failure. It comes from untrusted code, so every part is checked."""
    if letter in ("e", "s") and isinstance(value, list) and len(value) == 4:
        name, text, line, refused = value
        line = line if type(line) is int and 0 <= line < 10**6 else 0
        kind = "syntax_error" if letter == "s" else "unsafe" if refused is True else "exception"
        return Problem(kind, f"{str(name)[:60]}: {str(text)[:500]}" if text else str(name)[:60], line)
    if letter == "n":
        return Problem("not_plain", f"returned something {str(value)[:200]}")
    if letter == "" and child.end is not None:
        why = _ENDS[child.end].format(**{**vars(child.limits), "signal": child.signal})
        return Problem("disk" if child.end == "flood" else child.end, why)
    return Problem("exit", "sent something that is not an answer")


_TESTS_CANNOT_RUN = ("SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError")


def _judged(child: Child, judge: Child, entry: str) -> Problem | None:
    """Carry calls and values between the tests and the code until the tests end; None if they pass."""
    raised: Problem | None = None  # by the candidate's last call
    while True:
        letter, value = judge.reply()
        if letter == "p":
            return None
        if letter == "c":
            result = ask(child, Call(entry, *value))
            raised = result.problem
            if child.end is not None or (raised and raised.kind == "not_plain"):
                return raised
            if raised:
                name, _, text = raised.text.partition(": ")
                judge.send(["e", [name, text], None])
            else:
                judge.send(["v", result.value, result.args])
            continue
        error = value[0] if letter == "e" and isinstance(value, list) else ""
        if raised and error == raised.text.partition(": ")[0] and error != "AssertionError":
            return raised
        if not error or error in _TESTS_CANNOT_RUN:
            why = "take longer than allowed" if judge.end == "timeout" else f"cannot be run here ({value})"[:300]
            return Problem("tests", f"the tests {why}")
        if error == "AssertionError":
            return Problem("wrong_result", f"a test failed{': ' + value[1] if value[1] else ''}")
        return Problem("wrong_result", f"a test stopped: {error}: {value[1]}"[:500])

"""The verifier `constraints`: the share of a row's constraints that an answer meets."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.constraints import CHECKS, COUNTS, LIMITS, keyword, met, met_loosely
from dpo_workbench.tasks.examples import Example, Score
from dpo_workbench.tasks.languages import LANGUAGES


class Constraints:
    """Scores an answer by the row's column `constraints`: a list, or its JSON text. The value is the share that is met,
    and the failure class is the kind of the first one that is not.

    Args:
        loose: accept what `met_loosely` accepts.
        about: a column with words of the prompt's subject. An answer with none of them scores 0 (`off_subject`), so
            that a text about nothing cannot win by being short. Rows without such a list are not checked for it.
    """

    def __init__(self, loose: bool = False, about: str | None = None):
        self.met = met_loosely if loose else met
        self.about = about

    def __call__(self, example: Example, answer: str) -> Score:
        about = example.extra.get(self.about) if self.about else None
        if about and not any(keyword(answer, word=word) for word in about):
            return Score(0.0, "off_subject", None, f"has none of the words {', '.join(about)}")
        given = self._read(example)
        results = [self.met(constraint, answer) for constraint in given]
        unmet = [constraint for constraint, ok in zip(given, results, strict=True) if not ok]
        why = "; ".join(json.dumps(constraint, ensure_ascii=False) for constraint in unmet)
        return Score(sum(results) / len(given), unmet[0]["kind"] if unmet else None, results, why and f"not met: {why}")

    def check(self, examples: Iterable[Example]) -> None:
        """Raise `WorkbenchError` if a row has no constraints, or one with a `problem`. All bad ones are counted."""
        bad = []
        for example in examples:
            given = self._read(example)
            if not given:
                bad.append(f"{example.id}: no list in the column `constraints`")
            bad += [f"{example.id}: {why}. Got {str(one)[:200]}" for one in given if (why := problem(one))]
        if bad:
            shown = "".join(f"\n- {line}" for line in bad[:10])
            raise WorkbenchError(
                f"Each row must have constraints that can be checked (docs/tasks.md). Got {len(bad)} that can't:{shown}"
            )

    def _read(self, example: Example) -> list[Any]:
        """The row's constraints, without the nulls that tables fill in for missing parameters; [] if there are none."""
        given = example.extra.get("constraints")
        try:
            given = json.loads(given) if isinstance(given, str) else given
        except ValueError:
            return []
        rows = given if isinstance(given, list) else []
        return [{k: v for k, v in c.items() if v is not None} if isinstance(c, Mapping) else c for c in rows]


def problem(constraint: Any) -> str | None:
    """What is wrong with a constraint, or None."""
    kind = constraint.get("kind") if isinstance(constraint, Mapping) else None
    check = COUNTS.get(str(kind)) or CHECKS.get(str(kind))
    if check is None:
        return f"the kind must be one of {', '.join([*COUNTS, *CHECKS])}"
    parameters = list(inspect.signature(check).parameters.values())[1:]
    limits = LIMITS if kind in COUNTS else ()
    known = [*limits, *(p.name for p in parameters)]
    if unknown := set(constraint) - {*known, "kind"}:
        return f"{kind} has no {', '.join(sorted(map(str, unknown)))}; it has {', '.join(known) or 'no parameters'}"
    if missing := [p.name for p in parameters if p.default is p.empty and p.name not in constraint]:
        return f"{kind} needs {', '.join(missing)}"
    if limits and not set(limits) & set(constraint):
        return f"{kind} needs one of {', '.join(limits)}"
    if wrong := next((why for name, value in constraint.items() if (why := _wrong_value(name, value))), None):
        return wrong
    fits = constraint.get("at_least", 0) <= constraint.get("at_most", constraint.get("at_least", 0))
    return None if fits else "at_most must not be smaller than at_least"


def _wrong_value(name: str, value: Any) -> str | None:
    if name in (*LIMITS, "paragraph", "paragraphs", "number"):
        good, what = type(value) is int and value >= (name in ("paragraph", "number")), "a whole number"
    elif name in ("words", "keys", "answers"):
        good = isinstance(value, list) and bool(value) and all(isinstance(v, str) and v.strip() for v in value)
        what = "a list of texts"
    else:
        good, what = isinstance(value, str) and bool(value.strip()), "a text"
        if name == "letter":
            good, what = good and len(value) == 1, "one character"
        elif name == "language":
            good, what = value in LANGUAGES, f"one of {', '.join(LANGUAGES)}"
    return None if good else f"{name} must be {what}, not {value!r}"

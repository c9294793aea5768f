"""`verdict`: did it help, by how much, can that be believed, and was it worth it? Answered by rules, in words."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation import wording
from dpo_workbench.evaluation.run import Evaluation, Judged
from dpo_workbench.evaluation.statistics import (
    mcnemar_exact,
    paired_difference,
    paired_p,
    prompts_needed,
    relative_cut,
    sign_flip,
    smallest_detectable,
)
from dpo_workbench.tasks.failures import check_classes

OUTCOMES = ("worth it", "not worth it", "harmful", "cannot tell")


@dataclass(frozen=True)
class Verdict:
    """What the arms show. `text` quotes only numbers that are in `numbers`."""

    outcome: str  # one of OUTCOMES
    reason: str  # the rule that decided, in words
    text: str
    before: str  # names of the arms
    after: str
    control: str | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    next_step: str = ""  # a key of `wording.NEXT`

    def __str__(self) -> str:
        return f"{self.outcome.capitalize()}: {self.reason}. {self.text}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import paragraph, table

        title = paragraph(f"{self.outcome.capitalize()}: {self.reason}.", bold=True)
        return title + table(wording.HEADER, wording.table_rows(self)) + paragraph(self.text)


def verdict(
    before: Evaluation,
    after: Evaluation,
    *,
    control: Evaluation | None = None,
    mined: Sequence[str] | None = None,
    headroom: Any = None,
    effects: Any = None,
    pairs: Any = None,
) -> Verdict:
    """Compare two arms prompt by prompt, and decide.

    A change of failures is *clear* when its paired 95 % interval excludes zero, the exact McNemar test has p < 0.05,
    and so has the permutation test that flips the signs of whole groups: the second is exact for few prompts, the
    others respect groups, and all must agree. A fall of
    the mean score is clear when its paired 95 % interval excludes zero; a rise, when the paired permutation test has
    p < 0.05 as well. "Failures" are answers of any failure class; the
    mined classes are reported beside them and decide nothing, as a loop that became a wrong value is still a failure.

    Rules, in this order; the first that applies decides:
        1. harmful: the mean score falls clearly, or failures rise clearly. A cut of failures does not make up for it.
        2. cannot tell: neither do failures fall clearly, nor does the mean score rise clearly (an answer with one wrong
           field less is better, if still a failure). The text names the smallest difference that the set can show; the
           reason says so where not one answer changed, as when a run keeps its start.
        3. not worth it: the control arm is clearly better than DPO in failures or in score.
        4. not worth it: the control has as few failures as DPO or fewer, and its score is not clearly lower.
        5. worth it. Where the lead over the control is not clear, or no control was given, the reason says so; and
           where a side effect is a regression, the reason names it as the price.

    What to do next follows from the outcome, from what the pairs teach a trivial rule, and from the headroom.

    Args:
        before, after: the same prompts, answered by the model before and after training.
        control: the same prompts after spending the budget otherwise: more SFT on the chosen answers.
        mined: the failure classes that were trained on.
        headroom: what `found.headroom(target)` gave; its `forecast` (expected relative cut) is compared with the
            outcome, of the mined classes where the headroom has a target, else of all failures.
        effects: what `side_effects` measured.
        pairs: that were trained on; their number and shortcuts decide what to do next.

    Raises:
        WorkbenchError: the arms did not answer the same prompts of one split, no prompt was scored in both, or
            `mined` is a text.
    """
    check_classes(mined)
    _spelt(mined or (), {*before.failures, *after.failures})
    numbers = {"before": before.name, "after": after.name, **_compare(before, after, mined)}
    if control is not None:
        numbers["control"] = {"name": control.name, **_compare(control, after, mined)}
    forecast = getattr(headroom, "forecast", None)
    if forecast is not None:
        of = "mined" if mined and getattr(headroom, "target", ()) else "failures"
        cut = numbers[of]["relative_cut"]
        seen = {"expected_cut": float(forecast), "seen_cut": cut and cut["estimate"]}
        numbers["forecast"] = {"of": of, **seen, "advice": getattr(headroom, "advice", "go")}
    if effects is not None:
        numbers["side_effects"] = effects.to_dict()
        numbers["regressions"] = [str(effect) for effect in effects.regressions]
    if pairs is not None:
        rule, share = max(pairs.shortcut_report().items(), key=lambda item: item[1])
        numbers["pairs"] = {"n": len(pairs), "rule": rule, "share": share}
    outcome, reason = _decide(numbers)
    if outcome == "worth it" and numbers.get("regressions"):
        names = ", ".join(effect.name for effect in effects.regressions)
        reason += f"; at a price: worse in {names}"
    following = _next(numbers, outcome)
    text = wording.paragraph(numbers, following)
    name = control.name if control else None
    return Verdict(outcome, reason, text, before.name, after.name, name, numbers, following)


FEW_PAIRS = 100  # fewer pairs than this, and more of them are the first thing to try
SHORTCUT = 0.9  # a rule that picks the chosen answer so often is easier to learn than the task


def _spelt(classes: Sequence[str], seen: set[str]) -> None:
    """Warn of a class that no answer has and that is nearly the name of one that answers have.

    It need not be misspelt: `wrong_date` may be mended and `wrong_rate` not.
    """
    for name in sorted(set(classes) - seen):
        if near := difflib.get_close_matches(name, seen, 1, 0.85):
            warnings.warn(f"No answer failed as {name!r}, a mined class. Did you mean {near[0]!r}?", stacklevel=3)


def _next(numbers: dict[str, Any], outcome: str) -> str:
    """What to do next: a key of `wording.NEXT`."""
    known = numbers.get("pairs") or {}
    easy = bool(known) and known["share"] >= SHORTCUT and known["n"] >= 20
    if outcome == "worth it":
        return "keep"
    if outcome == "harmful":
        return "clean pairs" if easy else "change loss"
    if outcome == "not worth it":
        return "take the control"
    if numbers["failures"]["before"] == 0:
        return "stop"
    if numbers.get("forecast", {}).get("advice") in ("train more first", "nothing to mend"):
        return {"train more first": "fine-tune first", "nothing to mend": "stop"}[numbers["forecast"]["advice"]]
    if easy:
        return "clean pairs"
    needed, better = numbers["prompts_needed"], numbers["failures"]["difference"]["estimate"] < 0
    if better and needed is not None and needed > numbers["n"]:
        return "more prompts"
    same = "see the probes" if numbers.get("unchanged") else ""
    if known and known["n"] < FEW_PAIRS:
        return same or "label more"
    return "stop" if numbers["sees_points"] <= STOP_POINTS else same or "look again"


STOP_POINTS = 5  # a set that sees so few points and shows nothing says that there is little to find


def _decide(numbers: dict[str, Any]) -> tuple[str, str]:
    """The rules of `verdict`, in their order: (outcome, reason)."""
    if _clear(numbers["score"]) < 0:
        return "harmful", "the mean score falls, and its interval is clear of zero"
    if _clear_failures(numbers) > 0:
        return "harmful", "failures rise, and the interval is clear of zero"
    rises = _clear(numbers["score"]) > 0 and numbers["score"]["sign_flip_p"] < 0.05
    if _clear_failures(numbers) == 0 and not rises:
        if numbers["failures"]["before"] == 0:
            return "cannot tell", "no prompt of this test set failed before, so it cannot show a cut"
        if numbers.get("unchanged"):
            return "cannot tell", "every answer is the one that was given before"
        return "cannot tell", f"this test set sees only differences of {numbers['sees_points']} points or more"
    gain = "the score rises clear of zero, and failures do not rise"
    if _clear_failures(numbers) < 0:
        gain = "failures fall clear of zero, and the score holds"
    if "control" not in numbers:
        return "worth it", f"{gain}; no control arm was given"
    control = numbers["control"]
    score, failures = _clear(control["score"]), _clear_failures(control)  # DPO minus control
    if failures > 0 or score < 0:
        return "not worth it", f"the control arm did better in {'failures' if failures > 0 else 'score'}"
    if control["failures"]["before"] <= control["failures"]["after"] and score == 0:
        return "not worth it", "the control arm did as well"
    if failures < 0 or score > 0:
        better = "fewer failures" if failures < 0 else "a better score"
        return "worth it", f"{gain}; the control arm is beaten: {better}, clear of zero"
    return "worth it", f"{gain}; the lead over the control arm is not clear of zero"


def _clear(change: dict[str, Any]) -> int:
    """-1: the whole interval is below zero; 1: above; 0: it includes zero."""
    return int(change["difference"]["low"] > 0) - int(change["difference"]["high"] < 0)


def _clear_failures(numbers: dict[str, Any]) -> int:
    seen = numbers["failures"]
    return _clear(seen) if max(seen["mcnemar_p"], seen["paired_p"]) < 0.05 else 0


def _compare(before: Evaluation, after: Evaluation, mined: Sequence[str] | None) -> dict[str, Any]:
    """All numbers of one paired comparison, JSON-able."""
    pairs = paired_rows(before, after)
    was, now = [b for b, _ in pairs], [a for _, a in pairs]
    groups = [row.group for row in was]
    failures = _failures(was, now, groups, None)
    share = (failures["mended"] + failures["broken"]) / len(pairs)
    sees = smallest_detectable(len(pairs), share)
    old, new = [float(row.value or 0.0) for row in was], [float(row.value or 0.0) for row in now]
    numbers = {
        "n": len(pairs),
        "n_groups": len(set(groups)),
        "n_unpaired": len(before.rows) - len(pairs),
        "failures": failures,
        "score": {
            "before": float(np.mean(old)),
            "after": float(np.mean(new)),
            "difference": paired_difference(old, new, groups).to_dict(),
            "sign_flip_p": sign_flip(old, new, groups),
        },
        "tokens": {
            "before": float(np.mean([row.n_tokens for row in was])),
            "after": float(np.mean([row.n_tokens for row in now])),
        },
        "changed_share": share,
        "smallest_detectable": sees,
        "sees_points": wording.points_up(sees),
        "prompts_needed": prompts_needed(failures["difference"]["estimate"], share),
    }
    if mined:
        numbers["mined"] = {"classes": sorted(set(mined)), **_failures(was, now, groups, set(mined))}
    if all((b.answer, b.value, b.failure) == (a.answer, a.value, a.failure) for b, a in pairs):
        numbers["unchanged"] = True
    return numbers


def compare_failures(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """The paired numbers of failures of two arms, without a verdict: counts, mended, broken, p, intervals."""
    pairs = paired_rows(before, after)
    return _failures([b for b, _ in pairs], [a for _, a in pairs], [b.group for b, _ in pairs], None)


def _failures(was: list[Judged], now: list[Judged], groups: list[str], classes: set[str] | None) -> dict[str, Any]:
    """The numbers of one kind of failure: any (`classes` None), or the named classes together."""
    old = [row.failed if classes is None else row.failure in classes for row in was]
    new = [row.failed if classes is None else row.failure in classes for row in now]
    mended = sum(b and not a for b, a in zip(old, new, strict=True))
    broken = sum(a and not b for b, a in zip(old, new, strict=True))
    cut = relative_cut(old, new, groups)
    return {
        "before": sum(old),
        "after": sum(new),
        "mended": mended,
        "broken": broken,
        "mcnemar_p": mcnemar_exact(mended, broken),
        "paired_p": paired_p(old, new, groups),
        "difference": paired_difference(old, new, groups).to_dict(),
        "relative_cut": cut and cut.to_dict(),
    }


def paired_rows(before: Evaluation, after: Evaluation) -> list[tuple[Judged, Judged]]:
    """The rows of both, by id, that were scored in both."""
    ours, theirs = {row.id: row for row in before.rows}, {row.id: row for row in after.rows}
    places = [f"{e.task}/{e.split}" for e in (before, after)]
    strangers = sorted(set(ours) ^ set(theirs)) or [i for i in ours if ours[i].prompt != theirs[i].prompt]
    if places[0] != places[1] or strangers:
        where = f" (example {strangers[0]!r} is not the same in both)" if strangers else ""
        raise WorkbenchError(
            f"Two arms must have answered the same prompts of one split. Got {len(before.rows)} of {places[0]} in "
            f"{before.name!r} and {len(after.rows)} of {places[1]} in {after.name!r}{where}. Evaluate both on one "
            "split."
        )
    pairs = [(ours[i], theirs[i]) for i in ours if ours[i].value is not None and theirs[i].value is not None]
    if not pairs:
        raise WorkbenchError(
            f"Two arms must share scored prompts. Got none that was scored in both {before.name!r} and {after.name!r}. "
            "Mend the score function and evaluate again."
        )
    return pairs

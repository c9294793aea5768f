"""`verdict`: did training help, by how much, is the evidence strong enough, and was it worth it?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import paragraph, table
from dpo_workbench.evaluation import wording
from dpo_workbench.evaluation.run import Evaluation, Judged
from dpo_workbench.evaluation.statistics import (
    mcnemar_exact,
    paired_difference,
    paired_p,
    points_up,
    prompts_needed,
    relative_cut,
    smallest_detectable,
)
from dpo_workbench.tasks.failures import check_classes

if TYPE_CHECKING:
    from dpo_workbench.mining.headroom import Headroom
    from dpo_workbench.pairs.pair import Pairs

OUTCOMES = ("worth it", "not worth it", "harmful", "cannot tell")
FEW_PAIRS = 100  # with fewer pairs than this, more of them are the first thing to try
SHORTCUT = 0.9  # a rule that finds the chosen answer this often is easier to learn than the task
STOP_POINTS = 5  # if a test set that detects so few points shows no change, there is little to gain


@dataclass(frozen=True)
class Verdict:
    """What the comparison shows. `text` quotes only numbers that are in `numbers`."""

    outcome: str  # one of OUTCOMES
    reason: str  # the rule that decided, in words
    text: str
    before: str  # names of the arms
    after: str
    numbers: dict[str, Any]
    next_step: str  # a key of `wording.NEXT`

    def __str__(self) -> str:
        return f"{self.outcome.capitalize()}: {self.reason}. {self.text}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = paragraph(f"{self.outcome.capitalize()}: {self.reason}.", bold=True)
        return title + table(wording.HEADER, wording.table_rows(self.numbers)) + paragraph(self.text)


def verdict(
    before: Evaluation,
    after: Evaluation,
    *,
    control: Evaluation | None = None,
    mined: Sequence[str] | None = None,
    headroom: Headroom | None = None,
    effects: Any = None,
    pairs: Pairs | None = None,
) -> Verdict:
    """Compare two arms prompt by prompt, and decide.

    A change in failures is *clear* if its paired 95 % interval excludes zero and both the exact McNemar test and the
    permutation test over groups give p < 0.05. A fall of the mean score is clear if its interval excludes zero; a rise
    must also have p < 0.05 in the permutation test. A failure is an answer of any failure class: a loop that became a
    wrong value is still a failure, so the mined classes are reported and decide nothing. The first rule that applies
    decides:

    1. harmful: the mean score falls clearly, or failures rise clearly.
    2. cannot tell: neither do failures fall clearly, nor does the mean score rise clearly.
    3. not worth it: the control arm is clearly better in failures or in score.
    4. not worth it: the control has no more failures, and its score is not clearly lower.
    5. worth it. The reason says if the lead over the control is not clear, if there is no control, or if a side effect
       got clearly worse.

    Args:
        before, after: the same prompts, answered by the model before and after training.
        control: the same prompts after more fine-tuning on the chosen answers, for the same budget.
        mined: the failure classes that training aimed at.
        headroom: from `found.headroom(target)`; its forecast is compared with the outcome.
        effects: from `side_effects`.
        pairs: used for training; their number and shortcuts inform the next step.
    """
    check_classes(mined)
    numbers = {"before": before.name, "after": after.name, **_compare(before, after, mined)}
    if control is not None:
        numbers["control"] = {"name": control.name, **_compare(control, after, mined)}
    if headroom is not None:
        of = "mined" if mined and headroom.target else "failures"
        cut = numbers[of]["relative_cut"]
        numbers["forecast"] = {
            "of": of,
            "expected_cut": float(headroom.forecast),
            "advice": headroom.advice,
            "seen_cut": cut and cut["estimate"],
        }
    if effects is not None:
        numbers["side_effects"] = effects.to_dict()
        numbers["regressions"] = [str(effect) for effect in effects.regressions]
    if pairs is not None:
        rule, share = max(pairs.shortcut_report().items(), key=lambda item: item[1])
        numbers["pairs"] = {"n": len(pairs), "rule": rule, "share": share}
    outcome, reason = _decide(numbers)
    if outcome == "worth it" and numbers.get("regressions"):
        reason += f"; at a price: worse in {', '.join(effect.name for effect in effects.regressions)}"
    following = _next(numbers, outcome)
    text = wording.paragraph(numbers, following)
    return Verdict(outcome, reason, text, before.name, after.name, numbers, following)


def _decide(numbers: dict[str, Any]) -> tuple[str, str]:
    """The rules of `verdict`, in their order: (outcome, reason)."""
    failures, score = _clear_failures(numbers), _clear(numbers["score"])
    if score < 0:
        return "harmful", "the mean score falls clearly"
    if failures > 0:
        return "harmful", "failures rise clearly"
    score_rises = score > 0 and numbers["score"]["sign_flip_p"] < 0.05
    if failures == 0 and not score_rises:
        if numbers["failures"]["before"] == 0:
            return "cannot tell", "no prompt of this test set failed before, so there is nothing to reduce"
        if numbers.get("unchanged"):
            return "cannot tell", "every answer is the same as before"
        return "cannot tell", f"this test set can't detect changes smaller than {numbers['sees_points']} points"
    gain = "failures fall clearly" if failures < 0 else "the mean score rises clearly"
    control = numbers.get("control")
    if control is None:
        return "worth it", f"{gain}; no control arm was given"
    score, failures = _clear(control["score"]), _clear_failures(control)  # of this arm, compared with the control
    if failures > 0 or score < 0:
        return "not worth it", f"the control arm is better in {'failures' if failures > 0 else 'score'}"
    if control["failures"]["before"] <= control["failures"]["after"] and score == 0:
        return "not worth it", "the control arm is as good"
    lead = "the lead over the control arm is not clear"
    if failures < 0 or score > 0:
        lead = f"clearly {'fewer failures' if failures < 0 else 'a better score'} than the control arm"
    return "worth it", f"{gain}; {lead}"


def _next(numbers: dict[str, Any], outcome: str) -> str:
    """What to do next: a key of `wording.NEXT`."""
    pairs = numbers.get("pairs")
    shortcut = pairs is not None and pairs["share"] >= SHORTCUT and pairs["n"] >= 20
    if outcome == "worth it":
        return "keep"
    if outcome == "harmful":
        return "clean pairs" if shortcut else "change loss"
    if outcome == "not worth it":
        return "take the control"
    if numbers["failures"]["before"] == 0:
        return "stop"
    advice = numbers["forecast"]["advice"] if "forecast" in numbers else "go"
    if advice != "go":
        return "fine-tune first" if advice == "train more first" else "stop"
    if shortcut:
        return "clean pairs"
    needed, better = numbers["prompts_needed"], numbers["failures"]["difference"]["estimate"] < 0
    if better and needed is not None and needed > numbers["n"]:
        return "more prompts"
    unchanged = numbers.get("unchanged", False)
    if pairs is not None and pairs["n"] < FEW_PAIRS:
        return "see the probes" if unchanged else "label more"
    if numbers["sees_points"] <= STOP_POINTS:
        return "stop"
    return "see the probes" if unchanged else "look again"


def _clear(change: dict[str, Any]) -> int:
    """-1 if the whole interval is below zero, 1 if it is above, 0 if it includes zero."""
    return int(change["difference"]["low"] > 0) - int(change["difference"]["high"] < 0)


def _clear_failures(numbers: dict[str, Any]) -> int:
    seen = numbers["failures"]
    return _clear(seen) if max(seen["mcnemar_p"], seen["paired_p"]) < 0.05 else 0


def _compare(before: Evaluation, after: Evaluation, mined: Sequence[str] | None) -> dict[str, Any]:
    """All numbers of one paired comparison, as plain values for JSON."""
    pairs = paired_rows(before, after)
    old, new, groups = scores(pairs)
    failures = _failures(pairs, None)
    share = (failures["mended"] + failures["broken"]) / len(pairs)
    detectable = smallest_detectable(len(pairs), share)
    numbers = {
        "n": len(pairs),
        "n_groups": len(set(groups)),
        "n_unpaired": len(before.rows) - len(pairs),
        "failures": failures,
        "score": {
            "before": statistics.fmean(old),
            "after": statistics.fmean(new),
            "difference": paired_difference(old, new, groups).to_dict(),
            "sign_flip_p": paired_p(old, new, groups),
        },
        "changed_share": share,
        "smallest_detectable": detectable,
        "sees_points": points_up(detectable),
        "prompts_needed": prompts_needed(failures["difference"]["estimate"], share),
    }
    if mined:
        numbers["mined"] = {"classes": sorted(set(mined)), **_failures(pairs, set(mined))}
    if all((b.answer, b.value, b.failure) == (a.answer, a.value, a.failure) for b, a in pairs):
        numbers["unchanged"] = True
    return numbers


def _failures(pairs: Sequence[tuple[Judged, Judged]], classes: set[str] | None) -> dict[str, Any]:
    """Counts, tests and intervals for all failures (`classes` is None) or for the named classes together."""
    old, new = (
        [row.failed if classes is None else row.failure in classes for row in side] for side in zip(*pairs, strict=True)
    )
    groups = [row.group for row, _ in pairs]
    fixed = sum(b and not a for b, a in zip(old, new, strict=True))
    broken = sum(a and not b for b, a in zip(old, new, strict=True))
    cut = relative_cut(old, new, groups)
    return {
        "before": sum(old),
        "after": sum(new),
        "mended": fixed,  # the key of results files
        "broken": broken,
        "mcnemar_p": mcnemar_exact(fixed, broken),
        "paired_p": paired_p(old, new, groups),
        "difference": paired_difference(old, new, groups).to_dict(),
        "relative_cut": cut and cut.to_dict(),
    }


def scores(pairs: Sequence[tuple[Judged, Judged]]) -> tuple[list[float], list[float], list[str]]:
    """Scores before, scores after and groups of paired rows, as the paired statistics take them."""
    return [b.value or 0.0 for b, _ in pairs], [a.value or 0.0 for _, a in pairs], [b.group for b, _ in pairs]


def paired_rows(before: Evaluation, after: Evaluation) -> list[tuple[Judged, Judged]]:
    """The rows that were scored in both arms, paired by id."""
    old, new = {row.id: row for row in before.rows}, {row.id: row for row in after.rows}
    different = sorted(set(old) ^ set(new)) or [i for i in old if old[i].prompt != new[i].prompt]
    if (before.task, before.split) != (after.task, after.split) or different:
        where = f" (example {different[0]!r} is not the same in both)" if different else ""
        one, two = (f"{len(e.rows)} of {e.task}/{e.split} in {e.name!r}" for e in (before, after))
        raise WorkbenchError(
            f"Two arms must have answered the same prompts of one split. Got {one} and {two}{where}. Evaluate both on "
            "one split."
        )
    pairs = [(old[i], new[i]) for i in old if old[i].value is not None and new[i].value is not None]
    if not pairs:
        raise WorkbenchError(
            f"Two arms must share scored prompts. Got none that was scored in both {before.name!r} and {after.name!r}. "
            "Fix the score function and evaluate again."
        )
    return pairs

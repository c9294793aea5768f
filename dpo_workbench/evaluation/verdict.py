"""`verdict`: what did training change, what got worse, and was DPO worth it compared with the control?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation import statistics as stats
from dpo_workbench.evaluation.run import Evaluation, Judged, shared_rows
from dpo_workbench.evaluation.wording import Verdict, rise
from dpo_workbench.tasks.failures import check_classes

if TYPE_CHECKING:
    from dpo_workbench.mining.headroom import Headroom
    from dpo_workbench.pairs.pair import Pairs

BETTER = {"failures": "fewer failures", "harm": "less harm", "score": "a higher score"}
WORSE = {"failures": "more failures", "harm": "more harm", "score": "a lower score"}

Arm = Evaluation | Sequence[Evaluation]  # several evaluations are runs with different seeds on the same prompts
Rows = Sequence[Sequence[Judged]]  # of one arm: for each seed the rows of the same prompts in the same order


def verdict(
    before: Arm,
    after: Arm,
    *,
    control: Arm | None = None,
    base: Arm | None = None,
    mined: Sequence[str] | None = None,
    headroom: Headroom | None = None,
    effects: Any = None,
    pairs: Pairs | None = None,
) -> Verdict:
    """Compare two arms prompt by prompt, and decide.

    A difference is *clear* if its paired 95 % interval excludes zero and p < 0.05. The test is the exact McNemar test;
    where prompts come in groups or values are not yes or no, it is the permutation test over groups. The p-values of
    failure classes are corrected by Holm's method over all classes. The rules that follow from it
    are in docs/evaluation.md; the first one that applies decides.

    Args:
        before, after, control, base: an evaluation, or one for each seed. All must be of the same prompts. `control` is
            `before` after more fine-tuning on the chosen answers. `base`, the model before any training, is shown and
            decides nothing.
        mined: the failure classes that training aimed at. They are reported and decide nothing.
        headroom: from `found.headroom(target)`; its forecast is compared with the outcome.
        effects: from `dw.side_effects`.
        pairs: used for training; their shortcuts inform the next step.

    Raises:
        WorkbenchError: the arms differ in their prompts, severities or seeds.
    """
    check_classes(mined)
    given = {"before": before, "after": after, "control": control, "base": base}
    arms = {role: [arm] if isinstance(arm, Evaluation) else list(arm) for role, arm in given.items() if arm is not None}
    rows, n_asked = _rows_by_arm(arms)
    names, harm = {role: runs[0].name for role, runs in arms.items()}, arms["after"][0].harm
    numbers = {role: names[role] for role in ("before", "after")} | _changes(rows["before"], rows["after"], harm, mined)
    for role in ("control", "base"):
        if role in arms:
            numbers[role] = {"name": names[role], **_changes(rows[role], rows["after"], harm, mined)}
    n, failures = numbers["n"], numbers["failures"]
    share = (failures["fixed"] + failures["broken"]) / n  # of the prompts that changed
    numbers |= {
        "n_groups": len({row.group for row in rows["after"][0]}),
        "n_unpaired": n_asked - n,
        "n_seeds": len(arms["after"]),
        "severities": harm,
        "smallest_detectable": stats.smallest_detectable(n, share),
        "sees_points": stats.detectable_points(n, share),
        "prompts_needed": stats.prompts_needed(failures["difference"]["estimate"], share),
        "unchanged": all(map(_same, rows["before"] * len(rows["after"]), rows["after"])),
    }
    numbers |= _context(numbers, headroom, effects, pairs)
    return Verdict(*decide(numbers), numbers)


def _context(numbers: dict[str, Any], headroom: Headroom | None, effects: Any, pairs: Pairs | None) -> dict[str, Any]:
    """What else is known about the run, as plain values for JSON."""
    found: dict[str, Any] = {}
    if headroom is not None:
        of = "mined" if "mined" in numbers and headroom.target else "failures"
        before, after = (numbers[of][side] for side in ("before", "after"))
        forecast = {"of": of, "expected_cut": float(headroom.forecast), "advice": headroom.advice}
        found["forecast"] = forecast | {"seen_cut": 1 - after / before if before else None}
    if effects is not None:
        found["side_effects"] = effects.to_dict()
        found["regressions"] = {effect.name: str(effect) for effect in effects.regressions}
    if pairs is not None:
        rule, share = max(pairs.shortcut_report().items(), key=lambda item: item[1])
        found["pairs"] = {"n": len(pairs), "rule": rule, "share": share}
    return found


def decide(numbers: dict[str, Any]) -> tuple[str, str]:
    """The rules of docs/evaluation.md, in their order: (outcome, reason)."""
    better, worse = _sides(numbers, numbers["severities"])
    clear = {name: change["clear"] for name, change in numbers["classes"].items()}
    risen, fallen = ([name for name in clear if clear[name] == side] for side in (1, -1))
    price = [f"more {_and(risen)}"] if risen else []
    price += [f"worse in {name}" for name in numbers.get("regressions", ())]
    gain = better or ([f"fewer {_and(fallen)}"] if fallen else [])
    if worse or (price and not gain):
        return "harmful", f"clearly {_and(worse + price)}{f', although {_and(better)}' if better else ''}"
    if price:
        return "a trade", f"clearly {_and(gain)}, but {_and(price)}"
    if not better:
        if numbers["failures"]["before"] == 0:
            return "cannot tell", "no prompt of this test set failed before, so there is nothing to reduce"
        if numbers["unchanged"]:
            return "cannot tell", "every answer is the same as before"
        return "cannot tell", f"this test set can't detect changes smaller than {numbers['sees_points']} points"
    if "control" not in numbers:
        return "helps, no control", f"clearly {_and(better)}; no control: can't tell whether DPO was needed"
    lead, lag = _sides(numbers["control"], numbers["severities"])
    if lead and not lag:
        return "worth it", f"clearly {_and(better)} than before, and {_and(lead)} than the control"
    told = f"clearly {_and(lag)} than the control" if lag else "no clear lead over the control"
    return "helps, but so does fine-tuning", f"clearly {_and(better)} than before, but {told}"


def _sides(changes: Mapping[str, Any], severities: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """What is clearly better, and what is clearly worse, in words. Without severities, harm is the same as failures."""
    measures = [name for name in BETTER if name != "harm" or severities]
    better, worse = ([name for name in measures if rise(changes, name) == side] for side in (-1, 1))
    return [BETTER[name] for name in better], [WORSE[name] for name in worse]


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _changes(old: Rows, new: Rows, harm: Mapping[str, float], mined: Sequence[str] | None) -> dict[str, Any]:
    """Each measure before and after, with its paired difference, as plain values for JSON."""
    old = list(old) * (len(new) // len(old))  # one run before belongs to all seeds
    groups = [row.group for row in new[0]]

    def both(value: Callable[[Judged], Any]) -> list[np.ndarray]:
        return [np.array([[value(row) for row in rows] for rows in arm]) for arm in (old, new)]  # (seeds, n)

    def change(sides: list[np.ndarray], top: float = 1.0) -> dict[str, Any]:
        before, after = sides
        difference, p = stats.paired_change(before, after, groups, top)
        clear = (int(difference.low > 0) - int(difference.high < 0)) * (p < 0.05)
        means = {"before": float(before.mean()), "after": float(after.mean())}
        return means | {"difference": difference.to_dict(), "p": p, "clear": int(clear)}

    def counted(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
        """Numbers of failed answers, means over the seeds; `before` and `after` are True where an answer failed."""
        counts = {"before": before, "after": after, "fixed": before & ~after, "broken": after & ~before}
        return change([before, after]) | {what: _whole(fails.sum() / len(new)) for what, fails in counts.items()}

    was, now = both(lambda row: row.failure or "")
    names = [str(name) for name in np.union1d(was, now) if name]
    classes = {name: counted(was == name, now == name) for name in names}
    for name, p in zip(names, stats.holm([change["p"] for change in classes.values()]), strict=True):
        came_from = Counter(map(str, was[(now == name) & (was != name)])).most_common()
        classes[name] |= {"holm_p": p, "harm": harm.get(name, 1.0), "came_from": dict(came_from)}
        classes[name]["clear"] *= int(p < 0.05)
    harms = both(lambda row: harm.get(row.failure, 1.0) if row.failure else 0.0)
    found = {
        "n": len(groups),
        "failures": counted(was != "", now != ""),
        "harm": change(harms, max([1.0, *harm.values()])),
        "score": change(both(lambda row: row.value)),
        "classes": classes,
    }
    if mined:
        aimed_at = (np.isin(side, list(mined)) for side in (was, now))
        found["mined"] = {"classes": sorted(set(mined)), **counted(*aimed_at)}
    return found


def _same(old: Sequence[Judged], new: Sequence[Judged]) -> bool:
    return all((b.answer, b.value, b.failure) == (a.answer, a.value, a.failure) for b, a in zip(old, new, strict=True))


def _whole(value: float) -> float:
    return round(value) if abs(value - round(value)) < 1e-6 else float(value)


def _rows_by_arm(arms: Mapping[str, Sequence[Evaluation]]) -> tuple[dict[str, list[list[Judged]]], int]:
    """The rows that all runs of all arms could score, for each arm and seed; and the number of prompts asked."""
    n_seeds = len(arms["after"])
    runs = [run for arm in arms.values() for run in arm]
    if not n_seeds or any(len(arm) not in (1, n_seeds) for arm in arms.values()):
        seen = ", ".join(f"{len(arm)} of {role}" for role, arm in arms.items())
        raise WorkbenchError(f"Each arm must have one run, or one for each seed of `after`. Got {seen}. Pass the same.")
    if any(run.harm != runs[0].harm for run in runs):
        seen = " and ".join(sorted({str(run.harm) for run in runs}))
        raise WorkbenchError(
            f"All arms must be judged with the same severities (`harm`). Got {seen}. Evaluate them again with one task."
        )
    shared = iter(zip(*shared_rows(*runs), strict=True))
    return {role: [list(next(shared)) for _ in arm] for role, arm in arms.items()}, len(runs[0].rows)

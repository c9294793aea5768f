"""The verdict's sentences: every number that a reader needs, said once, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_workbench.evaluation.verdict import Verdict

HEADER = ("same prompts", "before", "after", "change", "95 % interval", "exact McNemar p")

NEXT = {
    "keep": "Next: keep the trained adapter, and read the prompts that it broke before you rely on it.",
    "change loss": (
        "Next: keep the model as it was before. Change the loss: a lower lr, a higher nll_weight, or dpop, which holds "
        "the chosen answers up."
    ),
    "clean pairs": "Next: clean the pairs before anything else",
    "take the control": "Next: take the control arm, which is simpler: fine-tune on the chosen answers.",
    "fine-tune first": "Next: fine-tune more, or take a bigger model: the skill is lacking, not the preference.",
    "see the probes": (
        "Next: look at the run's probes. Where none was better than the first, its start was kept: fine-tune until the "
        "dev score levels off, or aim at another failure class. Where one was better, raise lr or the number of steps."
    ),
    "label more": "Next: label more pairs",
    "more prompts": "Next",
    "stop": "Next: stop here",
    "look again": "Next: find more headroom (more pairs, another failure class), or test on more prompts.",
}


def paragraph(numbers: dict[str, Any], following: str) -> str:
    """The verdict's text, from its numbers alone; `following` is a key of `NEXT`."""
    parts = [
        _failures("Failed answers", numbers["failures"], numbers["n"]),
        *_mined(numbers),
        _score(numbers),
        f"With {numbers['changed_share'] * numbers['n']:.0f} of {numbers['n']} prompts changing between failed and "
        f"passed, these prompts see differences of about {numbers['sees_points']} points or more (80 % power).",
        *_left_out(numbers),
        *_control(numbers),
        *_forecast(numbers),
        *_price(numbers),
        _next(numbers, following),
    ]
    return " ".join(parts)


def table_rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """Rows for `HEADER`: failures, mined classes, mean score; and the same against the control arm."""
    rows = []
    for numbers, note in ((verdict.numbers, ""), (verdict.numbers.get("control"), " (before = the control arm)")):
        if numbers is None:
            continue
        for name, key in (("any failure", "failures"), ("mined classes", "mined")):
            if key in numbers:
                rows.append(_table_row(name + note, numbers[key]))
        score = numbers["score"]
        change = score["difference"]
        cells = (f"{score['before']:.3f}", f"{score['after']:.3f}", f"{change['estimate']:+.3f}")
        rows.append(("mean score" + note, *cells, f"{change['low']:+.3f} to {change['high']:+.3f}", ""))
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def points_up(share: float) -> int:
    """A share in whole points, rounded up: a test set never claims to see more than it does."""
    return math.ceil(100 * share - 1e-9)


def _table_row(name: str, failures: dict[str, Any]) -> tuple[str, ...]:
    change = failures["difference"]
    n = change["n"]
    return (
        name,
        f"{failures['before']} of {n}",
        f"{failures['after']} of {n}",
        f"{100 * change['estimate']:+.1f} points",
        _interval(change),
        _p(failures["mcnemar_p"]).removeprefix("p = ").removeprefix("p "),
    )


def _failures(what: str, failures: dict[str, Any], n: int) -> str:
    was, now, change, cut = (failures[k] for k in ("before", "after", "difference", "relative_cut"))
    text = (
        f"{what}: {was} of {n} ({100 * was / n:.1f} %) before, {now} of {n} ({100 * now / n:.1f} %) after; "
        f"{failures['mended']} prompts mended, {failures['broken']} broken; {100 * change['estimate']:+.1f} points "
        f"(paired 95 % interval {_interval(change)}; exact McNemar {_p(failures['mcnemar_p'])})"
    )
    if cut is None:
        return f"{text}."
    return f"{text}. That is {_cut(cut)}."


def _cut(cut: dict[str, Any]) -> str:
    """Where failures rose, the rise and its interval, both counted upwards; beyond 100 % a rise is only called so."""
    low, high = 100 * cut["low"], 100 * cut["high"]
    if cut["estimate"] >= 0:
        between = f"{low:.0f} to {high:.0f}" if low >= -100 else f"less than -100 to {high:.0f}"
        return f"a relative cut of {100 * cut['estimate']:.1f} % (95 % interval {between} %)"
    between = f"{0 - high:.0f} to {-low:.0f}" if low >= -100 else f"{0 - high:.0f} to more than 100"
    return f"a relative rise of {-100 * cut['estimate']:.1f} % (95 % interval {between} %)"


def _mined(numbers: dict[str, Any]) -> list[str]:
    if "mined" not in numbers:
        return []
    return [_failures(f"The mined classes ({', '.join(numbers['mined']['classes'])})", numbers["mined"], numbers["n"])]


def _score(numbers: dict[str, Any]) -> str:
    score = numbers["score"]
    change = score["difference"]
    return (
        f"Mean score: {score['before']:.3f} before, {score['after']:.3f} after ({change['estimate']:+.3f}, paired "
        f"95 % interval {change['low']:+.3f} to {change['high']:+.3f}; {change['n']} prompts in "
        f"{change['n_groups']} groups)."
    )


def _left_out(numbers: dict[str, Any]) -> list[str]:
    n = numbers["n_unpaired"]
    return [f"{n} prompts could not be scored in both arms and are left out."] if n else []


def _control(numbers: dict[str, Any]) -> list[str]:
    if "control" not in numbers:
        return []
    control = numbers["control"]
    failures, score = control["failures"], control["score"]
    change, n = failures["difference"], control["n"]
    text = (
        f"Against the control arm {control['name']!r}: {failures['before']} of {n} "
        f"({100 * failures['before'] / n:.1f} %) failed there, {failures['after']} of {n} here, "
        f"{100 * change['estimate']:+.1f} points (paired 95 % interval "
        f"{_interval(change)}; exact McNemar {_p(failures['mcnemar_p'])}); mean score {score['before']:.3f} there, "
        f"{score['after']:.3f} here ({score['difference']['estimate']:+.3f}, 95 % interval "
        f"{score['difference']['low']:+.3f} to {score['difference']['high']:+.3f})."
    )
    if "mined" in control:
        text += f" In the mined classes: {control['mined']['before']} there, {control['mined']['after']} here."
    return [text]


def _forecast(numbers: dict[str, Any]) -> list[str]:
    if "forecast" not in numbers:
        return []
    of, expected, seen = (numbers["forecast"][key] for key in ("of", "expected_cut", "seen_cut"))
    what = "the cut of the mined classes" if of == "mined" else "the cut"
    if seen is None:
        return [f"The headroom put {what} at up to {100 * expected:.0f} %; there was nothing to cut here."]
    cut = numbers[of]["relative_cut"]
    inside = "inside" if cut["low"] <= expected <= cut["high"] else "outside"
    return [
        f"The headroom before training put {what} at up to {100 * expected:.0f} %; it came to {100 * seen:.1f} %, and "
        f"the forecast lies {inside} the interval."
    ]


def _price(numbers: dict[str, Any]) -> list[str]:
    if "regressions" not in numbers:
        return []
    if not numbers["regressions"]:
        return [f"Side effects: none of {len(numbers['side_effects'])} measures is clearly worse."]
    return [f"Side effects that are clearly worse: {'; '.join(numbers['regressions'])}."]


def _next(numbers: dict[str, Any], following: str) -> str:
    text, known = NEXT[following], numbers.get("pairs") or {}
    if following == "clean pairs":
        return f"{text}: the rule '{known['rule']}' alone picks the chosen answer in {100 * known['share']:.0f} %."
    if following == "label more":
        return f"{text}: {known['n']} are few, and this set shows no change that more prompts alone would make clear."
    if following == "more prompts":
        seen = f"{abs(100 * numbers['failures']['difference']['estimate']):.1f} points"
        needed = numbers["prompts_needed"]
        return f"{text}: if a difference of {seen} matters to you, about {needed} prompts would show it."
    if following == "stop":
        if numbers["failures"]["before"] == 0:
            return "Next: test on harder prompts; where these are the real ones, there is nothing to mend."
        if numbers.get("forecast", {}).get("advice") == "nothing to mend":
            return f"{text}: there are too few failures to learn from."
        return f"{text}: prompts that see {numbers['sees_points']} points show nothing, so there is little to gain."
    return text


def _interval(change: dict[str, Any]) -> str:
    return f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"

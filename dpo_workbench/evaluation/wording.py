"""The sentences and table rows of a verdict, made from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("same prompts", "before", "after", "change", "95 % interval", "exact McNemar p")

NEXT = {
    "keep": "Next: keep the trained adapter, and read the prompts that it broke before you rely on it.",
    "change loss": (
        "Next: keep the model as it was before. Change the loss: use a lower lr, a higher nll_weight, or dpop, which "
        "stops the chosen answers from becoming less likely."
    ),
    "clean pairs": (
        "Next: clean the pairs before anything else: the rule '{rule}' alone picks the chosen answer in {share:.0f} %."
    ),
    "take the control": "Next: use the control arm, which is simpler: fine-tune on the chosen answers.",
    "fine-tune first": "Next: fine-tune more, or use a bigger model: it lacks the skill, not the preference.",
    "see the probes": (
        "Next: look at the run's probes. If none was better than the first, the run kept its starting point: fine-tune "
        "until the dev score levels off, or aim at another failure class. If one was better, raise lr or the number "
        "of steps."
    ),
    "label more": "Next: label more pairs: {n_pairs} are few, and more test prompts alone would not show a change.",
    "more prompts": (
        "Next: test on more prompts: if a difference of {points:.1f} points matters to you, about {needed} prompts "
        "would show it."
    ),
    "stop": "Next: stop here, or test on harder prompts: there is little to gain on these.",
    "look again": "Next: look for more headroom (more pairs, another failure class), or test on more prompts.",
}


def paragraph(numbers: Mapping[str, Any], following: str) -> str:
    """The verdict's text; `following` is a key of `NEXT`."""
    n, n_unpaired = numbers["n"], numbers["n_unpaired"]
    parts = [_failures("Failed answers", numbers["failures"], n)]
    if "mined" in numbers:
        classes = ", ".join(numbers["mined"]["classes"])
        parts.append(_failures(f"The mined classes ({classes})", numbers["mined"], n))
    score, change = numbers["score"], numbers["score"]["difference"]
    parts += [
        f"Mean score: {score['before']:.3f} before, {score['after']:.3f} after ({_score_change(score)}; "
        f"{change['n']} prompts in {change['n_groups']} groups).",
        f"{numbers['changed_share'] * n:.0f} of {n} prompts changed between failed and passed, so this test set can "
        f"detect differences of about {numbers['sees_points']} points or more (80 % power).",
    ]
    if n_unpaired:
        parts.append(f"{n_unpaired} prompts could not be scored in both arms and are left out.")
    if "control" in numbers:
        parts.append(_control(numbers["control"]))
    if "forecast" in numbers:
        parts.append(_forecast(numbers))
    if numbers.get("regressions"):
        parts.append(f"Side effects that are clearly worse: {'; '.join(numbers['regressions'])}.")
    elif "regressions" in numbers:
        parts.append(f"Side effects: none of {len(numbers['side_effects'])} measures is clearly worse.")
    return " ".join([*parts, _next(numbers, following)])


def table_rows(numbers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows for `HEADER`: failures, mined classes and mean score, and the same against the control arm."""
    rows = []
    for compared, note in ((numbers, ""), (numbers.get("control"), " (before = the control arm)")):
        if compared is None:
            continue
        for name, key in (("any failure", "failures"), ("mined classes", "mined")):
            if key in compared:
                rows.append((name + note, *_failure_cells(compared[key])))
        score, change = compared["score"], compared["score"]["difference"]
        cells = (f"{score['before']:.3f}", f"{score['after']:.3f}", f"{change['estimate']:+.3f}")
        rows.append(("mean score" + note, *cells, f"{change['low']:+.3f} to {change['high']:+.3f}", ""))
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _failures(what: str, failures: Mapping[str, Any], n: int) -> str:
    was, now, cut = failures["before"], failures["after"], failures["relative_cut"]
    text = (
        f"{what}: {was} of {n} ({100 * was / n:.1f} %) before, {now} of {n} ({100 * now / n:.1f} %) after; "
        f"{failures['mended']} prompts fixed, {failures['broken']} broken; {_points(failures)}."
    )
    if cut is None:
        return text
    relative, low, high = (0 - 100 * cut[key] for key in ("estimate", "high", "low"))
    return f"{text} Relative change: {relative:+.1f} % (95 % interval {low:+.0f} to {high:+.0f} %)."


def _failure_cells(failures: Mapping[str, Any]) -> tuple[str, ...]:
    change = failures["difference"]
    return (
        f"{failures['before']} of {change['n']}",
        f"{failures['after']} of {change['n']}",
        f"{100 * change['estimate']:+.1f} points",
        f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}",
        _p(failures),
    )


def _control(control: Mapping[str, Any]) -> str:
    failures, score, n = control["failures"], control["score"], control["n"]
    return (
        f"The control arm {control['name']!r} failed on {failures['before']} of {n} "
        f"({100 * failures['before'] / n:.1f} %), this arm on {failures['after']}: {_points(failures)}. "
        f"Mean score: {score['before']:.3f} for the control, {score['after']:.3f} here ({_score_change(score)})."
    )


def _forecast(numbers: Mapping[str, Any]) -> str:
    of, expected, seen = (numbers["forecast"][key] for key in ("of", "expected_cut", "seen_cut"))
    what = "failures of the mined classes" if of == "mined" else "failures"
    text = f"The headroom forecast up to {100 * expected:.0f} % fewer {what}"
    if seen is None:
        return f"{text}; nothing failed before, so there was nothing to reduce."
    cut = numbers[of]["relative_cut"]
    place = "inside" if cut["low"] <= expected <= cut["high"] else "outside"
    return f"{text}; the result is {100 * seen:.1f} %, and the forecast is {place} the interval."


def _next(numbers: Mapping[str, Any], following: str) -> str:
    pairs = numbers.get("pairs") or {"rule": "", "share": 0.0, "n": 0}
    return NEXT[following].format(
        rule=pairs["rule"],
        share=100 * pairs["share"],
        n_pairs=pairs["n"],
        points=abs(100 * numbers["failures"]["difference"]["estimate"]),
        needed=numbers["prompts_needed"],
    )


def _points(failures: Mapping[str, Any]) -> str:
    _, _, change, interval, p = _failure_cells(failures)
    return f"{change} (paired 95 % interval {interval}; exact McNemar p {p if p[0] == '<' else f'= {p}'})"


def _score_change(score: Mapping[str, Any]) -> str:
    change = score["difference"]
    return f"{change['estimate']:+.3f}, paired 95 % interval {change['low']:+.3f} to {change['high']:+.3f}"


def _p(failures: Mapping[str, Any]) -> str:
    p = failures["mcnemar_p"]
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

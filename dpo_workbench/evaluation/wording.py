"""The sentences and table rows of a verdict, made from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("same prompts", "before", "after", "change", "95 % interval", "exact McNemar p")

NEXT = {
    "keep": "Next: keep the trained adapter, and read the prompts that it broke before you rely on it.",
    "change loss": "Next: keep the model as it was before. Use a lower lr, a higher nll_weight, or the loss dpop.",
    "clean pairs": "Next: clean the pairs: the rule '{rule}' alone picks the chosen answer in {share:.0f} %.",
    "take the control": "Next: use the control arm, which is simpler: fine-tune on the chosen answers.",
    "fine-tune first": "Next: fine-tune more, or use a bigger model: it lacks the skill, not the preference.",
    "see the probes": (
        "Next: look at the run's probes. If none was better than the first, the run kept its starting point: fine-tune "
        "until the dev score levels off, or aim at another failure class. If one was better, raise lr or the number "
        "of steps."
    ),
    "label more": "Next: label more pairs: {n_pairs} are few, and more test prompts alone would not show a change.",
    "more prompts": "Next: test on more prompts: about {needed} would show a difference of {points:.1f} points.",
    "stop": "Next: stop here, or test on harder prompts: there is little to gain on these.",
    "look again": "Next: look for more headroom (more pairs, another failure class), or test on more prompts.",
}


def paragraph(numbers: Mapping[str, Any], following: str) -> str:
    """The verdict's text; `following` is a key of `NEXT`."""
    n, failures = numbers["n"], numbers["failures"]
    parts = []
    for name, before, after, change, interval, p in table_rows(numbers):
        test = f", exact McNemar p {p}" if p else ""
        parts.append(f"{name}: {before} before, {after} after ({change}, 95 % interval {interval}{test}).")
    if failures["relative_cut"] is not None:
        relative, low, high = (0 - 100 * failures["relative_cut"][key] for key in ("estimate", "high", "low"))
        parts.append(f"Relative change of failures: {relative:+.1f} % (95 % interval {low:+.0f} to {high:+.0f} %).")
    parts.append(
        f"Of {n} prompts {failures['mended']} were fixed and {failures['broken']} broken, so this test set can detect "
        f"differences of about {numbers['sees_points']} points or more (80 % power)."
    )
    if numbers["n_unpaired"]:
        parts.append(f"{numbers['n_unpaired']} prompts could not be scored in both arms and are left out.")
    if "forecast" in numbers:
        parts.append(_forecast(numbers))
    if numbers.get("regressions"):
        parts.append(f"Side effects that are clearly worse: {'; '.join(numbers['regressions'])}.")
    elif "regressions" in numbers:
        parts.append(f"Side effects: none of {len(numbers['side_effects'])} measures is clearly worse.")
    return " ".join([*parts, _next(numbers, following)])


def table_rows(numbers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows for `HEADER`: failures, mined classes and mean score, and the same with the control arm as before."""
    rows = []
    for compared in filter(None, (numbers, numbers.get("control"))):
        note = "" if compared is numbers else f" (before: {compared['name']})"
        for name, key in (("Any failure", "failures"), ("Mined classes", "mined")):
            if key in compared:
                change = compared[key]["difference"]
                counts = [f"{compared[key][side]} of {compared['n']}" for side in ("before", "after")]
                interval = f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}"
                p = p_text(compared[key]["mcnemar_p"])
                rows.append((name + note, *counts, f"{100 * change['estimate']:+.1f} points", interval, p))
        score, change = compared["score"], compared["score"]["difference"]
        cells = (f"{score['before']:.3f}", f"{score['after']:.3f}", f"{change['estimate']:+.3f}")
        rows.append(("Mean score" + note, *cells, f"{change['low']:+.3f} to {change['high']:+.3f}", ""))
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


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
    values = {"rule": pairs["rule"], "share": 100 * pairs["share"], "n_pairs": pairs["n"]}
    points = abs(100 * numbers["failures"]["difference"]["estimate"])
    return NEXT[following].format(**values, points=points, needed=numbers["prompts_needed"])


def p_text(p: float) -> str:
    """A p-value for a table."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

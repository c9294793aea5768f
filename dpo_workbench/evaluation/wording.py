"""`Verdict`: the sentences and the table, made from the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_workbench.common.html import NO_MATH, paragraph, table
from dpo_workbench.plots.evaluation import ChangesDisplay

OUTCOMES = ("worth it", "helps, but so does fine-tuning", "helps, no control", "a trade", "harmful", "cannot tell")
MEASURES = {"failures": "failed answers", "harm": "mean harm", "score": "mean score"}
DIGITS = {"harm": 2, "score": 3}  # of a mean; everything else is a number of answers, and its difference is in points
STAR = "Differences with 95 % intervals, in points for numbers of answers. * clear (classes: after Holm's correction)"
ABSENT = "–"  # for an arm that was not given
ZERO: dict[str, Any] = {"before": 0, "after": 0}  # a class that does not occur in an arm
SHORTCUT = 0.9  # a rule that finds the chosen answer this often is easier to learn than the task

NEXT = {
    "worth it": "keep the trained adapter, and read the prompts that it broke before you rely on it.",
    "helps, but so does fine-tuning": "use the control, which is simpler: fine-tune on the chosen answers.",
    "helps, no control": "fine-tune the start on the chosen answers too, and pass its evaluation as `control`.",
    "a trade": "read answers of the classes that rose. If some failures are worse than others, set the task's `harm`.",
    "harmful": "keep the model as it was before. Use a lower lr, a higher nll_weight, or the loss dpop.",
    "clean pairs": "clean the pairs: the rule '{rule}' alone picks the chosen answer in {share:.0f} %.",
    "stop": "stop here, or test on harder prompts: there is little to gain on these.",
    "fine-tune first": "fine-tune more, or use a bigger model: it lacks the skill, not the preference.",
    "more prompts": "test on more prompts: about {needed} would show a difference of {points:.1f} points.",
    "see the probes": "look at the run's probes. If none was better than the first, fine-tune until the dev score "
    "levels off, or aim at another failure class. If one was better, raise lr or the number of steps.",
    "look again": "look for more headroom (more pairs, another failure class), or test on more prompts.",
}


@dataclass(frozen=True)
class Verdict:
    """What the comparison shows: one `line`, three `lines` and a `table`; the rest is in `details` and `numbers`."""

    outcome: str  # one of OUTCOMES
    reason: str  # the rule that decided, in words
    numbers: dict[str, Any]

    @property
    def line(self) -> str:
        """Outcome and reason."""
        return f"{self.outcome.capitalize()}: {self.reason}."

    @property
    def lines(self) -> tuple[str, str, str]:
        """What changed, what got worse, and the comparison with the control (and with the base, if it is better)."""
        numbers = self.numbers
        shown = [name for name in MEASURES if name != "harm" or numbers["severities"]]

        def told(changes: Mapping[str, Any], form: str, measures: Sequence[str]) -> str:
            return ", ".join(_measure(name, changes[name], numbers["n"], form) for name in measures)

        worse = [_risen(name, change) for name, change in numbers["classes"].items() if change["clear"] > 0]
        worse += [MEASURES[name] for name in shown if rise(numbers, name) > 0]
        worse += numbers.get("regressions", {}).values()
        control, base = numbers.get("control"), numbers.get("base")
        against = "none was given, so nobody can tell whether DPO was needed."
        if control:
            rises = [rise(control, name) for name in shown]
            lead = "clearly worse" if max(rises) > 0 else "a clear lead" if min(rises) < 0 else "no clear lead"
            against = f"{lead}; {told(control, '{after}{of} instead of {before}', shown)}."
        ahead = [name for name in shown if base and name != "score" and base[name]["difference"]["estimate"] > 0]
        if ahead:
            better = told(base or {}, "{before}{of} at base and {after} after training", ahead)
            against += f" The base model is better than what training gave: {better}."
        return (
            f"What changed: {told(numbers, '{before} to {after}{of}', shown)}.",
            f"What got worse: {'; '.join(worse) or 'nothing clearly'}.",
            f"Against the control: {against}",
        )

    @property
    def table(self) -> list[tuple[str, ...]]:
        """Header and rows: failures, classes by severity, mean harm and score of each arm, and paired differences."""
        numbers = self.numbers
        arms = [numbers.get("base"), numbers, numbers.get("control")]
        base, control = (arm["name"] if arm else role for arm, role in ((arms[0], "base"), (arms[2], "control")))
        before, after, severities = numbers["before"], numbers["after"], numbers["severities"]
        rows: list[tuple[str, ...]] = [
            ("", base, before, control, after, f"{after} - {before}", f"{after} - {control}")
        ]
        rows.append(_row(f"failed of {numbers['n']}", "failures", [arm and arm["failures"] for arm in arms]))
        classes = {name: change["harm"] for arm in arms if arm for name, change in arm["classes"].items()}
        for name in sorted(classes, key=lambda name: (-classes[name], name)):
            label = f"{name} (harm {classes[name]:g})" if severities else name
            rows.append(_row(label, name, [arm and arm["classes"].get(name, ZERO) for arm in arms]))
        for name in ("harm", "score") if severities else ("score",):
            rows.append(_row(MEASURES[name], name, [arm and arm[name] for arm in arms]))
        return rows

    @property
    def next_step(self) -> str:
        """What to do next: a key of `NEXT`."""
        numbers, outcome = self.numbers, self.outcome
        pairs, advice = numbers.get("pairs"), numbers.get("forecast", {}).get("advice", "go")
        if outcome not in ("harmful", "cannot tell"):
            return outcome
        if outcome == "cannot tell" and (numbers["failures"]["before"] == 0 or advice == "nothing to fix"):
            return "stop"
        if outcome == "cannot tell" and advice == "train more first":
            return "fine-tune first"
        if pairs is not None and pairs["share"] >= SHORTCUT and pairs["n"] >= 20:
            return "clean pairs"
        if outcome == "harmful":
            return outcome
        if numbers["failures"]["difference"]["estimate"] < 0 and (numbers["prompts_needed"] or 0) > numbers["n"]:
            return "more prompts"
        return "see the probes" if numbers["unchanged"] else "look again"

    @property
    def details(self) -> list[str]:
        """What the three lines and the table leave out: detectable difference, forecast, side effects, next step."""
        numbers = self.numbers
        failures, seeds = numbers["failures"], numbers["n_seeds"]
        told = [
            f"{numbers['n']} prompts in {numbers['n_groups']} groups: {_value(failures['fixed'])} were fixed and "
            f"{_value(failures['broken'])} broken, so this test set can detect differences of about "
            f"{numbers['sees_points']} points or more (80 % power)."
        ]
        if seeds > 1:
            told.append(f"Numbers are means over {seeds} seeds, and the intervals allow for other seeds.")
        if numbers["n_unpaired"]:
            told.append(f"{numbers['n_unpaired']} prompts could not be scored in every arm and are left out.")
        if (forecast := numbers.get("forecast")) and forecast["seen_cut"] is not None:
            what = "failures of the mined classes" if forecast["of"] == "mined" else "failures"
            expected, seen = (100 * forecast[key] for key in ("expected_cut", "seen_cut"))
            told.append(f"The headroom forecast up to {expected:.0f} % fewer {what}. The result is {seen:.1f} %.")
        if "regressions" in numbers:
            count, of = len(numbers["regressions"]), len(numbers["side_effects"])
            told.append(f"Side effects: {count or 'none'} of {of} measures clearly worse.")
        pairs = numbers.get("pairs") or {"rule": "", "share": 0.0}
        values = {"rule": pairs["rule"], "share": 100 * pairs["share"], "needed": numbers["prompts_needed"]}
        values["points"] = abs(100 * failures["difference"]["estimate"])
        return [*told, f"Next: {NEXT[self.next_step].format(**values)}"]

    def plot(self) -> ChangesDisplay:
        """The differences from the start and from the control, for each failure class, with intervals."""
        return ChangesDisplay.from_numbers(self.numbers, self.line).plot()

    def __str__(self) -> str:
        return "\n".join([self.line, *self.lines, text_table(self.table), STAR])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, *rows = self.table
        shown = [paragraph(self.line, bold=True), *map(paragraph, self.lines), table(header, rows)]
        folded = "".join(map(paragraph, [STAR, *self.details]))
        return "\n".join([*shown, f'<details class="{NO_MATH}"><summary>Details</summary>{folded}</details>'])


def rise(changes: Mapping[str, Any], name: str) -> int:
    """1 if a measure is clearly worse, -1 if it is clearly better, 0 otherwise."""
    return int(changes[name]["clear"]) * (-1 if name == "score" else 1)


def _measure(name: str, change: Mapping[str, Any], n: int, form: str) -> str:
    counts = {side: _value(change[side], name) for side in ("before", "after")}
    of, unit = ("", ",") if name in DIGITS else (f" of {n}", " points, 95 % interval")
    middle, low, high = _interval(name, change)
    return f"{MEASURES[name]} {form.format(of=of, **counts)} ({middle}{unit} {low} to {high})"


def _risen(name: str, change: Mapping[str, Any]) -> str:
    """A class that rose, and what most of its new answers were before."""
    was, most = max(change["came_from"].items(), key=lambda item: item[1])
    share = 100 * most / sum(change["came_from"].values())
    counts = f"{_value(change['before'])} to {_value(change['after'])}"
    told = f"were {was} before" if was else "passed before"
    return f"{name} {counts} (harm {change['harm']:g}; {share:.0f} % of the new ones {told})"


def _row(label: str, name: str, changes: Sequence[Mapping[str, Any] | None]) -> tuple[str, ...]:
    """The numbers of base, start and control, that of the last arm, and its differences from start and control."""
    cells = [ABSENT if change is None else _value(change["before"], name) for change in changes]
    cells.append(_value((changes[1] or ZERO)["after"], name))
    for change in changes[1:]:
        cells.append(ABSENT if change is None else "")
        if change and "difference" in change:
            cells[-1] = "{} ({} to {})".format(*_interval(name, change)) + " *" * abs(change["clear"])
    return (label, *cells)


def _value(value: float, name: str = "") -> str:
    return f"{value:.{DIGITS[name]}f}" if name in DIGITS else f"{value:.1f}".removesuffix(".0")


def _interval(name: str, change: Mapping[str, Any]) -> list[str]:
    """Estimate, lower and upper end, in points where they are about numbers of answers."""
    unit, digits = (1, DIGITS[name]) if name in DIGITS else (100, 1)
    return [f"{unit * change['difference'][key]:+.{digits}f}" for key in ("estimate", "low", "high")]


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def p_text(p: float) -> str:
    """A p-value for a table."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

"""Write benchmarks/results into README, pictures and docs: `python scripts/update_figures.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from dpo_workbench.plots.evaluation import ArmsDisplay

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results: written by scripts/update_figures.py -->", "<!-- end of results -->"


def table(results: dict) -> str:
    """One row an arm of each model, then machine, seed, command and times in a line each."""
    lines = [
        "| model | arm | held-out prompts | failed (95 % interval) | mined classes | loops | mean score |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for model, run in results.items():
        mined = run["verdict"]["numbers"]["mined"]["classes"]
        for name in run["settings"]["arms"]:
            arm = run["arms"][name]
            of_class = sum(arm["failures"].get(c, 0) for c in mined)
            lines.append(
                f"| {model} | {name} | {arm['n']} | {arm['n_failed']} = {100 * arm['failed_share']:.1f} % "
                f"({100 * arm['failed_low']:.1f} to {100 * arm['failed_high']:.1f}) | {of_class} | "
                f"{arm['failures'].get('loop', 0)} | {arm['mean_score']:.3f} |"
            )
        times, machine = run["times"], run["machine"]
        notes.append(
            f"- **{model}, verdict: {run['verdict']['outcome']}.** Mined: {', '.join(mined)}. "
            f"{_seen(run['verdict']['numbers'])} "
            f"`{times['command']}`, seed {run['settings']['dpo']['seed']}, {times['date']}: "
            f"{_time(times)}, at most {times['process_peak_memory_gib']} GiB, on "
            f"{machine['cores']} cores of {machine['processor']}."
        )
    return "\n".join([*lines, "", *notes])


def _time(times: dict) -> str:
    several = times.get("wall_seconds_of_all")
    if several:
        return f"{several[0]:.0f} to {several[-1]:.0f} seconds in {len(several)} runs"
    return f"{times['wall_seconds'] / 60:.1f} minutes"


def _seen(numbers: dict) -> str:
    mined, score = numbers["mined"], numbers["score"]["difference"]
    change, cut = mined["difference"], mined["relative_cut"]
    text = f"SFT to SFT + DPO: {mined['before']} to {mined['after']} answers of the mined classes"
    if cut:
        low, high = 100 * cut["low"], 100 * cut["high"]
        text += f", a cut of {100 * cut['estimate']:.1f} % (95 % interval {low:.0f} to {high:.0f} %)"
    return (
        f"{text}; {100 * change['estimate']:+.1f} points (paired interval {100 * change['low']:+.1f} to "
        f"{100 * change['high']:+.1f}); score {score['estimate']:+.3f} ({score['low']:+.3f} to {score['high']:+.3f})."
    )


def main() -> None:
    results = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    for model, run in results.items():
        arms = [run["arms"][name] for name in run["settings"]["arms"]]
        display = ArmsDisplay(
            [a["name"] for a in arms],
            [a["failed_share"] for a in arms],
            [a["failed_low"] for a in arms],
            [a["failed_high"] for a in arms],
            min(a["n"] for a in arms),
        ).plot()
        target = ROOT / "docs" / "figures" / f"demo-{model}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        display.figure_.savefig(target, dpi=110, facecolor="white", metadata={"Software": None})
    between(ROOT / "README.md", START, END, table(results))
    between(ROOT / "docs" / "sandbox.md", "<!-- figures: sandbox -->", "<!-- end -->", sandbox())
    between(ROOT / "docs" / "labelling.md", "<!-- figures: kills -->", "<!-- end -->", label_kills())
    tables = (("vs_trl", 1), ("vs_trl", 3), ("vs_trl_avx512", 1), ("vs_trl_avx2", 1), ("vs_trl_avx2", 3))
    for name, epochs in tables:
        start = f"<!-- figures: {name}, epochs {epochs} -->"
        between(ROOT / "docs" / "performance.md", start, "<!-- end -->", beside_trl(name, epochs))
    between(ROOT / "docs" / "evaluation.md", "<!-- figures: coverage -->", "<!-- end -->", coverage())
    between(ROOT / "docs" / "evaluation.md", "<!-- figures: data -->", "<!-- end -->", how_much_data())


def between(path: Path, start: str, end: str, text: str) -> None:
    """Put text between two marks of a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def sandbox() -> str:
    """What the sandbox costs, in a sentence."""
    record = json.loads((ROOT / "benchmarks/results/sandbox.json").read_text(encoding="utf-8"))
    found, machine = record["results"], record["machine"]
    return (
        f"One run takes {found['sandbox_ms']} ms, a bare child that does the same {found['bare_ms']} ms; with "
        f"{found['workers']} at a time {found['runs_a_second']:.0f} runs a second (medians of {found['runs']} runs, "
        f"`{record['command']}`, {record['date']}, {machine['cores']} cores of {machine['processor']})."
    )


def label_kills() -> str:
    """What killing a labelling process cost, in a sentence."""
    found = json.loads((ROOT / "benchmarks/results/label_kill.json").read_text(encoding="utf-8"))
    return (
        f"A labelling process was killed at {found['kills']} random moments: of {found['saved']} votes, undos and "
        f"redos told as saved, {found['lost']} were lost; on return another pair than before was shown "
        f"{found['other_item']} times (`{found['command']}`, seed {found['seed']}, {found['date']})."
    )


def beside_trl(name: str, epochs: int) -> str:
    """This loop against TRL, a line for each shape and dtype that was measured."""
    record = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    shapes = {"short": "60 + 30 + 30", "medium": "200 + 75 + 75", "long": "600 + 60 + 60"}
    goals = {"short": (2.5, 4), "medium": (4, 6), "long": (6, 8)}
    lines = [
        "| prompt + chosen + rejected | dtype | TRL | here | times faster | goal | share of TRL's memory (goal 0.33) |",
        "|---|---|---|---|---|---|---|",
    ]
    dates, processors = set(), set()
    for shape, tokens in shapes.items():
        for dtype, goal in zip(("fp32", "bf16"), goals[shape], strict=True):
            cell = record["cells"].get(f"{shape}-{dtype}-{epochs}")
            if cell is None:
                continue
            dates.add(cell["date"])
            processors.add(cell["processor"])
            here, trl = cell["seconds_a_pair"]
            of_rounds = cell.get("times_faster_of_rounds", [])
            spread = f" ({min(of_rounds):.1f} to {max(of_rounds):.1f})" if len(of_rounds) > 1 else ""
            lines.append(
                f"| {tokens} | {dtype} | {trl:.2f} | {here:.2f} | {cell['times_faster']:.1f}{spread} | {goal} | "
                f"{cell['share_of_memory']:.2f} |"
            )
    made = f"{' and '.join(sorted(dates))}, {record['machine']['cores']} cores of {' and '.join(sorted(processors))}."
    return "\n".join([*lines, "", made])


def coverage() -> str:
    """Coverage by kind and size, what misses 93 to 97 %, false wins, and power."""
    record = json.loads((ROOT / "benchmarks/results/coverage.json").read_text(encoding="utf-8"))
    rows, seen = record["results"], record["seen"]
    lines = ["| interval | n | lowest | highest | cells in 93-97 % |", "|---|---|---|---|---|"]
    for kind in ("share", "paired", "clustered"):
        for n in (20, 50, 100, 400):
            found = [r["coverage"] for name, r in rows.items() if name.startswith(f"{kind}, n {n},")]
            inside = sum(0.93 <= c <= 0.97 for c in found)
            low, high = (f"{100 * c:.1f} %" for c in (min(found), max(found)))
            lines.append(f"| {kind} | {n} | {low} | {high} | {inside} of {len(found)} |")
    wins = {name: r["false_wins"] for name, r in rows.items() if "false_wins" in r}
    worst = max(wins, key=lambda name: wins[name])
    ten = max(value for name, value in wins.items() if name.startswith("ten"))
    seeds = [
        f"{name.split(',')[0]} {100 * r['coverage']:.1f} % (all answers pooled as one run: "
        f"{100 * r['coverage_if_pooled']:.1f} %)"
        for name, r in rows.items()
        if "coverage_if_pooled" in r
    ]
    below = [f"{name}: {100 * c:.1f} %" for name, c in seen["coverage_below"].items()]
    floors = [
        f"{name.removeprefix('floor, ')}: {math.floor(1000 * r['floor']) / 10} %"
        for name, r in rows.items()
        if r.get("floor", 0) > 0.97
    ]
    lines += [
        "",
        f"{seen['coverage_inside']} of {seen['coverage_cells']} cells lie within 93 to 97 %. Below: "
        f"{'; '.join(below) or 'none'}. All others outside lie above: where few prompts change, exact rules take over. "
        "Some could not lie inside: for two equal arms on single prompts, a rule may read how many prompts changed "
        "each way, treat both ways alike, leave nothing to chance, call every clearer case clear too, and keep its "
        "false wins within 5.5 % at any share of changes. No such rule covers less than this: "
        f"{'; '.join(floors)} (an integer program, `floor_cell`). "
        'A false "A beats B" came in at most '
        f"{100 * wins[worst]:.1f} % of the studies ({worst}), over ten equal arms in {100 * ten:.1f} % at most. "
        f"Fifteen planted points at n = 200 were found in "
        f"{' and '.join(f'{100 * v:.1f} %' for v in seen['found'].values())} (single prompts, groups of four). Over "
        f"seeds: {'; '.join(seeds)}. `{record['command']}`, {record['studies']:,} studies a cell, {record['date']}.",
    ]
    return "\n".join(lines)


def how_much_data() -> str:
    """How often the forecasts' 80 % interval held, pooled and by family, on simulated and own curves."""
    record = json.loads((ROOT / "benchmarks/results/how_much_data.json").read_text(encoding="utf-8"))
    lines = ["| forecast | simulated: holds truth | error (points) | own runs: holds truth | error (points) |"]
    lines.append("|---|---|---|---|---|")
    simulated, own = record["results"]["simulated"], record["results"]["own_runs"]
    for name in ("pooled", *(k for k in simulated if isinstance(simulated[k], dict) and k not in ("pooled", "advice"))):
        cells = [
            f"{100 * part[name]['holds_truth']:.1f} % | {100 * part[name]['mean_error']:.1f}"
            for part in (simulated, own)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    told = "; ".join(
        f"'{word}' to {a['curves']} curves, of which {100 * a['gained_a_point']:.0f} % then gained a point or more"
        for word, a in simulated["advice"].items()
    )
    by = ", ".join(f"{name} {100 * share:.0f} %" for name, share in record["results"]["by_mechanism"].items())
    both = record["results"]["all"]["pooled"]
    lines += [
        "",
        f"{simulated['forecasts']} forecasts of simulated curves and {own['forecasts']} of own runs; together the 80 % "
        f"interval held in {100 * both['holds_truth']:.1f} % ({100 * both['low']:.1f} to {100 * both['high']:.1f} %). "
        f"By mechanism and distance: {by}. Advice: {told}. `{record['command']}`, {record['date']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

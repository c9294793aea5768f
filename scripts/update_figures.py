"""Write benchmarks/results into README, pictures and docs: `python scripts/update_figures.py`."""

from __future__ import annotations

import json
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
            f"{times['wall_seconds'] / 60:.1f} minutes, at most {times['process_peak_memory_gib']} GiB, on "
            f"{machine['cores']} cores of {machine['processor']}."
        )
    return "\n".join([*lines, "", *notes])


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


if __name__ == "__main__":
    main()

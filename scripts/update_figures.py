"""Write benchmarks/results and the list of codes into README, pictures and docs: `python scripts/update_figures.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dpo_workbench.pairs.codes import CODES
from dpo_workbench.plots.evaluation import ChangesDisplay

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
# names of the arms in results of the first edition
OLD_NAMES = {"sft": "start", "sft+dpo": "DPO+NLL", "sft+sft on chosen": "control"}


def main() -> None:
    demo = read("demo")
    picture("nano", demo["nano"])
    between(ROOT / "README.md", "<!-- results: written by scripts/update_figures.py -->", demo_table(demo))
    between(DOCS / "data.md", "<!-- results: codes -->", codes())
    between(DOCS / "performance.md", "<!-- results: vs_trl -->", vs_trl_table(read("vs_trl")))
    between(DOCS / "sandbox.md", "<!-- results: sandbox -->", sandbox(read("sandbox")))
    between(DOCS / "labelling.md", "<!-- results: label_kill -->", label_kills(read("label_kill")))
    between(DOCS / "evaluation.md", "<!-- results: coverage -->", coverage(read("coverage")))
    between(DOCS / "plan.md", "<!-- results: plan -->", planned(read("plan")))
    between(DOCS / "models.md", "<!-- results: chat_contract -->", chat_contract(read("chat_contract")))


def read(name: str) -> dict[str, Any]:
    """A file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def between(path: Path, start: str, text: str, end: str = "<!-- end of results -->") -> None:
    """Replace the text between the comment `start` and the next `end` in a page."""
    before, found, rest = path.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{path} must have {start} and, below it, {end}.")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def picture(model: str, run: dict[str, Any]) -> None:
    """Draw what DPO changed in each failure class, compared with the start and with the control."""
    line = run["verdict"]["text"].split("\n")[0]
    display = ChangesDisplay.from_numbers(run["verdict"]["numbers"], line).plot()
    target = DOCS / "figures" / f"demo-{model}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    display.figure_.savefig(target, dpi=110, facecolor="white", metadata={"Software": None})


def demo_table(results: dict[str, Any]) -> str:
    """The arms of each model in a table, then its verdict with command, seed, time and machine."""
    lines = [
        "| model | arm | held-out prompts | failed (95 % interval) | of these, mined class | mean score |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for model, run in results.items():
        classes = run["verdict"]["numbers"]["mined"]["classes"]
        for name in run["settings"]["arms"]:
            arm = run["arms"][name]
            mined = sum(arm["failures"].get(c, 0) for c in classes)
            lines.append(
                f"| {model} | {OLD_NAMES.get(name, name)} | {arm['n']} | {arm['n_failed']} = "
                f"{100 * arm['failed_share']:.1f} % ({100 * arm['failed_low']:.1f} to {100 * arm['failed_high']:.1f}) "
                f"| {mined} | {arm['mean_score']:.3f} |"
            )
        notes.append(demo_note(model, run))
    return "\n".join([*lines, "", *notes])


def demo_note(model: str, run: dict[str, Any]) -> str:
    """The verdict, and how the numbers were made."""
    times, machine, decided = run["times"], run["machine"], run["verdict"]
    how = (
        f"`{times['command']}`, seed {run['settings']['dpo']['seed']}, {times['date']}: {duration(times)}, at most "
        f"{times['process_peak_memory_gib']} GiB of memory, {machine['cores']} cores of {machine['processor']}."
    )
    if "classes" in decided["numbers"]:
        line, *lines = decided["text"].split("\n")[:4]
        return "\n".join([f"- **{model}. {line}** {how}", *(f"  - {told}" for told in lines)])
    cells = read("outcomes")["runs"]
    cell = next(c for c in cells if (c["model"], c["task"], c["seed"]) == (model, run["settings"]["task"], 0))
    possible = " or ".join(dict.fromkeys((cell["fewest_moves"], cell["most_moves"])))
    return f"- **{model}.** Recorded as counts before today's rules, which leave this outcome: {possible}. {how}"


def duration(times: dict[str, Any]) -> str:
    several = times.get("wall_seconds_of_all")
    if several:
        return f"{several[0]:.0f} to {several[-1]:.0f} seconds in {len(several)} runs"
    return f"{times['wall_seconds'] / 60:.1f} minutes"


def vs_trl_table(record: dict[str, Any]) -> str:
    """Time and memory next to TRL, one row for each length, dtype and number of epochs that was measured."""
    lengths = {"short": "60 + 30 + 30", "medium": "200 + 75 + 75", "long": "600 + 60 + 60"}
    cells = [
        (name, dtype, epochs, cell)
        for name in lengths
        for dtype in ("fp32", "bf16")
        for epochs in (1, 3)
        if (cell := record["cells"].get(f"{name}-{dtype}-{epochs}"))
    ]
    lines = [
        "| prompt + chosen + rejected (tokens) | dtype | epochs | TRL, s | here, s | times faster | TRL, GiB "
        "| here, GiB | share of TRL's memory | with checkpointing: time, memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, dtype, epochs, cell in cells:
        ours, trl = cell["ours"], cell["trl"]
        lines.append(
            f"| {lengths[name]} | {dtype} | {epochs} | {trl['seconds']:.1f} | {ours['seconds']:.1f} | "
            f"{cell['times_faster']:.1f} | {trl['peak_memory_gib']:.2f} | {ours['peak_memory_gib']:.2f} | "
            f"{cell['share_of_memory']:.2f} | {checkpointed(cell)} |"
        )
    dates = ", ".join(sorted({cell["date"] for *_, cell in cells}))
    processors = " and ".join(sorted({cell["processor"] for *_, cell in cells}))
    pairs = ", ".join(f"{record['pairs'][name]} {name}" for name in lengths)
    return "\n".join(
        [
            *lines,
            "",
            f"Whole runs of {pairs} pairs; peak memory of the whole process. `{record['command']}`, {dates}, "
            f"{record['machine']['cores']} cores of {processors}. The last column has activation checkpointing on: its "
            "time as a multiple of the time without, and its memory as a share of TRL's.",
        ]
    )


def checkpointed(cell: dict[str, Any]) -> str:
    """What activation checkpointing costs and saves, or a dash where it was not measured."""
    ours = cell.get("ours_checkpointing")
    if not ours:
        return "–"
    time, memory = ours["seconds"] / cell["ours"]["seconds"], ours["peak_memory_gib"] / cell["trl"]["peak_memory_gib"]
    return f"{time:.2f} ×, {memory:.2f}"


def codes() -> str:
    """The codes that `dpo-workbench check` reports, one per row."""
    lines = ["| code | severity | what must hold | what to do |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {code} | {' | '.join(facts)} |" for code, facts in CODES.items())])


def sandbox(record: dict[str, Any]) -> str:
    """What the sandbox costs, in two sentences."""
    found, machine = record["results"], record["machine"]
    return (
        f"One run takes {found['sandbox_ms']} ms. A plain child process that does the same takes {found['bare_ms']} "
        f"ms. With {found['workers']} runs at a time, {found['runs_a_second']:.0f} runs finish per second (medians of "
        f"{found['runs']} runs, `{record['command']}`, {record['date']}, {machine['cores']} cores of "
        f"{machine['processor']})."
    )


def label_kills(record: dict[str, Any]) -> str:
    """What killing a labelling process cost, in two sentences."""
    return (
        f"In a test, a labelling process was killed {record['kills']} times at random moments. Of {record['saved']} "
        f"votes and other actions that it had reported as saved, {record['lost']} were lost. After a restart it showed "
        f"a different pair than before {record['other_item']} times (`{record['command']}`, seed {record['seed']}, "
        f"{record['date']})."
    )


def named(rows: dict[str, Any], text: str, part: str, key: str) -> list[str]:
    """A line about the cells whose names have this part; none if there are no such cells."""
    found = {name.removeprefix(part).strip(", "): row for name, row in rows.items() if part in name}
    told = [f"{100 * row[key]:.1f} % ({name}; {row['studies']} studies)" for name, row in found.items()]
    return [f"{text}: {', '.join(told)}."] if told else []


def chat_contract(record: dict[str, Any]) -> str:
    """For how many texts the contract of the chat holds, by style of template and tokenizer."""
    lines = ["| tokenizer and template | holds | holds, edit reported | reported | broken in silence |"]
    lines.append("|---|---|---|---|---|")
    for name, found in record["outcomes"].items():
        counts = [str(found.get(key, 0)) for key in ("holds", "edited", "reported", "broken")]
        kind = "" if name.partition(",")[0] in record["real"] else "style: "
        lines.append(f"| {' | '.join([kind + name, *counts])} |")
    n, how = record["texts"], f"seed {record['seed']}, {record['date']}"
    return "\n".join([*lines, "", f"{n} prompts with an answer each, {how}: `{record['command']}`."])


def planned(record: dict[str, Any]) -> str:
    """Foreseen and measured peaks, and figures that others have published."""
    lines = ["| parameters, rows, checkpointing | plan, GiB | measured, GiB | ratio |", "|---|---|---|---|"]
    for name, cell in record["settings"].items():
        size, rows, *checkpointing = name.split("-")
        rows = {"short": "4 pairs of 200 tokens", "long": "one pair of 1,500 tokens"}[rows]
        sizes = f"{cell['planned_gib']:.2f} | {cell['measured_gib']:.2f} | {cell['planned_by_measured']:.2f}"
        lines.append(f"| {size}, {rows}, {'on' if checkpointing else 'off'} | {sizes} |")
    told = f"`{record['command']}`, {record['date']}, {record['dtype']} on {record['machine']['processor']}, seed 0."
    lines += [
        "",
        told,
        "",
        "| published | tokens in a pass | plan, GiB | published, GiB | ratio |",
        "|---|---|---|---|---|",
    ]
    for found in record["published"]:
        sizes = f"{found['planned_gib']} | {found['published_gib']} | {found['planned_by_published']:.2f}"
        lines.append(f"| {found['method']}, rank {found['rank']} | {found['tokens']:,} | {sizes} |")
    sources = "; ".join(dict.fromkeys(found["source"] for found in record["published"]))
    return "\n".join([*lines, "", f"Sources: {sources}."])


def coverage(record: dict[str, Any]) -> str:
    """How often the intervals hold the truth in simulated studies, how often nothing wins, and what is found."""
    rows, seen = record["results"], record["seen"]
    lines = ["| interval | n | lowest coverage | highest | cells within 93 to 97 % |", "|---|---|---|---|---|"]
    for kind in ("share", "paired", "clustered"):
        for n in (20, 50, 100, 400):
            found = [r["coverage"] for name, r in rows.items() if name.startswith(f"{kind}, n {n},")]
            inside = sum(0.93 <= c <= 0.97 for c in found)
            low, high = (f"{100 * c:.1f} %" for c in (min(found), max(found)))
            lines.append(f"| {kind} | {n} | {low} | {high} | {inside} of {len(found)} |")
    below = [f"{100 * c:.1f} % ({name})" for name, c in seen["coverage_below"].items()]
    floors = [
        f"{math.floor(1000 * r['floor']) / 10} % ({name.removeprefix('floor, ')})"
        for name, r in rows.items()
        if r.get("floor", 0) > 0.97
    ]
    wins = {name: r["false_wins"] for name, r in rows.items() if "false_wins" in r}
    worst = max(wins, key=lambda name: wins[name])
    ten = max(value for name, value in wins.items() if name.startswith("ten"))
    power = [f"{100 * share:.1f} %" for share in seen["found"].values()]
    seeds = [
        f"{100 * r['coverage']:.1f} % with {name.split(',')[0]} ({100 * r['coverage_if_pooled']:.1f} % if all answers "
        "were pooled as one run)"
        for name, r in rows.items()
        if "coverage_if_pooled" in r
    ]
    lines += [
        "",
        f"- {seen['coverage_inside']} of {seen['coverage_cells']} cells have a coverage within 93 to 97 %. Below that: "
        f"{', '.join(below) or 'none'}; the number after n is the true pass rate. The others are above 97 %: when few "
        "prompts change, the exact rules are conservative.",
        "- Part of that can't be avoided. A rule that sees only how many prompts changed in each direction, and keeps "
        f"its false wins within 5.5 %, has at least this coverage: {', '.join(floors)}.",
        f'- A false "A is better than B" occurred in at most {100 * wins[worst]:.1f} % of the studies ({worst}), and '
        f"in at most {100 * ten:.1f} % with ten equal arms.",
        f"- A true difference of 15 points at n = 200 was found in {power[0]} of the studies with single prompts and "
        f"in {power[1]} with groups of four.",
        f"- Intervals over seeds: {', '.join(seeds)}.",
        *named(rows, "- Where each seed has a start of its own", "own starts", "coverage"),
        *named(rows, "- Intervals of the mean harm (severities 1 to 3)", "harm,", "coverage"),
        *named(rows, "- Some class of eight seemed to rise clearly where none did", "eight classes", "false_rises"),
        "",
        f"`{record['command']}`, {record['studies']:,} studies per cell, {record['date']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

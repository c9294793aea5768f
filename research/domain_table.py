"""SFT against SFT + DPO on the built-in tasks: benchmarks/results/domains.json and docs/results.md.

    python research/domain_table.py                          # all cells; takes hours
    python research/domain_table.py --model smol --task sql --seed 0
    python research/domain_table.py --table                  # only the page, from the recorded results

A cell is a task, a model and a seed: base, SFT, SFT + DPO and the control arm on the same held-out prompts. The
cells of a model and task share one SFT adapter; the seed is used for mining, DPO and control. Each stage of a cell is
saved in `work/domains`, so a stopped run continues where it was. Recipes were chosen on dev prompts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import data_folder, describe
from dpo_workbench.common.files import write_json, write_text
from dpo_workbench.models.loading import load_model
from dpo_workbench.plots.evaluation import BLUE, GREEN, GREY, ORANGE, axes, label, plain
from dpo_workbench.studies.demo import demo
from dpo_workbench.studies.recipe import recipe_for
from dpo_workbench.tasks.builtin import PLANTED, load_task
from dpo_workbench.training.run import sft

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "work" / "domains"
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "domains.json", ROOT / "docs" / "results.md"
REAL = RESULTS.with_name("real_sets.json")
OLD_ARMS = ("base", "sft", "sft+dpo", "sft+sft on chosen")  # names in the results files for base, start, DPO+NLL
NEW_ARMS = ("base", "start", "DPO+NLL", "control")  # and control
PICTURE = PAGE.parent / "figures" / "headroom.png"
SEEDS = (0, 1, 2)
NO_BREAK = "\u00a0"  # keeps a number and its interval on one line
WHY = (
    "**What stands out**",
    "",
    "- The goal was to cut the mined failures by 59.4 % in each task without a lower score. 59.4 % is the average in "
    "the [post](https://huggingface.co/blog/Dharma-AI/direct-preference-optimization-beyond-chatbots) that this "
    "project started from. `smol` reaches it in all five tasks, `nano` in four.",
    "- **The control is nearly as good in most tasks.** Where the labels caused the habit, fine-tuning on the model's "
    "own good answers undoes it, too.",
    "- Base `nano` learned these tasks from generated examples without the flaw. In `receipts` and `python` it fails "
    "less often than `nano` after fine-tuning and DPO: DPO takes back only part of the damage from the flawed labels.",
    "- `nano`, `briefs`: two seeds cut the class by 89 and 85 %. In the third, the dev prompts favored the fine-tuned "
    "start, so it was kept. The pairs say only that shorter is better. A model of this size then loses facts along "
    "with the words: `missing_fact` rises as `too_long` falls. `smol` has the skill, and its score rises.",
    "- `sql`: the habit is gone, but failures do not clearly fall. At most a sixth of the answers had the habit, and "
    "an answer that stops selecting all columns often fails for a name that the tables do not have (`unknown_name`; "
    "the tables of the test split are new). The verdict looks at every class.",
)

WHY_REAL = (
    "**Where it helps, and where it does not.** Nobody planted a habit in these datasets. If fine-tuning leaves a "
    "habit, DPO removes part of it. What a small model gets wrong because it lacks the skill stays wrong.",
    "",
    "- `scitldr`: the fine-tuned model copies sentences of the abstract (42 of 148 answers), although its samples show "
    "that it can do without. 64 pairs of its own whole answers cut the copies to 31 and the failed answers from 49 to "
    "38. This is clear of zero and of the control, which copies more than before (50; 58 answers fail). ROUGE-L does "
    "not change. Fine-tuning had not leveled off, so more of it might help as much.",
    "- `snips`: the dev score was still rising fast when fine-tuning ended. Slots are learned from references. 64 "
    "pairs brought no adapter that was better on dev, so the start was kept. The control is worse on test.",
    "- `svamp`: the failures are wrong numbers, and seven of ten prompts have no right answer among five. No adapter "
    "scored higher on dev than the start, so the start was kept and no answer changed.",
    "- `odex`: almost no answer is right. Graded answers to other questions do not teach the skill.",
    "- `spider`: fine-tuned on 370 questions, `smol` seldom writes a correct query (12 %). 39 pairs against names that "
    "the schema does not have cut such answers from 135 to 121 of 240, which is clear of zero. Six more answers are "
    "right, which is not. Here, too, fine-tuning had not leveled off.",
)

CELLS = [(model, task) for task in sorted(PLANTED) for model in ("nano", "smol")]


def fine_tuned(model: str, task: str) -> Path:
    """The SFT adapter that the cells of a model and task share: a shipped one, or one trained on the first call."""
    shipped = data_folder() / "adapters" / f"{model}-{task}"
    folder = WORK / f"sft-{model}-{task}"
    if not shipped.is_dir() and not (folder / "adapter").is_dir():
        examples, recipe = load_task(task), recipe_for(model, task)
        run = sft(load_model(model), examples.train[: recipe.sft_prompts], recipe.sft, folder=folder / "sft")
        run.model.save(folder / "adapter")
    return shipped if shipped.is_dir() else folder / "adapter"


def from_demo(model: str) -> dict[str, Any] | None:
    """The cell of `receipts` with seed 0 as benchmarks/demo.py recorded it, or None."""
    file = RESULTS.with_name("demo.json")
    run = json.loads(file.read_text(encoding="utf-8")).get(model) if file.is_file() else None
    if run is None:
        return None
    return {
        "model": model, "task": "receipts", "seed": 0, "date": run["times"]["date"], "machine": run["machine"],
        "command": run["times"]["command"], "settings": run["settings"], "arms": run["arms"], "pairs": run["pairs"],
        "outcome": run["verdict"]["outcome"], "numbers": run["verdict"]["numbers"],
        "minutes": round(run["times"]["total_seconds"] / 60, 1),
    }  # fmt: skip


def run_cell(model: str, task: str, seed: int) -> dict[str, Any]:
    """Run one cell. The result is small enough to commit."""
    folder, adapter = WORK / f"{model}-{task}-{seed}", fine_tuned(model, task)
    same = WORK / f"sft-{model}-{task}" / "evaluations"  # base and SFT give the same answers for every seed
    for file in same.glob("*.json"):
        (folder / "evaluations").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / "evaluations" / file.name)
    done = demo(model, folder, task_name=task, adapter=adapter, recipe=recipe_for(model, task), seed=seed)
    same.mkdir(parents=True, exist_ok=True)
    for name in ("base", "start"):
        shutil.copy(folder / "evaluations" / f"{name}.json", same / f"{name}.json")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["settings"]["adapter"] = str(adapter.relative_to(ROOT))  # no path of one machine
    return {
        "model": model, "task": task, "seed": seed, "date": date.today().isoformat(), "machine": describe(),
        "command": f"python research/domain_table.py --model {model} --task {task} --seed {seed}",
        "settings": results["settings"] | {"arms": list(OLD_ARMS)}, "pairs": results["pairs"],
        "arms": {old: results["arms"][new] for old, new in zip(OLD_ARMS, NEW_ARMS, strict=True)},
        "outcome": done.verdict().outcome, "numbers": results["verdict"]["numbers"],
        "minutes": round(results["times"]["total_seconds"] / 60, 1),
    }  # fmt: skip


def starts() -> str:
    """The share of dev prompts that the fine-tuned starts of `nano` answer correctly."""
    seen = json.loads(RESULTS.with_name("adapters.json").read_text(encoding="utf-8"))
    low, high = (100 * share for share in seen["goal"])
    passed = {
        k.removeprefix("nano-"): 1 - v["failed_share"] for k, v in seen["adapters"].items() if k.startswith("nano-")
    }
    return (
        f"Of {seen['adapters']['nano-briefs']['n']} dev prompts, the fine-tuned starts of `nano` answer this share "
        f"correctly: {', '.join(f'`{task}` {100 * share:.1f} %' for task, share in passed.items())} (goal {low:.0f} "
        f"to {high:.0f} %; `python benchmarks/adapters.py`)."
    )


def page(cells: list[dict[str, Any]]) -> str:
    """The Markdown of docs/results.md."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["task"], cell["model"]), []).append(cell)
    means = {key: mean_of(group) for key, group in groups.items()}
    sizes = ({len(group) for group in groups.values()}, {cell["arms"]["sft"]["n"] for cell in cells})
    seeds, prompts = (", ".join(map(str, sorted(size))) for size in sizes)
    lines = [
        "# Results: SFT compared with SFT + DPO",
        "",
        "The first table is about the five built-in tasks. Their labels have a flaw that we planted, such as blank "
        "totals or missing units. Fine-tuning copies the flaw, and DPO is aimed at it. The second half of the page is "
        "about [public datasets with nothing planted](#public-datasets-smol).",
        "",
        f"Each row is the mean over {seeds} seeds on {prompts} held-out prompts. *Cut* is the relative change of the "
        "number of answers in the mined class. *Control* is SFT on the same chosen answers, with the same number of "
        "steps and the same learning rate. *Score* is the change of the mean score. *Verdicts* follow the rules in "
        "[evaluation](evaluation.md): a class that clearly rises makes a run *a trade* or *harmful*, whatever the cut. "
        "The runs were recorded as counts before these rules. Where two outcomes are given, the counts leave both open "
        "(`python benchmarks/outcomes.py`).",
        "",
        "| task | model | mined class | cut by DPO | cut by control | score: DPO | control | verdicts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, model), group in groups.items():
        mean, classes = means[task, model], group[0]["numbers"]["mined"]["classes"]
        told = Counter(map(outcome, group)).most_common()
        lines.append(
            f"| {task} | {model} | {', '.join(classes)} | {_percent(mean['cut'])} | {_percent(mean['control cut'])} | "
            f"{mean['score']:+.3f} | {mean['control score']:+.3f} | "
            f"{', '.join(f'{n} {outcome}'.replace(' ', NO_BREAK) for outcome, n in told)} |"
        )
    for model in sorted({m for _, m in groups}):
        own = {task: mean for (task, m), mean in means.items() if m == model}
        cuts, low = [mean["cut"] for mean in own.values()], [task for task, mean in own.items() if mean["score"] < 0]
        lines.append(
            f"\nWith `{model}`, DPO cut the mined class by {_percent(statistics.mean(cuts))} on average over "
            f"{len(own)} tasks, and by at least {_percent(min(cuts))}. Tasks with a lower score: "
            f"{', '.join(low) or 'none'}."
        )
    lines += ["", starts(), "", *WHY, *forecasts(cells)]
    lines += real_sets()
    lines += every_run(cells)
    machines = sorted({f"{c['machine']['cores']} cores of {c['machine']['processor']}" for c in cells})
    lines += [
        "",
        f"Machines: {'; '.join(machines)}. This page is generated by `python research/domain_table.py --table` from "
        "`benchmarks/results/domains.json`, which has the date, command and settings of each run.",
    ]
    return "\n".join(lines) + "\n"


def outcome(cell: dict[str, Any]) -> str:
    """The outcome by today's rules; two if the recorded counts leave both open."""
    rows = json.loads(RESULTS.with_name("outcomes.json").read_text(encoding="utf-8"))["runs"]
    row = next(r for r in rows if all(r[key] == cell[key] for key in ("model", "task", "seed")))
    return " or ".join(dict.fromkeys((row["fewest_moves"], row["most_moves"])))


def mean_of(group: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the seeds of a task and model: relative cut of the mined class, change of the score."""
    found: dict[str, list[float]] = {"cut": [], "control cut": [], "score": [], "control score": []}
    for cell in group:
        arms, classes = cell["arms"], cell["numbers"]["mined"]["classes"]
        count = {arm: sum(seen["failures"].get(name, 0) for name in classes) for arm, seen in arms.items()}
        for name, arm in (("", "sft+dpo"), ("control ", "sft+sft on chosen")):
            found[f"{name}cut"].append(1 - count[arm] / count["sft"] if count["sft"] else 0.0)
            found[f"{name}score"].append(arms[arm]["mean_score"] - arms["sft"]["mean_score"])
    return {name: statistics.mean(values) for name, values in found.items()}


def every_run(cells: list[dict[str, Any]]) -> list[str]:
    """The table of all runs."""
    starts: dict[str, set[float]] = {}
    for cell in cells:
        if cell["model"] == "smol":
            starts.setdefault(cell["task"], set()).add(cell["arms"]["sft"]["mean_score"])
    moved = ", ".join(f"`{task}`" for task, scores in starts.items() if len(scores) > 1)
    lines = [
        "",
        "## Every run",
        "",
        "All arms answer the same prompts. Intervals are paired by group (95 %). The seeds of a task share the SFT "
        "adapter; mining, DPO and the control are repeated with each seed. Seeds 1 and 2 of `smol` in "
        f"{moved} ran on another machine, in fp32, from an SFT adapter that was trained there with the same settings. "
        "Its score differs from that of seed 0.",
        "",
        "| task | model | seed | failed: base, SFT, DPO, control | mined | cut, % | score | difference | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        arms, mined, score = cell["arms"], cell["numbers"]["mined"], cell["numbers"]["score"]
        failed = ", ".join(str(arms[name]["n_failed"]) for name in cell["settings"]["arms"])
        cut, change = 1 - mined["after"] / mined["before"] if mined["before"] else None, score["difference"]
        row = (
            cell["task"], cell["model"], str(cell["seed"]), failed, f"{mined['before']} → {mined['after']}",
            "–" if cut is None else f"{100 * cut:.0f}",
            f"{score['before']:.3f} → {score['after']:.3f}",
            "{estimate:+.3f} ({low:+.3f} to {high:+.3f})".format(**change), outcome(cell),
        )  # fmt: skip
        lines.append(f"| {' | '.join(value.replace(' ', NO_BREAK) for value in row)} |")
    return lines


def draw_forecasts(title: str, expected: list[float], seen: list[float], kinds: list[str]) -> None:
    """Draw one point per run: the headroom, and the relative cut after training."""
    figure, ax = axes((5.5, 5.0))
    ax.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="as forecast")
    for kind, marker, colour in zip(sorted(set(kinds)), "osD^vP*X", (BLUE, ORANGE, GREEN) * 3, strict=False):
        rows = [(100 * a, 100 * b) for a, b, k in zip(expected, seen, kinds, strict=True) if k == kind]
        ax.plot(*zip(*rows, strict=True), marker, color=colour, markeredgecolor="black", label=plain(kind))
    label(ax, title, "headroom: cut of the mined failures expected from samples (%)", "cut on held-out prompts (%)")
    ax.legend(loc="best", frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110, facecolor="white")


def forecasts(cells: list[dict[str, Any]]) -> list[str]:
    """The headroom before training compared with the cut, over all cells, and the picture."""
    known = [
        (c, c["numbers"]["forecast"]) for c in cells if c["numbers"].get("forecast", {}).get("seen_cut") is not None
    ]
    expected, seen = [f["expected_cut"] for _, f in known], [f["seen_cut"] for _, f in known]
    past = sum(b > a for a, b in zip(expected, seen, strict=True))
    error = statistics.mean(abs(a - b) for a, b in zip(expected, seen, strict=True))
    title = (
        f"The headroom differs from the cut by {100 * error:.0f} points on average;\n"
        f"in {past} of {len(seen)} runs the cut was larger"
    )
    draw_forecasts(title, expected, seen, [c["task"] for c, _ in known])
    ratios = {c["task"]: [] for c, _ in known}
    for c, f in known:
        ratios[c["task"]].append(f["seen_cut"] / f["expected_cut"])
    # a simple correction that a team could apply before its own runs: the ratio of cut to headroom on the other tasks
    others = {t: statistics.mean(r for o, rs in ratios.items() if o != t for r in rs) for t in ratios}
    corrected = statistics.mean(abs(f["expected_cut"] * others[c["task"]] - f["seen_cut"]) for c, f in known)
    by_task = ", ".join(
        f"`{t}` {100 * statistics.mean(abs(f['expected_cut'] - f['seen_cut']) for c, f in known if c['task'] == t):.0f}"
        for t in ratios
    )
    better = ", so the uncorrected headroom is the better forecast" if corrected >= error else ""
    return [
        "",
        "## Headroom compared with the cut",
        "",
        f"![{title.replace(chr(10), ' ')}](figures/headroom.png)",
        "",
        "The headroom is the share of mined failures on prompts for which the model also gives an answer without that "
        f"failure. It is measured on samples before training. Over {len(known)} runs it differs from the cut by "
        f"{100 * error:.0f} points (mean absolute error; by task: {by_task}). In {past} runs the cut was "
        "larger than the headroom: training can also bring answers that the samples never showed. If the headroom is "
        f"multiplied by the ratio of cut to headroom on the *other* tasks, the error is {100 * corrected:.0f} "
        f"points{better}.",
    ]


def real_sets() -> list[str]:
    """The table of research/real_sets.py, or nothing if it has no results."""
    if not REAL.is_file():
        return []
    lines = [
        "",
        "## Public datasets, `smol`",
        "",
        "Five public datasets: SNIPS, SVAMP, ODEX with the graded CoNaLa candidates, SciTLDR and Spider. All arms "
        "answer the same held-out prompts, with one seed. Intervals are paired (95 %). The numbers come from "
        "`benchmarks/results/real_sets.json`, written by `python research/real_sets.py FOLDER`.",
        "",
        "| dataset | prompts | measure (share or mean) | base | SFT | SFT + DPO | control | DPO minus SFT (95 %) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = {"slot_f1": "slot F1", "exact": "right", "rouge_l": "ROUGE-L", "words": "words"}
    for row in json.loads(REAL.read_text(encoding="utf-8")):
        arms, numbers = row["arms"], row["verdict"]["numbers"]
        seen = {names[metric]: values for metric, values in row["metrics"].items()}
        if "right" not in seen:
            seen["failed"] = _shares(arms, None, numbers["failures"])
        if (numbers.get("mined") or {}).get("classes"):
            classes = numbers["mined"]["classes"]
            seen[", ".join(classes)] = _shares(arms, classes, numbers["mined"])
        for what, values in seen.items():
            change = values.get("sft+dpo minus sft")
            told = f"{change['estimate']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" if change else "–"
            told = " | ".join([*(f"{values[arm]:.3f}" for arm in OLD_ARMS), told])
            lines.append(f"| {row['set']} | {arms['sft']['n']} | {what} | {told} |")
    return [*lines, "", *WHY_REAL]


def _shares(arms: dict[str, Any], classes: Sequence[str] | None, change: dict[str, Any]) -> dict[str, Any]:
    """The share of each arm's answers that fail in `classes` (None: in any class), with the paired change."""
    failed = {
        name: arm["n_failed"] if classes is None else sum(arm["failures"].get(c, 0) for c in classes)
        for name, arm in arms.items()
    }
    return {name: failed[name] / arm["n"] for name, arm in arms.items()} | {"sft+dpo minus sft": change["difference"]}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def read() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted({m for m, _ in CELLS}))
    parser.add_argument("--task", choices=sorted({t for _, t in CELLS}))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    cells = read()
    wanted = [
        (model, task, seed)
        for seed in (SEEDS if args.seed is None else (args.seed,))
        for model, task in CELLS
        if args.model in (None, model) and args.task in (None, task)
    ]
    for model, task, seed in [] if args.table else wanted:
        cell = (from_demo(model) if (task, seed) == ("receipts", 0) else None) or run_cell(model, task, seed)
        same = (model, task, seed)
        cells = read()  # another process may have added a cell in the meantime
        cells = [c for c in cells if (c["model"], c["task"], c["seed"]) != same] + [cell]
        cells.sort(key=lambda c: (c["task"], c["model"], c["seed"]))
        write_json(RESULTS, cells)
        write_text(PAGE, page(cells))
    if cells:
        write_text(PAGE, page(cells))


if __name__ == "__main__":
    main()

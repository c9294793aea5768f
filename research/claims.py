"""Four claims about what DPO costs and needs, measured: benchmarks/results/claims.json and docs/claims.md.

    python research/claims.py                        # nano: five tasks, three sizes, one seed
    python research/claims.py --seed 1 --task sql    # one more cell
    python research/claims.py --model smol --task science --pairs 64    # a cell with a real model
    python research/claims.py --table                # only the page

A cell is a model, a task, a number of pairs and a seed. Each route (DPO, a reward model with best of 4, a reward model
with a policy gradient) trains in its own process, from the same fine-tuned start and on the same pairs, and answers
the same test prompts. A second training run counts its floating-point operations. Finished routes are saved in
`work/claims`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from domain_table import NO_BREAK, fine_tuned  # research/domain_table.py
from policy_gradient import policy_gradient_arm, train_route  # research/policy_gradient.py

from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json, write_text
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.tasks.builtin import PLANTED, load_task
from dpo_workbench.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "benchmarks" / "results" / "claims.json", ROOT / "docs" / "claims.md", ROOT / "work/claims"
GRADIENT = "policy gradient"  # an arm of this script only
ROUTES = {
    "DPO": "DPO+NLL",
    "reward model, best of 4": "reward best of 4",
    "reward model, policy gradient": GRADIENT,
}
SIZES, PROMPTS = (4, 16, 64), {"nano": 100, "smol": 60}
POST = (
    "Direct Preference Optimization Beyond Chatbots",
    "https://huggingface.co/blog/Dharma-AI/direct-preference-optimization-beyond-chatbots",
)


def route(model: str, task: str, seed: int, pairs: int, arm: str, folder: Path) -> dict[str, Any]:
    """Run one route in this process. Returns its cost, its result and its peak memory."""
    import dpo_workbench as dw
    from dpo_workbench.common.environment import peak_memory_gib
    from dpo_workbench.studies.arms import ARMS
    from dpo_workbench.studies.recipe import recipe_for

    ARMS[GRADIENT] = policy_gradient_arm
    recipe = replace(recipe_for(model, task), max_pairs=pairs, test_prompts=PROMPTS[model])
    recipe = replace(recipe, dpo=replace(recipe.dpo, probes=0))  # no dev probes: what is counted is training alone
    given: dict[str, Any] = {"model": model, "adapter": fine_tuned(model, task), "recipe": recipe, "folder": folder}
    dw.compare(task, ["start"], seeds=(seed,), show=False, **given)  # mining and start: shared
    done = dw.compare(task, ["start", arm], seeds=(seed,), show=False, **given)
    if done.holes:
        raise SystemExit(f"{task}, {arm}: {done.holes}")
    row = next(r for r in done.rows() if r["arm"] == arm)
    memory = round(peak_memory_gib(), 2)
    config = replace(recipe.dpo, seed=seed)
    flops = training_flops(model, task, arm, dw.Pairs.load(folder / "pairs.jsonl"), config)
    cost = asdict(done.costs[arm]) | {"flops": flops}
    return {"cost": cost, "result": row, "peak_memory_gib": memory}


def training_flops(model: str, task_name: str, arm: str, pairs: Pairs, config: TrainConfig) -> float:
    """Floating-point operations of a route's training, counted in a second run: counting slows a run down."""
    from torch.utils.flop_counter import FlopCounterMode

    from dpo_workbench.models.loading import load_model
    from dpo_workbench.studies.recipe import recipe_for
    from dpo_workbench.studies.reward_model import train_reward_model
    from dpo_workbench.training.run import train

    start = load_model(model, adapter=fine_tuned(model, task_name))
    task, recipe = load_task(task_name), recipe_for(model, task_name)
    prompts = [e.prompt for e in task.train[recipe.mine_from :][: recipe.mine_prompts]]
    with FlopCounterMode(display=False) as counter:
        if arm == "DPO+NLL":
            train(start, pairs, config, show=False)
        elif arm == GRADIENT:
            train_route(start, pairs, prompts, config, task.max_new_tokens)
        else:
            train_reward_model(start, pairs, config, show=False)
    return float(counter.get_total_flops())


def place(model: str, task: str, seed: int, pairs: int) -> Path:
    return WORK / f"{model}-{task}-{seed}-{pairs}"


def cell(model: str, task: str, seed: int, pairs: int) -> dict[str, Any]:
    """Run all routes of a cell, each in a new process."""
    folder, routes = place(model, task, seed, pairs), {}
    for name, arm in ROUTES.items():
        file = folder / f"{arm}.json"
        if not file.is_file():
            given = ["--route", arm, "--model", model, "--task", task, "--seed", str(seed), "--pairs", str(pairs)]
            text = subprocess.run([sys.executable, __file__, *given], check=True, capture_output=True, text=True).stdout
            write_json(file, json.loads(text.strip().splitlines()[-1]))
        routes[name] = json.loads(file.read_text(encoding="utf-8"))
    start = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    facts = {"task": task, "model": model, "seed": seed, "pairs": start["pairs"]["pairs"], "asked": pairs}
    return {**facts, "date": date.today().isoformat(), "sft": start["comparison"][0], "routes": routes}


def page(facts: dict[str, Any]) -> str:
    """The Markdown of docs/claims.md."""
    cells = facts["cells"]
    grid = [c for c in cells if c["model"] == "nano"]
    wanted = len(SIZES) * len(PLANTED)
    lines = [
        "# DPO or a reward model? Four claims tested",
        "",
        f"This project started from the post [{POST[0]}]({POST[1]}). DPO is said to need less compute than a reward "
        "model, to need few pairs, to be fast to repeat, and to work for any task. This page tests these claims on the "
        "built-in tasks, whose labels have flaws that we planted.",
        "",
        "All routes start from the same fine-tuned model and use the same pairs, number of optimizer steps and test "
        "prompts. The reward model is trained on the same pairs (LoRA and a linear head). It then selects the best of "
        "four answers, or trains the model with a policy gradient. Costs are for training only; mining and fine-tuning "
        "are shared and left out. Floating-point operations come from PyTorch's counter, and memory is the peak of the "
        "process. The settings were chosen for DPO on dev prompts. The other routes use DPO's learning rate, batch and "
        "LoRA settings and were not tuned. The simplest alternative, fine-tuning on the chosen answers, is on the page "
        "[results](results.md).",
        "",
        *verdicts(grid),
        *real_model(cells),
        "",
        "## Every run",
        "",
        *every_run(cells),
    ]
    if len(grid) < wanted:
        lines += ["", f"Only {len(grid)} of {wanted} cells of `nano` have been run so far."]
    lines += [
        "",
        f"Machine: {facts['machine']['cores']} cores of {facts['machine']['processor']}, {days(cells)}. Other light "
        "jobs ran at the same time, so compare seconds only between the routes of one cell. This page is generated by "
        "`python research/claims.py --table` from `benchmarks/results/claims.json`.",
    ]
    return "\n".join(lines) + "\n"


def days(cells: list[dict[str, Any]]) -> str:
    """The dates, each with the tasks that were run on that day."""
    seen: dict[str, dict[str, None]] = {}
    for one in cells:
        seen.setdefault(one["date"], {})[f"`{one['task']}`"] = None
    return "; ".join(f"{day} ({', '.join(tasks)})" for day, tasks in sorted(seen.items()))


def every_run(cells: list[dict[str, Any]]) -> list[str]:
    """The table of all runs, one row per route."""
    lines = [
        "| model | task | pairs | route | failed | score | difference (95 %) | TFLOP | train, s | answer, s | GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in cells:
        for name, seen in one["routes"].items():
            row, cost, change = seen["result"], seen["cost"], seen["result"]["difference"]
            values = (
                one["model"], one["task"], str(one["pairs"]), name.removeprefix("reward model, "),
                f"{one['sft']['failed']} → {row['failed']} of {row['n']}",
                f"{one['sft']['score']:.3f} → {row['score']:.3f}",
                f"{change['estimate']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})",
                f"{cost['flops'] / 1e12:.2f}", f"{cost['train_seconds']:.0f}", f"{cost['answer_seconds']:.0f}",
                f"{seen['peak_memory_gib']:.2f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(value.replace(' ', NO_BREAK) for value in values)} |")
    return lines


def verdicts(cells: list[dict[str, Any]]) -> list[str]:
    """One section per claim, with the numbers and whether it holds."""
    names, most = list(ROUTES), max(c["asked"] for c in cells)
    full = [c for c in cells if c["asked"] == most]

    def mean(of: list[dict[str, Any]], name: str, key: str) -> float:
        return fmean(c["routes"][name]["cost"][key] for c in of)

    def gain(of: list[dict[str, Any]], name: str) -> float:
        return fmean(c["routes"][name]["result"]["difference"]["estimate"] for c in of)

    dpo, best, gradient = names
    lines = ["## Does DPO need less compute?", ""]
    ratios = {name: mean(full, name, "flops") / mean(full, dpo, "flops") for name in (best, gradient)}
    for name, ratio in ratios.items():
        time = mean(full, name, "train_seconds") / mean(full, dpo, "train_seconds")
        peak = fmean(c["routes"][name]["peak_memory_gib"] / c["routes"][dpo]["peak_memory_gib"] for c in full)
        lines.append(
            f"- {name}: {ratio:.2f} times DPO's operations in training, {time:.2f} times its seconds, {peak:.2f} times "
            f"its peak memory. The mean score changed by {gain(full, name):+.3f}, with DPO by {gain(full, dpo):+.3f}."
        )
    answers = mean(full, best, "answer_seconds") / mean(full, dpo, "answer_seconds")
    lines += [
        "- Best of 4 costs more with each answer: it sampled "
        f"{fmean(c['routes'][best]['cost']['sampled_tokens'] for c in full):,.0f} tokens for the test prompts, and "
        f"answering took {answers:.1f} times as long.",
        "",
        f"**Compared with the policy gradient, the claim {_holds(ratios[gradient] > 1)} for operations and time. "
        f"Compared with training a reward model alone, it {_holds(ratios[best] > 1)}.** Memory is similar, because "
        "with LoRA the reward model is just another adapter and a head on the same base model.",
        "",
        "## Does DPO need few pairs?",
        "",
        "| route | pairs (at most) | mean change of the score | tasks where it rose clearly |",
        "|---|---|---|---|",
    ]
    gains: dict[tuple[str, int], float] = {}
    for name in names:
        for size in SIZES:
            if part := [c for c in cells if c["asked"] == size]:
                gains[name, size] = gain(part, name)
                clear = sum(c["routes"][name]["result"]["difference"]["low"] > 0 for c in part)
                lines.append(f"| {name} | {size} | {gains[name, size]:+.3f} | {clear} of {len(part)} |")
    small = [size for size in SIZES if size < most and all((name, size) in gains for name in names)]
    ahead = all(gains[dpo, size] > max(gains[best, size], gains[gradient, size]) for size in small)
    total = {n: mean(full, n, "train_seconds") + mean(full, n, "answer_seconds") for n in names}
    lines += [
        "",
        f"**The claim {_holds(ahead)}** in this sense: with the same small number of pairs, DPO gains more than the "
        "other routes (means over the tasks, one seed). It does not mean that DPO needs little data in general. The "
        "failures here are habits, and a few pairs are enough to describe a habit. A skill that the model lacks does "
        "not come from any number of pairs ([results](results.md)).",
        "",
        "## Is DPO faster from a changed label to a new verdict?",
        "",
        "Seconds for training and answering the test prompts, mean over the tasks: "
        + "; ".join(f"{name}: {seconds:.0f} s" for name, seconds in total.items())
        + f". **The claim {_holds(total[dpo] < min(total[best], total[gradient]))}.** Mining, which all routes need, "
        "and the time that people spend on labels are left out.",
        "",
        "## Does one method work for all tasks?",
        "",
        f"The same call, `dw.compare(task, arms)`, ran on {len({c['task'] for c in cells})} tasks. **It runs "
        f"everywhere; how much it helps depends on the task.** With up to {most} pairs, the score rose in "
        f"{sum(gain([c], dpo) > 0 for c in full)} of {len(full)} tasks, clearly in "
        f"{sum(c['routes'][dpo]['result']['difference']['low'] > 0 for c in full)} of them, and fell in "
        f"{sum(gain([c], dpo) < 0 for c in full)}.",
    ]
    return lines


def real_model(cells: list[dict[str, Any]]) -> list[str]:
    """A section on the cells with a real model, or nothing if there are none."""
    lines = []
    for one in cells:
        if one["model"] != "nano":
            dpo, best, gradient = (one["routes"][name] for name in ROUTES)
            changes = [route["result"]["difference"]["estimate"] for route in (dpo, best, gradient)]
            flops = [route["cost"]["flops"] / dpo["cost"]["flops"] for route in (best, gradient)]
            peaks = [route["peak_memory_gib"] for route in (dpo, best, gradient)]
            lines.append(
                f"- `{one['model']}`, {one['task']}, {one['pairs']} pairs. Change of the score: DPO {changes[0]:+.3f}, "
                f"best of 4 {changes[1]:+.3f}, policy gradient {changes[2]:+.3f}. Operations in training: best of 4 "
                f"{flops[0]:.2f} and policy gradient {flops[1]:.2f} times DPO's. Peak memory: {peaks[0]:.2f}, "
                f"{peaks[1]:.2f} and {peaks[2]:.2f} GiB."
            )
    return ["", "## With a real model", "", *lines] if lines else []


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold"


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["model"], cell["task"], -cell["asked"], cell["seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano", "smol"), default="nano")
    parser.add_argument("--task", choices=sorted(PLANTED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--route", help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.route:
        which = args.model, args.task, args.seed, args.pairs
        print(json.dumps(route(*which, args.route, place(*which))))
        return
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if RESULTS.is_file() else []
    facts = {"command": "python research/claims.py", "date": date.today().isoformat(), "machine": describe()}
    for pairs in [] if args.table else [args.pairs] if args.pairs else SIZES[::-1]:
        for task in [args.task] if args.task else sorted(PLANTED):
            known = [c for c in known if _key(c) != _key({**vars(args), "task": task, "asked": pairs})]
            known = sorted([*known, cell(args.model, task, args.seed, pairs)], key=_key)
            write_json(RESULTS, {**facts, "cells": known})
    facts = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_text(PAGE, page(facts))


if __name__ == "__main__":
    main()

"""The founding article's claims about cost, measured: benchmarks/results/claims.json and docs/claims.md.

    python research/claims.py                        # nano: five tasks, three sizes, one seed; about half an hour
    python research/claims.py --seed 1 --task sql    # one more cell
    python research/claims.py --model smol --task science --pairs 64    # a main cell with a real model: an hour
    python research/claims.py --table                # only the page

A cell is a model, a task, a number of pairs and a seed. Each route (DPO; a reward model with best of 4; a reward model
with a policy gradient) trains in a process of its own from the same fine-tuned start on the same pairs, and answers the
same test prompts. A second training run counts its floating-point operations. Routes are kept in `work/claims`.
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
from dpo_workbench.tasks.builtin import load_task, task_names
from dpo_workbench.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "benchmarks" / "results" / "claims.json", ROOT / "docs" / "claims.md", ROOT / "work/claims"
GRADIENT = "sft+policy gradient"  # an arm of this script only
ROUTES = {
    "DPO": "sft+dpo",
    "reward model, best of 4": "sft, reward best of 4",
    "reward model, policy gradient": GRADIENT,
}
SIZES, PROMPTS = (4, 16, 64), {"nano": 100, "smol": 60}


def route(model: str, task: str, seed: int, pairs: int, arm: str, folder: Path) -> dict[str, Any]:
    """Run one route in this process; what it cost and what came of it."""
    import dpo_workbench as dw
    from dpo_workbench.common.environment import peak_memory_gib
    from dpo_workbench.studies.arms import ARMS
    from dpo_workbench.studies.recipe import recipe_for

    ARMS[GRADIENT] = policy_gradient_arm
    recipe = replace(recipe_for(model, task), max_pairs=pairs, test_prompts=PROMPTS[model])
    recipe = replace(recipe, dpo=replace(recipe.dpo, probes=0))  # no dev probes: what is counted is training alone
    given: dict[str, Any] = {"model": model, "adapter": fine_tuned(model, task), "recipe": recipe, "folder": folder}
    dw.compare(task, ["sft"], seed=seed, show=False, **given)  # mining and start: shared
    done = dw.compare(task, ["sft", arm], seed=seed, show=False, **given)
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
        if arm == "sft+dpo":
            train(start, pairs, config, show=False)
        elif arm == GRADIENT:
            train_route(start, pairs, prompts, config, task.max_new_tokens)
        else:
            train_reward_model(start, pairs, config, show=False)
    return float(counter.get_total_flops())


def place(model: str, task: str, seed: int, pairs: int) -> Path:
    return WORK / f"{model}-{task}-{seed}-{pairs}"


def cell(model: str, task: str, seed: int, pairs: int) -> dict[str, Any]:
    """All routes of a cell, each in a new process."""
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
    wanted = len(SIZES) * len(task_names())
    lines = [
        "# The article's claims, tested",
        "",
        "The demo's recipe for each model and task, the same pairs, number of optimiser steps and test prompts for "
        "each route. Training only, without dev probes: mining and the fine-tuned start are shared. Floating-point "
        "operations are counted by PyTorch's counter; memory is the peak of the route's process. The settings were "
        "chosen for DPO, on dev prompts; the other routes take its learning rate, batch and LoRA, and were not tuned "
        "for themselves.",
        "",
        *verdicts(grid),
        *real_model(cells),
        "",
        "## Every run",
        "",
        *every_run(cells),
    ]
    if len(grid) < wanted:
        lines += ["", f"Only {len(grid)} of {wanted} cells of `nano` have been run: read this as a first look."]
    lines += [
        "",
        f"Machine: {facts['machine']['cores']} cores of {facts['machine']['processor']}, {days(cells)}, light jobs "
        "beside: compare the routes' seconds within a cell, not their size. This page is written by `python "
        "research/claims.py --table` from `benchmarks/results/claims.json`.",
    ]
    return "\n".join(lines) + "\n"


def days(cells: list[dict[str, Any]]) -> str:
    """Each date with the tasks that were run on it."""
    seen: dict[str, dict[str, None]] = {}
    for one in cells:
        seen.setdefault(one["date"], {})[f"`{one['task']}`"] = None
    return "; ".join(f"{day} ({', '.join(tasks)})" for day, tasks in sorted(seen.items()))


def every_run(cells: list[dict[str, Any]]) -> list[str]:
    """The long table, a route a line."""
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
    """Each claim with what the cells say about it."""
    names, most = list(ROUTES), max(c["asked"] for c in cells)
    full = [c for c in cells if c["asked"] == most]

    def mean(of: list[dict[str, Any]], name: str, key: str) -> float:
        return fmean(c["routes"][name]["cost"][key] for c in of)

    def gain(of: list[dict[str, Any]], name: str) -> float:
        return fmean(c["routes"][name]["result"]["difference"]["estimate"] for c in of)

    dpo, best, gradient = names
    lines = ["## Less compute than the reward-model route?", ""]
    ratios = {name: mean(full, name, "flops") / mean(full, dpo, "flops") for name in (best, gradient)}
    for name, ratio in ratios.items():
        time = mean(full, name, "train_seconds") / mean(full, dpo, "train_seconds")
        peak = fmean(c["routes"][name]["peak_memory_gib"] / c["routes"][dpo]["peak_memory_gib"] for c in full)
        lines.append(
            f"- {name}: {ratio:.2f} times DPO's operations in training, {time:.2f} times its seconds, {peak:.2f} times "
            f"its peak memory; mean change of the score {gain(full, name):+.3f}, DPO's {gain(full, dpo):+.3f}."
        )
    answers = mean(full, best, "answer_seconds") / mean(full, dpo, "answer_seconds")
    lines += [
        f"- Best of 4 pays at each answer instead: it drew "
        f"{fmean(c['routes'][best]['cost']['sampled_tokens'] for c in full):,.0f} tokens for the test prompts; its "
        f"answers took {answers:.1f} times as long.",
        "",
        f"**Against the policy gradient the claim {_holds(ratios[gradient] > 1)} in operations and time; against the "
        f"training of a reward model alone it {_holds(ratios[best] > 1)}.** In memory the routes are alike: with LoRA "
        "the reward model is one more adapter and a head on the same base.",
        "",
        "## Frugal with data?",
        "",
        "| route | pairs asked for | mean change of the score | tasks where it rose clearly |",
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
        f"**The claim {_holds(ahead)}**, if it means that with few pairs DPO brings more than the other routes with as "
        "many (means of the tasks; one seed). It says nothing of data in general: what is mended here are habits, of "
        "which a handful of pairs speaks; a skill that is missing comes with no number of pairs ([results.md](results."
        "md)).",
        "",
        "## Faster from a changed label to a new verdict?",
        "",
        "Training and answers together, mean of the tasks: "
        + "; ".join(f"{name}: {seconds:.0f} s" for name, seconds in total.items())
        + f". **The claim {_holds(total[dpo] < min(total[best], total[gradient]))}.** Mining, which all need, is left "
        "out, and so is the time of the people who label.",
        "",
        "## One framework?",
        "",
        f"The same call ran on {len({c['task'] for c in cells})} tasks with the recipe's settings: "
        f"`dw.compare(task, arms)`. **That it runs everywhere holds; that it helps everywhere does not:** with {most} "
        f"pairs DPO's score rose in {sum(gain([c], dpo) > 0 for c in full)} of {len(full)} tasks (clearly in "
        f"{sum(c['routes'][dpo]['result']['difference']['low'] > 0 for c in full)}) and fell in "
        f"{sum(gain([c], dpo) < 0 for c in full)}.",
    ]
    return lines


def real_model(cells: list[dict[str, Any]]) -> list[str]:
    """What the main cells with a real model say; nothing where none was run."""
    lines = []
    for one in cells:
        if one["model"] != "nano":
            dpo, best, gradient = (one["routes"][name] for name in ROUTES)
            changes = [route["result"]["difference"]["estimate"] for route in (dpo, best, gradient)]
            flops = [route["cost"]["flops"] / dpo["cost"]["flops"] for route in (best, gradient)]
            peaks = [route["peak_memory_gib"] for route in (dpo, best, gradient)]
            lines.append(
                f"- `{one['model']}`, {one['task']}, {one['pairs']} pairs: DPO {changes[0]:+.3f}, best of 4 "
                f"{changes[1]:+.3f}, policy gradient {changes[2]:+.3f}; operations in training {flops[0]:.2f} and "
                f"{flops[1]:.2f} times DPO's; peak {peaks[0]:.2f}, {peaks[1]:.2f} and {peaks[2]:.2f} GiB."
            )
    return ["", "## And with a real model?", "", *lines] if lines else []


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold"


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["model"], cell["task"], -cell["asked"], cell["seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano", "smol"), default="nano")
    parser.add_argument("--task", choices=task_names())
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
        for task in [args.task] if args.task else task_names():
            known = [c for c in known if _key(c) != _key({**vars(args), "task": task, "asked": pairs})]
            known = sorted([*known, cell(args.model, task, args.seed, pairs)], key=_key)
            write_json(RESULTS, {**facts, "cells": known})
    facts = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_text(PAGE, page(facts))


if __name__ == "__main__":
    main()

"""SFT against SFT + DPO with `smol` on real data: benchmarks/results/real_sets.json and its part of docs/results.md.

    python research/real_sets.py FOLDER                 # all five sets, for hours; FOLDER holds snips/, svamp/, ...
    python research/real_sets.py FOLDER --only snips

The sets are public; none of their rows is in this repository. Each stage is kept in `work/real`, so a stopped run goes
on where it was. Sizes and settings are those of any task that is not built in (docs/recipe.md). ODEX has no training
part: it is trained on the graded candidates of those CoNaLa intents that are not among its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any
from zlib import crc32

from rapidfuzz import fuzz

import dpo_workbench as dw
from dpo_workbench.common.environment import describe
from dpo_workbench.common.files import write_json
from dpo_workbench.evaluation.run import Evaluation
from dpo_workbench.evaluation.statistics import paired_difference
from dpo_workbench.evaluation.verdict import Verdict
from dpo_workbench.pairs.preference import normal
from dpo_workbench.studies.demo import demo
from dpo_workbench.studies.recipe import recipe_for
from dpo_workbench.tasks import scores
from dpo_workbench.tasks.task import Example, Task

ROOT = Path(__file__).resolve().parent.parent
RESULTS, WORK = ROOT / "benchmarks" / "results" / "real_sets.json", ROOT / "work" / "real"
TEST = 250  # prompts at most


def snips(folder: Path) -> Task:
    return Task.from_jsonl(
        folder / "snips" / "snips.jsonl",
        name="snips",
        prompt="Extract the intent and its slots as JSON.\n\n{text}",
        reference=lambda row: {"intent": row["intent"], **row["slots"]},
        group="text",
        split=_snips_split,
        on_leak="drop",
        score="json_fields(invented=True)",
        max_new_tokens=96,
    )


def _snips_split(row: dict[str, Any]) -> str:
    """The set's own validation rows are the test; each twelfth training row is dev."""
    if row["split"] == "validate":
        return "test"
    return "train" if crc32(row["text"].encode()) % 12 else "dev"


def svamp(folder: Path) -> Task:
    return Task.from_jsonl(
        folder / "svamp" / "svamp.jsonl",
        name="svamp",
        prompt="Solve the problem. Write the equation, then a line 'Answer: ' with the number.\n\n{question}",
        reference=lambda row: f"{_equation(row['equation'])}\nAnswer: {row['answer']:g}",
        shares={"train": 0.65, "dev": 0.1, "test": 0.25},
        score="number()",
        max_new_tokens=48,
    )


def _equation(text: str) -> str:
    return re.sub(r"\b(\d+)\.0\b", r"\1", text).strip("() ")


def scitldr(folder: Path) -> Task:
    return Task.from_jsonl(
        folder / "scitldr" / "scitldr_short.jsonl",
        name="scitldr",
        prompt="Summarise the abstract in one sentence of at most 30 words.\n\n{abstract}",
        reference="tldrs",
        group="id",
        split="split",
        score="summary(max_words=30, references='tldrs')",
        max_new_tokens=72,
    )


def spider(folder: Path) -> Task:
    databases = folder / "spider" / "databases"

    @cache
    def schema(name: str) -> str:
        with closing(sqlite3.connect(databases / f"{name}.sqlite")) as database:
            tables = [t for (t,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = {t: [c[1] for c in database.execute(f'PRAGMA table_info("{t}")')] for t in tables}
        return "\n".join(f"{table}({', '.join(names)})" for table, names in columns.items())

    return Task.from_jsonl(
        folder / "spider" / "spider_dev.jsonl",
        name="spider",
        prompt=lambda row: (
            f"Write one SQLite query that answers the question.\n\n{schema(row['db_id'])}\n\n{row['question']}"
        ),
        reference="query",
        group=lambda row: " ".join(row["query"].lower().split()),
        shares={"train": 0.62, "dev": 0.08, "test": 0.3},
        score=scores.sql_result(database=databases, column="db_id"),
        max_new_tokens=80,
    )


def odex(folder: Path) -> Task:
    """Train: the best graded snippet of each intent that ODEX does not have. Test: ODEX."""

    def program(example: Example, answer: str) -> str:
        return example.extra["prompt"] + scores.extract_code(answer).strip() + example.extra["suffix"]

    best = [
        {"intent": row["intent"], "solution": one["code"]}
        for row in graded(folder)
        for one in [max(row["candidates"], key=lambda c: fmean(c["grades"].values()))]
        if fmean(one["grades"].values()) >= 3
    ]
    tested = [json.loads(line) for line in lines(folder / "odex" / "odex_stdlib.jsonl")]
    tested = [{**row, "suite": row["test_start"] + "".join(row["tests"])} for row in tested]
    return Task.from_jsonl(
        {"train": best, "test": tested},
        name="odex",
        prompt=lambda row: ODEX_PROMPT.format(intent=row["intent"]),
        reference="solution",
        score=scores.unit_tests(tests="suite", entry="entry_point", function="check", code=program),
        max_new_tokens=64,
    )


ODEX_PROMPT = "Write one Python expression.\n\n{intent}"


def graded(folder: Path) -> list[dict[str, Any]]:
    """Rows of conala_grades whose intent is not among ODEX's, nor near one (token set ratio of rapidfuzz below 75)."""
    tested = [normal(json.loads(line)["intent"]) for line in lines(folder / "odex" / "odex_stdlib.jsonl")]
    rows = [json.loads(line) for line in lines(folder / "conala_grades" / "conala_grades.jsonl")]
    return [r for r in rows if max(fuzz.token_set_ratio(normal(r["intent"]), intent) for intent in tested) < 75]


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def graded_pairs(folder: Path) -> dw.Pairs:
    """Pairs of candidates, weighted by how clearly the graders agree: of each intent the three with the most weight."""
    rows = []
    for row in graded(folder):
        compared = [
            {
                "prompt": ODEX_PROMPT.format(intent=row["intent"]),
                "chosen": a["code"],
                "rejected": b["code"],
                "weight": w,
            }
            for a, b in itertools.permutations(row["candidates"], 2)
            if fmean(a["grades"].values()) > fmean(b["grades"].values())
            and (w := majority(a["grades"], b["grades"])) > 0
            and a["code"].strip() != b["code"].strip()
        ]
        rows += sorted(compared, key=lambda pair: -pair["weight"])[:3]
    return dw.read_pairs(rows).pairs


def majority(better: dict[str, float], worse: dict[str, float]) -> float:
    """The share of people who order two answers like this, minus the share who order them the other way round."""
    signs = [(better[who] > worse[who]) - (better[who] < worse[who]) for who in better.keys() & worse.keys()]
    return sum(signs) / len(signs) if signs else 0.0


@dataclass(frozen=True)
class Real:
    """A set: its task, and what its field reports in addition to score and failures."""

    task: Callable[[Path], Task]
    metrics: tuple[str, ...]


SETS = {
    "snips": Real(snips, ("slot_f1", "exact")),
    "svamp": Real(svamp, ("exact",)),
    "odex": Real(odex, ("exact",)),
    "scitldr": Real(scitldr, ("rouge_l", "words")),
    "spider": Real(spider, ("exact",)),
}


# the names of the arms in real_sets.json
RECORDED = {"base": "base", "start": "sft", "control": "sft+sft on chosen", "DPO+NLL": "sft+dpo"}


def mined(name: str, folder: Path, seed: int) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """A set with training prompts: its own failures are mined, by the recipe of any user's task."""
    out, task = WORK / f"{name}-{seed}", SETS[name].task(folder)
    recipe = replace(recipe_for("smol", task), test_prompts=TEST)
    done = demo("smol", out, task_name=task, from_scratch=True, recipe=recipe, seed=seed)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return done.arms, {k: results[k] for k in ("pairs", "mined", "settings")} | {"verdict": _short(done.verdict())}


def from_graders(name: str, folder: Path, seed: int) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """ODEX: the pairs are people's grades of other intents' candidates, weighted by their agreement."""
    out, task, pairs = WORK / f"{name}-{seed}", odex(folder), graded_pairs(folder)
    recipe = recipe_for("smol", name)
    recipe = replace(recipe, sft=replace(recipe.sft, epochs=3, seed=seed))
    config = replace(recipe.dpo, seed=seed)
    base = dw.load_model("smol")
    tuned = dw.sft(base, task.train, recipe.sft, folder=out / "sft")
    dpo = dw.train(tuned.model, pairs, config, folder=out / "dpo")
    control = dw.sft(tuned.model, pairs, replace(config, nll_weight=0.0), folder=out / "control")
    models = {"base": base, "start": tuned.model, "control": control.model, "DPO+NLL": dpo.model}
    arms = {arm: dw.evaluate(model, task.test[:TEST], name=arm) for arm, model in models.items()}
    decided = dw.verdict(arms["start"], arms["DPO+NLL"], control=arms["control"], base=arms["base"])
    facts = {"pairs": pairs.summary(), "settings": asdict(recipe), "verdict": _short(decided)}
    return arms, facts


def _short(decided: Verdict) -> dict[str, Any]:
    return {"outcome": decided.outcome, "text": "\n".join([decided.line, *decided.lines]), "numbers": decided.numbers}


def measured(task: Task, arm: Evaluation) -> dict[str, list[float]]:
    """What the field reports, for each answer in order."""
    examples = {example.id: example for example in task.test}
    found: dict[str, list[float]] = {"score": [], "exact": [], "rouge_l": [], "words": []}
    for row in arm.scored:
        found["score"].append(row.value or 0.0)
        found["exact"].append(float(row.value == 1.0))
        found["rouge_l"].append(scores.rouge_l(row.answer, examples[row.id].extra.get("tldrs", row.answer)))
        found["words"].append(float(len(row.answer.split())))
    return found


def slot_f1(task: Task, arm: Evaluation) -> float:
    """Micro F1 of (slot, value) over all answers; the intent is no slot."""
    examples = {example.id: example for example in task.test}
    hits = wanted = given = 0
    for row in arm.scored:
        reference = _slots(examples[row.id].reference)
        found = _slots(row.answer)
        hits, wanted, given = hits + len(reference & found), wanted + len(reference), given + len(found)
    return 2 * hits / max(1, wanted + given)


def _slots(text: str) -> set[tuple[str, str]]:
    try:
        value = scores.parse_json(text)
    except ValueError:
        return set()
    return {(k, normal(str(v))) for k, v in value.items() if k != "intent"} if isinstance(value, dict) else set()


def run_set(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """One set, small enough to commit: numbers only, no text of the set."""
    arms, facts = (from_graders if name == "odex" else mined)(name, folder, seed)
    arms = {RECORDED[arm]: evaluation for arm, evaluation in arms.items()}
    task = SETS[name].task(folder)
    values = {arm: measured(task, evaluation) for arm, evaluation in arms.items()}
    groups = [row.group for row in arms["sft"].scored]
    reported = {}
    for metric in SETS[name].metrics:
        if metric == "slot_f1":
            reported[metric] = {arm: round(slot_f1(task, evaluation), 4) for arm, evaluation in arms.items()}
            continue
        reported[metric] = {arm: round(fmean(of[metric]), 4) for arm, of in values.items()}
        if metric != "words":  # the interval is for shares
            change = paired_difference(values["sft"][metric], values["sft+dpo"][metric], groups)
            reported[metric]["sft+dpo minus sft"] = asdict(change)
    return {
        "set": name, "model": "smol", "seed": seed, "date": date.today().isoformat(), "machine": describe(),
        "command": f"python research/real_sets.py FOLDER --only {name} --seed {seed}",
        "arms": {arm: evaluation.summary() for arm, evaluation in arms.items()}, "metrics": reported, **facts,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=sorted(SETS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in [args.only] if args.only else SETS:
        row = run_set(name, args.folder, args.seed)
        # read now: another process may have written one meanwhile
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
        results = [r for r in results if (r["set"], r["seed"]) != (name, args.seed)] + [row]
        write_json(RESULTS, sorted(results, key=lambda r: (list(SETS).index(r["set"]), r["seed"])))


if __name__ == "__main__":
    main()

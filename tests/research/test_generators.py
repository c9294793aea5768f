"""The built-in tasks' data: made again from their seeds, splits that share no group, references that score 1."""

import importlib
import json
import random
import sys
from pathlib import Path

import pytest

from dpo_workbench.common.environment import data_folder
from dpo_workbench.sandbox.python_runner import Call, run_python
from dpo_workbench.sandbox.values import same
from dpo_workbench.tasks import failures
from dpo_workbench.tasks.builtin import load_task
from dpo_workbench.tasks.python import program

SCRIPTS = Path(__file__).resolve().parents[2] / "research"
NAMES = ("python", "science", "briefs", "sql")


@pytest.fixture(params=NAMES)
def made(request):
    return request.param, generator(request.param)


def generator(name: str):
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(f"generators.{name}" if name == "habits" else f"generators.{name}_tasks")
    finally:
        sys.path.remove(str(SCRIPTS))


def test_the_shipped_files_come_from_the_seeds(made) -> None:
    name, module = made
    task = load_task(name)
    for split, n in module.SIZES.items():
        rows = task.split(split).examples
        made_again = module.make_examples(split, 25, module.SEEDS[split])
        if split == "train":
            made_again = generator("habits").with_labels(name, made_again)
        assert len(rows) == n and made_again == rows[:25]
    assert len(task.train) >= 400 and len(task.dev) >= 200 and len(task.test) >= 300


def test_splits_share_no_prompt_and_no_group(made) -> None:
    name, _ = made
    task = load_task(name)  # raises where a group is on two sides
    prompts = {split: {e.prompt for e in rows} for split, rows in task.splits.items()}
    assert all(len(prompts[split]) == len(rows) for split, rows in task.splits.items())
    assert not prompts["train"] & (prompts["dev"] | prompts["test"]) and not prompts["dev"] & prompts["test"]


@pytest.mark.parametrize("name", ("science", "briefs"))
def test_each_reference_is_right(name: str) -> None:
    task = load_task(name)
    for split in task.splits.values():
        for example in split:
            score = task.score(example, example.reference)
            assert (score.value, score.failure) == (1.0, None), (example, score)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("python", "sql"))
def test_two_hundred_references_pass_in_the_sandbox(name: str) -> None:
    task = load_task(name, allow_weak_sandbox=True)
    rows = [*task.dev.examples[:60], *task.test.examples[:70], *task.train.examples[:80]]
    for example in rows:
        score = task.score(example, example.reference)
        assert (score.value, score.failure) == (1.0, None), (example, score)


@pytest.mark.parametrize("name", ("python", "sql"))
def test_no_generic_detector_calls_a_reference_wrong(name: str) -> None:
    for split in load_task(name).splits.values():
        for example in split:
            assert failures.detect(example.reference, prompt=example.prompt) is None
            assert failures.loop_reason(example.reference) is None, example.reference


def test_variety() -> None:
    python, science, briefs, sql = map(generator, NAMES)
    assert len({f.name for f in python.FAMILIES}) >= 60
    families = {f.name for f in science.FAMILIES}
    assert len(families) >= 40 and len({f.science for f in science.FAMILIES}) == 4
    assert len({k.title for k in briefs.KINDS}) >= 25
    assert len(sql.SCHEMAS) >= 6 and sum(len(homes) for homes in sql.HOMES.values()) == len(sql.SCHEMAS)
    tables = [table for homes in sql.HOMES.values() for table in {t for s in homes for t in sql.SCHEMAS[s]}]
    assert len(tables) == len(set(tables)), "a table of one split is in another"
    seen = {split: {e.extra["family"] for e in rows} for split, rows in load_task("science").splits.items()}
    assert seen["train"] == families and len(seen["test"]) >= 0.9 * len(families)


def test_words_of_the_test_split_are_its_own() -> None:
    python, science, briefs, _ = map(generator, NAMES)
    pools = [python.OPENINGS, python.NOUNS, python.LISTS, python.SECOND, python.TEXTS, python.WORDS, python.TABLES]
    pools += [python.NUMBERS, python.PREFIXES, briefs.LAYOUTS, briefs.OPENINGS]
    pools += [{s: words.split(",") for s, words in pool.items()} for pool in (*science.THINGS.values(), briefs.NAMES)]
    for pool in pools:
        train, dev, test = (set(pool[split]) for split in ("train", "dev", "test"))
        assert not train & test and not train & dev and not dev & test
    for family in science.FAMILIES:
        wordings = family.said.split(" | ")
        assert len(wordings) == len(set(wordings)) == 4, family


@pytest.mark.slow
def test_hidden_tests_kill_the_mutants_of_the_reference() -> None:
    """Of each function's mutants that differ on 200 fresh arguments, the hidden tests must refuse 95 %."""
    module = generator("python")
    killed = alive = 0
    rng = random.Random(7)
    for example in load_task("python").test.examples[:120]:
        head = example.prompt.split("\n\n", 1)[1].split("\n")[0]
        name, tests = example.extra["function"], example.extra["tests"]
        family = next(f for f in module.FAMILIES if example.group.split()[1] == f.name)
        fresh = [module.arguments_of(family.kind.split(), rng) for _ in range(200)]
        hidden = [arguments for arguments, _ in tests]
        right = module.outcomes(head, example.reference, name, fresh)
        wanted = [json.dumps(value) for _, value in tests]
        assert module.outcomes(head, example.reference, name, hidden) == wanted
        for mutant in module.mutants(head, example.reference):
            if module.outcomes("", mutant, name, fresh) == right:
                continue  # another way to say the same
            if module.outcomes("", mutant, name, hidden) == wanted:
                alive += 1
            else:
                killed += 1
    assert killed > 1000 and killed / (killed + alive) >= 0.95, (killed, alive)


def test_mutants_fail_in_the_sandbox_too() -> None:
    module = generator("python")
    example = load_task("python").test[0]
    head = example.prompt.split("\n\n", 1)[1].split("\n")[0]
    tests = example.extra["tests"]
    calls = [Call(example.extra["function"], arguments) for arguments, _ in tests]

    def passes(source: str) -> bool:
        ran = run_python(source, calls, allow_weak_sandbox=True)
        return all(r.problem is None and same(w, r.value) for r, (_, w) in zip(ran.results, tests, strict=True))

    assert passes(program(example.prompt, example.extra["function"], example.reference))
    assert not any(passes(f"{head}\n    return {lazy}\n") for lazy in module.LAZY)


def test_sql_queries_cannot_be_had_by_leaving_out_a_part() -> None:
    import sqlite3

    module = generator("sql")
    task = load_task("sql")
    for split in task.splits.values():
        for example in split.examples[:60]:
            path = data_folder() / "sql" / "databases" / f"{example.extra['database']}.sqlite"
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                assert module.sound(database, example.reference), example
            database.close()


@pytest.mark.parametrize(
    ("name", "failure"),
    [("python", "no_result"), ("science", "wrong_unit"), ("briefs", "too_long"), ("sql", "all_columns")],
)
def test_half_of_the_labels_have_the_habit_that_the_datasheet_names(name, failure):
    habits, task = generator("habits"), load_task(name)
    labelled = [e for e in task.train if e.label is not None]
    able = sum(habits.HABITS[name](e) is not None for e in task.train[: habits.LABELLED])
    assert 0.4 < len(labelled) / able < 0.6
    assert {int(e.id.rsplit("-", 1)[1]) for e in labelled} <= set(range(habits.LABELLED))
    assert not any(e.label for split in ("dev", "test") for e in task.split(split))
    judged = [task.score(e, e.label) for e in labelled[::8]]
    assert sum(s.failure == failure for s in judged) >= 0.9 * len(judged)
    assert f"`{failure}`" in (data_folder() / name / "DATASHEET.md").read_text(encoding="utf-8")

"""`Study`: one model on one task in one folder, with the steps that the demo and the comparison of arms share."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.mining.branch import branch
from dpo_workbench.mining.sample import Found, mine
from dpo_workbench.models.loading import Model, load_adapter, load_model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.studies.recipe import Recipe, recipe_for
from dpo_workbench.tasks.builtin import load_task, shipped_adapter
from dpo_workbench.tasks.task import Split, Task, with_all_splits
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.run import Run, sft

BEST_OF = 4
LEAST_PAIRS = 4  # with 4 pairs a habit of nano was still found and reduced: benchmarks/results/claims.json
ENOUGH_PAIRS = 24  # with fewer pairs of whole answers, `branch` looks for better endings of failed answers


@dataclass
class Study:
    """The shared steps, computed when they are first used. A finished step is read from the folder, not run again."""

    folder: Path
    settings: dict[str, Any]  # what decides the results; written into the folder
    task: Task
    test: Split  # the prompts that every arm answers
    recipe: Recipe
    base: Model
    adapter: str | Path | None  # the fine-tuned start; None: it is trained here
    given_pairs: Pairs | None  # None: pairs are mined
    show: bool
    tune: bool = False  # each trained arm chooses its learning rate on dev
    begun: float = field(default_factory=time.monotonic)

    @property
    def fine_tunes(self) -> bool:
        """Whether the trained arms start from a fine-tuned adapter. Otherwise they start from the model as it is."""
        return bool(self.adapter or self.recipe.sft_prompts)

    @cached_property
    def start(self) -> Model:
        """The model that the trained arms start from: fine-tuned, or as it is if the recipe has no fine-tuning."""
        if not self.fine_tunes:
            return self.base
        trained = self.folder / "sft" / "adapter"
        if self.adapter or trained.is_dir():
            return load_adapter(self.base, self.adapter or trained)
        rows = self.task.train[: self.recipe.sft_prompts]
        self.say(f"No fine-tuned adapter is shipped or given: fine-tuning the model on {len(rows)} examples first")
        return self.fit("sft", sft, self.base, rows, self.recipe.sft).model

    @cached_property
    def found(self) -> Found:
        """Answers of the start to training prompts, judged; where needed with better endings for failed answers."""
        file, recipe = self.folder / "mined.json", self.recipe
        if file.is_file():
            self.say("mined.json: read from the folder")
            found = Found.load(file, self.task)
        else:
            prompts = self.task.train[recipe.mine_from :][: recipe.mine_prompts]
            common: dict[str, Any] = {"seed": recipe.dpo.seed, "show": self.show}
            decoding: dict[str, Any] = {"temperature": recipe.temperature, "greedy": recipe.greedy}
            found = mine(self.start, prompts, recipe.samples, **decoding, **common)
            target = recipe.target or (common_failures(found) if recipe.gap is None else ())
            found = replace(found, settings=found.settings | {"target": list(target)})
            if target and not (recipe.greedy and right_and_wrong(found, target) >= ENOUGH_PAIRS):
                found = branch(self.start, found, target, per_prompt=recipe.per_prompt, **common)
            found.save(file)
        self.say(f"{found}\nHeadroom: {found.headroom(found.settings['target'])}")
        return found

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs that every trained arm learns from."""
        if self.given_pairs is not None:
            return self.given_pairs
        target, recipe = self.found.settings["target"], self.recipe
        limits: dict[str, Any] = {"per_prompt": recipe.per_prompt, "most": recipe.max_pairs, "gap": recipe.gap}
        pairs = self.found.pairs(classes=target or None, use_reference=False, **limits)
        if len(pairs) < LEAST_PAIRS:
            raise WorkbenchError(
                f"Training needs at least {LEAST_PAIRS} pairs. Got {len(pairs)} from {len(self.found.rows)} prompts. "
                f"{self.found.headroom(target)} Mine more prompts (`Recipe.mine_prompts`), or use harder ones."
            )
        pairs.save(self.folder / "pairs.jsonl")
        self.say(repr(pairs))
        return pairs

    @property
    def verdict_context(self) -> dict[str, Any]:
        """What `verdict` needs besides evaluations: pairs and, where they were mined, target and headroom."""
        if self.given_pairs is not None:
            return {"pairs": self.pairs}
        target = tuple(self.found.settings["target"])
        return {"pairs": self.pairs, "mined": target, "headroom": self.found.headroom(target)}

    def fit(self, stage: str, train: Callable[..., Run], model: Model, rows: Any, config: TrainConfig) -> Run:
        """Train with the study's probe and folder, and save the adapter. A stopped run continues where it stopped."""
        folder, probe = self.folder / stage, self.task.dev[: self.recipe.probe_prompts]
        run = train(model, rows, config, probe=probe, folder=folder, show=self.show)
        if not run.finished:  # a half-trained model must not be evaluated as if it were done
            raise KeyboardInterrupt
        run.save(folder)
        self.say(repr(run))
        return run

    def say(self, text: str) -> None:
        """Print a line, unless the study is silent."""
        if self.show:
            print(text, flush=True)


def open_study(
    model: str,
    task: Task | str,
    folder: str | Path,
    *,
    split: str = "test",
    recipe: Recipe | None = None,
    adapter: str | Path | None = None,
    quantize: str | None = None,
    from_scratch: bool = False,
    pairs: Pairs | None = None,
    template: dict[str, Any] | None = None,
    seed: int = 0,
    tune: bool = False,
    base: Model | None = None,
    show: bool = True,
) -> Study:
    """Load task and model, and open the folder, which holds one run. See `demo` and `compare` for the arguments.

    `base` is the model if it is loaded already.
    """
    name = task.name if isinstance(task, Task) else str(task)
    task = with_all_splits(task if isinstance(task, Task) else load_task(task))
    recipe = recipe or recipe_for(model, task)
    recipe = replace(recipe, dpo=replace(recipe.dpo, seed=seed), sft=replace(recipe.sft, seed=seed))
    test = task.split(split)[: recipe.test_prompts]
    prompts = _digest([(e.id, e.prompt, e.reference) for e in test])
    settings = {"model": model, "task": name, "split": split, "prompts": prompts, "from_scratch": from_scratch}
    settings |= {"tune": tune}
    settings |= {"adapter": str(adapter)} if adapter else {}
    settings |= {"quantize": quantize} if quantize else {}
    settings |= {"pairs": _digest([asdict(pair) for pair in pairs])} if pairs is not None else {}
    settings |= {"template": template} if template else {}
    settings = json.loads(json.dumps(settings | asdict(recipe)))
    mark = Path(folder) / "settings.json"
    recorded = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else settings
    if {key: value for key, value in recorded.items() if key != "date"} != settings:
        raise WorkbenchError(
            f"A run folder holds one run. {folder} holds a run with other settings (see its settings.json). Choose "
            "another folder with --out, or delete this one."
        )
    base = base or load_model(model, quantize=quantize, template=template)
    base = replace(base, chat=base.chat.dated(recorded.get("date")))  # a study keeps its first day's date, if any
    settings |= {"date": base.chat.date} if base.chat.date else {}
    write_json(mark, settings)
    adapter = adapter or (None if from_scratch else shipped_adapter(model, task))
    return Study(Path(folder), settings, task, test, recipe, base, adapter, pairs, show, tune)


def _digest(rows: Any) -> str:
    """A short hash of rows. It shows when the prompts or pairs of a study have changed since it was started."""
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:12]


def common_failures(found: Found) -> tuple[str, ...]:
    """The most frequent failure class, and every other with a quarter or more of the failures.

    Counts greedy answers where some of them failed, because evaluation sees greedy answers only.
    """
    ranked = (found.greedy_failures or found.failures).most_common()
    total = sum(n for _, n in ranked)
    return tuple(name for place, (name, n) in enumerate(ranked) if place == 0 or 4 * n >= total)


def right_and_wrong(found: Found, target: tuple[str, ...]) -> int:
    """Number of prompts with both an answer that fails as `target` and one that passes: pairs of whole answers."""
    drawn = [{s.failure for s in samples} for _, samples in found.rows]
    return sum(None in failures and not failures.isdisjoint(target) for failures in drawn)

"""`train` and `sft`: from pairs, or examples, to a trained model. `record_run` prepares a later export.

`Trainer` adds to the loop probes that keep the best adapter, checkpoints, and a clean end by Ctrl-C.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.common.interrupts import Interrupts, Stopped, how_to_go_on
from dpo_workbench.common.progress import progress
from dpo_workbench.common.trackers import check_tracker, track
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.models.publish import NAMES, publish, save_run
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.tasks.task import Split
from dpo_workbench.training import guards
from dpo_workbench.training.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from dpo_workbench.training.config import SFT_CONFIG, TrainConfig
from dpo_workbench.training.guards import HeldOut, fit_memory, hold_out, rows_within_memory
from dpo_workbench.training.loop import TrainState, step_line, training_steps
from dpo_workbench.training.losses import Likelihood, Objective, Preference, Reference, loss_terms
from dpo_workbench.training.packing import Row, steps_per_epoch
from dpo_workbench.training.reference import choose_packing, reference_logps
from dpo_workbench.training.tokens import pair_texts, tokenize

PROBE_PROMPTS = 48
RECORD = "run.json"


@dataclass
class Run:
    """The result of a run: the model with the adapter that was kept, and the run's history."""

    model: Model
    config: TrainConfig  # micro_tokens and checkpointing are those that fitted into memory
    history: list[dict[str, float]] = field(default_factory=list)  # one entry for each step, names as in TRL
    probes: list[dict[str, float]] = field(default_factory=list)  # dev score and held-out log-ratios on the way
    best_step: int = 0  # number of steps after which the kept adapter was saved
    finished: bool = True  # False: interrupted, and the model is the best one until then
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)  # counts of what it was trained on, for `push_to_hub`

    def save(self, folder: str | Path) -> Path:
        """Write the adapter, the tokenizer and the run's records into a run folder, for `dw.publish` and exports."""
        records = {name: getattr(self, name) for name in NAMES} | {"config": self.config.to_dict()}
        return save_run(Path(folder), self.model, records)

    def push_to_hub(self, repo_id: str, *, private: bool = True, verdict: Any = None, license: str = "unknown") -> str:
        """Upload adapter, tokenizer and a model card to the Hugging Face Hub; arguments and errors as in `publish`."""
        with TemporaryDirectory() as scratch:
            return publish(self.save(scratch), repo_id, private=private, verdict=verdict, license=license)

    @property
    def scores(self) -> list[dict[str, float]]:
        """The probes that have a dev score."""
        return [probe for probe in self.probes if "score" in probe]

    @property
    def unchanged(self) -> bool:
        """True if no later adapter scored higher than the one at the start, so that one was kept."""
        return bool(self.scores) and self.best_step == 0

    def __repr__(self) -> str:
        """One paragraph: what was trained, what the probes saw, which adapter was kept."""
        done = len(self.history)
        parts = [f"Run: {done} steps{'' if self.finished else ' (interrupted)'} in {self.seconds:.0f} s."]
        if self.history:
            parts.append(f"Last step: {step_line(done, done, self.history[-1]).split(' ', 2)[2]}.")
        if self.scores:
            first, best = self.scores[0], next(p for p in self.scores if p["step"] == self.best_step)
            parts.append(f"Dev score {first['score']:.3f} at the start, {best['score']:.3f} at step {self.best_step}.")
            kept = "No later adapter scored higher, so the model is unchanged."
            parts.append(kept if self.unchanged else "That adapter was kept.")
        return " ".join(parts)


@dataclass
class Trainer:
    """One run: what it trains on, what it watches, and where it saves."""

    model: Model  # the starting point
    rows: list[Row]
    objective: Objective
    config: TrainConfig
    probe: Split | None  # dev examples that are answered and scored on the way
    held_out: HeldOut | None  # pairs that are never trained on
    folder: str | Path | None  # for checkpoints
    show: bool

    def run(self) -> Run:
        """Train, or continue from the newest checkpoint in the folder. Ctrl-C and SIGTERM end the run cleanly."""
        begun = self.last_saved = time.monotonic()
        config = self.config
        self.policy = self.model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
        self.state = TrainState(self.policy, config)
        self.result = result = Run(self.policy, config, data={"from_adapter": self.model.adapter is not None})
        self.best = self.policy.adapter_tensors()
        self.identity = self._identity() if self.folder else {}
        n_steps = steps_per_epoch(len(self.rows), config) * config.epochs
        watching = config.probes if self.probe or self.held_out else 0
        self.probe_steps = {round(n_steps * k / watching) for k in range(watching + 1)} if watching else set()
        with Interrupts() as self.interrupts:
            try:
                self._resume()
                self._save_checkpoint(due=self._probe())
                reports = track(config.report_to, config.to_dict(), result.history, result.probes, self.folder)
                with reports as report, progress(n_steps, "training", self.show, done=self.state.step) as advance:
                    for metrics in training_steps(self.state, self.rows, self.objective, self.interrupts):
                        result.history.append(metrics)
                        step = self.state.step
                        if self.show and (step % max(1, n_steps // 10) == 0 or step == n_steps):
                            print(step_line(step, n_steps, metrics), flush=True)
                        advance(1)
                        probed = self._probe()
                        self._save_checkpoint(due=probed or step == n_steps)
                        report()
            except KeyboardInterrupt as stop:
                result.finished = False
                if isinstance(stop, Stopped):  # between two steps
                    self._save_checkpoint(due=True)
                done = f"interrupted after {len(result.history)} of {n_steps} steps"
                how = f". To continue, {how_to_go_on()}" if self.folder else ""
                print(f"{done}: history and best adapter are kept{how}", flush=True)
            if result.scores:
                self.policy.set_adapter_tensors(self.best)
            else:
                result.best_step = len(result.history)
            result.config, result.seconds = self.state.config, time.monotonic() - begun
        return result

    def _probe(self) -> bool:
        """At the planned steps: score the dev prompts, measure the held-out pairs, keep the best adapter."""
        step, probes = self.state.step, self.result.probes
        if step not in self.probe_steps or (probes and probes[-1]["step"] == step):
            return False
        entry: dict[str, float] = {"step": step}
        told = []
        if self.probe:
            entry |= self._score_dev_prompts(self.probe)
            failed = f"failed {100 * entry['failed']:.0f} % of {entry['prompts']}"
            told.append(f"dev score {entry['score']:.3f}, {failed}")
        if held_out := self.held_out:
            seen, self.state.config = rows_within_memory(
                lambda config: held_out.log_ratios(self.policy, config), held_out.rows, self.state.config
            )
            entry |= seen
            chosen, rejected = entry["chosen_logratio"], entry["rejected_logratio"]
            told.append(f"held-out log-ratios {chosen:+.2f} chosen, {rejected:+.2f} rejected")
        probes.append(entry)
        if self.probe and max(self.result.scores, key=lambda p: p["score"])["step"] == step:
            self.best, self.result.best_step = self.policy.adapter_tensors(), step
        if self.show:
            print(f"probe at step {step}: {'; '.join(told)}", flush=True)
        if held_out:
            texts = [guards.displacement(p["chosen_logratio"], len(held_out.rows)) for p in probes]
            if texts[-1] and not any(texts[:-1]):  # warn once in a run
                warnings.warn(texts[-1], stacklevel=4)
        return True

    def _score_dev_prompts(self, probe: Split) -> dict[str, float]:
        task, examples = probe.task, list(probe)
        prompts, limit = [e.prompt for e in examples], task.max_new_tokens
        answers = generate(self.policy, prompts, max_new_tokens=limit, on_answers=self.interrupts.check)
        judged = [task.try_score(e, a.text, finished=a.finished) for e, (a,) in zip(examples, answers, strict=True)]
        scores = [score for score, _ in judged if score]
        if not scores:
            raise WorkbenchError(
                f"A probe needs scores. None of {len(judged)} answers could be scored; {judged[0][1]}. Check the "
                "task's `score` function."
            )
        failed = fmean(s.failure is not None for s in scores)
        return {"score": fmean(s.value for s in scores), "failed": failed, "prompts": len(scores)}

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this run: settings, data and model."""
        weights = self.objective.weights if isinstance(self.objective, Preference) else {}
        data = repr(([e.id for e in self.probe or ()], sorted(weights.items()), self.rows))
        settings = self.config.to_dict()
        for name in ("micro_tokens", "checkpointing", "checkpoint_seconds", "report_to"):  # the result is the same
            settings.pop(name)
        settings |= {"objective": type(self.objective).__name__, "model": self.policy.fingerprint()[:12]}
        settings["chat"] = self.model.chat.settings
        return {**settings, "data": hashlib.sha256(data.encode()).hexdigest()[:12]}

    def _save_checkpoint(self, due: bool) -> None:
        """Save the run if it is due or the last time was long ago. A full disk does not stop the run."""
        state, result = self.state, self.result
        overdue = time.monotonic() - self.last_saved >= self.config.checkpoint_seconds
        if self.folder is None or not (due or overdue):
            return
        tensors = {"adapter": self.policy.adapter_tensors(), "best_adapter": self.best}
        tensors["optimizer"] = pack_optimizer(state.optimizer)
        facts = {"history": result.history, "probes": result.probes, "best_step": result.best_step}
        facts |= {"micro_tokens": state.config.micro_tokens, "checkpointing": state.config.checkpointing}
        facts |= {"step": state.step, "scaler": state.scaler.state_dict()}
        try:
            save_checkpoint(Path(self.folder) / "checkpoints", tensors, facts, self.identity)
        except WorkbenchError as error:
            print(f"no checkpoint after step {state.step}. {error} Training continues.", flush=True)
        self.last_saved = time.monotonic()

    def _resume(self) -> None:
        """Continue from the newest complete checkpoint of this very run, if there is one."""
        saved = load_checkpoint(Path(self.folder) / "checkpoints", self.identity) if self.folder else None
        if saved is None:
            return
        tensors, facts = saved
        state, result = self.state, self.result
        self.policy.set_adapter_tensors(tensors["adapter"])
        unpack_optimizer(state.optimizer, tensors["optimizer"])
        state.scaler.load_state_dict(facts["scaler"])
        state.step, self.best = facts["step"], tensors["best_adapter"]
        result.history, result.probes, result.best_step = facts["history"], facts["probes"], facts["best_step"]
        # start with what fitted into memory then
        micro_tokens = min(self.config.tokens_at_once, facts["micro_tokens"])
        checkpointing = self.config.checkpointing or facts["checkpointing"]
        state.config = replace(self.config, micro_tokens=micro_tokens, checkpointing=checkpointing)
        print(f"continuing after step {state.step}", flush=True)


def train(
    model: Model,
    pairs: Pairs,
    config: TrainConfig | None = None,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    show: bool = True,
) -> Run:
    """Train a LoRA adapter with DPO or another preference loss.

    Ctrl-C, the notebook's stop button and SIGTERM end the run cleanly: it returns the best adapter until then. With a
    folder, the same call continues where it stopped and ends in the same bits.

    Args:
        model: the starting point and the reference, left unchanged. A new adapter, or a copy of its own, is trained.
        pairs: what to learn from. Their weights count relative to the mean weight of the pairs trained on.
        config: see `TrainConfig`.
        probe: dev examples that are answered and scored on the way; the adapter with the best score is kept. By
            default the first 48 dev examples of the pairs' task. Without a task and a probe, the last adapter is kept,
            and a few prompts are answered at the end to look for degenerate answers.
        folder: for checkpoints and the reference's log-probabilities.
        show: print a progress bar and plain lines.

    Raises:
        WorkbenchError: the loss and its settings do not fit, a value is not finite, a row is too long or does not fit
            into memory alone, or the policy differs from the reference before the first update.
    """
    config = config or TrainConfig()
    loss_terms(config)  # settings that do not fit are refused now, not after the reference has been computed
    check_tracker(config.report_to)
    probe = _first_dev_examples(pairs.task) if probe is None else probe
    model = _with_recorded_date(model, folder)
    watched, trained = hold_out(list(pairs), config)
    rows = tokenize(model, map(pair_texts, trained + watched), config.max_tokens, show)
    rows, watched_rows = rows[: len(trained)], rows[len(trained) :]
    config = _with_sizes(model, rows + watched_rows, choose_packing(model, rows, config), folder)
    cache = Path(folder) / "reference" if folder else None
    reference: Reference = {}
    with progress(len(pairs), "reference", show) as advance:
        for some in filter(None, (rows, watched_rows)):
            compute = partial(reference_logps, model, some, folder=cache, on_rows=advance)
            values, config = rows_within_memory(compute, some, config)
            reference |= values
    mean = fmean(pair.weight for pair in trained)
    objective = Preference(reference, config, {pair.id: pair.weight / mean for pair in trained})
    held_out = HeldOut(watched_rows, reference) if watched else None
    run = Trainer(model, rows, objective, config, probe, held_out, folder, show).run()
    run.data |= {**pairs.summary(), "task": getattr(pairs.task, "name", None), "held_out": len(watched)}
    if probe is None and config.probes and run.history:  # nothing scores the answers, so look at margin and answers
        texts = [guards.large_margin(run.history[-1]["rewards/margins"])]
        if run.finished:
            limit = min(max(32, 2 * max(len(row.answer_ids[0]) for row in rows)), 256)
            room = model.max_positions - max(len(row.prompt_ids) for row in rows + watched_rows)
            prompts = [pair.prompt for pair in watched or trained]
            texts.append(guards.degenerate_answers(model, run.model, prompts, min(limit, room)))
        for text in filter(None, texts):
            warnings.warn(text, stacklevel=2)
    return run


def sft(
    model: Model,
    examples: Sequence[Any],
    config: TrainConfig = SFT_CONFIG,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    show: bool = True,
) -> Run:
    """Supervised fine-tuning with LoRA: on the labels (or references) of a split, or on the chosen answers of pairs.

    Args:
        examples: a `Split`, or `Pairs` (the chosen answer of each prompt, once): the control for DPO.
        config: see `SFT_CONFIG`. Its loss, beta and nll_weight have no effect here.
        model, probe, folder, show: as in `train`.
    """
    probe = _first_dev_examples(getattr(examples, "task", None)) if probe is None else probe
    model = _with_recorded_date(model, folder)
    texts = {(e.prompt, e.chosen if isinstance(e, Pair) else e.label or e.reference): e.id for e in examples}
    if not texts:
        raise WorkbenchError("Fine-tuning needs examples. Got none. Choose a split with examples.")
    if empty := [i for (_, answer), i in texts.items() if not answer.strip()]:
        raise WorkbenchError(
            f"Fine-tuning needs a label or reference for each example. Got none for {len(empty)} of {len(texts)}, such "
            f"as {empty[0]!r}. Choose a task that has them, or train on pairs."
        )
    rows = tokenize(model, [(i, prompt, (answer,)) for (prompt, answer), i in texts.items()], config.max_tokens, show)
    check_tracker(config.report_to)
    config = _with_sizes(model, rows, choose_packing(model, rows, config), folder)
    run = Trainer(model, rows, Likelihood(), config, probe, None, folder, show).run()
    run.data |= {"examples": len(rows), "task": getattr(getattr(examples, "task", None), "name", None)}
    return run


def _first_dev_examples(task: Any) -> Split | None:
    """The probe by default."""
    return task.dev[:PROBE_PROMPTS] if task is not None and len(task.splits.get("dev", ())) else None


def _with_sizes(model: Model, rows: Sequence[Row], config: TrainConfig, folder: str | Path | None) -> TrainConfig:
    """`fit_memory`; a run that is resumed gets what it began with, so that it ends in the same bits."""
    file = Path(folder) / "checkpoints" / "auto.json" if folder else None
    if file and file.is_file():
        begun = json.loads(file.read_text())
        config = replace(config, **{key: value for key, value in begun.items() if getattr(config, key) == "auto"})
    found = fit_memory(model, rows, config)
    if file and found != config:
        write_json(file, {"micro_tokens": found.micro_tokens, "checkpointing": found.checkpointing})
    return found


def _with_recorded_date(model: Model, folder: str | Path | None) -> Model:
    """The model with the date that its chat template printed in earlier runs of this folder, also after midnight."""
    for path in Path(folder).glob("checkpoints/*/settings.json") if folder else ():
        recorded = json.loads(path.read_text(encoding="utf-8")).get("chat", {})
        model = replace(model, chat=model.chat.dated(recorded.get("date")))
    return model


def record_run(folder: str | Path, model: Model, pairs: Pairs, config: TrainConfig) -> None:
    """Write what `dw.train` gets into its run folder, for `dw.export_trl` and others: the start of the run."""
    folder, model = Path(folder), _with_recorded_date(model, folder)
    is_own_folder = Path(model.source).is_dir() and model.name not in ("nano", "smol")
    if model.adapter is not None:
        model.save(folder / "start")
    pairs.save(folder / "pairs.jsonl")
    record = {
        "model": str(Path(model.name).resolve()) if is_own_folder else model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "quantize": model.quantize,
        "start": model.adapter is not None,
        "fingerprint": model.fingerprint(),
        **model.chat.settings,
        "config": config.to_dict(),
    }
    write_json(folder / RECORD, record)

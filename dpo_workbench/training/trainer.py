"""`Trainer` adds to the loop probes that keep the best adapter, checkpoints, and a clean end by Ctrl-C."""

from __future__ import annotations

import hashlib
import statistics
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dpo_workbench.common.environment import describe
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import pre
from dpo_workbench.common.interrupts import Interrupts, Stopped, how_to_go_on
from dpo_workbench.common.progress import progress
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.tasks.task import Split
from dpo_workbench.training.batches import steps_per_epoch
from dpo_workbench.training.checkpoint import (
    Checkpoint,
    differences,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import displacement, rows_within_memory
from dpo_workbench.training.held_out import HeldOut
from dpo_workbench.training.loop import new_state, step_line, training_steps
from dpo_workbench.training.objectives import Objective, Preference
from dpo_workbench.training.packing import Row


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

    @property
    def scores(self) -> list[dict[str, float]]:
        """The probes that have a dev score."""
        return [probe for probe in self.probes if "score" in probe]

    @property
    def unchanged(self) -> bool:
        """True if no later adapter scored higher than the one at the start, so that one was kept."""
        return bool(self.scores) and self.best_step == 0

    @property
    def text(self) -> str:
        """One paragraph: what was trained, what the probes saw, which adapter was kept."""
        done = len(self.history)
        parts = [f"{done} steps{'' if self.finished else ' (interrupted)'} in {self.seconds:.0f} s."]
        if self.history:
            parts.append(f"Last step: {step_line(done, done, self.history[-1]).split(' ', 2)[2]}.")
        if self.scores:
            first, best = self.scores[0], next(p for p in self.scores if p["step"] == self.best_step)
            parts.append(f"Dev score {first['score']:.3f} at the start, {best['score']:.3f} at step {self.best_step}.")
            if self.unchanged:
                parts.append("No later adapter scored higher, so the model is unchanged.")
            else:
                parts.append("That adapter was kept.")
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"Run: {self.text}"

    def _repr_html_(self) -> str:
        return pre(repr(self))


@dataclass
class Trainer:
    """One run: what it trains on, what it watches, and where it saves."""

    policy: Model
    rows: list[Row]
    objective: Objective
    config: TrainConfig
    probe: Split | None = None  # dev examples that are answered and scored on the way
    held_out: HeldOut | None = None  # pairs that are never trained on
    folder: Path | None = None  # for checkpoints
    show: bool = True

    def run(self) -> Run:
        """Train, or continue from the newest checkpoint in the folder. Ctrl-C and SIGTERM end the run cleanly."""
        begun = self.last_saved = time.monotonic()
        self.state = new_state(self.policy, self.config)
        self.result = Run(self.policy, self.config)
        self.best = self.policy.adapter_tensors()
        self.identity = self._identity() if self.folder else {}
        n_steps = steps_per_epoch(len(self.rows), self.config) * self.config.epochs
        watching = self.config.probes if self.probe or self.held_out else 0
        self.probe_steps = {round(n_steps * k / watching) for k in range(watching + 1)} if watching else set()
        with Interrupts() as self.interrupts:
            try:
                self._resume()
                self._save_checkpoint(due=self._probe())
                with progress(n_steps, "training", self.show, done=self.state.step) as advance:
                    for metrics in training_steps(self.state, self.rows, self.objective, self.interrupts):
                        self._log(metrics, n_steps)
                        advance(1)
                        probed = self._probe()
                        self._save_checkpoint(due=probed or self.state.step == n_steps)
            except KeyboardInterrupt as stop:
                self._interrupted(isinstance(stop, Stopped), n_steps)
            if self.result.scores:
                self.policy.set_adapter_tensors(self.best)
            else:
                self.result.best_step = len(self.result.history)
            self.result.config, self.result.seconds = self.state.config, time.monotonic() - begun
        return self.result

    def _log(self, metrics: dict[str, float], n_steps: int) -> None:
        self.result.history.append(metrics)
        step = self.state.step
        if self.show and (step % max(1, n_steps // 10) == 0 or step == n_steps):
            print(step_line(step, n_steps, metrics), flush=True)

    def _interrupted(self, between_steps: bool, n_steps: int) -> None:
        """Save what is complete, and say how to continue."""
        self.result.finished = False
        done = len(self.result.history)
        if between_steps:
            self._save_checkpoint(due=True)
        how = f". To continue, {how_to_go_on()}" if self.folder else ""
        print(f"interrupted after {done} of {n_steps} steps: history and best adapter are kept{how}", flush=True)

    def _probe(self) -> bool:
        """At the planned steps: score the dev prompts, measure the held-out pairs, keep the best adapter."""
        step, probes = self.state.step, self.result.probes
        if step not in self.probe_steps or (probes and probes[-1]["step"] == step):
            return False
        entry: dict[str, float] = {"step": step}
        if self.probe:
            entry |= self._score_dev_prompts(self.probe)
        if self.held_out:
            held_out = self.held_out
            seen, self.state.config = rows_within_memory(
                lambda config: held_out.log_ratios(self.policy, config), held_out.rows, self.state.config
            )
            entry |= seen
        probes.append(entry)
        if self.probe and max(self.result.scores, key=lambda p: p["score"])["step"] == step:
            self.best, self.result.best_step = self.policy.adapter_tensors(), step
        if self.show:
            print(_probe_line(entry), flush=True)
        if self.held_out:
            texts = [displacement(p["chosen_logratio"], len(self.held_out.rows)) for p in probes]
            if texts[-1] and not any(texts[:-1]):  # warn once in a run
                warnings.warn(texts[-1], stacklevel=4)
        return True

    def _score_dev_prompts(self, probe: Split) -> dict[str, float]:
        task, examples = probe.task, list(probe)
        answers = generate(
            self.policy,
            [e.prompt for e in examples],
            max_new_tokens=task.max_new_tokens,
            on_answers=self.interrupts.check,
        )
        judged = [task.try_score(e, a.text, finished=a.finished) for e, (a,) in zip(examples, answers, strict=True)]
        scores = [score for score, _ in judged if score]
        if not scores:
            raise WorkbenchError(
                f"A probe needs scores. None of {len(judged)} answers could be scored; {judged[0][1]}. Check the "
                "task's `score` function."
            )
        return {
            "score": statistics.fmean(s.value for s in scores),
            "failed": sum(s.failure is not None for s in scores) / len(scores),
            "prompts": len(scores),
        }

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this run: settings, data and model."""
        weights = self.objective.weights if isinstance(self.objective, Preference) else {}
        digest = hashlib.sha256(repr(([e.id for e in self.probe or ()], sorted(weights.items()))).encode())
        for row in self.rows:
            digest.update(repr((row.id, row.prompt_ids, row.answer_ids)).encode())
        settings = self.config.to_dict()
        for name in ("micro_tokens", "checkpointing", "checkpoint_seconds"):  # these do not change the result
            settings.pop(name)
        settings["objective"] = type(self.objective).__name__
        return {**settings, "data": digest.hexdigest()[:12], "model": self.policy.fingerprint()[:12]}

    def _machine(self) -> dict[str, Any]:
        """What may change the last bits of a resumed run."""
        threads, device = torch.get_num_threads(), str(self.policy.device)
        return describe() | {"threads": threads, "device": device, "micro_tokens": self.config.micro_tokens}

    def _save_checkpoint(self, due: bool) -> None:
        """Save the run if it is due or the last time was long ago. A full disk does not stop the run."""
        overdue = time.monotonic() - self.last_saved >= self.config.checkpoint_seconds
        if self.folder is None or not (due or overdue):
            return
        facts = {
            "history": self.result.history,
            "probes": self.result.probes,
            "best_step": self.result.best_step,
            "micro_tokens": self.state.config.micro_tokens,
            "checkpointing": self.state.config.checkpointing,
            "scaler": self.state.scaler.state_dict(),
        }
        tensors = self.policy.adapter_tensors(), self.best, pack_optimizer(self.state.optimizer)
        checkpoint = Checkpoint(self.state.step, *tensors, facts, self._machine())
        try:
            save_checkpoint(self.folder / "checkpoints", checkpoint, self.identity)
        except WorkbenchError as error:
            print(f"no checkpoint after step {self.state.step}. {error} Training continues.", flush=True)
        self.last_saved = time.monotonic()

    def _resume(self) -> None:
        """Continue from the newest complete checkpoint of this very run, if there is one."""
        if self.folder is None:
            return
        state = self.state
        saved = load_checkpoint(self.folder / "checkpoints", self.identity, self.best, state.parameters)
        if saved is None:
            return
        self.policy.set_adapter_tensors(saved.adapter)
        unpack_optimizer(state.optimizer, saved.optimizer)
        state.scaler.load_state_dict(saved.facts["scaler"])
        state.step, self.best = saved.step, saved.best_adapter
        self.result.history, self.result.probes = saved.facts["history"], saved.facts["probes"]
        self.result.best_step = saved.facts["best_step"]
        machine = self._machine()
        if saved.machine.get("micro_tokens") == self.config.micro_tokens:  # start with what fitted into memory then
            fitted = {key: saved.facts[key] for key in ("micro_tokens", "checkpointing")}
            state.config = replace(state.config, **fitted)
        other = differences(saved.machine, machine)
        note = f", where the last bits may differ{other}" if other else ""
        print(f"continuing after step {saved.step}{note}", flush=True)


def _probe_line(entry: dict[str, float]) -> str:
    parts = []
    if "score" in entry:
        parts.append(f"dev score {entry['score']:.3f}, failed {100 * entry['failed']:.0f} % of {entry['prompts']}")
    if "chosen_logratio" in entry:
        chosen, rejected = entry["chosen_logratio"], entry["rejected_logratio"]
        parts.append(f"held-out log-ratios {chosen:+.2f} chosen, {rejected:+.2f} rejected")
    return f"probe at step {entry['step']}: {'; '.join(parts)}"

"""`Trainer`: steps, probes with the best adapter kept, checkpoints, and an end by Ctrl-C that goes on later; `Run`."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dpo_workbench.common import parallel
from dpo_workbench.common.environment import describe
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.interrupts import Interrupts, Stopped, how_to_go_on
from dpo_workbench.common.memory import within_memory
from dpo_workbench.common.progress import progress
from dpo_workbench.models.generation import ROWS, generate
from dpo_workbench.models.kept import Kept
from dpo_workbench.models.loading import Model
from dpo_workbench.tasks.task import Score, Split
from dpo_workbench.training import loop
from dpo_workbench.training.checkpoint import (
    State,
    differences,
    load_checkpoint,
    pack_optimizer,
    rng_state,
    save_checkpoint,
    set_rng_state,
    unpack_optimizer,
)
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import displacement, rows_within_memory
from dpo_workbench.training.packing import Row

SCALE = 2.0**16  # of the loss in fp16, to begin with


@dataclass(frozen=True)
class Start:
    """The first probe of a run, which another run from the same model need not answer again."""

    identity: str  # of the model and the dev prompts
    entry: dict[str, float]
    answers: dict[str, str]  # by prompt id: later probes look their guesses up there


@dataclass
class Run:
    """What came of a run: the model with the best adapter, and its history."""

    model: Model
    config: TrainConfig  # micro_tokens is what fitted into memory
    history: list[dict[str, float]] = field(default_factory=list)  # one entry a step, metric names as in TRL
    probes: list[dict[str, float]] = field(default_factory=list)  # dev score on the way
    best_step: int = 0  # steps done when the kept adapter was saved
    finished: bool = True  # False: interrupted, and the model is the best until then
    seconds: float = 0.0
    start: Start | None = None  # what the first probe saw
    reference: loop.Reference = field(default_factory=dict, repr=False)  # by pair id, for another run from this start

    @property
    def unchanged(self) -> bool:
        """True when no adapter scored higher than the one that the run began with, which was kept."""
        return bool(self.probes) and self.best_step == 0

    @property
    def text(self) -> str:
        """One paragraph: what was trained, what the probes saw, which adapter was kept."""
        done = len(self.history)
        parts = [f"{done} steps{'' if self.finished else ' (interrupted)'} in {self.seconds:.0f} s."]
        if self.history:
            parts.append(loop.step_line(done, done, self.history[-1]).split(" ", 2)[2].join(("Last step: ", ".")))
        if self.probes:
            first, kept = self.probes[0], next(p for p in self.probes if p["step"] == self.best_step)
            unchanged = ": no later adapter was better, so the model is unchanged" if self.unchanged else ""
            parts.append(
                f"Dev score {first['score']:.3f} at the start, {kept['score']:.3f} at step {self.best_step}, which was "
                f"kept{unchanged}."
            )
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"Run: {self.text}"

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


@dataclass
class Trainer:
    """The state of a run in progress."""

    policy: Model
    rows: list[Row]
    config: TrainConfig
    objective: Callable[[Sequence[Row], TrainConfig, int], Callable]  # a batch, the settings, steps done
    probe: Split | None
    watched: list[Row]  # pairs that are never trained on
    watch: Callable[[TrainConfig], dict[str, float]] | None  # their metrics
    folder: Path | None
    start: Start | None
    show: bool
    weights: dict[str, float] = field(default_factory=dict)  # of pairs, where they differ; the mean is 1
    saved: float = 0.0  # when the last checkpoint was written, by the monotonic clock

    def run(self) -> Run:
        config, policy = self.config, self.policy
        n_steps = loop.steps_per_epoch(len(self.rows), config) * config.epochs
        n_probes = config.probes if self.probe else 0
        self.probe_at = {round(n_steps * k / n_probes) for k in range(n_probes + 1)} if n_probes else set()
        self.parameters = policy.adapter_parameters()
        self.optimizer = loop.optimizer_for(self.parameters, config)
        self.scale = SCALE if policy.dtype == torch.float16 else 1.0
        self.result, self.best = Run(policy, config), policy.adapter_tensors() if n_probes or self.folder else {}
        self.kept, begun = Kept(policy.network), time.monotonic()
        with Interrupts() as self.interrupts:
            try:
                start = self._resume()
                self._checkpoint(start, self._probe(start))
                with progress(n_steps, "training", self.show, done=start) as advance:
                    for step in range(start, n_steps):
                        self._step(step, n_steps)
                        advance(1)
                        self._checkpoint(step + 1, self._probe(step + 1) or step + 1 == n_steps)
            except KeyboardInterrupt as stop:
                self._interrupted(isinstance(stop, Stopped), n_steps)
            if self.result.probes:  # also when an interrupt fell between an update and its entry in the history
                policy.set_adapter_tensors(self.best)
            else:
                self.result.best_step = len(self.result.history)
            self.result.config, self.result.seconds = self.config, time.monotonic() - begun
        return self.result

    def _interrupted(self, whole: bool, n_steps: int) -> None:
        """Save what is whole, and say how to go on."""
        self.result.finished = False
        done = len(self.result.history)
        if whole:
            self._checkpoint(done, True)
        if parallel.rank() == 0:
            on = f". To go on, {how_to_go_on()}" if self.folder else ""
            print(f"interrupted after {done} of {n_steps} steps: history and best adapter are kept{on}", flush=True)

    def _step(self, step: int, n_steps: int) -> None:
        rows = loop.batch_rows(self.rows, self.config, step)
        loop.set_learning_rate(self.optimizer, loop.learning_rate(step, n_steps, self.config))

        def work(config: TrainConfig) -> dict[str, float]:
            objective = self.objective(rows, config, step)

            def checked(network: Any, batch: Any) -> Any:
                self.interrupts.check()
                return objective(network, batch)

            batches = list(loop.micro_batches(rows, self.policy, config))
            with self.policy.active(trainable=True, checkpointing=config.checkpointing) as network:
                return self._unscaled(
                    lambda s: loop.train_step(
                        network, batches, checked, self.parameters, self.optimizer, config, s, self.kept
                    )
                )

        seen, self.config = rows_within_memory(work, rows, len(rows), self.config)
        self.result.history.append({"step": step + 1, **seen})
        if self.show and ((step + 1) % max(1, n_steps // 10) == 0 or step + 1 == n_steps):
            print(loop.step_line(step + 1, n_steps, seen), flush=True)

    def _unscaled(self, work: Callable[[float], dict[str, float]]) -> dict[str, float]:
        """The step by `work(scale)`, with half the loss scale each time that fp16 overflows."""
        while True:
            try:
                return work(self.scale)
            except loop.Overflow:
                self.scale /= 2
                if self.show:
                    print(f"fp16 overflowed: the loss scale is {self.scale:g} from now on, and the step is done again")

    def _probe(self, step: int) -> bool:
        """Answer and score the dev prompts where that is due; keep the adapter when it is better than any before."""
        probes = self.result.probes
        if step not in self.probe_at or (probes and probes[-1]["step"] == step):
            return False
        self.kept.release()  # answers need room too
        self.result.start = self.result.start or self._first_probe()
        seen = self.result.start if step == 0 else self._answer_probe(self.result.start.answers)
        entry = {"step": step, **seen.entry}
        if self.watch and self.watched:
            watched, self.config = rows_within_memory(self.watch, self.watched, len(self.watched), self.config)
            entry |= watched
        probes.append(entry)
        if max(probes, key=lambda p: p["score"])["step"] == step:
            self.best, self.result.best_step = self.policy.adapter_tensors(), step
        if self.show:
            print(_probe_line(step, entry), flush=True)
            words = [displacement(p.get("chosen_logratio", 0.0), len(self.watched)) for p in probes]
            if words[-1] and not any(words[:-1]):  # once a run
                warnings.warn(words[-1], stacklevel=4)
        return True

    def _first_probe(self) -> Start:
        """What another run saw from this very start, or this run's own answers."""
        assert self.probe is not None
        facts = (self.policy.fingerprint(), [e.id for e in self.probe])
        identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        if self.start and self.start.identity == identity:
            return self.start
        return replace(self._answer_probe(), identity=identity)

    def _answer_probe(self, drafts: dict[str, str] | None = None) -> Start:
        assert self.probe is not None
        task, examples = self.probe.task, list(self.probe)[parallel.rank() :: parallel.size()]

        def answer(n_rows: int) -> list[tuple[str, str, Score | None]]:
            found = generate(
                self.policy,
                [e.prompt for e in examples],
                max_new_tokens=task.max_new_tokens,
                rows=n_rows,
                drafts=[drafts.get(e.id, "") if drafts else e.reference for e in examples],
                on_answers=self.interrupts.check,
            )
            texts = [(e, a[0].text, a[0].finished) for e, a in zip(examples, found, strict=True)]
            return [(e.id, text, task.try_score(e, text, finished=finished)[0]) for e, text, finished in texts]

        with parallel.agreed():
            mine = within_memory(answer, ROWS, 1, "answers at one time", "one answer")[0] if examples else []
        judged = [row for part in parallel.gathered(mine) for row in part]
        scores = [score for _, _, score in judged if score]
        if not scores:
            why = task.try_score(examples[0], judged[0][1])[1] if examples else "see the first process"
            raise WorkbenchError(f"A probe needs scores. None of {len(judged)} answers could be scored; {why}.")
        entry = {
            "score": statistics.fmean(s.value for s in scores),
            "failed": sum(s.failure is not None for s in scores) / len(scores),
            "prompts": len(scores),
        }
        return Start("", entry, {i: text for i, text, _ in judged})

    def _checkpoint(self, step: int, due: bool) -> None:
        """Save the run after `step` steps, when that is due or the last time is long ago. A full disk stops no run."""
        if self.folder is None or parallel.rank():
            return
        if not due and time.monotonic() - self.saved < self.config.checkpoint_seconds:
            return
        result = self.result
        facts = {
            "history": result.history,
            "probes": result.probes,
            "best_step": result.best_step,
            "start": asdict(result.start) if result.start else None,
            "micro_tokens": self.config.micro_tokens,
            "scale": self.scale,
        }
        tensors = self.policy.adapter_tensors(), self.best, pack_optimizer(self.optimizer)
        try:
            state = State(step, *tensors, facts, rng_state(), self.machine)
            save_checkpoint(self.folder / "checkpoints", state, self.settings)
        except WorkbenchError as error:
            print(f"no checkpoint after step {step}. {error} Training goes on.", flush=True)
        self.saved = time.monotonic()

    def _resume(self) -> int:
        """Go on from the newest whole checkpoint of this very run; the number of steps already done."""
        self.saved, folder = time.monotonic(), self.folder
        if folder is None:
            return 0
        rows = [(r.id, r.prompt_ids, r.answer_ids) for r in self.rows]
        data = hashlib.sha256(json.dumps((rows, [e.id for e in self.probe or ()], self.weights)).encode()).hexdigest()
        self.settings = {**self.config.to_dict(), "data": data[:12], "model": self.policy.fingerprint()[:12]}
        # these move nothing but the last bits
        asked = {key: self.settings.pop(key) for key in ("micro_tokens", "checkpoint_seconds")}["micro_tokens"]
        threads, device = torch.get_num_threads(), str(self.policy.device)
        self.machine = describe() | {"threads": threads, "device": device, "processes": parallel.size()}
        self.machine["micro_tokens"] = asked
        state = parallel.from_first(
            lambda: load_checkpoint(folder / "checkpoints", self.settings, self.best, self.parameters)
        )
        if state is None:
            return 0
        self.policy.set_adapter_tensors(state.adapter)
        unpack_optimizer(self.optimizer, state.optimizer)
        self.best, facts = state.best_adapter, state.facts
        self.result.history, self.result.probes = facts["history"], facts["probes"]
        self.result.best_step, self.scale = facts["best_step"], facts.get("scale", self.scale)
        self.result.start = Start(**facts["start"]) if facts["start"] else None
        if state.machine.get("micro_tokens") == asked:  # what had to be halved is not tried again
            self.config = replace(self.config, micro_tokens=facts["micro_tokens"])
        set_rng_state(state.rng)
        if parallel.rank() == 0:
            other = differences(state.machine, self.machine)
            print(f"going on after step {state.step}{other and f', where the last bits may differ{other}'}", flush=True)
        return state.step


def _probe_line(step: int, entry: dict[str, float]) -> str:
    failed, n = 100 * entry["failed"], entry["prompts"]
    line = f"probe at step {step}: dev score {entry['score']:.3f}, failed {failed:.0f} % of {n}"
    if "chosen_logratio" in entry:
        line += (
            f"; held-out log-ratios {entry['chosen_logratio']:+.2f} chosen, {entry['rejected_logratio']:+.2f} rejected"
        )
    return line

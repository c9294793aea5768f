"""`train` and `sft`: a whole run with reference, probes, the best adapter kept, checkpoints and a clean interrupt."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.runtime.errors import WorkbenchError
from dpo_workbench.runtime.progress import progress
from dpo_workbench.tasks.task import Split
from dpo_workbench.training import loop
from dpo_workbench.training.checkpoints import State, load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from dpo_workbench.training.config import SFT_CONFIG, TrainConfig
from dpo_workbench.training.losses import LOSSES, loss_terms
from dpo_workbench.training.packing import Row
from dpo_workbench.training.reference import prove_packing, prove_start, reference_logps
from dpo_workbench.training.tokens import Unfinished, tokenise

PROBE_PROMPTS = 48


@dataclass(frozen=True)
class Start:
    """The first probe of a run, which another run from the same model need not answer again."""

    identity: str  # of the model and the dev prompts
    entry: dict[str, float]


@dataclass
class Run:
    """What came of a run: the model with the best adapter, and its history."""

    model: Model
    config: TrainConfig
    history: list[dict[str, float]] = field(default_factory=list)  # one entry a step, metric names as in TRL
    probes: list[dict[str, float]] = field(default_factory=list)  # dev score on the way
    best_step: int = 0  # steps done when the kept adapter was saved
    finished: bool = True  # False: interrupted, and the model is the best until then
    seconds: float = 0.0
    start: Start | None = None  # what the first probe saw

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
        from dpo_workbench.plots.html import pre

        return pre(repr(self))


def train(
    model: Model,
    pairs: Pairs,
    config: TrainConfig | None = None,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    start: Start | None = None,
    show: bool = True,
) -> Run:
    """LoRA DPO on one device, from `model` as it is; `model` itself stays unchanged and serves as the reference.

    Args:
        model: the start of the policy. Its adapter, if any, is copied and trained on.
        pairs: what to learn from. Their weights count relative to the mean weight of the pairs trained on.
        config: see `TrainConfig`.
        probe: dev examples that are answered and scored on the way; the adapter with the best score is kept. By
            default the first 48 dev examples of the pairs' task.
        folder: for checkpoints and the reference cache; the same call with the same folder goes on where it stopped.
        start: `start` of another run. Where model and probe are the same, its first probe is taken over.
        show: progress bar and plain lines.

    Returns:
        A `Run`; after an interrupt too, with the best adapter until then.
    Raises:
        WorkbenchError: the losses and their settings do not fit, a value is not finite, a row is too long, or the
            reference does not prove itself at step 0.
    """
    config = config or TrainConfig()
    terms = loss_terms(config)
    folder = Path(folder) if folder else None
    if probe is None and pairs.task is not None and len(pairs.task.splits.get("dev", ())):
        probe = pairs.task.dev[:PROBE_PROMPTS]
    held, kept = hold_out(list(pairs), config)
    mean = statistics.fmean(p.weight for p in kept)
    weights = {p.id: p.weight / mean for p in kept} if len({p.weight for p in kept}) > 1 else {}
    if weights and (sorting := [name for name in terms if LOSSES[name].whole_batch]):
        raise WorkbenchError(
            f"With {sorting[0]} all pairs must have one weight: it sorts the values of a batch, which then belong to "
            f"no one pair. Got weights around a mean of {mean:.3g}. Choose another loss, or equal weights."
        )
    rows, watched = (tokenise(model, map(_row, part), config.max_tokens) for part in (kept, held))
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = prove_packing(model, rows, config)
    with progress(len(rows) + len(watched), "reference", show) as advance:
        reference = reference_logps(model, rows, config, folder and folder / "reference", advance)
        reference |= reference_logps(model, watched, config, None, advance) if watched else {}
    prove_start(policy, rows, reference, config)

    def watch() -> dict[str, float]:
        return _held_out_metrics(policy, watched, reference, config) if watched else {}

    def objective(batch: Sequence[Row]) -> Callable:
        return loop.preference_objective(reference, config, batch, policy, weights)

    return _Trainer(policy, rows, config, objective, probe, watch, folder, start, show, weights).run()


def sft(
    model: Model,
    examples: Sequence[Any],
    config: TrainConfig = SFT_CONFIG,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    start: Start | None = None,
    show: bool = True,
) -> Run:
    """Supervised fine-tuning with LoRA: on a split's labels (or references), or on the chosen answers of pairs.

    Args:
        model: where to start; stays unchanged.
        examples: a `Split`, or `Pairs` (each prompt's chosen answer once): the control arm of DPO.
        config: see `SFT_CONFIG`; loss, beta and nll_weight do not matter here.
        probe, folder, start, show: as in `train`.
    """
    task = getattr(examples, "task", None)
    if probe is None and task is not None and len(task.splits.get("dev", ())):
        probe = task.dev[:PROBE_PROMPTS]
    texts = {(e.prompt, e.chosen if isinstance(e, Pair) else e.label or e.reference): e.id for e in examples}
    if not texts:
        raise WorkbenchError("Fine-tuning needs examples. Got none. Choose a split with examples.")
    rows = tokenise(model, [(i, prompt, (answer,)) for (prompt, answer), i in texts.items()], config.max_tokens)
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = prove_packing(model, rows, config)

    def objective(batch: Sequence[Row]) -> Callable:
        return loop.sft_objective(sum(len(row.answer_ids[0]) for row in batch))

    folder = Path(folder) if folder else None
    return _Trainer(policy, rows, config, objective, probe, dict, folder, start, show).run()


def hold_out(pairs: list[Pair], config: TrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Split pairs by group into (watched, trained): about `held_out` of the pairs are only watched."""
    groups = sorted({p.group or p.id for p in pairs})
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(config.seed)).tolist()
    held: list[Pair] = []
    for i in order:
        part = [p for p in pairs if (p.group or p.id) == groups[i]]
        if held and len(held) + len(part) > config.held_out * len(pairs) or config.held_out * len(pairs) < 1:
            break
        if len(part) <= 2 * config.held_out * len(pairs):
            held += part
    ids = {p.id for p in held}
    return held, [p for p in pairs if p.id not in ids]


def _row(pair: Pair) -> tuple[str, str, tuple[str, ...]]:
    return pair.id, pair.prompt, (pair.chosen, pair.rejected if pair.rejected_finished else Unfinished(pair.rejected))


def _held_out_metrics(
    policy: Model, rows: list[Row], reference: loop.Reference, config: TrainConfig
) -> dict[str, float]:
    """Mean log-ratios (nats) of pairs that are never trained on. A falling chosen one is likelihood displacement."""
    chosen, rejected = [], []
    with policy.active() as network, torch.no_grad():
        for batch in loop.micro_batches(rows, policy, config):
            logps = loop.pair_logps(network, batch, reference)
            chosen += logps.chosen_logratios.tolist()
            rejected += logps.rejected_logratios.tolist()
    return {"chosen_logratio": sum(chosen) / len(chosen), "rejected_logratio": sum(rejected) / len(rejected)}


@dataclass
class _Trainer:
    """The state of a run in progress."""

    policy: Model
    rows: list[Row]
    config: TrainConfig
    objective: Callable[[Sequence[Row]], Callable]
    probe: Split | None
    watch: Callable[[], dict[str, float]]
    folder: Path | None
    start: Start | None
    show: bool
    weights: dict[str, float] = field(default_factory=dict)  # of pairs, where they differ; the mean is 1
    identity: str = ""  # of model, data and settings; a checkpoint of another run is passed over
    saved: float = 0.0  # when the last checkpoint was written, by the monotonic clock

    def run(self) -> Run:
        config, policy = self.config, self.policy
        per_epoch = loop.steps_per_epoch(len(self.rows), config)
        n_steps = per_epoch * config.epochs
        self.parameters = policy.adapter_parameters()
        self.optimizer = loop.optimizer_for(self.parameters, config)
        self.result, self.best = Run(policy, config), policy.adapter_tensors()
        start, begun = self._resume(), time.monotonic()
        probe_at = {round(n_steps * (k + 1) / config.probes) for k in range(config.probes)} if config.probes else set()
        try:
            if start == 0:
                self._probe(0)
            with progress(n_steps, "training", self.show, done=start) as advance:
                for step in range(start, n_steps):
                    self._step(step, n_steps)
                    advance(1)
                    if step + 1 in probe_at:
                        self._probe(step + 1)
                    self._checkpoint(step + 1, step + 1 in probe_at)
        except KeyboardInterrupt:
            self.result.finished = False
            print(f"interrupted after {len(self.result.history)} of {n_steps} steps: history and best adapter are kept")
        if self.result.probes:  # also when an interrupt fell between an update and its entry in the history
            policy.set_adapter_tensors(self.best)
        else:
            self.result.best_step = len(self.result.history)
        self.result.seconds = time.monotonic() - begun
        return self.result

    def _step(self, step: int, n_steps: int) -> None:
        rows = loop.batch_rows(self.rows, self.config, step)
        loop.set_learning_rate(self.optimizer, loop.learning_rate(step, n_steps, self.config))
        batches = list(loop.micro_batches(rows, self.policy, self.config))
        with self.policy.active(trainable=True) as network:
            seen = loop.train_step(network, batches, self.objective(rows), self.parameters, self.optimizer, self.config)
        self.result.history.append({"step": step + 1, **seen})
        if self.show and ((step + 1) % max(1, n_steps // 10) == 0 or step + 1 == n_steps):
            print(loop.step_line(step + 1, n_steps, seen), flush=True)

    def _probe(self, step: int) -> None:
        """Answer and score the dev prompts; keep the adapter when it is better than any before."""
        if self.probe is None or not self.config.probes:
            return
        seen = self._first_probe() if step == 0 else self._answer_probe()
        self.result.start = self.result.start or seen
        entry = {"step": step, **seen.entry}
        self.result.probes.append(entry | self.watch())
        if max(self.result.probes, key=lambda p: p["score"])["step"] == step:
            self.best, self.result.best_step = self.policy.adapter_tensors(), step
        if self.show:
            failed, n = 100 * entry["failed"], entry["prompts"]
            print(f"probe at step {step}: dev score {entry['score']:.3f}, failed {failed:.0f} % of {n}", flush=True)

    def _first_probe(self) -> Start:
        """What another run saw from this very start, or this run's own answers."""
        assert self.probe is not None
        facts = (self.policy.fingerprint(), [e.id for e in self.probe])
        identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        if self.start and self.start.identity == identity:
            return self.start
        return replace(self._answer_probe(), identity=identity)

    def _answer_probe(self) -> Start:
        assert self.probe is not None
        task = self.probe.task
        answers = generate(self.policy, [e.prompt for e in self.probe], max_new_tokens=task.max_new_tokens)
        scores = [task.score(e, a[0].text, finished=a[0].finished) for e, a in zip(self.probe, answers, strict=True)]
        entry = {
            "score": statistics.fmean(s.value for s in scores),
            "failed": sum(s.failure is not None for s in scores) / len(scores),
            "prompts": len(scores),
        }
        return Start("", entry)

    def _checkpoint(self, step: int, after_probe: bool) -> None:
        if self.folder is None or not (after_probe or time.monotonic() - self.saved > 120):
            return
        facts = {
            "history": self.result.history,
            "probes": self.result.probes,
            "best_step": self.result.best_step,
            "start": asdict(self.result.start) if self.result.start else None,
        }
        state = State(step, self.policy.adapter_tensors(), self.best, pack_optimizer(self.optimizer), facts)
        save_checkpoint(self.folder / "checkpoints", state, self.identity)
        self.saved = time.monotonic()

    def _resume(self) -> int:
        """Go on from the newest whole checkpoint of this very run; the number of steps already done."""
        self.saved = time.monotonic()
        if self.folder is None:
            return 0
        rows = [(r.id, r.prompt_ids, r.answer_ids) for r in self.rows]
        probe = [e.id for e in self.probe] if self.probe else []
        facts = (
            self.config.to_dict(),
            rows,
            self.weights,
            probe,
            self.policy.fingerprint(),
            torch.__version__,
            torch.get_num_threads(),
        )
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        state = load_checkpoint(self.folder / "checkpoints", self.identity)
        if state is None:
            return 0
        self.policy.set_adapter_tensors(state.adapter)
        unpack_optimizer(self.optimizer, state.optimizer)
        self.best = state.best_adapter
        self.result.history, self.result.probes = state.facts["history"], state.facts["probes"]
        self.result.best_step = state.facts["best_step"]
        self.result.start = Start(**state.facts["start"]) if state.facts["start"] else None
        print(f"going on after step {state.step}")
        return state.step

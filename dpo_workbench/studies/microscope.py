"""The pair microscope: what a pair teaches this model, token by token, and what training made of it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.progress import progress
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.checks import length_auc
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import rows_within_memory
from dpo_workbench.training.logps import token_logps, token_states
from dpo_workbench.training.loop import micro_batches
from dpo_workbench.training.packing import Row
from dpo_workbench.training.reference import prove_packing
from dpo_workbench.training.run import Run, _row
from dpo_workbench.training.tokens import tokenise

if TYPE_CHECKING:
    import pandas

STATES = ("kept", "learned", "unlearned", "never learned")


@dataclass(frozen=True)
class Seen:
    """What one model says of a row: log-probability of each token of each answer (nats), and CHES."""

    logps: tuple[tuple[float, ...], ...]
    ches: float  # length-normalised; nan for a row with one answer

    @property
    def sums(self) -> tuple[float, ...]:
        return tuple(map(sum, self.logps))


def look(model: Model, rows: Sequence[Row], config: TrainConfig | None = None, show: bool = False) -> dict[str, Seen]:
    """Token log-probabilities and CHES of rows, by row id, in the packed passes that training uses.

    CHES, the centered hidden embedding similarity (arXiv 2410.08847) in its length-normalised form, is
    <s_c, s_r> / (n_c n_r) - |s_c|^2 / n_c^2, where s sums the last hidden states that predict the tokens of the chosen
    (c) or the rejected (r) answer and n counts them. The higher, the more DPO tends to push the chosen answer
    down together with the rejected one. Values of two models are not comparable, their order within a set is.
    """
    config = prove_packing(model, rows, config or TrainConfig())

    def work(config: TrainConfig) -> dict[str, Seen]:
        seen: dict[str, Seen] = {}
        with progress(len(rows), "microscope", show) as advance, model.active() as network, torch.no_grad():
            for batch in micro_batches(rows, model, config):
                states = token_states(network, batch)
                logps, places = token_logps(network, batch, states), batch.lengths.tolist()
                sums = [part.float().sum(0) / len(part) for part in states.split(places)]
                values = [tuple(part.tolist()) for part in logps.split(places)]
                per_row = len(values) // len(batch.ids)
                for k, row_id in enumerate(batch.ids):
                    mine, (c, *r) = values[k * per_row : (k + 1) * per_row], sums[k * per_row : (k + 1) * per_row]
                    seen[row_id] = Seen(tuple(mine), (c @ r[0] - c @ c).item() if r else float("nan"))
                advance(len(batch.ids))
        return seen

    return rows_within_memory(work, rows, len(rows), config)[0]


@dataclass(frozen=True)
class PairView:
    """One pair under the microscope. Tokens are those that the loss counts, end token included."""

    pair: Pair
    row: Row
    chosen_tokens: tuple[str, ...]  # decoded one by one
    rejected_tokens: tuple[str, ...]
    edit_distance: float  # of the token sequences: 0 the same, 1 nothing in common
    reference: Seen
    policy: Seen | None = None  # after training

    @property
    def id(self) -> str:
        return self.pair.id

    @property
    def divergence(self) -> int:
        """Number of answer tokens before the first that differs."""
        return self.row.n_shared

    @property
    def length_gap(self) -> int:
        """Tokens of the chosen answer less those of the rejected one."""
        return len(self.chosen_tokens) - len(self.rejected_tokens)

    @property
    def reference_margin(self) -> float:
        """log p(chosen) - log p(rejected) under the model that training starts from, in nats. Above 0: ranked right."""
        chosen, rejected = self.reference.sums
        return chosen - rejected

    @property
    def log_ratios(self) -> tuple[tuple[float, ...], ...] | None:
        """Policy less reference, token by token, for the chosen and the rejected answer; None before training."""
        if self.policy is None:
            return None
        both = zip(self.policy.logps, self.reference.logps, strict=True)
        return tuple(tuple(p - r for p, r in zip(*answer, strict=True)) for answer in both)

    @property
    def reward_margin(self) -> float | None:
        """Implicit reward of the chosen answer less that of the rejected one, divided by beta: a log-ratio in nats."""
        if self.log_ratios is None:
            return None
        chosen, rejected = map(sum, self.log_ratios)
        return chosen - rejected

    @property
    def state(self) -> str | None:
        """By ranking, p(chosen) > p(rejected): kept (right before and after), learned, unlearned, never learned."""
        if self.reward_margin is None:
            return None
        before, after = self.reference_margin > 0, self.reference_margin + self.reward_margin > 0
        return STATES[{(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}[before, after]]

    def numbers(self) -> dict[str, Any]:
        """One row of the table."""
        chosen, rejected = self.reference.sums
        ratios = [sum(r) for r in self.log_ratios] if self.log_ratios else [None, None]
        return {
            "id": self.id,
            "chosen_tokens": len(self.chosen_tokens),
            "rejected_tokens": len(self.rejected_tokens),
            "length_gap": self.length_gap,
            "divergence": self.divergence,
            "edit_distance": self.edit_distance,
            "reference_chosen": chosen,
            "reference_rejected": rejected,
            "reference_margin": self.reference_margin,
            "ches": self.reference.ches,
            "chosen_logratio": ratios[0],
            "rejected_logratio": ratios[1],
            "reward_margin": self.reward_margin,
            "state": self.state,
        }

    def __repr__(self) -> str:
        k = self.divergence
        lines = [
            f"pair {self.id}: {len(self.chosen_tokens)} tokens chosen, {len(self.rejected_tokens)} rejected; the first "
            f"{k} are the same; edit distance {self.edit_distance:.2f}",
            f"  chosen goes on   {''.join(self.chosen_tokens[k : k + 12])!r}",
            f"  rejected goes on {''.join(self.rejected_tokens[k : k + 12])!r}",
            f"  log p {self.reference.sums[0]:.1f} chosen, {self.reference.sums[1]:.1f} rejected: the model "
            f"{'ranks them right' if self.reference_margin > 0 else 'prefers the rejected one'} by "
            f"{abs(self.reference_margin):.1f} nats; CHES {self.reference.ches:.2f}",
        ]
        if self.log_ratios is not None:
            chosen, rejected = map(sum, self.log_ratios)
            lines.append(f"  training: {chosen:+.1f} nats chosen, {rejected:+.1f} rejected: {self.state}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre
        from dpo_workbench.plots.pairs import TokenHeatmapDisplay

        return pre(repr(self)) + TokenHeatmapDisplay.from_view(self)._repr_html_()


@dataclass(frozen=True)
class Microscope(Sequence[PairView]):
    """All pairs under the microscope. `microscope["id"]` or `microscope[0]` is one; `advice()` says what to do."""

    model: Model
    pairs: Pairs
    views: tuple[PairView, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[PairView]:
        return iter(self.views)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, str):
            if which not in self._by_id:
                raise WorkbenchError(f"A pair must be in the set. Got {which!r}. The first is {self.views[0].id!r}.")
            return self._by_id[which]
        return self.views[which]

    @cached_property
    def _by_id(self) -> dict[str, PairView]:
        return {view.id: view for view in self.views}

    @property
    def states(self) -> Counter[str] | None:
        """How many pairs were kept, learned, unlearned, never learned; None before training."""
        if self.views[0].state is None:
            return None
        counts = Counter(view.state for view in self.views)
        return Counter({name: counts[name] for name in STATES})

    def to_dataframe(self) -> pandas.DataFrame:
        """One pair a row; lengths in tokens, log-probabilities and margins in nats."""
        import pandas

        return pandas.DataFrame([view.numbers() for view in self.views])

    def advice(self, score: Any = None, beta: float = 0.1) -> list[Any]:
        """What the numbers suggest, each with its reason: see `dpo_workbench.studies.advice`."""
        from dpo_workbench.studies.advice import advise

        return advise(self, score, beta)

    def __repr__(self) -> str:
        right = sum(view.reference_margin > 0 for view in self.views)
        gaps = [view.length_gap for view in self.views]
        middle = statistics.median
        lines = [
            f"{len(self)} pairs under {self.model.name}: it ranks {right} of them right before training",
            f"  length: chosen less rejected {middle(gaps):+.0f} tokens in the middle; length alone tells them apart "
            f"with an AUC of {length_auc(self.pairs.rows):.2f}",
            f"  edit distance {middle(v.edit_distance for v in self.views):.2f} in the middle; the answers part after "
            f"{middle(v.divergence for v in self.views):.0f} tokens",
        ]
        if self.states:
            lines.append("  " + ", ".join(f"{n} {name}" for name, n in self.states.items()))
        return "\n".join(lines + [f"  advice: {a.what}" for a in self.advice()])

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(repr(self))


def microscope(model: Model, pairs: Pairs, after: Model | Run | None = None, *, show: bool = True) -> Microscope:
    """Look at each pair as `model` sees it and, with `after`, at what training made of it.

    Args:
        model: where training starts; the reference.
        pairs: at least one.
        after: the trained model, or the run that `train` returned; None before training.
        show: a progress bar.

    Raises:
        WorkbenchError: a pair is too long, or rapidfuzz (extra `data`) is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise WorkbenchError(
            "The microscope needs the library rapidfuzz. It is not installed. pip install 'dpo-workbench[data]'"
        ) from error
    rows = tokenise(model, map(_row, pairs), max_tokens=model_room(model))
    before = look(model, rows, show=show)
    trained = after.model if isinstance(after, Run) else after
    then = look(trained, rows, show=show) if trained is not None else {}
    views = []
    for pair, row in zip(pairs, rows, strict=True):
        texts = [tuple(model.tokenizer.batch_decode([[i] for i in ids])) for ids in row.answer_ids]
        distance = Levenshtein.normalized_distance(*row.answer_ids)
        views.append(PairView(pair, row, texts[0], texts[1], distance, before[row.id], then.get(row.id)))
    return Microscope(model, pairs if isinstance(pairs, Pairs) else Pairs(pairs), tuple(views))


def model_room(model: Model) -> int:
    """Tokens that the model's positions allow for."""
    return int(getattr(model.network.config.get_text_config(), "max_position_embeddings", 0) or 1_000_000)

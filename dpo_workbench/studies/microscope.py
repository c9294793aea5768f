"""The pair microscope: what each pair teaches this model, token by token, and what training changed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from dpo_workbench.common.html import pre
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.checks import length_auc
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.plots.pairs import TokenHeatmapDisplay
from dpo_workbench.studies.logps import values_by_row
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import token_logps
from dpo_workbench.training.packing import Batch, Row
from dpo_workbench.training.run import Run
from dpo_workbench.training.tokens import pair_texts, tokenize

if TYPE_CHECKING:
    import pandas

Logps = tuple[list[float], list[float]]  # nats; for each token of the chosen and of the rejected answer
STATES = ("kept", "learned", "unlearned", "never learned")


def look(model: Model, rows: Sequence[Row]) -> dict[str, Logps]:
    """Token log-probabilities of rows with two answers, by row id."""

    def read(network: nn.Module, batch: Batch) -> dict[str, Logps]:
        parts = [part.tolist() for part in token_logps(network, batch).split(batch.lengths.tolist())]
        return {row_id: (parts[2 * k], parts[2 * k + 1]) for k, row_id in enumerate(batch.ids)}

    return values_by_row(model, rows, read)


def margin(logps: Logps) -> float:
    """log p(chosen) - log p(rejected), in nats. Above 0 the model ranks the pair correctly."""
    return sum(logps[0]) - sum(logps[1])


@dataclass(frozen=True)
class PairView:
    """One pair under the microscope. The tokens are those that the loss counts, including the end token."""

    pair: Pair
    chosen_tokens: tuple[str, ...]  # decoded one by one
    rejected_tokens: tuple[str, ...]
    divergence: int  # number of answer tokens before the first difference
    beta: float
    reference: Logps  # before training
    policy: Logps | None = None  # after training

    @property
    def log_ratios(self) -> Logps | None:
        """Policy minus reference for each token of the chosen and of the rejected answer, in nats."""
        if self.policy is None:
            return None
        both = zip(self.policy, self.reference, strict=True)
        chosen, rejected = ([p - r for p, r in zip(*answer, strict=True)] for answer in both)
        return chosen, rejected

    @property
    def reward_margin(self) -> float | None:
        """beta * (log-ratio of the chosen answer - log-ratio of the rejected one), like `rewards/margins` of a run."""
        return None if self.policy is None else self.beta * (margin(self.policy) - margin(self.reference))

    @property
    def state(self) -> str | None:
        """Whether p(chosen) > p(rejected): kept (before and after), learned, unlearned or never learned."""
        if self.policy is None:
            return None
        if margin(self.reference) > 0:
            return "kept" if margin(self.policy) > 0 else "unlearned"
        return "learned" if margin(self.policy) > 0 else "never learned"

    def __repr__(self) -> str:
        k = self.divergence
        chosen, rejected = map(sum, self.reference)
        ranking = "ranks the pair correctly" if chosen > rejected else "prefers the rejected answer"
        lines = [
            f"pair {self.pair.id}: {len(self.chosen_tokens)} tokens chosen, {len(self.rejected_tokens)} rejected, "
            f"{k} in common at the start",
            f"  chosen continues   {''.join(self.chosen_tokens[k : k + 12])!r}",
            f"  rejected continues {''.join(self.rejected_tokens[k : k + 12])!r}",
            f"  log p {chosen:.1f} chosen, {rejected:.1f} rejected: the model {ranking} by "
            f"{abs(chosen - rejected):.1f} nats",
        ]
        if self.log_ratios is not None:
            chosen, rejected = map(sum, self.log_ratios)
            lines.append(f"  training: {chosen:+.1f} nats chosen, {rejected:+.1f} rejected: {self.state}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return pre(repr(self)) + TokenHeatmapDisplay.from_view(self)._repr_html_()


@dataclass(frozen=True)
class Microscope:
    """All pairs under the microscope."""

    model: Model
    pairs: Pairs
    views: tuple[PairView, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[PairView]:
        return iter(self.views)

    def __getitem__(self, place: int) -> PairView:
        return self.views[place]

    @property
    def states(self) -> Counter[str] | None:
        """How many pairs were kept, learned, unlearned and never learned; None before training."""
        if self.views[0].policy is None:
            return None
        counts = Counter(view.state for view in self.views)
        return Counter({name: counts[name] for name in STATES})

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per pair, with lengths in tokens and log-probabilities in nats."""
        import pandas

        rows = []
        for view in self.views:
            chosen, rejected = map(sum, view.log_ratios) if view.log_ratios else (None, None)
            row = {"id": view.pair.id, "length_gap": len(view.chosen_tokens) - len(view.rejected_tokens)}
            row |= {"divergence": view.divergence, "reference_margin": margin(view.reference)}
            row |= {"chosen_logratio": chosen, "rejected_logratio": rejected}
            rows.append({**row, "reward_margin": view.reward_margin, "state": view.state})
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        right = sum(margin(view.reference) > 0 for view in self.views)
        gap = statistics.median(len(view.chosen_tokens) - len(view.rejected_tokens) for view in self.views)
        shared = statistics.median(view.divergence for view in self.views)
        lines = [
            f"{len(self)} pairs, seen by {self.model.name}: it ranks {right} of them correctly before training",
            f"  median length: chosen minus rejected {gap:+.0f} tokens; length alone separates them with an AUC of "
            f"{length_auc(self.pairs.rows):.2f} (0.5 is chance)",
            f"  median number of tokens before the first difference: {shared:.0f}",
        ]
        if self.states:
            lines.append("  " + ", ".join(f"{n} {name}" for name, n in self.states.items()))
        return "\n".join(lines)


def microscope(model: Model, pairs: Pairs, after: Model | Run | None = None) -> Microscope:
    """Look at each pair as `model` sees it and, with `after`, at what training changed.

    Args:
        model: the model that training starts from; it is the reference.
        pairs: at least one.
        after: the trained model, or the run that `train` returned; None before training.
    """
    config = after.config if isinstance(after, Run) else TrainConfig()
    trained = after.model if isinstance(after, Run) else after
    max_tokens = getattr(model.network.config.get_text_config(), "max_position_embeddings", None) or 1_000_000
    rows = tokenize(model, map(pair_texts, pairs), max_tokens)
    before = look(model, rows)
    later = look(trained, rows) if trained is not None else {}
    views = []
    for pair, row in zip(pairs, rows, strict=True):
        chosen, rejected = (tuple(model.tokenizer.batch_decode([[i] for i in ids])) for ids in row.answer_ids)
        views.append(PairView(pair, chosen, rejected, row.n_shared, config.beta, before[row.id], later.get(row.id)))
    return Microscope(model, pairs if isinstance(pairs, Pairs) else Pairs(pairs), tuple(views))

"""The pair microscope: what each pair teaches this model, token by token, and what training changed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.html import pre
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.checks import length_auc
from dpo_workbench.pairs.pair import Pair, Pairs
from dpo_workbench.plots.pairs import TokenHeatmapDisplay
from dpo_workbench.studies.logps import values_by_row
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import logps_of_states, token_states
from dpo_workbench.training.packing import Batch, Row
from dpo_workbench.training.run import Run
from dpo_workbench.training.tokens import pair_texts, tokenize

if TYPE_CHECKING:
    import pandas

STATES = ("kept", "learned", "unlearned", "never learned")
COLUMNS = (
    "id length_gap divergence edit_distance reference_margin ches chosen_logratio rejected_logratio reward_margin state"
).split()


@dataclass(frozen=True)
class Seen:
    """What one model says about a row: the log-probability (nats) of each token of each answer, and CHES."""

    logps: tuple[tuple[float, ...], ...]
    ches: float  # length-normalized

    @property
    def sums(self) -> tuple[float, ...]:
        """Log-probability of each whole answer, in nats."""
        return tuple(map(sum, self.logps))


def look(model: Model, rows: Sequence[Row], show: bool = False) -> dict[str, Seen]:
    """Token log-probabilities and CHES of rows with two answers, by row id.

    CHES is the centered hidden embedding similarity (arXiv 2410.08847) in its length-normalized form:
    <s_c, s_r> / (n_c n_r) - |s_c|^2 / n_c^2. Here s is the sum of the last hidden states that predict the tokens of the
    chosen (c) or the rejected (r) answer, and n is their number. With a higher CHES, DPO tends to make the chosen
    answer less likely together with the rejected one. Compare the values of one model only: their scale differs
    between models.
    """

    def read(network: nn.Module, batch: Batch) -> dict[str, Seen]:
        states = token_states(network, batch)
        lengths = batch.lengths.tolist()
        means = [part.float().mean(0) for part in states.split(lengths)]
        logps = [tuple(part.tolist()) for part in logps_of_states(network, states, batch.target).split(lengths)]
        seen = {}
        for k, row_id in enumerate(batch.ids):
            chosen, rejected = means[2 * k : 2 * k + 2]
            ches = (chosen @ rejected - chosen @ chosen).item()
            seen[row_id] = Seen((logps[2 * k], logps[2 * k + 1]), ches)
        return seen

    return values_by_row(model, rows, read, label="microscope", show=show)


@dataclass(frozen=True)
class PairView:
    """One pair under the microscope. The tokens are those that the loss counts, including the end token."""

    pair: Pair
    row: Row
    chosen_tokens: tuple[str, ...]  # decoded one by one
    rejected_tokens: tuple[str, ...]
    edit_distance: float  # between the token sequences: 0 for equal ones, 1 for nothing in common
    beta: float
    reference: Seen
    policy: Seen | None = None  # after training

    @property
    def id(self) -> str:
        return self.pair.id

    @property
    def ches(self) -> float:
        """CHES before training, see `look`."""
        return self.reference.ches

    @property
    def divergence(self) -> int:
        """Number of answer tokens before the first difference."""
        return self.row.n_shared

    @property
    def length_gap(self) -> int:
        """Tokens of the chosen answer minus tokens of the rejected one."""
        return len(self.chosen_tokens) - len(self.rejected_tokens)

    @property
    def reference_margin(self) -> float:
        """log p(chosen) - log p(rejected) before training, in nats. Above 0 the model ranks the pair correctly."""
        chosen, rejected = self.reference.sums
        return chosen - rejected

    @property
    def policy_margin(self) -> float | None:
        """log p(chosen) - log p(rejected) after training, in nats; None before training."""
        if self.policy is None:
            return None
        chosen, rejected = self.policy.sums
        return chosen - rejected

    @property
    def log_ratios(self) -> tuple[tuple[float, ...], ...] | None:
        """Policy minus reference for each token of the chosen and of the rejected answer, in nats."""
        if self.policy is None:
            return None
        both = zip(self.policy.logps, self.reference.logps, strict=True)
        return tuple(tuple(p - r for p, r in zip(*answer, strict=True)) for answer in both)

    @property
    def chosen_logratio(self) -> float | None:
        """log p(chosen) after training minus before, in nats."""
        return None if self.policy is None else self.policy.sums[0] - self.reference.sums[0]

    @property
    def rejected_logratio(self) -> float | None:
        """log p(rejected) after training minus before, in nats."""
        return None if self.policy is None else self.policy.sums[1] - self.reference.sums[1]

    @property
    def reward_margin(self) -> float | None:
        """beta * (log-ratio of the chosen answer - log-ratio of the rejected one), like `rewards/margins` of a run."""
        return None if self.policy_margin is None else self.beta * (self.policy_margin - self.reference_margin)

    @property
    def state(self) -> str | None:
        """Whether p(chosen) > p(rejected): kept (before and after), learned, unlearned or never learned."""
        if self.policy_margin is None:
            return None
        if self.reference_margin > 0:
            return "kept" if self.policy_margin > 0 else "unlearned"
        return "learned" if self.policy_margin > 0 else "never learned"

    def __repr__(self) -> str:
        k = self.divergence
        ranking = "ranks the pair correctly" if self.reference_margin > 0 else "prefers the rejected answer"
        lines = [
            f"pair {self.id}: {len(self.chosen_tokens)} tokens chosen, {len(self.rejected_tokens)} rejected, "
            f"{k} in common at the start, edit distance {self.edit_distance:.2f}",
            f"  chosen continues   {''.join(self.chosen_tokens[k : k + 12])!r}",
            f"  rejected continues {''.join(self.rejected_tokens[k : k + 12])!r}",
            f"  log p {self.reference.sums[0]:.1f} chosen, {self.reference.sums[1]:.1f} rejected: the model {ranking} "
            f"by {abs(self.reference_margin):.1f} nats; CHES {self.reference.ches:.2f}",
        ]
        if self.policy is not None:
            changes = f"{self.chosen_logratio:+.1f} nats chosen, {self.rejected_logratio:+.1f} rejected"
            lines.append(f"  training: {changes}: {self.state}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return pre(repr(self)) + TokenHeatmapDisplay.from_view(self)._repr_html_()


@dataclass(frozen=True)
class Microscope(Sequence[PairView]):
    """All pairs under the microscope. `seen["id"]` or `seen[0]` is one of them."""

    model: Model
    pairs: Pairs
    views: tuple[PairView, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[PairView]:
        return iter(self.views)

    def __getitem__(self, which: Any) -> Any:
        if not isinstance(which, str):
            return self.views[which]
        found = next((view for view in self.views if view.id == which), None)
        if found is None:
            raise WorkbenchError(
                f"A pair must be in the set. Got the id {which!r}. The first id is {self.views[0].id!r}."
            )
        return found

    @property
    def states(self) -> Counter[str] | None:
        """How many pairs were kept, learned, unlearned and never learned; None before training."""
        if self.views[0].state is None:
            return None
        counts = Counter(view.state for view in self.views)
        return Counter({name: counts[name] for name in STATES})

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per pair, with lengths in tokens and log-probabilities in nats."""
        import pandas

        return pandas.DataFrame([{name: getattr(view, name) for name in COLUMNS} for view in self.views])

    def __repr__(self) -> str:
        right = sum(view.reference_margin > 0 for view in self.views)
        median = statistics.median
        lines = [
            f"{len(self)} pairs, seen by {self.model.name}: it ranks {right} of them correctly before training",
            f"  median length: chosen minus rejected {median(v.length_gap for v in self.views):+.0f} tokens; length "
            f"alone separates them with an AUC of {length_auc(self.pairs.rows):.2f} (0.5 is chance)",
            f"  median edit distance {median(v.edit_distance for v in self.views):.2f}; median number of tokens before "
            f"the first difference {median(v.divergence for v in self.views):.0f}",
        ]
        if self.states:
            lines.append("  " + ", ".join(f"{n} {name}" for name, n in self.states.items()))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return pre(repr(self))


def microscope(
    model: Model, pairs: Pairs, after: Model | Run | None = None, *, beta: float | None = None, show: bool = True
) -> Microscope:
    """Look at each pair as `model` sees it and, with `after`, at what training changed.

    Args:
        model: the model that training starts from; it is the reference.
        pairs: at least one.
        after: the trained model, or the run that `train` returned; None before training.
        beta: for `reward_margin`; by default the run's, or 0.1.
        show: a progress bar.

    Raises:
        WorkbenchError: a pair is too long for the model, or rapidfuzz (extra `data`) is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise WorkbenchError(
            "The microscope needs the library rapidfuzz. It is not installed. pip install 'dpo-workbench[data]'"
        ) from error
    config = after.config if isinstance(after, Run) else TrainConfig()
    trained = after.model if isinstance(after, Run) else after
    max_tokens = getattr(model.network.config.get_text_config(), "max_position_embeddings", None) or 1_000_000
    rows = tokenize(model, map(pair_texts, pairs), max_tokens)
    before = look(model, rows, show)
    later = look(trained, rows, show) if trained is not None else {}
    beta = config.beta if beta is None else beta
    views = []
    for pair, row in zip(pairs, rows, strict=True):
        chosen, rejected = (tuple(model.tokenizer.batch_decode([[i] for i in ids])) for ids in row.answer_ids)
        distance = Levenshtein.normalized_distance(*row.answer_ids)
        views.append(PairView(pair, row, chosen, rejected, distance, beta, before[row.id], later.get(row.id)))
    return Microscope(model, pairs if isinstance(pairs, Pairs) else Pairs(pairs), tuple(views))

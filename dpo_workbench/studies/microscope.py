"""The pair microscope: what each pair teaches this model, token by token, and what training changed."""

from __future__ import annotations

from torch import nn

from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.plots.pairs import PairDisplay
from dpo_workbench.studies.logps import answer_values
from dpo_workbench.training.logps import token_logps
from dpo_workbench.training.packing import Batch
from dpo_workbench.training.run import Run
from dpo_workbench.training.tokens import pair_texts, tokenize


def microscope(model: Model, pairs: Pairs, after: Model | Run | None = None) -> list[PairDisplay]:
    """Look at each pair as `model` sees it and, with `after`, at what training changed.

    Args:
        model: the model that training starts from; it is the reference.
        pairs: one display is made for each.
        after: the trained model, or the run that `train` returned; None before training.
    """
    trained = after.model if isinstance(after, Run) else after
    rows = tokenize(model, map(pair_texts, pairs), model.max_positions)
    reference = answer_values(model, rows, _token_values)
    policy = answer_values(trained, rows, _token_values) if trained is not None else [None] * len(rows)
    displays = []
    for pair, row, before, now in zip(pairs, rows, reference, policy, strict=True):
        tokens = [model.tokenizer.batch_decode([[i] for i in ids]) for ids in row.answer_ids]
        displays.append(PairDisplay(pair.id, tokens, row.n_shared, before, now))
    return displays


def _token_values(network: nn.Module, batch: Batch) -> list[list[float]]:
    """Log-probabilities of the tokens of each answer."""
    return [part.tolist() for part in token_logps(network, batch).split(batch.lengths.tolist())]

"""Write docs/losses.md from `LOSSES` and the docstrings of its functions: `python scripts/update_losses_doc.py`."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import torch

from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.losses import LOSSES, Loss, PairLogps

TARGET = Path(__file__).resolve().parent.parent / "docs" / "losses.md"
LENGTHS, BETA = (75, 75), 0.1  # tokens of the two answers, for the table of slopes

HEAD = """# Losses

Written by `python scripts/update_losses_doc.py` from `dpo_workbench/training/losses.py`. Change it there.

A loss is chosen by name, and several as a sum with weights:

```python
dw.TrainConfig(loss="hinge", beta=0.1)
dw.TrainConfig(loss={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, nll_weight=0.0)  # MPO, arXiv 2411.10442
```

```
dpo-workbench train pairs.jsonl --out runs/mpo --loss sigmoid=0.8 --loss bco_pair=0.2 --loss sft=1.0 --nll-weight 0
```

- `nll_weight` (0.2 by default) adds that much of `nll` to whatever is chosen. Set it to 0 for a loss by itself.
- `label_smoothing`, `dpop_lambda` and `simpo_gamma` belong to the losses that name them. A run in which no loss reads
  a setting that was changed is refused.
- `Pair.weight` (1 by default) scales a pair's whole loss, NLL included. Weights count relative to their mean over the
  pairs that are trained on, not to that of a batch: in a batch of one they would cancel out.
- How a batch is cut into micro-batches never changes a step. `aot` and `aot_unpaired` sort the values of a batch, so
  each step first computes the policy's log-probabilities of the whole batch without gradients: one forward pass more,
  unless the batch is one micro-batch. They take no weights. `sft` needs the batch's number of tokens only, which
  costs nothing.
- All rewards and margins in a run's history are beta times log-ratios of sums, whatever the loss, as in TRL.
- Equal values are tested against the code of TRL 1.16 itself, values and gradients, in double precision
  (`tests/training/test_losses.py`).

In the formulas c and r are the log-ratios of the chosen and the rejected answer: log-probability of the policy minus
that of the reference, in nats, summed over the answer's tokens. nc and nr are their numbers of tokens with the end
token, e is `label_smoothing`, s(x) = 1 / (1 + exp(-x)), log is natural. Each example is one pair with c = 1 and r =
-0.5, policy log-probabilities -9 and -20.5, nc = 2, nr = 4, at beta = 0.5 and e = 0.1.

## Which one

Begin with `sigmoid` and the default `nll_weight`. Change one thing at a time, and let the task's score on dev prompts
decide, not the loss: values of different losses cannot be compared.

| what you see or know | try |
|---|---|
| chosen log-ratio falls on held-out pairs; answers differ in few tokens | a higher `nll_weight`, `dpop`, `nca_pair` |
| answers grow longer or shorter with each probe | `sigmoid_norm` |
| labels of people who disagree | `cdpo`, or `robust` with a measured rate of wrong labels |
| few sound pairs, margins still rising after the dev score has stopped | `hinge`, `ipo`, `exo_pair` |
| chosen answers are references, better than the model's own | `apo_zero` |
| chosen answers are worse than what the model writes by now | `apo_down` |

"""


def page() -> str:
    """The whole text of docs/losses.md."""
    rows = ["| name | loss | paper | same values as | settings |", "|---|---|---|---|---|"]
    parts = []
    for name, loss in LOSSES.items():
        title, formula, notes = _docstring(loss)
        settings = ", ".join(f"`{s}`" for s in loss.settings) or "none"
        rows.append(f"| [`{name}`](#{name}) | {title} | {_paper(loss)} | {loss.equals} | {settings} |")
        lines = [
            f"## `{name}`",
            "",
            f"{title}. {_paper(loss)}. Same values as: {loss.equals}.",
            "",
            f"    {formula}",
            "",
        ]
        parts.append("\n".join([*lines, *(f"- **{key}**: {text}" for key, text in notes)]))
    return "\n\n".join([HEAD.strip(), "\n".join(rows), _beta(), *parts]) + "\n"


def _docstring(loss: Loss) -> tuple[str, str, list[tuple[str, str]]]:
    """Title and formula from the first line; then what follows `By hand:`, `Use:` and `Elsewhere:`."""
    first, rest = (inspect.getdoc(loss.function) or "").split("\n\n", 1)
    title, formula = first.split(": ", 1)
    found = re.split(r"(?:^|\n)(By hand|Use|Elsewhere): ", rest)[1:]
    notes = [(key, " ".join(text.split())) for key, text in zip(found[::2], found[1::2], strict=True)]
    return title, formula, [(key, text if key == "By hand" else text[0].upper() + text[1:]) for key, text in notes]


def _paper(loss: Loss) -> str:
    text = re.sub(r"\b(\d{4}\.\d{5})\b", r"arXiv [\1](https://arxiv.org/abs/\1)", loss.paper)
    return re.sub(r"\b(\S+\.pdf)", r"[\1](https://\1)", text)


def _beta() -> str:
    """The section on beta, with slopes at the start computed from the losses themselves."""
    rows = ["| name | loss at the start | slope by chosen logps | slope by rejected logps |", "|---|---|---|---|"]
    config = TrainConfig(beta=BETA)
    for name, loss in LOSSES.items():
        if "beta" not in loss.settings:
            continue
        smoothed = replace(config, label_smoothing=0.1 if "label_smoothing" in loss.settings else 0.0)
        value, slopes = _start(loss, smoothed)
        rows.append(f"| `{name}` | {value:.3f} | {slopes[0]:+.5f} | {slopes[1]:+.5f} |")
    text = f"""## Choosing beta

beta turns nats into margins, and losses differ in which nats: of the whole answer (sums) or of a token (`ipo`,
`sigmoid_norm`, `simpo`). So one value of beta means very different things:

- **Sums** (`sigmoid`, `cdpo`, `robust`, `dpop`, `exo_pair`, `nca_pair`, `bco_pair`, `apo_*`, `aot*`, `discopop`): a
  pair counts as learned when c - r is a few times 1 / beta nats for the whole answer, 10 to 30 nats at 0.1. A lower
  beta lets the policy move further. Papers use 0.01 to 0.5.
- **Sums with a target**: `hinge` stops at c - r = 1 / beta, `sppo_hard` wants c = 1 / (2 beta) and r = -1 / (2 beta):
  10, 5 and -5 nats at 0.1.
- **Means** (`sigmoid_norm`, `simpo`): the same slope as with sums needs a beta larger by the answers' length. With
  answers of {LENGTHS[0]} tokens, 0.1 of `sigmoid` corresponds to {BETA * LENGTHS[0]:g} of `sigmoid_norm`. SimPO's
  authors use 2 to 10.
- **`ipo`** asks for a gap of 1 / (2 beta) nats *a token*: 5 at 0.1, more than most pairs can reach, so that it never
  stops pushing. A gap of 0.1 to 0.5 nats a token, beta 5 to 1, is a bounded target.
- In a sum of losses beta is one for all terms: mix sums with sums.

Slopes at the start (policy equals reference, {LENGTHS[0]} tokens in each answer at -0.5 nats a token, beta {BETA}, e
= 0.1 where it is read, a batch of one): how hard one pair pulls on the sum of the logps of each answer. Divide by a
loss's slope to find the lr or beta at which it moves as fast as another. Clipping of gradients (`max_grad_norm`)
hides part of the difference. `dpop` starts on the edge of its penalty: its slope is that of `sigmoid` as long as the
chosen answer does not fall.

"""
    return text + "\n".join(rows)


def _start(loss: Loss, config: TrainConfig) -> tuple[float, list[float]]:
    lengths = [torch.tensor([n]) for n in LENGTHS]
    policy = [(-0.5 * n.double()).requires_grad_() for n in lengths]
    value = loss.values(PairLogps(*policy, *(p.detach() for p in policy), *lengths), config)
    value.sum().backward()
    return value.item(), [p.grad.item() + 0.0 for p in policy if p.grad is not None]


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(TARGET)

"""Displays of one pair, token by token: what training changed, and what the loss sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpo_workbench.common.html import NO_MATH, escape, pre


@dataclass
class PairDisplay:
    """One pair, token by token, as text or HTML. Each field with two entries is for the chosen and the rejected answer.

    The tokens are those that the loss counts, including the end token.
    """

    id: str
    tokens: Sequence[Sequence[str]]  # decoded one by one
    divergence: int  # number of tokens before the first one that differs
    reference: Sequence[Sequence[float]]  # log-probability of each token before training, in nats
    policy: Sequence[Sequence[float]] | None = None  # after training

    @property
    def log_ratios(self) -> list[list[float]] | None:
        """Policy minus reference for each token, in nats."""
        if self.policy is None:
            return None
        answers = zip(self.policy, self.reference, strict=True)
        return [[p - r for p, r in zip(*answer, strict=True)] for answer in answers]

    def __repr__(self) -> str:
        ranks = ["correctly" if sum(c) > sum(r) else "wrongly" for c, r in filter(None, (self.reference, self.policy))]
        chosen, rejected = map(sum, self.log_ratios or self.reference)
        what = "log p before training" if self.policy is None else "change of log p in training"
        return (
            f"pair {self.id}: {self.divergence} tokens in common, ranked {', then '.join(ranks)}\n"
            f"{what}: {chosen:+.1f} nats for the chosen answer, {rejected:+.1f} for the rejected one"
        )

    def _repr_html_(self) -> str:
        shown = self.log_ratios or self.reference
        strongest = max(1e-6, *(abs(value) for part in shown for value in part))

        def look(place: int, value: float) -> str:
            red_green_blue = "0, 114, 178" if value >= 0 else "230, 159, 0"
            border = "; border-left: 2px solid" if place == self.divergence else ""
            return f"background: rgba({red_green_blue}, {min(1.0, abs(value) / strongest):.2f}){border}"

        lines = [
            _line(
                name, ((t, f"{v:+.3f} nats", look(k, v)) for k, (t, v) in enumerate(zip(tokens, values, strict=True)))
            )
            for name, tokens, values in zip(("chosen", "rejected"), self.tokens, shown, strict=True)
        ]
        what = "log-ratio: blue rose, orange fell" if self.policy else "log-probability: darker is less likely"
        note = f"{what}; hover over a token for its number; a vertical line marks where the answers diverge"
        return f'<div class="{NO_MATH}">{pre(repr(self))}{"".join(lines)}<p><small>{note}</small></p></div>'


@dataclass
class MaskDisplay:
    """One row as the loss sees it: a prompt, and answers whose tokens are scored. As text or HTML."""

    id: str
    texts: Sequence[str]  # the prompt and each answer, decoded
    tokens: Sequence[Sequence[str]]  # the same, decoded one by one
    ended: Sequence[bool]  # whether the last token is the end token

    def __repr__(self) -> str:
        lines = [f"prompt ({len(self.tokens[0])} tokens, no loss): {self.texts[0]!r}"]
        for number, (text, tokens) in enumerate(zip(self.texts[1:], self.tokens[1:], strict=True), 1):
            lines.append(f"answer {number} ({len(tokens)} tokens, scored): {text!r}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        looks = {"no loss": "color: #767676", "scored": "background: #56b4e9; color: #000"}
        looks["end token"] = "background: #e69f00; color: #000; border: 2px solid #000"
        parts = []
        for number, (tokens, ended) in enumerate(zip(self.tokens, self.ended, strict=True)):
            kinds = ["scored" if number else "no loss"] * len(tokens)
            kinds[-1:] = ["end token"] if number and ended else kinds[-1:]
            name = f"answer {number}" if number else "prompt"
            parts.append(_line(name, ((t, kind, looks[kind]) for t, kind in zip(tokens, kinds, strict=True))))
        parts.append(_line("colours", ((kind, kind, look) for kind, look in looks.items())))
        return f'<div class="{NO_MATH}">{"".join(parts)}</div>'


def _line(name: str, tokens: Iterable[tuple[str, str, str]]) -> str:
    """A line of (token, text to show on hover, CSS), as HTML."""
    spans = (
        f'<span title="{title}" style="{look}; white-space: pre-wrap">{escape(token)}</span>'.replace("\n", "↵")
        for token, title, look in tokens
    )
    return f'<p class="{NO_MATH}"><strong>{name}</strong> {"".join(spans)}</p>'

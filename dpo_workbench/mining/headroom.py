"""Headroom: how often the model already knows a good answer where it fails, so that preferences can help."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

_MEANING = {
    "go": (
        "Worth a try: {forecast:.0f} % of the failures happen where the model also knows a good answer (propensity), "
        "which is what DPO fixes."
    ),
    "train more first": (
        "The model seldom has both a good and a bad answer to one prompt: it lacks the skill (capability). Fine-tune "
        "more, or use a bigger model, before DPO."
    ),
    "nothing to fix": "There are too few failures to learn from. Use harder prompts, or stop here.",
}


@dataclass(frozen=True)
class Headroom:
    """Measured from k samples per prompt. DPO learns from prompts that have both a passing and a failing answer."""

    n_prompts: int
    samples: int  # k
    mean_score: float
    best_score: float  # mean over prompts of the best of k
    failed_share: float  # of all samples
    mixed_share: float  # prompts with both a passing and a failing answer
    never_share: float  # prompts without a passing answer
    forecast: float  # expected relative cut of failures, see `of`
    classes: dict[str, float] = field(default_factory=dict)  # failure class -> share of it on mixed prompts
    target: tuple[str, ...] = ()  # the failure classes that count as failing; empty means all

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[tuple[float, str | None]]],
        target: Sequence[str] = (),
        fixed: Sequence[bool] | None = None,
    ) -> Headroom:
        """From (score, failure class) of each sample of each prompt.

        The forecast is the share of failed samples whose prompt also has a passing sample. These failures would go
        away if the model chose better among its own answers, so it is meant as an upper bound. With a `target`, only
        these classes count as failing; `fixed` says for which prompts `branch` found an answer that then passes.
        """
        if target:
            rows = [[(value, f if f in target else None) for value, f in samples] for samples in rows]
        passes = [any(f is None for _, f in samples) for samples in rows]
        if fixed is not None:
            passes = [one or other for one, other in zip(passes, fixed, strict=True)]
        mixed = [samples for samples, ok in zip(rows, passes, strict=True) if ok and any(f for _, f in samples)]
        scores = [value for samples in rows for value, _ in samples]
        failed = Counter(f for samples in rows for _, f in samples if f)
        on_mixed = Counter(f for samples in mixed for _, f in samples if f)
        return cls(
            n_prompts=len(rows),
            samples=max(map(len, rows)),
            mean_score=statistics.fmean(scores),
            best_score=statistics.fmean(max(value for value, _ in samples) for samples in rows),
            failed_share=failed.total() / len(scores),
            mixed_share=len(mixed) / len(rows),
            never_share=1 - sum(passes) / len(rows),
            forecast=on_mixed.total() / failed.total() if failed else 0.0,
            classes={name: on_mixed[name] / n for name, n in failed.most_common()},
            target=tuple(target),
        )

    @property
    def advice(self) -> str:
        """`go`, `train more first`, or `nothing to fix`."""
        if self.failed_share < 0.01:
            return "nothing to fix"
        return "go" if self.mixed_share >= 0.2 else "train more first"

    def __str__(self) -> str:
        fail = f"fail as {', '.join(self.target)}" if self.target else "fail"
        return (
            f"{100 * self.failed_share:.0f} % of {self.n_prompts} x {self.samples} samples {fail}. "
            f"{100 * self.mixed_share:.0f} % of the prompts have both a passing and a failing answer, "
            f"{100 * self.never_share:.0f} % have no passing one. Mean score {self.mean_score:.3f}, best of "
            f"{self.samples} {self.best_score:.3f}. {_MEANING[self.advice].format(forecast=100 * self.forecast)}"
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values with the advice, for JSON."""
        return asdict(self) | {"advice": self.advice, "text": str(self)}

    __repr__ = __str__

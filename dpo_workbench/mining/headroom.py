"""Headroom: what a model can already do on its good days, and so what preferences can make it do always."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Headroom:
    """Measured from k samples a prompt. DPO moves a model among answers it already gives: it needs such prompts."""

    n_prompts: int
    samples: int  # k
    mean_score: float
    best_score: float  # mean over prompts of the best of k
    failed_share: float  # of all samples
    mixed_share: float  # prompts with both a passing and a failing answer: what DPO learns from
    never_share: float  # prompts with no passing answer: capability is lacking
    forecast: float  # expected relative cut of failures, see `of`
    classes: dict[str, float] = field(default_factory=dict)  # failure class -> share of it on mixed prompts
    target: tuple[str, ...] = ()  # the failure classes that count as failing here; none named = all

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[tuple[float, str | None]]],
        target: Sequence[str] = (),
        mended: Sequence[bool] | None = None,
    ) -> Headroom:
        """From (score, failure class) of each sample of each prompt.

        The forecast is the share of failed samples whose prompt also has a passing sample: the failures that a better
        choice among the model's own answers would mend. It is a ceiling of propensity, not a promise. With a target,
        only answers of these classes fail, and any other answer passes; `mended` says of which prompts `branch` found
        an answer that passes in this sense.
        """
        if target:
            rows = [[(value, f if f in target else None) for value, f in samples] for samples in rows]
        flat = [s for samples in rows for s in samples]
        failed: Counter[str] = Counter(f for _, f in flat if f)
        passes = [any(f is None for _, f in samples) for samples in rows]
        if mended is not None:
            passes = [one or other for one, other in zip(passes, mended, strict=True)]
        mixed = [samples for samples, ok in zip(rows, passes, strict=True) if ok and any(f for _, f in samples)]
        on_mixed: Counter[str] = Counter(f for samples in mixed for _, f in samples if f)
        n_failed = sum(failed.values())
        return cls(
            n_prompts=len(rows),
            samples=max(map(len, rows)),
            mean_score=statistics.fmean(v for v, _ in flat),
            best_score=statistics.fmean(max(v for v, _ in samples) for samples in rows),
            failed_share=n_failed / len(flat),
            mixed_share=len(mixed) / len(rows),
            never_share=1 - sum(passes) / len(rows),
            forecast=sum(on_mixed.values()) / n_failed if n_failed else 0.0,
            classes={name: on_mixed[name] / n for name, n in failed.most_common()},
            target=tuple(target),
        )

    @property
    def advice(self) -> str:
        """`go`, `train more first`, or `nothing to mend`."""
        if self.failed_share < 0.01:
            return "nothing to fix"
        return "go" if self.mixed_share >= 0.2 else "train more first"

    @property
    def text(self) -> str:
        """What the numbers mean, in words."""
        fail = f"fail as {', '.join(self.target)}" if self.target else "fail"
        facts = (
            f"{100 * self.failed_share:.0f} % of {self.n_prompts} x {self.samples} samples {fail}. "
            f"{100 * self.mixed_share:.0f} % of the prompts have both a passing and a failing answer, "
            f"{100 * self.never_share:.0f} % have no passing one. Mean score {self.mean_score:.3f}, best of "
            f"{self.samples} {self.best_score:.3f}."
        )
        meaning = {
            "go": (
                f"Worth a try: {100 * self.forecast:.0f} % of the failures happen where the model also knows a good "
                "answer (propensity), which is what DPO mends."
            ),
            "train more first": (
                "The model seldom has both a good and a bad answer to one prompt: it lacks the skill (capability). "
                "Fine-tune more, or take a bigger model, before DPO."
            ),
            "nothing to fix": "There are too few failures to learn from. Take harder prompts, or stop here.",
        }
        return f"{facts} {meaning[self.advice]}"

    def to_dict(self) -> dict[str, object]:
        """Plain values with the advice, for JSON."""
        return asdict(self) | {"advice": self.advice, "text": self.text}

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Headroom: {self.text}"

    def _repr_html_(self) -> str:
        from dpo_workbench.common.html import pre

        return pre(self.text)

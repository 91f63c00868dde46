"""The term ``posterior``: pairs count as far as their labels are likely to be right.

``source: round`` asks the review before the round. The scores of a signal are calibrated on D, as
``review.calibration`` has it, to w = P(the label is right), and

    use: weight   w' = max(0, 2w − 1), divided by its mean over the round, weighs the pair
    use: flip     w·ℓ(m) + (1 − w)·ℓ(−m), ℓ the base

``source: on_the_fly`` is RE-PO (arXiv 2509.24159), with ``use: flip`` alone: w is found anew at
every step (eq. 4), from the policy's margin m, as terms before this one have shifted it, and η, the
share of right labels, which follows the mean of w (eq. 7); ``momentum`` is the paper's α.

    w = p·η / [p·η + (1 − p)·(1 − η)],   p = σ(ℓ(−m) − ℓ(m)),   η ← (1 − α)·η + α·mean(w)

The paper's loss is −w·log p − (1 − w)·log(1 − p), which with ``sigmoid`` is the one above; other
bases keep their own ℓ, which is ours, and so is all of ``source: round``. η is that of all pairs:
there are no annotators. With ``round``, pairs that nothing is known of, in the warm-up and among
the bootstrapped, count as without the term. Collectives: one broadcast per round, or one sum per
micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from sera_plugin.config import SeraConfig
from sera_plugin.config.fields import Block, Float
from sera_plugin.review.calibration import Calibration, weights
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.training.objective import Step
from sera_plugin.training.terms.reading import by_row, check_signals
from sera_plugin.training.terms.term import Opening, Term, TermParts, noting

LOG = logger(__name__)


class PosteriorConfig(Block):
    """How much each label is believed."""

    source: Literal["round", "on_the_fly", "review"] = Field(
        default="round",
        description="Who doubts a label: `round`, a signal of the review before the round; "
        "`on_the_fly`, the policy at every step, as RE-PO does; `review`, what "
        "`sera.selection.use: weight` found, which brings this term itself.",
    )
    signal: str = Field(
        default="margin",
        json_schema_extra={"allowed": "margin, or the name of a signal of sera.selection.signals"},
        description="`source: round`: the signal whose scores are calibrated; above 0 they speak "
        "for the label.",
    )
    use: Literal["weight", "flip"] = Field(
        default="weight",
        description="`weight` weighs the pair; `flip` trains on both labels, each as far as it is "
        "likely.",
    )
    reliability: Float = Field(
        default=0.9,
        ge=0.5,
        lt=1,
        description="`source: on_the_fly`: η, the share of right labels, at the start of the run.",
    )
    momentum: Float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="`source: on_the_fly`: how fast η follows the micro-batches.",
    )


class Posterior(Term):
    """Weighs pairs, or flips them in part."""

    Settings = PosteriorConfig
    paper = "2509.24159"

    settings: PosteriorConfig

    def __init__(self, settings: PosteriorConfig, parts: TermParts) -> None:
        super().__init__(settings, parts)
        self._right: Mapping[str, float] = {}
        self._weights: Mapping[str, float] = {}
        self.reliability = settings.reliability

    @classmethod
    def check(cls, settings: PosteriorConfig, config: SeraConfig, cfg: Any) -> None:
        if settings.source == "review":
            if config.selection.use != "weight":
                raise SeraConfigError(
                    "sera.loss.posterior.source: review is what sera.selection.use: weight brings; "
                    "write that key in place of the term."
                )
        elif settings.source == "round":
            check_signals("sera.loss.posterior.signal", [settings.signal], config)
        elif settings.use == "weight":
            raise SeraConfigError(
                "sera.loss.posterior.use: weight can't be used with source: on_the_fly, which "
                "trains on both labels; write use: flip."
            )

    def state(self) -> Mapping[str, Any]:
        if self.settings.source != "on_the_fly":
            return {}
        return {"reliability": self.reliability}

    def resume(self, state: Mapping[str, Any]) -> None:
        self.reliability = float(state["reliability"])

    def open_round(self, opening: Opening) -> None:
        if self.settings.source == "on_the_fly":
            return
        if self.settings.source == "review":
            self._take_over(opening)
            return
        table, right = opening.table, np.full(len(self.parts.pairs), np.nan)
        if table is not None:
            scores = table.signal(self.settings.signal)
            calibration = shared(lambda: Calibration.fit(scores))
            if calibration is not None:
                right = calibration.posterior(scores)
                LOG.info(
                    "Round %d: by the signal %s, %.0f%% of the labels are wrong.",
                    opening.number, self.settings.signal, 100 * calibration.error,
                )  # fmt: skip
        found = by_row(opening.dataset, right, 1 - right, unknown=np.nan)
        counts = weights(np.array(list(found.values())))
        self._weights = dict(zip(found, counts.tolist(), strict=True))
        self._right = {key: 1.0 if np.isnan(value) else value for key, value in found.items()}

    def _take_over(self, opening: Opening) -> None:
        """The weights that the review found, 1 in the warm-up and of bootstrapped pairs."""
        table = opening.table
        unknown = np.full(len(self.parts.pairs), np.nan)
        right = unknown if table is None or table.right is None else table.right
        weight = unknown if table is None or table.weight is None else table.weight
        self._right = by_row(opening.dataset, right, 1 - right, unknown=1.0)
        self._weights = by_row(opening.dataset, weight, weight, unknown=1.0)

    def __call__(self, step: Step, prepared: Any) -> Step:
        if self.settings.source == "on_the_fly":
            right = self._now(step)
        else:
            right = step.pairs([self._right[key] for key in step.keys])
        noted = noting(step, posterior__right=right)
        if self.settings.use == "weight":
            weight = step.pairs([self._weights[key] for key in step.keys])
            return replace(noted, weight=step.weight * weight)
        wrong = 1 - right
        return replace(noted, flip=step.flip * right + (1 - step.flip) * wrong)

    def _now(self, step: Step) -> torch.Tensor:
        """w of the step's pairs, shape (n,); η moves on."""
        margin = (step.margin + step.shift).detach()
        agrees = step.base.of(-margin, step.beta) - step.base.of(margin, step.beta)
        eta = self.reliability
        right = torch.sigmoid(agrees + float(np.log(eta / (1 - eta))))
        total = torch.stack([right.double().sum(), right.new_tensor(len(right)).double()])
        total = self.parts.host.accelerator.reduce(total, "sum")
        speed = self.settings.momentum
        self.reliability = (1 - speed) * eta + speed * float(total[0] / total[1])
        return right

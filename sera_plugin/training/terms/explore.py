"""The term ``explore``: SELM (arXiv 2405.19332), away from what the policy says already.

    loss + α·β·mean(log[πθ(y)/πref(y)])

y is an answer that the policy has sampled. Its likelihood is lowered a little, so that the next
round samples others: optimism about answers that nobody has judged. The paper takes one sampled
answer of every prompt, and DPO; here it is the policy's own answers in bootstrapped pairs (their
mean where both are), and pairs without any count as 0 in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from sera_plugin.config import SeraConfig
from sera_plugin.config.fields import Block, Float
from sera_plugin.data.candidates import Source
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.training.objective import Step
from sera_plugin.training.terms.term import Opening, Term, TermParts, noting


class ExploreConfig(Block):
    """How far the policy is driven away from its own answers."""

    alpha: Float = Field(
        default=1e-3,
        ge=0,
        description="α, the weight of the log-ratio of the policy's own answers.",
    )


class Explore(Term):
    """Adds the log-ratios of the policy's own answers."""

    Settings = ExploreConfig
    paper = "2405.19332"
    reads_logits = False
    mixes_pairs = False

    settings: ExploreConfig

    def __init__(self, settings: ExploreConfig, parts: TermParts) -> None:
        super().__init__(settings, parts)
        self._own: Mapping[str, tuple[bool, bool]] = {}

    @classmethod
    def check(cls, settings: ExploreConfig, config: SeraConfig, cfg: Any) -> None:
        bootstrap = config.bootstrap
        for key, value, lacking in (
            ("fraction", f"{bootstrap.fraction:g}", bootstrap.fraction == 0),
            ("sampler", bootstrap.sampler, bootstrap.sampler == "reference"),
        ):
            if lacking:
                raise SeraConfigError(
                    "sera.loss.explore needs answers of the policy's own, and "
                    f"sera.bootstrap.{key}: {value} gives none; change it, or leave the term out."
                )

    def open_round(self, opening: Opening) -> None:
        self._own = {
            row.key: (row.chosen_source == Source.POLICY, row.rejected_source == Source.POLICY)
            for row in opening.dataset.rows
        }

    def __call__(self, step: Step, prepared: Any) -> Step:
        own = step.ratios.new_tensor([self._own[key] for key in step.keys])
        ratio = (step.ratios * own).sum(dim=1) / own.sum(dim=1).clamp(min=1)
        more = self.settings.alpha * step.beta * ratio.mean()
        return replace(noting(step, explore__log_ratio=ratio), extra=step.extra + more)

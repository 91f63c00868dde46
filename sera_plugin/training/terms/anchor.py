"""The term ``anchor``: the negative log-likelihood of the better answer, as in RPO (2404.19733).

    loss + α·mean(w·[(1 − f)·ℓ(y⁺) + f·ℓ(y⁻)]),   ℓ(y) = −log πθ(y)/|y|

The paper adds ℓ(y⁺) to α times DPO's loss, with α = 1; here α stands before ℓ, so that 1 is the
paper's. Ours: w and f, the weight of a pair and how likely its label is wrong, as the terms before
this one left them. With neither, w = 1 and f = 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from sera_plugin.config.fields import Block, Float
from sera_plugin.training.objective import Step
from sera_plugin.training.terms.term import Term, noting


class AnchorConfig(Block):
    """How firmly the better answers are held."""

    alpha: Float = Field(
        default=1.0,
        ge=0,
        description="α, the weight of the negative log-likelihood per token.",
    )


class Anchor(Term):
    """Adds the negative log-likelihood of the better answers."""

    Settings = AnchorConfig
    paper = "2404.19733"
    reads_logits = False
    mixes_pairs = False

    settings: AnchorConfig

    def __call__(self, step: Step, prepared: Any) -> Step:
        chosen, rejected = (-step.policy / step.tokens.clamp(min=1)).unbind(dim=1)
        better = (1 - step.flip) * chosen + step.flip * rejected
        more = self.settings.alpha * (step.weight * better).mean()
        return replace(noting(step, anchor__nll=better), extra=step.extra + more)

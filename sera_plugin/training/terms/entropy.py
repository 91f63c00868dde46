"""The term ``entropy``: H-DPO (arXiv 2411.07595).

    −log σ(α·β·log[πθ(y⁺)/πθ(y⁻)] − β·log[πref(y⁺)/πref(y⁻)])

The reward is regularised by α times the policy's entropy instead of once: α < 1 makes the policy
sharper, α > 1 flatter, α = 1 is DPO. It is a shift of the margin by (α − 1)·β·log[πθ(y⁺)/πθ(y⁻)],
with gradient, so that other terms see the log-probs as they are. With ``ipo`` the log-probs are
means per token, without β; that, ``hinge`` and ``robust`` are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from sera_plugin.config.fields import Block, Float
from sera_plugin.training.objective import Step
from sera_plugin.training.terms.term import Term


class EntropyConfig(Block):
    """How sharp the policy becomes."""

    alpha: Float = Field(
        default=0.95,
        gt=0,
        description="α, the weight of the policy's entropy: below 1 sharper, 1 is DPO, above 1 "
        "flatter.",
    )


class Entropy(Term):
    """Scales the policy's part of the margin."""

    Settings = EntropyConfig
    paper = "2411.07595"
    reads_logits = False
    mixes_pairs = False

    settings: EntropyConfig

    def __call__(self, step: Step, prepared: Any) -> Step:
        own = step.base.margin(step.policy, step.tokens, step.beta)
        return replace(step, shift=step.shift + (self.settings.alpha - 1) * own)

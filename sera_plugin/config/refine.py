"""The ``sera.refine`` block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sera_plugin.config.fields import Block, Float


class RefineConfig(Block):
    """Quality-aware self-refinement: how much better the chosen answer is, in the loss."""

    weight: Float = Field(
        default=0.1,
        ge=0,
        description="λ, the weight of Δ in the loss; 0 (or no `refine` block) switches refinement "
        "off.",
    )
    prompt: str | None = Field(
        default=None,
        json_schema_extra={"allowed": "text, the path of a text file, or null"},
        description="The quality prompt p: text, or a path; null means the built-in one.",
    )
    placement: Literal["system", "user_prefix"] = Field(
        default="system",
        description="Where p stands: `system` as the system message (before one that is there), "
        "`user_prefix` before the first user message.",
    )
    normalize: Literal["none", "length"] = Field(
        default="none",
        description="Δ of log-probs as the loss measures them (`none`: sums for DPO, means per "
        "token for IPO), or always per token of each answer (`length`).",
    )
    clip: Float | None = Field(
        default=None,
        gt=0,
        json_schema_extra={"allowed": "a number above 0, or null"},
        description="Bound on the size of λ·Δ; null means no bound.",
    )
    source: Literal["on_the_fly", "round"] = Field(
        default="on_the_fly",
        description="Whose Δ: `on_the_fly` of the policy at every step, with one more forward "
        "pass; `round` of the policy at the round's start, stored.",
    )

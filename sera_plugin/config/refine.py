"""The ``sera.refine`` block, and the settings of the term ``refine``."""

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
        "off. The paper chose from 0.1, 0.3, 0.5 and 1.",
    )
    prompt: str | None = Field(
        default=None,
        json_schema_extra={"allowed": "text, the path of a text file, or null"},
        description="The quality prompt p: text, or a path; null means the paper's.",
    )
    placement: Literal["user_prefix", "system"] = Field(
        default="user_prefix",
        description="Where p stands: `user_prefix` before the first user message, as in the paper, "
        "`system` as the system message (before one that is there).",
    )
    baseline: Literal["reference", "none", "plain"] = Field(
        default="reference",
        description="What is taken off log πθ(y|p⊕x) for Δ: `reference` log πref(y|p⊕x), as in "
        "the paper; `plain` log πθ(y|x); `none` nothing. The last two are ours.",
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

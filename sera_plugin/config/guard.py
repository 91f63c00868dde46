"""The ``sera.bootstrap.guard`` block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sera_plugin.config.fields import MOST, Block, Count, Float, Int


class GuardConfig(Block):
    """Limits past which a round takes fewer bootstrapped pairs, or none."""

    enabled: bool = Field(
        default=True,
        strict=True,
        description="Whether the guard decides; its signals are measured and stored either way. "
        "`guard: false` is short for `guard: {enabled: false}`.",
    )
    max_drift: Float = Field(
        default=0.5,
        gt=0,
        le=MOST,
        description="Most nats per token by which the policy's answers may have left the "
        "reference.",
    )
    max_spread: Float = Field(
        default=6.0,
        ge=1,
        le=MOST,
        description="Most times that the within-prompt standard deviation of the reward may be "
        "that of the first review.",
    )
    max_length_correlation: Float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="Most correlation, of either sign, between reward and length of the answers "
        "to a prompt; 1 leaves this signal out.",
    )
    min_agreement: Float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Least share of best and worst answers that must stay so when the reward's "
        "linear dependence on length is taken out; 0 leaves this signal out.",
    )
    min_accuracy: Float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least share of evaluation pairs that the reward must rank as labelled, where "
        "there are evaluation pairs or held-out ones; 0 leaves this signal out.",
    )
    held_out: (
        Literal["auto"] | Annotated[Count, Field(ge=0)] | Annotated[Float, Field(gt=0, le=0.5)]
    ) = Field(
        default="auto",
        json_schema_extra={
            "allowed": f"auto, a share up to 0.5, or a whole number of pairs from 0 up to {MOST}"
        },
        description="Training pairs that no round trains on, for `min_accuracy` and the warning of "
        "memorised labels; only where the config has no evaluation pairs. A share, a number, or "
        "`auto`: 5%, at most 128, of 640 pairs or more, where the guard decides. 0 holds out none.",
    )
    min_prompts: Int = Field(
        default=16,
        ge=2,
        le=MOST,
        description="Fewest prompts (for `min_accuracy`, evaluation pairs) that a signal must be "
        "measured on to have a say.",
    )

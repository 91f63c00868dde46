"""The ``sera.selection.external`` block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sera_plugin.config.fields import Block, Float

Scale = Annotated[Float, Field(gt=0)]
Column = Annotated[str, Field(min_length=1, max_length=200)]


class ExternalConfig(Block):
    """Scores that the dataset carries, for ``rule: external`` and the signal ``external``."""

    chosen: Column = Field(
        default="score_chosen",
        json_schema_extra={"allowed": "the name of a column"},
        description="Column with the score of the chosen answer.",
    )
    rejected: Column = Field(
        default="score_rejected",
        json_schema_extra={"allowed": "the name of a column"},
        description="Column with the score of the rejected answer.",
    )
    margin: Annotated[str, Field(max_length=200)] = Field(
        default="",
        json_schema_extra={"allowed": "the name of a column, or nothing"},
        description="Column with the margin itself, in place of the two scores.",
    )
    mode: Literal["fused", "only"] = Field(
        default="fused",
        description="`fused`: product of the preference probabilities by both margins; `only`: the "
        "dataset's margins alone.",
    )
    implicit_scale: Scale | Literal["auto"] = Field(
        default="auto",
        json_schema_extra={"allowed": "a number above 0 or auto"},
        description="Implicit margin, nats, at which the log-odds are 1; `auto` takes the root "
        "mean square over D.",
    )
    external_scale: Scale | Literal["auto"] = Field(
        default="auto",
        json_schema_extra={"allowed": "a number above 0 or auto"},
        description="The same for the dataset's margins.",
    )

"""The ``sera.selection`` block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sera_plugin.config.fields import MOST, Block, Count, Float


class SelectionConfig(Block):
    """Self-review: which offline pairs a reviewed round keeps."""

    keep: Annotated[Count, Field(gt=0)] | Annotated[Float, Field(gt=0, le=MOST)] = Field(
        default=0.7,
        json_schema_extra={"allowed": "a share in (0, 1] or a whole number of pairs from 2 on"},
        description="Offline pairs kept per reviewed round: a share of |D| in (0, 1], or a whole "
        "number of pairs from 2 on.",
    )
    margin: Literal["sum", "mean"] = Field(
        default="sum",
        description="Margin of a pair: `sum` of the log-ratios over each answer, or `mean` per "
        "token of each answer.",
    )

    @model_validator(mode="after")
    def _keep_is_share_or_count(self) -> SelectionConfig:
        if self.keep > 1 and self.keep != int(self.keep):
            raise ValueError(
                f"sera.selection.keep: {self.keep} is neither a share in (0, 1] nor a whole number "
                "of pairs."
            )
        return self

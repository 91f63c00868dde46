"""The ``sera.training`` block: how steps and log-probs are computed. What is found stays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sera_plugin.config.fields import Block, switch
from sera_plugin.runtime.errors import SeraConfigError

Auto = Literal["auto", True, False]
"""`auto`: where it works."""


class TrainingConfig(Block):
    """How pairs are put into batches and rows, in training steps and scoring passes."""

    group_by_length: Auto = Field(
        default="auto",
        description="Deal the pairs of an update to micro-batches and processes by length; the "
        "update is the mean over the same pairs. `auto`: unless the loss compares the pairs of a "
        "micro-batch with each other.",
    )
    packing: Auto = Field(
        default="auto",
        description="Training steps without padding, with logits of answer tokens alone. `auto`: "
        "where loss and model allow it, which a check before the first step finds out; `true` "
        "ends the run where they don't.",
    )
    shared_prompts: Auto = Field(
        default="auto",
        description="Packed steps read the prompt of a pair once for both answers. `auto`: where "
        "packing is on and the model takes a mask of its own, which the same check finds out; "
        "`true` ends the run where it doesn't.",
    )
    merged: Auto = Field(
        default=False,
        description="Packed steps compute several micro-batches of an update in one pass. `auto`: "
        "as many as need, by estimate, at most half of the memory that the longest pairs take "
        "the host's way; `true`: all of an update, and ends the run where steps can't be packed; "
        "`false`: one.",
    )
    shared_scoring: Auto = Field(
        default="auto",
        description="Scoring passes of policy and reference read a prompt once for all its "
        "answers, where that saves work. `auto`: where the model's answers can stand behind keys "
        "and values of the prompt, which a check before the first pass finds out; `true` ends the "
        "run where they can't.",
    )
    sampled_logps: Auto = Field(
        default="auto",
        description="Log-probs of sampled answers under the model that wrote them are those found "
        "while sampling, before temperature and top_p; a few are scored to compare. `auto`: where "
        "the engine finds them and the model is in float32; `true` ends the run where not.",
    )

    @model_validator(mode="after")
    def _of_packed_steps(self) -> TrainingConfig:
        for key in ("shared_prompts", "merged"):
            if getattr(self, key) is True and self.packing is False:
                raise SeraConfigError(
                    f"sera.training.{key}: true needs packed steps, which "
                    "sera.training.packing: false switches off; change one of them."
                )
        return self


def off() -> dict[str, bool]:
    """The block that `false` is short for."""
    return dict.fromkeys(TrainingConfig.model_fields, False)


Training = Annotated[TrainingConfig, switch(TrainingConfig, on={}, off=off())]

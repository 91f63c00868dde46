"""The ``sera.selection.contrast`` block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sera_plugin.config.fields import Block


class ContrastPrompts(Block):
    """Two prompts that ask for opposite things."""

    positive: str = Field(
        json_schema_extra={"allowed": "text, or the path of a text file"},
        description="The prompt that asks for a good answer.",
    )
    negative: str | None = Field(
        default=None,
        json_schema_extra={"allowed": "text, the path of a text file, or null"},
        description="The prompt that asks for a bad one; null means none.",
    )
    placement: Literal["user_prefix", "system"] = Field(
        default="user_prefix",
        description="Where both stand: `user_prefix` before the first user message, `system` as "
        "the system message (before one that is there).",
    )


BUILT_IN = (
    ContrastPrompts(
        positive="Write a high-quality answer to this:",
        negative="Write a low-quality answer to this:",
    ),
)
"""What is asked where the YAML has no prompts of its own: of the wordings tried on a pretrained
model the one that ranked real pairs best, on some pairs chosen and on others confirmed."""


class ContrastConfig(Block):
    """Signal and judge ``contrast``: what πref says when asked for good and for bad answers."""

    prompts: Annotated[list[ContrastPrompts], Field(strict=True, max_length=10)] = Field(
        default=[],
        json_schema_extra={"allowed": "a list of blocks with positive and negative"},
        description="Pairs of prompts, each with `positive`, `negative` and `placement`; their "
        "contrasts are divided by their root mean squares and averaged. An empty list means the "
        "built-in pair.",
    )
    normalize: Literal["none", "length"] = Field(
        default="none",
        description="`none`: sums of log-probs; `length`: log-probs per token of each answer.",
    )

    @property
    def asked(self) -> tuple[ContrastPrompts, ...]:
        """The pairs of prompts."""
        return tuple(self.prompts) or BUILT_IN

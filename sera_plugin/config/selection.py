"""The ``sera.selection`` block."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sera_plugin.config.contrast import ContrastConfig, ContrastPrompts
from sera_plugin.config.fields import MOST, Block, Count, Float
from sera_plugin.config.parts import RULES, SIGNALS, title_of
from sera_plugin.runtime.errors import SeraConfigError

KEEP = 0.7
Keep = Annotated[Count, Field(gt=0)] | Annotated[Float, Field(gt=0, le=MOST)]
Percentile = Annotated[Float, Field(ge=0, le=100)]
Scale = Annotated[Float, Field(gt=0)]
RuleName = Annotated[str, Field(max_length=500), AfterValidator(RULES.check)]
SignalName = Annotated[
    str,
    Field(max_length=500, json_schema_extra={"anyOf": SIGNALS.schema["anyOf"]}),
    AfterValidator(SIGNALS.check),
]
Fill = Literal["kept", "kept_and_bootstrapped", "next_best"]
Column = Annotated[str, Field(min_length=1, max_length=200)]


class ExternalConfig(Block):
    """Scores that the dataset carries, for ``rule: external``."""

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


class SelectionConfig(Block):
    """Self-review: which offline pairs a reviewed round keeps."""

    rule: RuleName = Field(
        default="top",
        json_schema_extra=RULES.schema,
        description="Which pairs are kept; docs/selection.md lists the rules.",
    )
    keep: Keep | Annotated[list[Keep], Field(strict=True, min_length=1, max_length=1000)] = Field(
        default=KEEP,
        json_schema_extra={
            "allowed": f"a share in (0, 1], a whole number of pairs from 2 up to {MOST}, or a list "
            "of up to 1000 of these"
        },
        description="Offline pairs kept per reviewed round: a share of |D| in (0, 1], or a whole "
        "number of pairs from 2 on. A list has one entry per reviewed round; the last one repeats.",
    )
    fill: Fill = Field(
        default="next_best",
        description="What takes the places of pairs that fall short, so that a round keeps its "
        "size: `kept` pairs again, `kept_and_bootstrapped` pairs again, or `next_best` pairs that "
        "the rule lets through, then kept ones again. Pairs with a negative margin never do.",
    )
    margin: Literal["sum", "mean"] = Field(
        default="sum",
        description="Margin of a pair: `sum` of the log-ratios over each answer, or `mean` per "
        "token of each answer.",
    )
    band: Annotated[list[Percentile], Field(strict=True, min_length=2, max_length=2)] = Field(
        default=[20.0, 90.0],
        json_schema_extra={"allowed": "a list of two percentiles from 0 up to 100"},
        description="`rule: band`: the lowest and the highest percentile of the margins that are "
        "kept; takes the place of `keep`.",
    )
    threshold: Float = Field(
        default=0.0,
        description="`rule: threshold`: pairs with a margin above it are kept, at most `keep`; "
        "where they are fewer, `fill` says what takes the places of the others.",
    )
    signals: Annotated[list[SignalName], Field(strict=True, max_length=100)] = Field(
        default=[],
        json_schema_extra={"allowed": f"a list of {SIGNALS.allowed}"},
        description="Further scores of every offline pair that each review measures, stores in "
        "`margins.parquet` and shows to a rule of your own: see docs/extending.md.",
    )
    uncertainty: Float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Multiple of the standard deviation of a pair's margins over the reviews that "
        "is subtracted from its margin before the rule sees it.",
    )
    on_negative: Literal["keep", "drop", "flip"] = Field(
        default="keep",
        description="What happens to pairs whose margin is clearly negative: nothing, they are not "
        "kept, or chosen and rejected change places.",
    )
    negative_reviews: Count = Field(
        default=2,
        ge=1,
        description="`on_negative`: reviews in a row in which the ensembled margin must be "
        "negative.",
    )
    negative_deviations: Float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="`on_negative`: how far below zero, in standard deviations of the margins over "
        "D.",
    )
    source: Literal["rescore", "training"] = Field(
        default="rescore",
        description="Where margins come from: `rescore`, a scoring pass of D before each reviewed "
        "round, or `training`, what the training steps since the last review found on the way, "
        "at no cost but of an older policy.",
    )
    external: ExternalConfig = Field(
        default_factory=ExternalConfig, description="Scores that the dataset carries."
    )
    contrast: ContrastConfig = Field(
        default_factory=ContrastConfig,
        description="What the signal `contrast` asks the reference.",
    )

    @property
    def planned(self) -> tuple[float, ...]:
        """K of each reviewed round as a share or a number of pairs; the last one repeats."""
        if self.rule == "band":
            return ((self.band[1] - self.band[0]) / 100,)
        return tuple(self.keep) if isinstance(self.keep, list) else (self.keep,)

    @property
    def asked(self) -> tuple[ContrastPrompts, ...]:
        """The pairs of prompts whose contrast is measured; none if it is no signal."""
        return self.contrast.asked if "contrast" in self.signals else ()

    @property
    def looks_back(self) -> bool:
        """Whether the rule needs the margins of all earlier reviews."""
        return self.on_negative != "keep" or self.uncertainty > 0

    @model_validator(mode="after")
    def _keep_is_share_or_count(self) -> SelectionConfig:
        for keep in self.keep if isinstance(self.keep, list) else [self.keep]:
            if keep > 1 and keep != int(keep):
                raise SeraConfigError(
                    f"sera.selection.keep: {keep} is neither a share in (0, 1] nor a whole number "
                    "of pairs."
                )
        return self

    @model_validator(mode="after")
    def _signals_differ(self) -> SelectionConfig:
        titles = [title_of(value) for value in self.signals]
        twice = [title for title in titles if titles.count(title) > 1]
        if twice:
            raise SeraConfigError(
                f"sera.selection.signals: {twice[0]} is there twice; every signal needs a name of "
                "its own."
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before_signals(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without signals the block is written to ``run.json`` as before there were any."""
        asked = {"signals": bool(self.signals), "contrast": bool(self.asked)}
        return {key: value for key, value in dump(self).items() if asked.get(key, True)}

    @model_validator(mode="after")
    def _band_is_ordered(self) -> SelectionConfig:
        if self.band[0] >= self.band[1]:
            raise SeraConfigError(
                f"sera.selection.band: {self.band} holds no pair; the first percentile must be "
                "below the second."
            )
        if self.rule == "band" and self.keep != KEEP:
            raise SeraConfigError(
                f"sera.selection.keep: {self.keep} has no effect beside sera.selection.rule: band, "
                "whose percentiles say how many pairs are kept; remove the key."
            )
        return self

"""The ``sera.selection`` block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sera_plugin.config.contrast import ContrastConfig, ContrastPrompts
from sera_plugin.config.external import ExternalConfig
from sera_plugin.config.fields import MOST, Block, Count, Float
from sera_plugin.config.names import BY, By, RuleName, SignalName, check_differ
from sera_plugin.config.parts import RULES, SIGNALS
from sera_plugin.runtime.errors import SeraConfigError

KEEP = 0.7
Keep = Annotated[Count, Field(gt=0)] | Annotated[Float, Field(gt=0, le=MOST)]
Percentile = Annotated[Float, Field(ge=0, le=100)]
Fill = Literal["kept", "kept_and_bootstrapped", "next_best"]


class SelectionConfig(Block):
    """Self-review: which offline pairs a reviewed round keeps."""

    rule: RuleName = Field(
        default="top",
        json_schema_extra=RULES.schema,
        description="Which pairs are kept; docs/selection.md lists the rules.",
    )
    by: By = Field(
        default=["margin"],
        json_schema_extra={"allowed": f"{BY.allowed}, or a list of these"},
        description="What pairs are judged by: `margin`, that of the policy, which the labels have "
        "taught; `contrast`, what the reference prefers when asked for a good answer; `external`, "
        "scores in the data; a function of your own; or a list, fused by the product of their "
        "calibrated probabilities.",
    )
    use: Literal["drop", "weight", "relabel"] = Field(
        default="drop",
        description="What becomes of pairs that are judged badly: `drop`, a round keeps `keep` of "
        "them; `weight`, all stay and count as far as their labels are likely to be right; "
        "`relabel`, chosen and rejected change places where that is below `relabel_below`.",
    )
    relabel_below: Float = Field(
        default=0.5,
        gt=0,
        le=0.5,
        description="`use: relabel`: how likely a label must be right to stay as it is.",
    )
    gate: bool = Field(
        default=True,
        description="`use: weight`, `use: relabel` and `keep: auto` change nothing in a round "
        "unless what pairs are judged by, the policy's margin aside, agrees with the labels better "
        "than by chance and finds wrong ones, both beyond sampling error. It takes a signal of "
        "about the strength of the prior for granted: see docs/selection.md.",
    )
    sources: Annotated[str, Field(max_length=200)] = Field(
        default="",
        json_schema_extra={"allowed": "the name of a column, or nothing"},
        description="Column that says who labelled a pair, or where it is from; the share of wrong "
        "labels is reported for each value of it.",
    )
    trusted: Annotated[str, Field(max_length=200)] = Field(
        default="",
        json_schema_extra={"allowed": "the name of a column, or nothing"},
        description="Column that is true for pairs whose labels were checked and are right, 20 or "
        "more of them, picked at random. How much the signals of `by` know is then measured on "
        "them: see docs/selection.md.",
    )
    keep: (
        Keep
        | Literal["auto"]
        | Annotated[list[Keep], Field(strict=True, min_length=1, max_length=1000)]
    ) = Field(
        default=KEEP,
        json_schema_extra={
            "allowed": f"a share in (0, 1], a whole number of pairs from 2 up to {MOST}, auto, or "
            "a list of up to 1000 shares and numbers"
        },
        description="Offline pairs kept per reviewed round: a share of |D| in (0, 1], or a whole "
        "number of pairs from 2 on. A list has one entry per reviewed round; the last one repeats. "
        "`auto`, the default beside `use: weight` and `use: relabel`, plans for all of D; with "
        "`use: drop` it drops the pairs whose labels are more likely wrong than right, if the gate "
        "lets it, and `fill` fills their places.",
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
        description="What the signal and the judge `contrast` ask the reference.",
    )

    @property
    def planned(self) -> tuple[float, ...]:
        """K of each reviewed round as a share or a number of pairs; the last one repeats."""
        if self.rule == "band":
            return ((self.band[1] - self.band[0]) / 100,)
        if self.keep == "auto":
            return (1.0,)
        return tuple(self.keep) if isinstance(self.keep, list) else (self.keep,)

    @property
    def outside(self) -> tuple[str, ...]:
        """What pairs are judged by beside the policy's margin."""
        return tuple(name for name in self.by if name != "margin")

    @property
    def measured(self) -> tuple[str, ...]:
        """The signals of a review, those that pairs are judged by among them."""
        return tuple(dict.fromkeys([*self.signals, *self.outside]))

    @property
    def reads_scores(self) -> bool:
        """Whether scores in the data are read."""
        return self.rule == "external" or "external" in self.measured

    @property
    def believes(self) -> bool:
        """Whether a review asks how likely labels are right."""
        return self.use != "drop" or bool(self.outside)

    @property
    def changes_all(self) -> bool:
        """Whether reviews change rounds that are planned to hold all of D."""
        return self.use != "drop" or (self.keep == "auto" and bool(self.outside))

    @property
    def asked(self) -> tuple[ContrastPrompts, ...]:
        """The pairs of prompts whose contrast is measured; none if it is no signal."""
        return self.contrast.asked if "contrast" in self.measured else ()

    @property
    def looks_back(self) -> bool:
        """Whether the rule needs the margins of all earlier reviews."""
        return self.on_negative != "keep" or self.uncertainty > 0

    @model_validator(mode="before")
    @classmethod
    def _all_stay(cls, block: Any) -> Any:
        if isinstance(block, Mapping) and block.get("use") in ("weight", "relabel"):
            return {"keep": "auto", **block}
        return block

    @model_validator(mode="after")
    def _keep_is_share_or_count(self) -> SelectionConfig:
        for keep in self.planned if self.rule != "band" else ():
            if keep > 1 and keep != int(keep):
                raise SeraConfigError(
                    f"sera.selection.keep: {keep} is neither a share in (0, 1] nor a whole number "
                    "of pairs."
                )
        return self

    @model_validator(mode="after")
    def _signals_differ(self) -> SelectionConfig:
        check_differ("sera.selection.signals", self.signals)
        check_differ("sera.selection.by", self.by)
        check_differ("sera.selection.by and signals", self.measured)
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> SelectionConfig:
        check_agreement(self)
        return self

    @model_serializer(mode="wrap")
    def _as_before_signals(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where newer keys have no effect the block is written to ``run.json`` as before them."""
        asked = dict.fromkeys(("by", "use", "relabel_below", "gate", "sources"), self.believes)
        asked |= {"signals": bool(self.signals), "trusted": bool(self.trusted)}
        asked |= {"contrast": bool(self.asked) or self.contrast != ContrastConfig()}
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


def check_agreement(block: SelectionConfig) -> None:
    """Check that what pairs are judged by, and what becomes of them, go together.

    Raises:
        SeraConfigError: one sentence.
    """
    by = block.by[0] if len(block.by) == 1 else f"[{', '.join(block.by)}]"
    by, use = f"sera.selection.by: {by}", f"sera.selection.use: {block.use}"
    if block.outside and block.rule in ("random", "lossdiff_irm", "external"):
        raise SeraConfigError(
            f"{by} has no effect beside sera.selection.rule: {block.rule}, which doesn't rank by "
            "it; remove one of the two."
        )
    if block.outside and block.uncertainty:
        raise SeraConfigError(
            f"sera.selection.uncertainty: {block.uncertainty} can't be used with {by}, because it "
            "is subtracted from margins; remove one of the two."
        )
    if block.trusted and "margin" in block.by:
        raise SeraConfigError(
            f"sera.selection.trusted: {block.trusted} can't be used with {by}, because the policy "
            "is trained on those pairs too and its margin knows their labels; judge by signals "
            "from outside alone."
        )
    if block.use == "drop":
        return
    if block.keep != "auto" and block.planned != (1,):
        raise SeraConfigError(
            f"sera.selection.keep: {block.keep} can't be used with {use}, which drops no pair; "
            "write auto or remove the key."
        )
    for key, usual in (("rule", "top"), ("on_negative", "keep")):
        if getattr(block, key) != usual:
            raise SeraConfigError(
                f"sera.selection.{key}: {getattr(block, key)} can't be used with {use}, which says "
                "itself what becomes of pairs; remove one of the two."
            )
    if block.gate and not block.outside:
        raise SeraConfigError(
            f"sera.selection.gate: true keeps all pairs as they are beside {by}, "
            "which the labels have taught; judge by another signal, or write gate: false."
        )

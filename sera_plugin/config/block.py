"""The ``sera:`` block as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from sera_plugin.config.bootstrap import BootstrapConfig
from sera_plugin.config.contrast import ContrastPrompts
from sera_plugin.config.fields import Block, Count, Float, switch
from sera_plugin.config.loss import LossTerm, LossTerms
from sera_plugin.config.parts import TERMS
from sera_plugin.config.presets import with_preset
from sera_plugin.config.refine import RefineConfig
from sera_plugin.config.selection import SelectionConfig
from sera_plugin.config.training import Training, TrainingConfig
from sera_plugin.runtime.errors import SeraConfigError

Selection = Annotated[SelectionConfig, switch(SelectionConfig, on={}, off={"keep": 1.0})]
Bootstrap = Annotated[BootstrapConfig, switch(BootstrapConfig, on={}, off={"fraction": 0.0})]
Refine = Annotated[RefineConfig | None, switch(RefineConfig, on={}, off=None)]


class SeraConfig(Block):
    """The ``sera:`` block."""

    preset: Literal["default", "paper", "select", "contrast"] = Field(
        default="default",
        description="Values of the keys that are not written out: the defaults below; `paper`, the "
        "method as published, without the guard, as far as it could be told without the paper's "
        "text and numbers, which were not at hand; `select`, no bootstrapped pairs; `contrast`, "
        "pairs weighed by the contrast of quality prompts from round 1 on, with the gate, and no "
        "bootstrapped pairs.",
    )
    warmup_rounds: Count = Field(
        default=1,
        ge=0,
        description="Rounds (epochs) on all of D before the first review; 0 is for signals that "
        "need no trained policy.",
    )
    ensemble: Float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="γ, the weight of the previous review's margins; no effect at the first "
        "review.",
    )
    selection: Selection = Field(
        default_factory=SelectionConfig,
        description="Which offline pairs a reviewed round keeps; `true` means its defaults, "
        "`false` keeps all.",
    )
    bootstrap: Bootstrap = Field(
        default_factory=BootstrapConfig,
        description="New pairs from the policy's own answers; `true` means its defaults, `false` "
        "makes none.",
    )
    refine: Refine = Field(
        default=None,
        description="Quality-aware self-refinement of the loss; `true` means its defaults, `false` "
        "or no block is off. The same as the term `refine` of `loss`.",
    )
    loss: LossTerms = Field(
        default=[],
        json_schema_extra={"allowed": "a list of terms, each a name or a name with settings"},
        description="Terms that change the host's loss, in their order: "
        f"{', '.join(f'`{name}`' for name in TERMS.names)}, or `package.module:function`; settings "
        "stand behind a name, as in `- refine: {weight: 0.3}`.",
    )
    training: Training = Field(
        default_factory=TrainingConfig,
        description="How training steps are computed; the update stays the same. `true` means its "
        "defaults, `false` is the host's way.",
    )
    max_set_aside: Float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Share of the pairs that may be set aside because their log-probs are not "
        "finite numbers; above it the run stops.",
    )
    reference: Literal["fixed", "previous"] = Field(
        default="fixed",
        description="`fixed`: the model the run starts from; `previous`: the policy of the "
        "previous round, from the first reviewed round on.",
    )

    reference_device: Literal["auto", "gpu", "cpu"] = Field(
        default="auto",
        description="Full fine-tune: where the reference model is while the policy trains. `cpu` "
        "moves it to the GPU for scoring only, `gpu` leaves it there; `auto` is `cpu` unless its "
        "weights are sharded.",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, block: Any) -> Any:
        return with_preset(block)

    @property
    def reviews(self) -> bool:
        """Whether rounds after the warm-up are reviewed: only if a review changes anything."""
        selection = self.selection
        keeps_all = selection.planned == (1,) and selection.rule == "top"
        return (
            not keeps_all
            or selection.changes_all
            or selection.on_negative != "keep"
            or self.bootstrap.fraction > 0
            or self.reference == "previous"
        )

    @property
    def asked(self) -> tuple[ContrastPrompts, ...]:
        """The pairs of prompts whose contrast a signal or the judge measures."""
        judges = self.bootstrap.fraction > 0 and self.bootstrap.judge == "contrast"
        return self.selection.contrast.asked if judges else self.selection.asked

    @property
    def terms(self) -> tuple[LossTerm, ...]:
        """The terms of the loss; first what `selection.use: weight` and the `refine` block say."""
        listed = tuple(LossTerm(*pair) for one in self.loss for pair in one.items())
        if self.refine is not None and self.refine.weight != 0:
            listed = (LossTerm("refine", self.refine), *listed)
        if self.selection.use == "weight":
            listed = (LossTerm("posterior", {"source": "review"}), *listed)
        return listed

    @property
    def refinement(self) -> RefineConfig | None:
        """The settings of the term `refine`, wherever they stand."""
        for term in self.terms:
            if term.name == "refine":
                return RefineConfig.model_validate(term.settings)
        return None

    @model_validator(mode="after")
    def _refined_once(self) -> SeraConfig:
        if self.refine is not None and any("refine" in one for one in self.loss):
            raise SeraConfigError(
                "sera.refine and the term refine of sera.loss are the same; write one of them."
            )
        return self

    @model_validator(mode="after")
    def _weighed_once(self) -> SeraConfig:
        if self.selection.use == "weight" and any("posterior" in one for one in self.loss):
            raise SeraConfigError(
                "sera.selection.use: weight and the term posterior of sera.loss both weigh pairs; "
                "write one of them."
            )
        return self

    @model_validator(mode="after")
    def _reviewed_from_the_start(self) -> SeraConfig:
        if self.warmup_rounds > 0:
            return self
        say = "sera.warmup_rounds: 0 is not allowed "
        selection, bootstrap = self.selection, self.bootstrap
        if "margin" in selection.by or selection.on_negative != "keep":
            raise SeraConfigError(
                f"{say}where pairs are judged by the policy's margin, which says nothing before "
                "the policy has been trained; write 1 or more, or judge by contrast, external or a "
                "signal of your own alone (sera.selection.by)."
            )
        if bootstrap.fraction > 0 and (
            bootstrap.judge == "implicit" or bootstrap.judge_mode == "agree"
        ):
            raise SeraConfigError(
                f"{say}where the implicit reward ranks sampled answers, which says nothing before "
                "the policy has been trained; write 1 or more, sera.bootstrap.fraction: 0, or "
                "another judge with judge_mode: replace."
            )
        return self

    @model_validator(mode="after")
    def _one_policy_as_reference(self) -> SeraConfig:
        if self.selection.source == "training" and self.reference == "previous":
            raise SeraConfigError(
                "sera.selection.source: training can't be combined with sera.reference: previous, "
                "whose log-probs must be those of one policy, not of every step of a round; set "
                "one of them to its default (rescore, fixed)."
            )
        return self

    @model_validator(mode="after")
    def _one_history(self) -> SeraConfig:
        if self.bootstrap.ensemble and self.reference == "previous":
            raise SeraConfigError(
                "sera.bootstrap.ensemble: true can't be combined with sera.reference: previous, "
                "because the earlier policy's own reference is no longer at hand; set one of them "
                "to its default (false, fixed)."
            )
        return self


class SeraArgs(BaseModel):
    """Mixin for Axolotl's input schema."""

    sera: SeraConfig | bool | None = Field(
        default=None,
        description="SeRA: review and renew the preference data between rounds. `true` is "
        "short for `preset: contrast`, `false` or no block means off.",
    )

"""The ``sera.bootstrap`` block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sera_plugin.config.fields import Block, Count, Float, Int, switch
from sera_plugin.config.guard import GuardConfig
from sera_plugin.config.parts import ENGINES, JUDGES
from sera_plugin.runtime.errors import SeraConfigError

PROMPTS = 0.6
Guard = Annotated[GuardConfig, switch(GuardConfig, on={"enabled": True}, off={"enabled": False})]


class BootstrapConfig(Block):
    """Bootstrapping: new pairs from the policy's own answers."""

    fraction: Float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Bootstrapped pairs per reviewed round, relative to |D|, beside the offline "
        "pairs that `selection.keep` says; 0 switches bootstrapping off.",
    )
    num_candidates: Int = Field(
        default=4, ge=1, le=1024, description="Completions sampled per prompt."
    )
    prompts: Float = Field(
        default=PROMPTS,
        gt=0,
        le=1,
        description="Share of |D| whose prompts are sampled before the best pairs are kept; not "
        f"below `fraction`, so the default is 1 where `fraction` is above {PROMPTS}.",
    )
    pool: Literal["policy_and_offline", "policy"] = Field(
        default="policy_and_offline",
        description="Which answers of a prompt compete: the sampled ones with the offline ones, or "
        "the sampled ones alone.",
    )
    sampler: Literal["policy", "reference", "mixed"] = Field(
        default="policy",
        description="Who writes the sampled answers: the policy, the reference, or each one half "
        "(the policy the larger half of an odd number). The policy's reward ranks them all.",
    )
    temperature: Float = Field(
        default=0.7, ge=0, le=100, description="Sampling temperature; 0 is greedy decoding."
    )
    top_p: Float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling mass.")
    max_new_tokens: Count = Field(
        default=512,
        ge=1,
        description="Most tokens sampled per answer; prompt and answer always fit `sequence_len`.",
    )
    length_penalty: Float | Literal["auto"] = Field(
        default=0.0,
        description="α in the ranking reward r − α·|y|, |y| in tokens; `auto` chooses α so that "
        "chosen and rejected have equal mean length.",
    )
    ensemble: bool = Field(
        default=False,
        description="Mix the previous review's policy into the rewards of sampled answers as well, "
        "with the weight `sera.ensemble`; keeps a frozen copy of the trainable weights in host "
        "memory.",
    )
    engine: Annotated[str, Field(max_length=500), AfterValidator(ENGINES.check)] = Field(
        default="transformers",
        json_schema_extra=ENGINES.schema,
        description="What samples: `transformers`, its `generate`; `transformers_paged`, its "
        "continuous batching, for GPUs with flash attention; `vllm`, see docs/vllm.md; or a class "
        "of your own.",
    )
    vllm_mode: Literal["server", "colocate"] = Field(
        default="server",
        description="`engine: vllm`: a server on GPUs of its own (`axolotl vllm-serve`), or an "
        "engine on every training GPU.",
    )
    gather: Literal["auto"] | bool = Field(
        default="auto",
        description="DeepSpeed ZeRO-3 only: gather all weights on every rank while sampling; "
        "`auto` does so where they take at most 60% of the free memory.",
    )

    judge: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        default="implicit",
        json_schema_extra=JUDGES.schema,
        description="Who ranks the answers: the implicit reward; `contrast`, what the reference "
        "prefers when it is asked for good answers, by the prompts of `selection.contrast`; a "
        "function of your own, or a sequence-classification model.",
    )
    judge_mode: Literal["replace", "agree"] = Field(
        default="replace",
        description="`replace`: the judge's scores rank the answers; `agree`: the implicit reward "
        "ranks them, and only pairs that the judge orders alike are kept.",
    )
    rejected: Literal["worst", "worst_of", "reference"] = Field(
        default="worst",
        description="Which answer of a prompt is rejected: the `worst` of all; `worst_of`, the "
        "worst of 5 that are drawn from them, for many candidates; or `reference`, the worst of "
        "those that the reference wrote, for which `sampler` is `mixed` unless it is written out.",
    )
    guard: Guard = Field(
        default_factory=GuardConfig,
        description="When a round takes fewer bootstrapped pairs, or none; `true` means its "
        "defaults, `false` switches it off.",
    )

    @property
    def guarded(self) -> bool:
        """Whether the guard decides: not where a judge ranks in place of the implicit reward."""
        judged = self.judge != "implicit" and self.judge_mode == "replace"
        return self.fraction > 0 and self.guard.enabled and not judged

    @model_validator(mode="before")
    @classmethod
    def _enough_prompts(cls, block: Any) -> Any:
        fraction = block.get("fraction") if isinstance(block, Mapping) else None
        if isinstance(fraction, (int, float)) and fraction > PROMPTS:
            return {"prompts": 1.0, **block}
        return block

    @model_validator(mode="before")
    @classmethod
    def _reference_writes(cls, block: Any) -> Any:
        if isinstance(block, Mapping) and block.get("rejected") == "reference":
            return {"sampler": "mixed", **block}
        return block

    @model_validator(mode="after")
    def _reference_is_rejected(self) -> BootstrapConfig:
        if self.rejected == "reference" and self.sampler == "policy":
            raise SeraConfigError(
                "sera.bootstrap.sampler: policy can't be used with sera.bootstrap.rejected: "
                "reference, for which the reference must write answers; it must be mixed or "
                "reference."
            )
        return self

    @model_validator(mode="after")
    def _both_write(self) -> BootstrapConfig:
        if self.sampler == "mixed" and self.num_candidates < 2:
            raise SeraConfigError(
                f"sera.bootstrap.num_candidates: {self.num_candidates} is not enough for "
                "sera.bootstrap.sampler: mixed; it must be 2 or more, one for each writer."
            )
        return self

    @model_validator(mode="after")
    def _prompts_cover_fraction(self) -> BootstrapConfig:
        if self.fraction > self.prompts:
            raise SeraConfigError(
                f"sera.bootstrap.prompts: {self.prompts} is below sera.bootstrap.fraction: "
                f"{self.fraction}; a prompt gives at most one pair, so it must be at least as "
                "large."
            )
        return self

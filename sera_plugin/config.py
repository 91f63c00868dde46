"""The ``sera:`` block: frozen pydantic models and errors of one sentence."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


class SeraConfigError(ValueError):
    """A config or dataset that SeRA can't work with; the message is one sentence."""


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


MOST = 2**31 - 1
Int = Annotated[int, Field(strict=True), BeforeValidator(_not_bool)]
# Pydantic drops one of two bounds of a kind, so a field with an upper bound of its own takes Int.
Count = Annotated[int, Field(strict=True, le=MOST), BeforeValidator(_not_bool)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_not_bool)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SelectionConfig(_Block):
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


class BootstrapConfig(_Block):
    """Bootstrapping: new pairs from the policy's own answers."""

    fraction: Float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Bootstrapped pairs per reviewed round, relative to |D|; 0 switches "
        "bootstrapping off.",
    )
    num_candidates: Int = Field(
        default=4, ge=1, le=1024, description="Answers sampled per prompt from the current policy."
    )
    prompts: Float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Share of |D| whose prompts are sampled before the best pairs are kept.",
    )
    pool: Literal["policy_and_offline", "policy"] = Field(
        default="policy_and_offline",
        description="Which answers of a prompt compete: the sampled ones with the offline ones, or "
        "the sampled ones alone.",
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

    gather: Literal["auto"] | bool = Field(
        default="auto",
        description="DeepSpeed ZeRO-3 only: gather all weights on every rank while sampling; "
        "`auto` does so where they take at most 60% of the free memory.",
    )

    @model_validator(mode="after")
    def _prompts_cover_fraction(self) -> BootstrapConfig:
        if self.fraction > self.prompts:
            raise ValueError(
                f"sera.bootstrap.prompts: {self.prompts} is below sera.bootstrap.fraction: "
                f"{self.fraction}; a prompt gives at most one pair, so it must be at least as "
                "large."
            )
        return self


class SeraConfig(_Block):
    """The ``sera:`` block."""

    warmup_rounds: Count = Field(
        default=1, ge=1, description="Rounds (epochs) on all of D before the first review."
    )
    ensemble: Float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="γ, the weight of the previous review's margins; no effect at the first "
        "review.",
    )
    selection: SelectionConfig = Field(
        default_factory=SelectionConfig, description="Which offline pairs a reviewed round keeps."
    )
    bootstrap: BootstrapConfig = Field(
        default_factory=BootstrapConfig, description="New pairs from the policy's own answers."
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

    @model_validator(mode="after")
    def _one_history(self) -> SeraConfig:
        if self.bootstrap.ensemble and self.reference == "previous":
            raise ValueError(
                "sera.bootstrap.ensemble: true can't be combined with sera.reference: previous, "
                "because the earlier policy's own reference is no longer at hand; set one of them "
                "to its default (false, fixed)."
            )
        return self


class SeraArgs(BaseModel):
    """Mixin for Axolotl's input schema."""

    sera: SeraConfig | bool | None = Field(
        default=None,
        description="SeRA: review and renew the preference data between rounds. `true` means all "
        "defaults, `false` or no block means off.",
    )


def parse_block(raw: Any) -> SeraConfig | None:
    """Parse the raw value of ``sera:``.

    Returns:
        The config, or None when SeRA is off (no block, null or false).

    Raises:
        SeraConfigError: one sentence naming the key, the value and what is allowed.
    """
    if raw is None or raw is False:
        return None
    if raw is True:
        return SeraConfig()
    if not isinstance(raw, dict):
        raise SeraConfigError(
            f"sera: {_show(raw)} is not allowed; write a block of keys, true or false."
        )
    try:
        return SeraConfig.model_validate(_plain(raw))
    except ValidationError as error:
        raise SeraConfigError(_sentence(error)) from None


def _plain(value: Any, path: str = "sera", levels: int = 2) -> Any:
    """The value without nulls, as deep as there are blocks."""
    if not isinstance(value, dict) or levels == 0:
        return value
    for key in value:
        if not isinstance(key, str) or not key.isprintable():
            raise SeraConfigError(f"{path}: {_show(key)} is not a key of SeRA; keys are words.")
    return {k: _plain(v, f"{path}.{k}", levels - 1) for k, v in value.items() if v is not None}


def _show(value: Any, limit: int = 80) -> str:
    try:
        text = ascii(value) if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # more digits or levels than Python writes out
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _model_at(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = SeraConfig
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _allowed(path: tuple[str | int, ...]) -> str:
    model = _model_at(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model and path else None
    if model is None or field is None:
        return "a block of keys"
    schema = model.model_json_schema()["properties"][str(path[-1])]
    if "allowed" in schema:
        return str(schema["allowed"])
    options = schema.get("anyOf", [schema])
    return " or ".join(dict.fromkeys(_describe(option, schema) for option in options))


def _describe(option: dict[str, Any], outer: dict[str, Any]) -> str:
    if "const" in option:
        return str(option["const"])
    if "enum" in option:
        return " or ".join(str(value) for value in option["enum"])
    if "$ref" in option:
        return "a block of keys"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    text = names.get(option.get("type", ""), option.get("type", "a value"))
    bounds = {**outer, **option}
    limits = [
        f"{word} {bounds[key]:.10g}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "up to"),
            ("exclusiveMaximum", "below"),
        )
        if key in bounds
    ]
    return " ".join([text, *limits])


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error" and str(first["ctx"]["error"]).startswith("sera."):
        return str(first["ctx"]["error"])
    path = _key_path(first["loc"])
    key = ".".join(["sera", *(_show(p).strip("'") for p in path)])
    if first["type"] == "extra_forbidden":
        return f"{key}: {_show(first['input'])} is not a key of SeRA; {_hint(path)}"
    return f"{key}: {_show(first['input'])} is not allowed; it must be {_allowed(path)}."


def _key_path(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The YAML path: pydantic appends the branch of a union, as `int` or `function-before[...]`."""
    for end in range(len(location), 0, -1):
        model = _model_at(location[: end - 1])
        if model is not None and (location[end - 1] in model.model_fields or end == len(location)):
            return location[:end]
    return location


def _hint(path: tuple[str | int, ...]) -> str:
    here = _model_at(path[:-1]) or SeraConfig
    blocks: dict[str, type[BaseModel]] = {
        "": SeraConfig,
        "selection.": SelectionConfig,
        "bootstrap.": BootstrapConfig,
    }
    everywhere = {name: prefix for prefix, model in blocks.items() for name in model.model_fields}
    for names in (list(here.model_fields), list(everywhere)):
        close = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.6)
        if close:
            prefix = "" if close[0] in here.model_fields else f"sera.{everywhere[close[0]]}"
            return f"did you mean {prefix}{close[0]}?"
    return f"allowed are {', '.join(here.model_fields)}."

"""What the rule of selection, the judge and refinement need of the host's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sera_plugin.config import SeraConfig, SeraConfigError
from sera_plugin.config.bootstrap import IMPLICIT
from sera_plugin.config.fields import is_function
from sera_plugin.data.external import missing_columns
from sera_plugin.review.rules import RuleError, load_function
from sera_plugin.review.selection import rule_of
from sera_plugin.training.quality_prompt import quality_text
from sera_plugin.training.refinement import LOSSES


def check_methods(cfg: Any, config: SeraConfig) -> None:
    """Check rule, judge and refinement, before anything is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    _check_lossdiff(cfg, config)
    judge = config.bootstrap.judge
    try:
        rule_of(config.selection)
        if is_function(judge):
            load_function(judge, "sera.bootstrap.judge")
    except RuleError as error:
        raise SeraConfigError(str(error)) from error
    local = Path(judge).is_absolute() or judge.startswith(".")
    if judge != IMPLICIT and local and not (Path(judge) / "config.json").is_file():
        raise SeraConfigError(
            f"sera.bootstrap.judge: {judge} holds no model; allowed are implicit, "
            "package.module:function, or the folder or name of a reward model."
        )
    if config.refinement is not None:
        quality_text(config.refinement.prompt)
        _check_loss(cfg, "sera.refine, which changes the margin in the loss")


def _check_loss(cfg: Any, what: str) -> None:
    given = cfg.get("dpo_loss_type") or "sigmoid"
    kinds = [given] if isinstance(given, str) else list(given)
    if rl_of(cfg) == "dpo" and kinds not in ([loss] for loss in LOSSES):
        raise SeraConfigError(
            f"dpo_loss_type: {in_yaml(given)} can't be used with {what}; allowed are sigmoid (the "
            "default) and ipo."
        )


def _check_lossdiff(cfg: Any, config: SeraConfig) -> None:
    if config.selection.rule != "lossdiff_irm":
        return
    key = "sera.selection.rule: lossdiff_irm"
    if not cfg.get("test_datasets") and not cfg.get("val_set_size"):
        raise SeraConfigError(
            f"{key} needs evaluation pairs to align its auxiliary policy on; set test_datasets or "
            "val_set_size."
        )
    _check_loss(cfg, f"{key}, which compares losses pair by pair")
    for name in ("deepspeed", "fsdp", "fsdp_config", "fp16"):
        if cfg.get(name):
            raise SeraConfigError(
                f"{name}: {in_yaml(cfg.get(name))} can't be used with {key}, whose auxiliary "
                "policy has an optimizer of its own; allowed are one process or DDP, in bf16 or "
                "fp32."
            )


def check_scores(config: SeraConfig, names: list[str]) -> None:
    """Check that the dataset has the scores that ``rule: external`` reads.

    Raises:
        SeraConfigError: one sentence.
    """
    if config.selection.rule != "external":
        return
    for key, column in missing_columns(config.selection.external, names):
        raise SeraConfigError(
            f"sera.selection.external.{key}: {column} is no column of the training pairs, which "
            f"have {', '.join(names)}; name the column that holds the scores."
        )


def rl_of(cfg: Any) -> Any:
    """The host's ``rl:`` value as a word."""
    return getattr(cfg.get("rl"), "value", cfg.get("rl"))


def in_yaml(value: Any) -> str:
    """``value`` as a user would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    plain = value if isinstance(value, str) else repr(value)
    return plain if len(plain) <= 80 else plain[:77] + "..."

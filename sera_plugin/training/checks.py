"""All that is checked before a model is loaded, in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sera_plugin.config import SeraConfig
from sera_plugin.config.fields import is_function
from sera_plugin.config.parts import JUDGES, SIGNALS
from sera_plugin.data.margins import missing_columns
from sera_plugin.host.checks import (
    check_dataset,
    check_host_config,
    check_tokenizer,
    in_yaml,
    losses_of,
    rl_of,
)
from sera_plugin.review.selection import rule_of
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.sampling.engines import check_engine
from sera_plugin.training.quality_prompt import QualityWriter, quality_text
from sera_plugin.training.refinement import LOSSES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_config(cfg: Any, config: SeraConfig) -> None:
    """Check the ``sera:`` block and the keys around it, before anything is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    check_host_config(cfg, config)
    check_engine(cfg, config)
    check_methods(cfg, config)


def check_data(
    cfg: Any, config: SeraConfig, dataset: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check the loaded preference pairs and the tokenizer, before a model is loaded.

    Raises:
        SeraConfigError: one sentence.
    """
    check_dataset(cfg, config, dataset)
    check_scores(config, dataset.column_names)
    check_tokenizer(cfg, config, dataset, tokenizer)
    check_refinement(cfg, config, dataset, tokenizer)


def check_methods(cfg: Any, config: SeraConfig) -> None:
    """Check rule, signals, judge and refinement, before anything is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    _check_lossdiff(cfg, config)
    rule_of(config.selection)
    for signal in config.selection.signals:
        SIGNALS.load(signal)
    judge = config.bootstrap.judge
    if is_function(judge):
        JUDGES.load(judge)
    local = Path(judge).is_absolute() or judge.startswith(".")
    if local and not (Path(judge) / "config.json").is_file():
        raise SeraConfigError(
            f"{JUDGES.key}: {judge} holds no model; allowed are {JUDGES.allowed}."
        )
    if config.refinement is not None:
        quality_text(config.refinement.prompt)
        _check_loss(cfg, "sera.refine, which changes the margin in the loss")


def _check_loss(cfg: Any, what: str) -> None:
    if rl_of(cfg) == "dpo" and losses_of(cfg) not in ([loss] for loss in LOSSES):
        given = in_yaml(cfg.get("dpo_loss_type"))
        raise SeraConfigError(
            f"dpo_loss_type: {given} can't be used with {what}; allowed are sigmoid (the default) "
            "and ipo."
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


def check_prompts(writer: QualityWriter, dataset: Any, sequence_len: int) -> None:
    """Check that p has a place in every prompt, and room before an answer in one at least.

    Args:
        writer: puts p into prompts.
        dataset: pairs with the column ``prompt``, and answers as text if the prompts are text;
            without that column nothing is checked.
        sequence_len: most tokens of p⊕x and an answer.

    Raises:
        SeraConfigError: one sentence.
    """
    if "prompt" not in dataset.column_names:
        return
    shortest = None
    for number, row in enumerate(dataset.select_columns(["prompt", "chosen", "rejected"])):
        prompt = writer.write(row["prompt"], f"training pair {number}")
        if shortest is not None and shortest <= sequence_len:
            continue
        answers = [row[name] for name in ("chosen", "rejected") if isinstance(row[name], str)]
        tokens = len(writer.ids(prompt)) + max(map(writer.tokens_of, answers), default=1)
        shortest = tokens if shortest is None else min(shortest, tokens)
    if shortest is not None and shortest > sequence_len:
        raise SeraConfigError(
            f"sequence_len: {sequence_len} leaves no room for sera.refine.prompt, with which the "
            f"shortest of the pairs takes {shortest} tokens; use a shorter prompt or a larger "
            "sequence_len."
        )


def check_refinement(
    cfg: Any, config: SeraConfig, dataset: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that the quality prompt has a place in every prompt, and room beside one answer.

    Raises:
        SeraConfigError: one sentence.
    """
    if config.refinement is not None:
        from sera_plugin.host.loading import chat_templates

        writer = QualityWriter.of(config.refinement, tokenizer, chat_templates(cfg, tokenizer))
        check_prompts(writer, dataset, cfg.sequence_len)

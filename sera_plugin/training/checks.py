"""All that is checked before a model is loaded, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sera_plugin.config import SeraConfig
from sera_plugin.config.fields import is_function
from sera_plugin.config.parts import JUDGES, SIGNALS
from sera_plugin.data.held_out import held_out_count
from sera_plugin.data.margins import missing_columns
from sera_plugin.host.checks import (
    check_dataset,
    check_host_config,
    check_tokenizer,
    in_yaml,
    losses_of,
    rl_of,
)
from sera_plugin.host.loading import chat_templates
from sera_plugin.review.belief import FEWEST_TRUSTED
from sera_plugin.review.selection import rule_of
from sera_plugin.runtime.errors import SeraConfigError, no_column
from sera_plugin.sampling.engines import check_engine
from sera_plugin.scoring.quality_prompt import check_prompts, opposite_texts, opposite_writers
from sera_plugin.training.terms.term import settings_of, term_class

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def check_config(cfg: Any, config: SeraConfig) -> None:
    """Check the ``sera:`` block and the keys around it, before anything is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    check_host_config(cfg, config)
    check_engine(cfg, config)
    check_methods(cfg, config)


def check_data(cfg: Any, config: SeraConfig, meta: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Check the loaded preference pairs and the tokenizer; returns how many pairs D has.

    Args:
        cfg: the host's validated config.
        config: the ``sera:`` block.
        meta: the host's datasets, ``train_dataset`` and ``eval_dataset``.
        tokenizer: the run's.

    Raises:
        SeraConfigError: one sentence.
    """
    dataset = meta.train_dataset
    held_out = held_out_count(config, len(dataset), meta.eval_dataset)
    check_dataset(cfg, config, dataset, held_out)
    check_scores(config, dataset.column_names)
    check_trusted(config.selection.trusted, dataset)
    check_tokenizer(cfg, config, dataset, tokenizer)
    for asked in config.asked:
        templates = chat_templates(cfg, tokenizer)
        for writer in opposite_writers(asked, tokenizer, templates):
            if writer is not None:
                check_prompts(writer, dataset, cfg.sequence_len)
    for term in config.terms:
        term_class(term.name).check_data(settings_of(term), config, cfg, dataset, tokenizer)
    return len(dataset) - held_out


def check_methods(cfg: Any, config: SeraConfig) -> None:
    """Check rule, signals, judge and the terms of the loss, before anything is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    _check_lossdiff(cfg, config)
    rule_of(config.selection)
    for signal in config.selection.measured:
        SIGNALS.load(signal)
    for asked in config.asked:
        opposite_texts(asked)
    judge = config.bootstrap.judge
    if is_function(judge):
        JUDGES.load(judge)
    local = Path(judge).is_absolute() or judge.startswith(".")
    if local and not (Path(judge) / "config.json").is_file():
        raise SeraConfigError(
            f"{JUDGES.key}: {judge} holds no model; allowed are {JUDGES.allowed}."
        )
    _check_terms(cfg, config)


def _check_terms(cfg: Any, config: SeraConfig) -> None:
    for term in config.terms:
        found = term_class(term.name)
        found.check(settings_of(term), config, cfg)
        key = "sera.refine" if term.settings is config.refine else f"sera.loss: {term.name}"
        if term.name == "posterior" and config.selection.use == "weight":
            key = "sera.selection.use: weight"
        _check_loss(cfg, f"{key}, which changes the loss of each pair", found.bases)
        if cfg.get("dpo_use_weighting"):
            raise SeraConfigError(
                f"dpo_use_weighting: true can't be used with {key}, because the host weighs pairs "
                "by their logits; leave one of them out."
            )


def _check_loss(cfg: Any, what: str, allowed: Sequence[str] = ("sigmoid", "ipo")) -> None:
    losses = losses_of(cfg) if rl_of(cfg) == "dpo" else [rl_of(cfg)]
    if losses not in ([loss] for loss in allowed):
        key = "rl" if rl_of(cfg) != "dpo" else "dpo_loss_type"
        raise SeraConfigError(
            f"{key}: {in_yaml(cfg.get(key))} can't be used with {what}; allowed are "
            f"{' and '.join([', '.join(allowed[:-1]), allowed[-1]][not allowed[:-1] :])}."
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


def check_trusted(name: str, dataset: Dataset) -> None:
    """Check that a column says of enough pairs that their labels are trusted; "" is none.

    Raises:
        SeraConfigError: one sentence.
    """
    if not name:
        return
    key = "sera.selection.trusted"
    if name not in dataset.column_names:
        holds = "that is true for pairs whose labels were checked"
        raise no_column(key, name, dataset.column_names, holds)
    values = dataset.select_columns([name])[:][name]
    odd = next((value for value in values if value not in (True, False, None)), None)
    if odd is not None:
        raise SeraConfigError(f"{key}: {name} holds {odd!r}; allowed are true, false and null.")
    count = sum(value == 1 for value in values)
    if count < FEWEST_TRUSTED:
        raise SeraConfigError(
            f"{key}: {name} is true for {count} of {len(dataset)} pairs; {FEWEST_TRUSTED} or more "
            "are needed."
        )


def check_scores(config: SeraConfig, names: list[str]) -> None:
    """Check that the dataset has the scores and the sources that a review reads.

    Raises:
        SeraConfigError: one sentence.
    """
    sources = config.selection.sources
    if sources and sources not in names:
        raise no_column("sera.selection.sources", sources, names, "that says who labelled a pair")
    if not config.selection.reads_scores:
        return
    for key, column in missing_columns(config.selection.external, names):
        raise no_column(f"sera.selection.external.{key}", column, names, "that holds the scores")

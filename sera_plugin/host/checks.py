"""What the host's config and the dataset must look like. Every error is one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, IterableDataset

from sera_plugin.config import SeraConfig
from sera_plugin.data.schedule import Batching, Schedule, plan
from sera_plugin.runtime.errors import SeraConfigError

TRAINER = "sera_plugin.trainer.SeRATrainer"

# Keys that change what a pair, a batch or the loss is in a way that rounds can't follow:
# (key, whether the value is in the way, why).
_UNSUPPORTED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("dpo_use_liger_kernel", bool, "the fused loss can't read cached reference log-probs"),
    ("use_liger_kernel", bool, "the fused loss can't read cached reference log-probs"),
    ("streaming", bool, "a review needs all pairs at hand"),
    ("pretraining_dataset", bool, "a review needs all pairs at hand"),
    ("processor_type", bool, "only text can be scored and sampled"),
    ("is_multimodal", bool, "only text can be scored and sampled"),
    ("group_by_length", bool, "a round comes in an order of its own"),
    ("curriculum_sampling", bool, "a round comes in an order of its own"),
    ("sample_packing", bool, "a batch must hold whole pairs"),
    ("auto_find_batch_size", bool, "the number of updates must be known in advance"),
    ("relora", bool, "the reference is the model without its adapter"),
    ("sequence_parallel_degree", lambda v: _above_one(v), "each process must hold whole sequences"),
    ("context_parallel_size", lambda v: _above_one(v), "each process must hold whole sequences"),
    ("tensor_parallel_size", lambda v: _above_one(v), "each process must hold its own batch"),
)


def _above_one(value: Any) -> bool:
    return isinstance(value, int) and value > 1


def check_host_config(cfg: Any, config: SeraConfig) -> None:
    """Check the keys around the ``sera:`` block, before anything is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    rl = rl_of(cfg)
    if rl not in ("dpo", "ipo"):
        raise SeraConfigError(
            f"rl: {in_yaml(rl)} can't be used with sera; allowed are dpo and ipo."
        )
    trainer_cls = cfg.get("trainer_cls")
    if trainer_cls not in (None, TRAINER):
        raise SeraConfigError(
            f"trainer_cls: {trainer_cls} can't be used with sera, which brings its own; remove the "
            f"key or write {TRAINER}."
        )
    for key, in_the_way, why in _UNSUPPORTED:
        value = cfg.get(key)
        if value is not None and in_the_way(value):
            raise SeraConfigError(
                f"{key}: {in_yaml(value)} can't be used with sera because {why}; remove the key."
            )
    if cfg.get("precompute_ref_log_probs") is False:
        raise SeraConfigError(
            "precompute_ref_log_probs: false can't be used with sera, which caches the reference "
            "log-probs; remove the key or write true."
        )
    for key in ("resume_from_checkpoint", "auto_resume_from_checkpoints"):
        if cfg.get("save_only_model") and cfg.get(key):
            raise SeraConfigError(
                f"save_only_model: true can't be used with {key}: {in_yaml(cfg.get(key))}, because "
                "its checkpoints don't hold the optimizer's state that a run goes on from; remove "
                "one of the two."
            )
    if cfg.get("remove_unused_columns") and config.selection.source == "training":
        raise SeraConfigError(
            "remove_unused_columns: true can't be used with sera.selection.source: training, which "
            "tells pairs apart by a column of its own; remove the key."
        )
    _check_rounds(cfg, config)
    _check_sharding(cfg, config)


def without_effect(cfg: Any) -> list[str]:
    """A sentence for every key of the host that does nothing in the run that ``cfg`` describes.

    Read from axolotl 0.19.0 and trl 1.9.0.
    """
    found = []
    smoothing = cfg.get("dpo_label_smoothing")
    if smoothing and rl_of(cfg) == "dpo" and losses_of(cfg) == ["sigmoid"]:
        found.append(
            f"dpo_label_smoothing: {in_yaml(smoothing)} has no effect, because TRL's sigmoid loss "
            "does not read it; dpo_loss_type: [robust] does."
        )
    if cfg.get("lora_model_dir") and cfg.get("adapter") and not cfg.get("merge_lora"):
        found.append(
            f"lora_model_dir: {in_yaml(cfg.get('lora_model_dir'))} gives no weights to a DPO run, "
            "whose adapter starts anew; merge it into base_model first."
        )
    if cfg.get("early_stopping_patience"):
        found.append(
            f"early_stopping_patience: {in_yaml(cfg.get('early_stopping_patience'))} has no effect "
            "on a DPO run in Axolotl."
        )
    return found


def never_reviewed(cfg: Any, config: SeraConfig, schedule: Schedule) -> str | None:
    """A sentence if a run that is to review ends before its first review, else None."""
    if not config.reviews or schedule.last_round > config.warmup_rounds:
        return None
    warmup = sum(schedule.updates[: config.warmup_rounds])
    return (
        f"max_steps: {in_yaml(cfg.max_steps)} ends the run before its first review, which comes "
        f"after {warmup} updates (sera.warmup_rounds: {config.warmup_rounds}); this run is plain "
        f"{str(rl_of(cfg)).upper()}."
    )


def _check_rounds(cfg: Any, config: SeraConfig) -> None:
    epochs = cfg.get("num_epochs", 1)
    epochs = 1 if epochs is None else epochs
    shown = repr(epochs) if isinstance(epochs, str) else in_yaml(epochs)
    if not config.reviews and (not _whole(epochs) or epochs < 1):
        raise SeraConfigError(
            f"num_epochs: {shown} is not allowed; a round is an epoch, so it must be a whole "
            "number from 1."
        )
    if config.reviews and (not _whole(epochs) or epochs <= config.warmup_rounds):
        raise SeraConfigError(
            f"num_epochs: {shown} is not allowed; a round is an epoch, so it must be a whole "
            f"number above sera.warmup_rounds: {config.warmup_rounds}."
        )
    _check_keeps(config, int(epochs))
    max_steps = cfg.get("max_steps")
    if max_steps is not None and (not _whole(max_steps) or max_steps < 1):
        raise SeraConfigError(
            f"max_steps: {in_yaml(max_steps)} is not allowed; it must be a whole number from 1, or "
            "absent."
        )


def _check_keeps(config: SeraConfig, rounds: int) -> None:
    keep = config.selection.keep
    if isinstance(keep, list) and len(keep) > rounds - config.warmup_rounds:
        raise SeraConfigError(
            f"sera.selection.keep: {keep} has {len(keep)} entries for "
            f"{rounds - config.warmup_rounds} reviewed rounds (num_epochs − sera.warmup_rounds); "
            "write at most one for each."
        )


def _whole(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value == int(value)


def _check_sharding(cfg: Any, config: SeraConfig) -> None:
    keeps_policy = {
        "sera.reference: previous": config.reference == "previous",
        "sera.bootstrap.ensemble: true": config.bootstrap.ensemble,
    }
    how = sharded(cfg)
    for key, wanted in keeps_policy.items():
        if wanted and how:
            raise SeraConfigError(
                f"{key} can't be used under {how}, where no process holds the weights that "
                "must be kept; allowed are ZeRO-1, ZeRO-2 and DDP."
            )


def sharded(cfg: Any) -> str | None:
    """How weights are spread over the processes, or None if each has them whole."""
    if cfg.get("fsdp") or cfg.get("fsdp_config"):
        return "FSDP"
    return "DeepSpeed ZeRO-3" if zero_stage(cfg.get("deepspeed")) == 3 else None


def zero_stage(deepspeed: Any) -> int:
    """The ZeRO stage of the host's ``deepspeed:`` value (a path, JSON text or a mapping), or 0."""
    if isinstance(deepspeed, (str, Path)) and str(deepspeed):
        path = Path(str(deepspeed))
        text = path.read_text() if path.is_file() else str(deepspeed)
        try:
            deepspeed = json.loads(text)
        except json.JSONDecodeError:
            deepspeed = yaml.safe_load(text)
    if not isinstance(deepspeed, dict):
        return 0
    return int((deepspeed.get("zero_optimization") or {}).get("stage", 0) or 0)


def plan_of(cfg: Any, config: SeraConfig, pairs: int, batching: Batching | None = None) -> Schedule:
    """The schedule for ``pairs`` pairs.

    Args:
        cfg: the host's validated config.
        config: the ``sera:`` block.
        pairs: |D|.
        batching: how a round is cut into updates; None takes the config's word for it.
    """
    return plan(
        pairs,
        num_rounds=int(cfg.num_epochs or 1),
        warmup_rounds=config.warmup_rounds,
        keep=config.selection.planned,
        fraction=config.bootstrap.fraction,
        batching=batching
        or Batching(
            per_device=int(cfg.micro_batch_size or 1),
            accumulation=int(cfg.gradient_accumulation_steps or 1),
            ranks=int(cfg.world_size or 1),
            drop_last=bool(cfg.dataloader_drop_last),
        ),
        max_steps=cfg.max_steps,
        reviews=config.reviews,
    )


def check_dataset(cfg: Any, config: SeraConfig, dataset: Any, held_out: int = 0) -> None:
    """Check the loaded preference pairs, ``held_out`` of which are not trained on.

    Raises:
        SeraConfigError: one sentence.
    """
    if isinstance(dataset, IterableDataset):
        raise SeraConfigError(
            "streaming: true can't be used with sera because a review needs all pairs at hand; "
            "remove the key."
        )
    images = {"image", "images"} & set(dataset.column_names)
    if images:
        raise SeraConfigError(
            f"datasets: the column {images.pop()} makes this a vision dataset; sera works on text "
            "alone."
        )
    pairs = len(dataset) - held_out
    if pairs < 2:
        less = f" and {held_out} held out (sera.bootstrap.guard.held_out)" if held_out else ""
        raise SeraConfigError(
            f"datasets: {pairs} {'pair is' if pairs == 1 else 'pairs are'} left to train on, after "
            f"those longer than sequence_len: {cfg.sequence_len}{less}; sera needs 2 or more."
        )
    batch = int(cfg.micro_batch_size or 1) * int(cfg.gradient_accumulation_steps or 1)
    batch *= int(cfg.world_size or 1)
    if pairs < batch:
        raise SeraConfigError(
            f"datasets: {pairs} pairs are fewer than one batch of {batch} (micro_batch_size × "
            "gradient_accumulation_steps × processes); use a smaller batch or more pairs."
        )
    keep = max(config.selection.planned)
    if keep > pairs:
        raise SeraConfigError(
            f"sera.selection.keep: {int(keep)} is more than the {pairs} pairs of the dataset; "
            "allowed is a share in (0, 1] or a number up to that."
        )
    try:
        plan_of(cfg, config, pairs)
    except ValueError as error:
        raise SeraConfigError(
            f"dataloader_drop_last: {in_yaml(cfg.dataloader_drop_last)} can't be used here because "
            f"{error}; use a smaller batch or more pairs, or remove the key."
        ) from None


def check_tokenizer(cfg: Any, config: SeraConfig, dataset: Dataset, tokenizer: Any) -> None:
    """Check that answers can end, and that prompts leave room for them.

    Raises:
        SeraConfigError: one sentence.
    """
    if tokenizer.eos_token_id is None:
        raise SeraConfigError(
            "special_tokens.eos_token: the tokenizer has no EOS token, so no answer can end; set "
            "one that the model knows."
        )
    if config.bootstrap.fraction == 0 or "prompt" not in dataset.column_names:
        return
    shortest = None
    for rows in dataset.select_columns(["prompt"]).iter(batch_size=256):
        prompts = [prompt for prompt in rows["prompt"] if isinstance(prompt, str)]
        if len(prompts) < len(rows["prompt"]):
            return
        lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        shortest = min([*lengths, *([] if shortest is None else [shortest])])
        if shortest + 1 < cfg.sequence_len:
            return
    raise SeraConfigError(
        f"sequence_len: {cfg.sequence_len} leaves no room for an answer, the shortest prompt has "
        f"{shortest} tokens; use a larger sequence_len or sera.bootstrap.fraction: 0."
    )


def rl_of(cfg: Any) -> Any:
    """The host's ``rl:`` value as a word."""
    return getattr(cfg.get("rl"), "value", cfg.get("rl"))


def losses_of(cfg: Any) -> list[str]:
    """The host's ``dpo_loss_type:`` as a list of names."""
    given = cfg.get("dpo_loss_type") or "sigmoid"
    return [given] if isinstance(given, str) else list(given)


def in_yaml(value: Any) -> str:
    """``value`` as a user would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    plain = value if isinstance(value, str) else repr(value)
    return plain if len(plain) <= 80 else plain[:77] + "..."

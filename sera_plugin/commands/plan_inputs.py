"""A run's data, model sizes and learning rates through the host, without a GPU or weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sera_plugin.commands.plan import Lengths, RunPlan, assemble, read_block
from sera_plugin.commands.speed import Speed
from sera_plugin.config import SeraConfig
from sera_plugin.host.checks import plan_of, zero_stage
from sera_plugin.host.loading import (
    chat_templates,
    config_on,
    linear_names,
    load_preference_data,
    refused_by_host,
    tokenized,
)
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.training.checks import check_data
from sera_plugin.training.costs import ModelSize

if TYPE_CHECKING:
    from sera_plugin.data.pairs import OfflinePairs

PLAIN_SCHEDULES = {
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt",
}  # fmt: skip
CHANGES_SCHEDULE = ("cosine_min_lr_ratio", "cosine_constant_lr_ratio", "lr_quadratic_warmup")


def plan_run(path: Path, *, processes: int, zero: int | None, speed: Speed) -> RunPlan:
    """Plan the run of a config as on ``processes`` recent GPUs.

    Args:
        path: Axolotl's YAML.
        processes: GPUs.
        zero: ZeRO stage to reckon with, in place of the config's.
        speed: tokens per second of the whole job.

    Raises:
        SeraConfigError: one sentence, if the run would be refused.
    """
    raw, config = read_block(path)
    with refused_by_host(path):
        cfg = config_on(processes, path, raw)
        meta, tokenizer = load_preference_data(cfg)
        size = model_size(cfg, deepspeed=bool(cfg.deepspeed) or bool(zero))
    check_data(cfg, config, meta, tokenizer)
    lengths = _lengths(cfg, config, meta, tokenizer)
    schedule = plan_of(cfg, config, lengths.pairs)
    stage = 3 if cfg.fsdp or cfg.fsdp_config else zero_stage(cfg.deepspeed)
    stage = stage if zero is None else zero
    return assemble(
        schedule,
        lengths,
        config,
        size,
        token_budget=2 * int(cfg.micro_batch_size or 1) * int(cfg.sequence_len),
        processes=processes,
        stage=stage,
        speed=speed,
        rates=learning_rates(cfg, schedule.max_steps),
    )


def _lengths(cfg: Any, config: SeraConfig, meta: Any, tokenizer: Any) -> Lengths:
    from sera_plugin.data.held_out import split
    from sera_plugin.data.pairs import OfflinePairs

    def total(pairs: OfflinePairs) -> int:
        return int((2 * pairs.prompt_tokens + pairs.chosen_tokens + pairs.rejected_tokens).sum())

    rows = tokenized(meta.train_dataset, tokenizer, cfg.sequence_len)
    rows, held_out = split(config, rows, cfg.sequence_len, meta.eval_dataset, int(cfg.seed))
    train = OfflinePairs.of(rows, cfg.sequence_len)
    evaluation = total(OfflinePairs.of(held_out, cfg.sequence_len)) if held_out is not None else 0
    if meta.eval_dataset is not None and len(meta.eval_dataset):
        given = tokenized(meta.eval_dataset, tokenizer, cfg.sequence_len)
        evaluation = total(OfflinePairs.of(given, cfg.sequence_len))
    if len(train) < 2:
        raise SeraConfigError(
            f"datasets: {len(train)} pairs are left whose prompt is below sequence_len: "
            f"{cfg.sequence_len}; sera needs 2 or more."
        )
    answers = (train.chosen_tokens + train.rejected_tokens) / 2
    return Lengths(
        pairs=len(train),
        prompt=float(train.prompt_tokens.mean()),
        answer=float(answers.mean()),
        total=total(train),
        evaluation=evaluation,
        held_out=0 if held_out is None else len(held_out),
        refined=_refined(cfg, config, train, rows, tokenizer),
        **_contrast(cfg, config, train, rows, tokenizer),
    )


def _contrast(
    cfg: Any, config: SeraConfig, train: OfflinePairs, rows: Any, tokenizer: Any
) -> dict[str, Any]:
    """What the contrast of quality prompts takes, as ``Lengths`` has it."""
    import numpy as np

    from sera_plugin.scoring.quality_pairs import QualityPairs
    from sera_plugin.scoring.quality_prompt import opposite_writers

    tokens, asked = 0, []
    for prompts in config.asked:
        for writer in opposite_writers(prompts, tokenizer, chat_templates(cfg, tokenizer)):
            if writer is not None:
                scores = config.selection.external
                quality = QualityPairs.of(train, rows, writer, cfg.sequence_len, scores)
                tokens += quality.tokens
                asked.append(float(np.mean([len(prompt) for prompt in quality.prompts])))
    judges = config.bootstrap.judge == "contrast" and config.bootstrap.fraction > 0
    return {
        "contrast": tokens if config.selection.asked else 0,
        "asked": tuple(asked) if judges else (),
    }


def _refined(cfg: Any, config: SeraConfig, train: OfflinePairs, rows: Any, tokenizer: Any) -> int:
    """Tokens that Δ of all pairs takes."""
    from sera_plugin.scoring.quality_pairs import QualityPairs
    from sera_plugin.scoring.quality_prompt import QualityWriter, quality_text

    refine = config.refinement
    if refine is None:
        return 0
    templates = chat_templates(cfg, tokenizer)
    text = quality_text(refine.prompt)
    writer = QualityWriter.of(text, refine.placement, tokenizer, templates)
    scores = config.selection.external
    return QualityPairs.of(train, rows, writer, cfg.sequence_len, scores).tokens


def model_size(cfg: Any, *, deepspeed: bool) -> ModelSize:
    """Sizes of the policy from the model's config alone."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        cfg.base_model_config or cfg.base_model, trust_remote_code=bool(cfg.trust_remote_code)
    )
    with init_empty_weights():
        model: Any = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # without storage a tied head has become a parameter of its own
    parameters = sum(p.numel() for p in model.parameters())
    trainable = parameters
    if cfg.adapter:
        model = _with_adapter(cfg, model)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        parameters += trainable
    weight_bytes = float(cfg.planned_dtype_bytes or torch.finfo(torch.float32).bits / 8)
    trained_bytes = max(weight_bytes, 2.0)
    optimizer = 2 * trained_bytes
    if "8bit" in str(getattr(cfg.optimizer, "value", cfg.optimizer)):
        optimizer = 2
    elif deepspeed and weight_bytes < 4:
        optimizer = 12
    return ModelSize(
        parameters=parameters,
        trainable=trainable,
        weight_bytes=weight_bytes,
        optimizer_bytes=optimizer,
        separate_reference=not cfg.adapter,
        gradient_bytes=trained_bytes,
    )


def _with_adapter(cfg: Any, model: Any) -> Any:
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model

    targets = cfg.lora_target_modules or "all-linear"
    if cfg.lora_target_linear:
        named = [targets] if isinstance(cfg.lora_target_modules, str) else targets
        targets = [*linear_names(model), *(named if cfg.lora_target_modules else ())]
    lora = LoraConfig(
        r=int(cfg.lora_r or 8),
        lora_alpha=int(cfg.lora_alpha or 16),
        target_modules=list(targets) if isinstance(targets, (list, tuple)) else targets,
        layers_to_transform=cfg.peft_layers_to_transform,
        layers_pattern=cfg.peft_layers_pattern,
        modules_to_save=cfg.lora_modules_to_save or None,
        task_type="CAUSAL_LM",
    )
    with init_empty_weights():
        return get_peft_model(model, lora, low_cpu_mem_usage=True)


def learning_rates(cfg: Any, updates: int) -> list[float] | None:
    """The learning rate of every update, or None for a schedule that is not transformers' own."""
    import torch
    from transformers import get_scheduler

    name = str(getattr(cfg.lr_scheduler, "value", cfg.lr_scheduler) or "cosine")
    if name not in PLAIN_SCHEDULES or any(cfg.get(key) for key in CHANGES_SCHEDULE):
        return None
    rate = float(cfg.learning_rate)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    warmup = warmup_steps(cfg, updates)
    options = dict(cfg.lr_scheduler_kwargs or {})
    schedule = get_scheduler(name, optimizer, warmup, updates, options)
    found = []
    for _ in range(updates):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return found


def warmup_steps(cfg: Any, updates: int) -> int:
    """Warm-up updates as the host's builder counts them."""
    if cfg.warmup_steps is not None:
        steps = int(cfg.warmup_steps)
    elif cfg.warmup_ratio is not None:
        steps = int(cfg.warmup_ratio * updates)
    else:
        steps = min(int(0.03 * updates), 100)
    return 2 if steps == 1 else steps

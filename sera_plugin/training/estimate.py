"""The estimate that a run logs before its first round, from its own models and data."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from sera_plugin.data.schedule import share_of
from sera_plugin.training.costs import GIB, ModelSize, memory_per_rank, round_tokens


def model_size(model: torch.nn.Module, *, separate_reference: bool, deepspeed: bool) -> ModelSize:
    """Sizes of a loaded policy; parameters that ZeRO-3 has sharded count whole."""
    sizes = [
        (int(getattr(p, "ds_numel", p.numel())), p.element_size(), p.requires_grad)
        for p in model.parameters()
    ]
    by_width: Counter[int] = Counter()
    for count, width, _ in sizes:
        by_width[width] += count
    weight_bytes = by_width.most_common(1)[0][0]
    # DeepSpeed keeps fp32 master weights beside 16-bit ones; Adam alone keeps two states in the
    # dtype of the weights.
    master = 12 if deepspeed and weight_bytes < 4 else 2 * weight_bytes
    return ModelSize(
        parameters=sum(count for count, _, _ in sizes),
        trainable=sum(count for count, _, trained in sizes if trained),
        weight_bytes=weight_bytes,
        optimizer_bytes=master,
        separate_reference=separate_reference,
    )


def estimate_text(trainer: Any) -> str:
    """Tokens of a reviewed round and memory per rank, in two lines."""
    pairs, bootstrap = trainer.pairs, trainer.sera.bootstrap
    answers = (pairs.chosen_tokens + pairs.rejected_tokens) / 2
    prompt, answer = float(np.mean(pairs.prompt_tokens)), float(np.mean(answers))
    last = trainer.schedule.rounds[-1]
    size = next((size for size in trainer.schedule.rounds if size.reviewed), last)
    sampled = share_of(bootstrap.prompts, len(pairs)) if size.bootstrapped else 0
    cost = round_tokens(
        len(pairs),
        2 * (prompt + answer),
        prompt,
        min(answer, bootstrap.max_new_tokens),
        trained_pairs=size.total,
        sampled_prompts=sampled,
        candidates=bootstrap.num_candidates,
    )
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    stage, ranks = (plugin.zero_stage if plugin else 0), trainer.accelerator.num_processes
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    separate = trainer.ref_model is not None
    stage = 3 if trainer.is_fsdp_enabled else stage
    sizes = model_size(unwrapped, separate_reference=separate, deepspeed=plugin is not None)
    memory = memory_per_rank(sizes, stage, ranks)
    reviewed = (
        f"Estimate for each reviewed round: {cost.scored:,} tokens scored, {cost.sampled:,} "
        f"sampled in answers as long as the offline ones, {cost.trained:,} trained.\n"
    )
    refined = ""
    if trainer.refiner is not None:
        more = int(trainer.refiner.quality.tokens * size.total / len(pairs))
        refined = (
            f"Estimate of what Δ takes in a round of {size.total:,} pairs: {more:,} tokens scored "
            "with the quality prompt.\n"
        )
    return (
        f"{reviewed if size.reviewed else ''}{refined}"
        f"Estimate per rank at ZeRO stage {stage} on {ranks} ranks, without activations: policy "
        f"{memory.policy / GIB:.2f}, gradients {memory.gradients / GIB:.2f}, optimizer "
        f"{memory.optimizer / GIB:.2f}, reference {memory.reference / GIB:.2f} GiB, and "
        f"{memory.gathered_for_sampling / GIB:.2f} GiB more if sampling gathers the weights."
    )

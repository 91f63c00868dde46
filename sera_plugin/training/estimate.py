"""What a run will cost, as it says when it starts."""

from __future__ import annotations

import numpy as np

from sera_plugin.data.schedule import Schedule, share_of
from sera_plugin.runtime.memory import GIB
from sera_plugin.training.costs import (
    judged_tokens,
    memory_per_rank,
    model_size,
    round_tokens,
    scores_pairs,
    scoring_models,
)
from sera_plugin.training.run import Run


def estimate_text(run: Run, schedule: Schedule) -> str:
    """Tokens of a reviewed round and memory per rank, in a few lines."""
    config, pairs, models = run.config, run.pairs, run.host.models
    refined_tokens = run.objective.tokens if run.objective is not None else 0
    asked = run.contrast.asked_tokens() if run.contrast is not None else ()
    bootstrap = config.bootstrap
    answers = (pairs.chosen_tokens + pairs.rejected_tokens) / 2
    prompt, answer = float(np.mean(pairs.prompt_tokens)), float(np.mean(answers))
    last = schedule.rounds[-1]
    size = next((size for size in schedule.rounds if size.reviewed), last)
    sampled = share_of(bootstrap.prompts, len(pairs)) if size.bootstrapped else 0
    cost = round_tokens(
        len(pairs) if scores_pairs(config, last.number) else 0,
        2 * (prompt + answer),
        prompt,
        min(answer, bootstrap.max_new_tokens),
        trained_pairs=size.total,
        sampled_prompts=sampled,
        candidates=bootstrap.num_candidates,
        models=scoring_models(config, measured=run.sampling.measured, first_review=True),
    )
    stage, ranks = 3 if models.fsdp else models.zero_stage, models.accelerator.num_processes
    separate = models.reference is not None
    policy = models.unwrapped(models.policy)
    sizes = model_size(policy, separate_reference=separate, deepspeed=models.deepspeed)
    memory = memory_per_rank(sizes, stage, ranks)
    scored = cost.scored
    if bootstrap.judge == "contrast":
        scored += judged_tokens(bootstrap, sampled, asked, min(answer, bootstrap.max_new_tokens))
    reviewed = (
        f"Estimate for each reviewed round: {scored:,} tokens scored, {cost.sampled:,} "
        f"sampled in answers as long as the offline ones, {cost.trained:,} trained.\n"
    )
    refined = ""
    if asked and config.selection.asked:
        more = round(sum(2 * len(pairs) * (tokens + answer) for tokens in asked))
        refined = (
            f"Estimate of what the contrast of the pairs takes before round 1: {more:,} tokens "
            "scored.\n"
        )
    if refined_tokens:
        more = int(refined_tokens * size.total / len(pairs))
        refined += (
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

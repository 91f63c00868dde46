"""What a run would do and cost, from its YAML, data and model config. No weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sera_plugin.commands.speed import Speed
from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.data.schedule import RoundSize, Schedule, share_of
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.sampling.settings import GENERATION_BATCHES
from sera_plugin.training.costs import (
    Memory,
    ModelSize,
    forwards_per_rank,
    judged_tokens,
    measures,
    memory_per_rank,
    round_tokens,
    sampling_batches_per_rank,
    scores_pairs,
    scoring_models,
)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the pairs.

    Attributes:
        pairs: |D|.
        prompt: mean tokens of a prompt.
        answer: mean tokens of an answer.
        total: prompts, twice, and answers of all pairs.
        evaluation: the same sum over the evaluation pairs, or the held-out ones.
        refined: the sum over all pairs with the quality prompt in their prompts; 0 without
            refinement.
        contrast: tokens that the reference scores for the contrast of all pairs, over all passes;
            0 where that is no signal.
        asked: mean tokens of a prompt with a prompt of the contrast in it, one per pass; empty
            unless the judge is `contrast`.
        held_out: training pairs that no round trains on, not among ``pairs``.
    """

    pairs: int
    prompt: float
    answer: float
    total: int
    evaluation: int = 0
    refined: int = 0
    contrast: int = 0
    asked: tuple[float, ...] = ()
    held_out: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """One round before it has run.

    Attributes:
        size: its pairs.
        updates: optimizer updates.
        rates: learning rate of its first and last update, or None if the schedule is unknown.
        prompts: prompts that are sampled.
        sampled: tokens that are sampled, if answers are as long as the offline ones.
        most_sampled: the same if all answers reach ``max_new_tokens``.
        scored: tokens of forward passes without gradient in the review.
        refined: the same for Δ, over the round.
        trained: tokens of forward and backward passes.
        forwards: scoring batches of each rank; without those of `refine.source: on_the_fly`, which
            are as many as micro-batches.
        batches: sampling batches of each rank.
        seconds: estimated time, or None if a throughput that matters is unknown.
    """

    size: RoundSize
    updates: int
    rates: tuple[float, float] | None
    prompts: int
    sampled: int
    most_sampled: int
    scored: int
    refined: int
    trained: int
    forwards: int
    batches: int
    seconds: float | None


@dataclass(frozen=True)
class RunPlan:
    """A run before it has started.

    Attributes:
        rounds: all rounds up to ``max_steps``.
        updates: of the whole run.
        opening_tokens: scored under the reference before round 1, for the contrast of pairs, too.
        lengths: of the data.
        processes: GPUs.
        stage: ZeRO stage of the config, 3 for FSDP.
        model: sizes of the policy.
        memory: per GPU for each ZeRO stage, activations left out.
        speed: tokens per second that the time is reckoned with.
        seconds: estimated time, or None.
    """

    rounds: tuple[RoundPlan, ...]
    updates: int
    opening_tokens: int
    lengths: Lengths
    processes: int
    stage: int
    model: ModelSize
    memory: dict[int, Memory]
    speed: Speed
    seconds: float | None


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of Axolotl's YAML.

    Raises:
        SeraConfigError: one sentence.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SeraConfigError(f"{path} can't be read ({' '.join(str(error).split())}).") from error
    if not isinstance(raw, dict):
        raise SeraConfigError(f"{path} is not a config of Axolotl.")
    return raw


def read_block(path: Path) -> tuple[dict[str, Any], SeraConfig]:
    """The raw YAML and its ``sera:`` block.

    Raises:
        SeraConfigError: one sentence.
    """
    raw = read_yaml(path)
    config = parse_block(raw.get("sera"))
    if config is None:
        raise SeraConfigError(f"{path} has no sera: block, so there are no rounds to plan.")
    plugins = raw.get("plugins")
    if not isinstance(plugins, list) or "sera_plugin.SeRAPlugin" not in plugins:
        raise SeraConfigError(
            "plugins: sera_plugin.SeRAPlugin is missing, so Axolotl would train plain DPO; add it."
        )
    return raw, config


def plan_round(
    size: RoundSize,
    updates: int,
    lengths: Lengths,
    config: SeraConfig,
    *,
    token_budget: int,
    processes: int,
    speed: Speed,
    rates: tuple[float, float] | None,
    models: int,
) -> RoundPlan:
    """What one round costs.

    Args:
        size: the planned pairs.
        updates: optimizer updates.
        lengths: of the data.
        config: the ``sera:`` block.
        token_budget: most padded tokens of a scoring batch.
        processes: GPUs.
        speed: tokens per second.
        rates: learning rate at both ends.
        models: models that score a sampled completion.
    """
    bootstrap = config.bootstrap
    prompts = share_of(bootstrap.prompts, lengths.pairs) if size.bootstrapped else 0
    answer = min(lengths.answer, bootstrap.max_new_tokens)
    pair_tokens = lengths.total / lengths.pairs
    rescored = scores_pairs(config, size.number)
    cost = round_tokens(
        lengths.pairs if rescored else 0,
        pair_tokens,
        lengths.prompt,
        answer,
        trained_pairs=size.total,
        sampled_prompts=prompts,
        candidates=bootstrap.num_candidates,
        models=models,
    )
    evaluation = lengths.evaluation if size.number > 1 else 0
    judged = judged_tokens(bootstrap, prompts, lengths.asked, answer)
    scored = cost.scored + evaluation + judged if size.reviewed else 0
    refined = round(size.total * lengths.refined / lengths.pairs)
    stored = refined if config.refinement and config.refinement.source == "round" else 0
    parts = (
        (scored + refined, speed.scoring),
        (cost.sampled, speed.generation),
        (cost.trained, speed.training),
    )
    return RoundPlan(
        size=size,
        updates=updates,
        rates=rates,
        prompts=prompts,
        sampled=cost.sampled,
        most_sampled=prompts * bootstrap.num_candidates * bootstrap.max_new_tokens,
        scored=scored,
        refined=refined,
        trained=cost.trained,
        forwards=forwards_per_rank(scored + stored, token_budget, processes),
        batches=sampling_batches_per_rank(
            prompts,
            lengths.prompt,
            bootstrap.max_new_tokens,
            bootstrap.num_candidates,
            GENERATION_BATCHES * token_budget,
            processes,
        ),
        seconds=seconds(parts),
    )


def seconds(parts: tuple[tuple[float, float | None], ...]) -> float | None:
    """Σ tokens / (tokens per second), or None if a speed is missing where there are tokens."""
    if any(tokens and not speed for tokens, speed in parts):
        return None
    return sum(tokens / speed for tokens, speed in parts if speed)


def assemble(
    schedule: Schedule,
    lengths: Lengths,
    config: SeraConfig,
    model: ModelSize,
    *,
    token_budget: int,
    processes: int,
    stage: int,
    speed: Speed,
    rates: list[float] | None,
) -> RunPlan:
    """The plan of a run whose schedule, data and model are known.

    Args:
        schedule: rounds and updates.
        lengths: of the data.
        config: the ``sera:`` block.
        model: sizes of the policy.
        token_budget: most padded tokens of a scoring batch.
        processes: GPUs.
        stage: ZeRO stage, 3 for FSDP.
        speed: tokens per second.
        rates: learning rate of every update, or None.
    """
    rounds, done = [], 0
    first = next((size.number for size in schedule.rounds if size.reviewed), None)
    for size, updates in zip(schedule.rounds, schedule.updates, strict=True):
        if done >= schedule.max_steps:
            break
        last = min(done + updates, schedule.max_steps)
        rounds.append(
            plan_round(
                size,
                last - done,
                lengths,
                config,
                token_budget=token_budget,
                processes=processes,
                speed=speed,
                rates=(rates[done], rates[last - 1]) if rates else None,
                models=scoring_models(
                    config,
                    measured=measures(config, model.weight_bytes),
                    first_review=size.number == first,
                ),
            )
        )
        done = last
    opening = lengths.total + lengths.evaluation + lengths.contrast
    times = [seconds(((opening, speed.scoring),)), *(entry.seconds for entry in rounds)]
    return RunPlan(
        rounds=tuple(rounds),
        updates=schedule.max_steps,
        opening_tokens=opening,
        lengths=lengths,
        processes=processes,
        stage=stage,
        model=model,
        memory={number: memory_per_rank(model, number, processes) for number in (0, 1, 2, 3)},
        speed=speed,
        seconds=sum(t for t in times if t is not None) if None not in times else None,
    )

"""What a run costs: tokens, forwards and memory per rank, reckoned as in ``docs/scaling.md``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sera_plugin.config import SeraConfig
from sera_plugin.config.bootstrap import BootstrapConfig


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the policy.

    Attributes:
        parameters: all parameters.
        trainable: those that training changes (an adapter's, or all).
        weight_bytes: bytes per weight as loaded (2 for bf16, 4 for fp32, about 0.5 for 4 bits).
        optimizer_bytes: bytes per trainable parameter for optimizer states and master weights
            (Adam: 8 in fp32; 12 where bf16 weights have an fp32 master copy; 4 for bf16 states).
        separate_reference: whether a second model is the reference (full fine-tune).
        gradient_bytes: bytes per gradient; those of a weight if None.
    """

    parameters: int
    trainable: int
    weight_bytes: float = 2
    optimizer_bytes: float = 12
    separate_reference: bool = True
    gradient_bytes: float | None = None

    @property
    def weights(self) -> float:
        """Bytes of the whole policy."""
        return self.parameters * self.weight_bytes

    @property
    def gradients(self) -> float:
        """Bytes of all gradients."""
        each = self.weight_bytes if self.gradient_bytes is None else self.gradient_bytes
        return self.trainable * each


@dataclass(frozen=True)
class Memory:
    """Bytes per rank, activations and caches left out.

    Attributes:
        policy: the policy's weights.
        gradients: gradients of the trainable parameters.
        optimizer: optimizer states and master weights.
        reference: the reference model, 0 without one.
        gathered_for_sampling: on top of the rest, while gathered sampling runs.
    """

    policy: float
    gradients: float
    optimizer: float
    reference: float
    gathered_for_sampling: float

    @property
    def training(self) -> float:
        return self.policy + self.gradients + self.optimizer + self.reference


def memory_per_rank(size: ModelSize, zero_stage: int, ranks: int) -> Memory:
    """Bytes per rank under a ZeRO stage; 0 is plain DDP.

    Stage 1 shards the optimizer, 2 the gradients too, 3 the weights too. TRL keeps the reference
    whole on each rank below stage 3. Gathered sampling at stage 3 holds all weights once, beside
    the rank's share.

    Raises:
        ValueError: if the stage is not 0, 1, 2 or 3, or there is no rank.
    """
    if zero_stage not in (0, 1, 2, 3) or ranks < 1:
        raise ValueError(f"no memory to reckon for ZeRO stage {zero_stage} on {ranks} ranks")

    def per_rank(whole: float, sharded_from: int) -> float:
        return whole / ranks if zero_stage >= sharded_from else whole

    return Memory(
        policy=per_rank(size.weights, 3),
        gradients=per_rank(size.gradients, 2),
        optimizer=per_rank(size.trainable * size.optimizer_bytes, 1),
        reference=per_rank(size.weights, 3) if size.separate_reference else 0.0,
        gathered_for_sampling=size.weights if zero_stage == 3 and ranks > 1 else 0.0,
    )


@dataclass(frozen=True)
class RoundTokens:
    """Tokens that one reviewed round costs, over all ranks.

    Attributes:
        scored: forward without gradient, over D and over sampled completions.
        sampled: new tokens, at most.
        prefilled: prompt tokens before sampling, once per candidate.
        trained: forward and backward.
    """

    scored: int
    sampled: int
    prefilled: int
    trained: int


def round_tokens(
    pairs: int,
    pair_tokens: float,
    prompt_tokens: float,
    answer_tokens: float,
    *,
    trained_pairs: int,
    sampled_prompts: int,
    candidates: int,
    models: int = 2,
) -> RoundTokens:
    """Tokens of a reviewed round.

    Args:
        pairs: |D| and the evaluation pairs.
        pair_tokens: mean tokens of a pair, prompt counted twice.
        prompt_tokens: mean tokens of a prompt.
        answer_tokens: tokens of a sampled answer.
        trained_pairs: pairs that the round trains on.
        sampled_prompts: prompts that are sampled.
        candidates: answers per prompt.
        models: models that score a sampled completion, as ``scoring_models`` has them.
    """
    answers = sampled_prompts * candidates
    sampled_tokens = answers * (prompt_tokens + answer_tokens)
    return RoundTokens(
        scored=round(pairs * pair_tokens + models * sampled_tokens),
        sampled=round(answers * answer_tokens),
        prefilled=round(answers * prompt_tokens),
        trained=round(trained_pairs * pair_tokens),
    )


def scores_pairs(config: SeraConfig, number: int) -> bool:
    """Whether the review before a round scores D, or takes what is known already."""
    return config.selection.source == "rescore" and number > 1


def scoring_models(config: SeraConfig, *, measured: bool, first_review: bool) -> int:
    """How many models score a sampled completion.

    Policy and reference, of which the one that wrote it may be known from sampling, and with
    ``bootstrap.ensemble`` the previous policy from the second review on.

    Args:
        config: the ``sera:`` block.
        measured: whether log-probs are found while sampling.
        first_review: whether there is no earlier policy yet.
    """
    return 2 - measured + (config.bootstrap.ensemble and not first_review)


def measures(config: SeraConfig, weight_bytes: float) -> bool:
    """Whether log-probs will be found while sampling, as far as can be told before a run.

    Args:
        config: the ``sera:`` block.
        weight_bytes: bytes per weight as loaded; in half precision they are not used.
    """
    wanted = config.training.sampled_logps is not False
    return wanted and config.bootstrap.engine == "transformers" and weight_bytes >= 4


def judged_tokens(
    config: BootstrapConfig, sampled_prompts: int, asked: Sequence[float], answer_tokens: float
) -> int:
    """Tokens that the judge `contrast` scores in a review.

    Args:
        config: the ``sera.bootstrap`` block.
        sampled_prompts: prompts that are sampled.
        asked: mean tokens of a prompt with a quality prompt in it, one per pass of the reference.
        answer_tokens: tokens of an answer.
    """
    offline = 2 if config.pool == "policy_and_offline" else 0
    answers = sampled_prompts * (config.num_candidates + offline)
    return round(sum(answers * (prompt + answer_tokens) for prompt in asked))


def forwards_per_rank(tokens: float, token_budget: int, ranks: int) -> int:
    """Scoring forwards of each rank, at least: batches are filled to the budget without padding."""
    return math.ceil(math.ceil(tokens / token_budget) / ranks)


def sampling_batches_per_rank(
    prompts: int,
    prompt_tokens: float,
    answer_tokens: float,
    candidates: int,
    token_budget: int,
    ranks: int,
) -> int:
    """Batches that each rank samples; a batch holds all candidates of its prompts."""
    rows = max(1, int(token_budget // (candidates * (prompt_tokens + answer_tokens))))
    return math.ceil(math.ceil(prompts / rows) / ranks)


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

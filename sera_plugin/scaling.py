"""What a run costs: tokens, memory per rank, bytes gathered. Pure functions.

The formulas are explained in ``docs/scaling.md``; everything here is reckoned, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the policy.

    Attributes:
        parameters: all parameters.
        trainable: those that training changes (an adapter's, or all).
        weight_bytes: bytes per weight as loaded (2 for bf16, 4 for fp32).
        optimizer_bytes: bytes per trainable parameter for optimizer states and master weights
            (Adam: 8 in fp32; 12 where bf16 weights have an fp32 master copy).
        separate_reference: whether a second model is the reference (full fine-tune).
    """

    parameters: int
    trainable: int
    weight_bytes: int = 2
    optimizer_bytes: int = 12
    separate_reference: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes per rank, activations and caches left out."""

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
    whole on each rank below stage 3. Gathered sampling at stage 3 holds all weights once.
    """
    whole = size.parameters * size.weight_bytes
    share = 1 / ranks
    policy = whole * (share if zero_stage == 3 else 1)
    gradients = size.trainable * size.weight_bytes * (share if zero_stage >= 2 else 1)
    optimizer = size.trainable * size.optimizer_bytes * (share if zero_stage >= 1 else 1)
    reference = (whole * (share if zero_stage == 3 else 1)) if size.separate_reference else 0.0
    gathered = whole * (1 - share) if zero_stage == 3 else 0.0
    return Memory(policy, gradients, optimizer, reference, gathered)


@dataclass(frozen=True)
class RoundTokens:
    """Tokens that one reviewed round costs, over all ranks.

    Attributes:
        scored: forward without gradient, over D and over fresh answers (policy and reference).
        sampled: new tokens, at most.
        prefilled: prompt tokens before sampling.
        trained: forward and backward.
    """

    scored: int
    sampled: int
    prefilled: int
    trained: int

    @property
    def forward_units(self) -> float:
        """Forwards over one token, a backward counting as two."""
        return self.scored + self.sampled + self.prefilled + 3.0 * self.trained


def round_tokens(
    pairs: int,
    pair_tokens: float,
    prompt_tokens: float,
    answer_tokens: float,
    *,
    trained_pairs: int,
    sampled_prompts: int,
    candidates: int,
) -> RoundTokens:
    """Tokens of a reviewed round.

    Args:
        pairs: |D|.
        pair_tokens: mean tokens of a pair, prompt counted twice.
        prompt_tokens: mean tokens of a prompt.
        answer_tokens: tokens of a sampled answer.
        trained_pairs: pairs that the round trains on.
        sampled_prompts: prompts that are sampled.
        candidates: answers per prompt.
    """
    answers = sampled_prompts * candidates
    fresh = answers * (prompt_tokens + answer_tokens)
    return RoundTokens(
        scored=round(pairs * pair_tokens + 2 * fresh),
        sampled=round(answers * answer_tokens),
        prefilled=round(answers * prompt_tokens),
        trained=round(trained_pairs * pair_tokens),
    )


def bytes_gathered(size: ModelSize, ranks: int, forwards: int, decoding_steps: int) -> float:
    """Bytes that each rank receives under ZeRO-3 for forwards and ungathered decoding steps."""
    each = size.parameters * size.weight_bytes * (1 - 1 / ranks)
    return each * (forwards + decoding_steps)


def choose_gather(
    setting: str | bool, weights: float, free: float, safety: float = 0.6
) -> tuple[bool, str]:
    """Whether to gather all weights on every rank for sampling under ZeRO-3, and why.

    Args:
        setting: ``sera.bootstrap.gather``.
        weights: bytes of the whole model.
        free: bytes free on the rank that has the least.
        safety: share of the free memory that weights may take; the rest holds the cache.
    """
    if setting != "auto":
        gather = bool(setting)
        return gather, f"sera.bootstrap.gather: {str(gather).lower()}"
    gather = weights <= safety * free
    sign = "≤" if gather else ">"
    return gather, (
        f"auto: {weights / GIB:.2f} GiB of weights {sign} {safety:.0%} of the {free / GIB:.2f} GiB "
        "free on the fullest rank"
    )

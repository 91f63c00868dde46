"""Bootstrapping: candidates of a prompt become a new pair. Pure functions.

The reward that ranks candidates is r(x,y) = β·[log πθ(y|x) − log πref(y|x)] − α·|y|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Source(StrEnum):
    """Where a candidate comes from."""

    POLICY = "policy"
    REFERENCE = "reference"
    CHOSEN = "offline_chosen"
    REJECTED = "offline_rejected"

    @property
    def sampled(self) -> bool:
        """Whether it was sampled, from the policy or the reference, for this round."""
        return self in (Source.POLICY, Source.REFERENCE)


class Shortfall(StrEnum):
    """Why a prompt gives no pair."""

    DUPLICATES = "duplicates"
    EQUAL_REWARDS = "equal_rewards"
    TRUNCATED = "truncated"
    NOT_NEW = "not_new"
    DISAGREE = "disagree"
    UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an answer.

    Attributes:
        score: the larger the better; None where it has no opinion.
        replaces: whether the score ranks in place of the implicit reward, or must agree with it.
    """

    score: float | None
    replaces: bool


@dataclass(frozen=True)
class Candidate:
    """An answer that competes.

    Attributes:
        token_ids: the answer's tokens, with its ending if it is finished.
        source: sampled from the policy or the reference, or one of the two offline answers.
        finished: False if sampling was cut before a stop token.
        log_ratio: log πθ(y|x) − log πref(y|x), nats.
        policy_logp: log πθ(y|x), nats.
        reference_logp: log πref(y|x), nats.
        verdict: what the user's own judge says; None without a judge.
    """

    token_ids: tuple[int, ...]
    source: Source
    finished: bool
    log_ratio: float
    policy_logp: float
    reference_logp: float
    verdict: Verdict | None = None

    def reward(self, beta: float, penalty: float) -> float:
        """r − α·|y|, where r is β·log πθ/πref, or the judge's score if that replaces it."""
        own = beta * self.log_ratio
        if self.verdict is not None and self.verdict.replaces and self.verdict.score is not None:
            own = self.verdict.score
        return own - penalty * len(self.token_ids)


@dataclass(frozen=True)
class Pool:
    """All candidates of one example's prompt."""

    example_id: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class FreshPair:
    """A bootstrapped pair: best against worst of a pool; ``margin`` is its reward difference."""

    example_id: str
    chosen: Candidate
    rejected: Candidate
    margin: float
    pool: Pool


def distinct(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates with different tokens; an offline answer stands for its sampled copies."""
    first: dict[tuple[int, ...], Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: c.source.sampled):
        first.setdefault(candidate.token_ids, candidate)
    return tuple(first.values())


def best_against_worst(pool: Pool, beta: float, penalty: float) -> FreshPair | Shortfall:
    """Rank a pool by reward and pair its best with its worst answer.

    An answer that was cut is never chosen. A pair needs at least one sampled answer. Equal
    rewards break by token ids, so the result does not depend on the order of the candidates.
    A judge whose score doesn't replace the reward must rank the two answers alike.

    Args:
        pool: the candidates of one prompt.
        beta: β of the loss.
        penalty: α, reward per token.
    """
    candidates = distinct(pool.candidates)
    if len(candidates) < 2:
        return Shortfall.DUPLICATES
    ranked = sorted(candidates, key=lambda c: (-c.reward(beta, penalty), c.token_ids))
    finished = [candidate for candidate in ranked if candidate.finished]
    if not finished:
        return Shortfall.TRUNCATED
    best, worst = finished[0], ranked[-1]
    margin = best.reward(beta, penalty) - worst.reward(beta, penalty)
    if not margin > 0:
        return Shortfall.TRUNCATED if ranked[0] is not best else Shortfall.EQUAL_REWARDS
    if not (best.source.sampled or worst.source.sampled):
        return Shortfall.NOT_NEW
    if best.verdict is not None and worst.verdict is not None:
        scores = best.verdict.score, worst.verdict.score
        if scores[0] is None or scores[1] is None:
            return Shortfall.UNJUDGED
        if not scores[0] > scores[1] and not best.verdict.replaces:
            return Shortfall.DISAGREE
    return FreshPair(pool.example_id, best, worst, margin, pool)


def bootstrap(
    pools: Sequence[Pool], beta: float, penalty: float
) -> tuple[list[FreshPair], dict[Shortfall, int]]:
    """Pair every pool; also counts why pools gave no pair."""
    pairs: list[FreshPair] = []
    short = dict.fromkeys(Shortfall, 0)
    for pool in pools:
        result = best_against_worst(pool, beta, penalty)
        if isinstance(result, Shortfall):
            short[result] += 1
        else:
            pairs.append(result)
    return pairs, short


def keep_top(pairs: Sequence[FreshPair], count: int) -> list[FreshPair]:
    """The ``count`` pairs with the largest margins, ties by example id."""
    return sorted(pairs, key=lambda pair: (-pair.margin, pair.example_id))[:count]


def balanced_penalty(pools: Sequence[Pool], beta: float, steps: int = 60) -> float:
    """The α at which chosen and rejected answers of all pairs have equal mean length.

    The mean length of chosen minus rejected falls as α rises (each prompt's best answer gets no
    longer and its worst no shorter), so the crossing is found by bisection; it is a step
    function, so the side of the crossing with the smaller difference is returned. Negative when
    the reward itself prefers short answers. 0 if there is nothing to balance.
    """
    pools = [pool for pool in pools if pool.candidates]
    spread = [
        abs(a.reward(beta, 0.0) - b.reward(beta, 0.0))
        for pool in pools
        for a, b in [_extremes(pool, beta, 0.0)]
    ]
    high = max(spread, default=0.0)
    if high == 0.0 or _length_gap(pools, beta, 0.0) == 0.0:
        return 0.0
    low = -high
    for _ in range(steps):
        middle = (low + high) / 2
        if _length_gap(pools, beta, middle) > 0:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda alpha: (abs(_length_gap(pools, beta, alpha)), abs(alpha)))


def _extremes(pool: Pool, beta: float, penalty: float) -> tuple[Candidate, Candidate]:
    ranked = sorted(
        distinct(pool.candidates), key=lambda c: (-c.reward(beta, penalty), c.token_ids)
    )
    finished = [candidate for candidate in ranked if candidate.finished] or ranked
    return finished[0], ranked[-1]


def _length_gap(pools: Sequence[Pool], beta: float, penalty: float) -> float:
    """Mean of |y⁺| − |y⁻| over the pools, in tokens."""
    gaps = [
        len(best.token_ids) - len(worst.token_ids)
        for best, worst in (_extremes(pool, beta, penalty) for pool in pools)
    ]
    return float(np.mean(gaps)) if gaps else 0.0

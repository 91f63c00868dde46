"""Candidates of a prompt become a new pair, and what sampled answers show. Pure functions.

The reward that ranks candidates is r(x,y) = β·[log πθ(y|x) − log πref(y|x)] − α·|y|.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from sera_plugin.data.candidates import BootstrappedPair, Candidate, Completion, Pool, Source
from sera_plugin.data.ids import permutation
from sera_plugin.review.guard import SampledCompletions


class Shortfall(StrEnum):
    """Why a prompt gives no pair."""

    DUPLICATES = "duplicates"
    EQUAL_REWARDS = "equal_rewards"
    TRUNCATED = "truncated"
    NOT_NEW = "not_new"
    DISAGREE = "disagree"
    UNJUDGED = "unjudged"
    NO_REFERENCE = "no_reference"


WORST_OF = 5
"""Answers of which the worst is rejected by ``worst_of``."""


@dataclass(frozen=True)
class Rejection:
    """Which answer of a pool is rejected.

    Attributes:
        rule: ``worst`` of all; ``worst_of``, of 5 drawn by (seed, round, example), as arXiv
            2502.16825 has it; or ``reference``, of those that the reference wrote, as arXiv
            2508.06026 has it.
        seed: the run's seed.
        round_number: the round.
    """

    rule: Literal["worst", "worst_of", "reference"] = "worst"
    seed: int = 0
    round_number: int = 0

    def of(self, example_id: str, ranked: Sequence[Candidate]) -> Candidate | None:
        """The answer that is rejected, or None.

        Args:
            example_id: of the pool.
            ranked: its different answers, best first.
        """
        if self.rule == "reference":
            return next((c for c in ranked[::-1] if c.source is Source.REFERENCE), None)
        if self.rule == "worst_of":
            names = [repr(candidate.token_ids) for candidate in ranked]
            drawn = permutation(names, self.seed, self.round_number, example_id, "rejected")
            return ranked[int(drawn[:WORST_OF].max())]
        return ranked[-1]


WORST = Rejection()


def distinct(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates with different tokens; an offline answer stands for its sampled copies."""
    first: dict[tuple[int, ...], Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: c.source.sampled):
        first.setdefault(candidate.token_ids, candidate)
    return tuple(first.values())


def best_against_worst(
    pool: Pool, beta: float, penalty: float, rejection: Rejection = WORST
) -> BootstrappedPair | Shortfall:
    """Rank a pool by reward and pair its best answer with the one that is rejected.

    An answer that was cut is never chosen. A pair needs at least one sampled answer. Equal
    rewards break by token ids, so the result does not depend on the order of the candidates.
    A judge whose score doesn't replace the reward must rank the two answers alike.

    Args:
        pool: the candidates of one prompt.
        beta: β of the loss.
        penalty: α, reward per token.
        rejection: which answer is rejected.
    """
    candidates = distinct(pool.candidates)
    if len(candidates) < 2:
        return Shortfall.DUPLICATES
    ranked = sorted(candidates, key=lambda c: (-c.reward(beta, penalty), c.token_ids))
    finished = [candidate for candidate in ranked if candidate.finished]
    if not finished:
        return Shortfall.TRUNCATED
    best, worst = finished[0], rejection.of(pool.example_id, ranked)
    if worst is None or (worst is best and rejection.rule == "reference"):
        return Shortfall.NO_REFERENCE
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
    return BootstrappedPair(pool.example_id, best, worst, margin, pool)


def bootstrap(
    pools: Sequence[Pool], beta: float, penalty: float, rejection: Rejection = WORST
) -> tuple[list[BootstrappedPair], dict[Shortfall, int]]:
    """Pair every pool; also counts why pools gave no pair."""
    pairs: list[BootstrappedPair] = []
    short = dict.fromkeys(Shortfall, 0)
    for pool in pools:
        result = best_against_worst(pool, beta, penalty, rejection)
        if isinstance(result, Shortfall):
            short[result] += 1
        else:
            pairs.append(result)
    return pairs, short


def keep_top(pairs: Sequence[BootstrappedPair], count: int) -> list[BootstrappedPair]:
    """The ``count`` pairs with the largest margins, ties by example id."""
    return sorted(pairs, key=lambda pair: (-pair.margin, pair.example_id))[:count]


def balanced_penalty(
    pools: Sequence[Pool], beta: float, rejection: Rejection = WORST, steps: int = 60
) -> float:
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
        for a, b in [_extremes(pool, beta, 0.0, rejection)]
    ]
    high = max(spread, default=0.0)

    def gap(alpha: float) -> float:
        return _length_gap(pools, beta, alpha, rejection)

    if high == 0.0 or gap(0.0) == 0.0:
        return 0.0
    low = -high
    for _ in range(steps):
        middle = (low + high) / 2
        if gap(middle) > 0:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda alpha: (abs(gap(alpha)), abs(alpha)))


def _extremes(
    pool: Pool, beta: float, penalty: float, rejection: Rejection
) -> tuple[Candidate, Candidate]:
    ranked = sorted(
        distinct(pool.candidates), key=lambda c: (-c.reward(beta, penalty), c.token_ids)
    )
    finished = [candidate for candidate in ranked if candidate.finished] or ranked
    return finished[0], rejection.of(pool.example_id, ranked) or finished[0]


def _length_gap(pools: Sequence[Pool], beta: float, penalty: float, rejection: Rejection) -> float:
    """Mean of |y⁺| − |y⁻| over the pools, in tokens."""
    gaps = [
        len(best.token_ids) - len(worst.token_ids)
        for best, worst in (_extremes(pool, beta, penalty, rejection) for pool in pools)
    ]
    return float(np.mean(gaps)) if gaps else 0.0


Sampled = Mapping[str, tuple[Completion, ...]]
"""Completions by example id."""

Written = Mapping[Source, Sampled]
"""Completions by who wrote them, the policy or the reference."""


def by_answer(written: Written, example_id: str) -> dict[Completion, Source]:
    """The different answers to a prompt; what both writers sampled counts as the policy's."""
    found: dict[Completion, Source] = {}
    for writer in sorted(written, key=lambda writer: writer is not Source.POLICY):
        for answer in written[writer][example_id]:
            found.setdefault(answer, writer)
    return found


@dataclass(frozen=True)
class SampleStats:
    """All sampled answers, repeats and empty ones included.

    Attributes:
        answers: how many were sampled.
        unique: share that is left when each prompt's repeats are dropped.
        finished: share that ended by a stop token.
        kl: mean log πθ/πref over the policy's answers with at least one token, nats; None if the
            policy wrote none.
        set_aside: different answers whose log-probs are not finite; they don't compete.
    """

    answers: int
    unique: float
    finished: float
    kl: float | None
    set_aside: int = 0

    @classmethod
    def of(
        cls, written: Written, candidates: Mapping[str, Sequence[Candidate]], set_aside: int = 0
    ) -> SampleStats | None:
        """Statistics, or None if nothing was sampled; ``candidates`` holds the scored answers."""
        answers = [
            (i, rollout)
            for rollouts in written.values()
            for i, sampled in rollouts.items()
            for rollout in sampled
        ]
        if not answers:
            return None
        ratio = {
            (i, c.token_ids, c.finished): c.policy_logp - c.reference_logp
            for i, candidates in candidates.items()
            for c in candidates
        }
        own = [
            (i, r.token_ids, r.finished)
            for i, sampled in written.get(Source.POLICY, {}).items()
            for r in sampled
        ]
        ratios = [ratio[key] for key in own if key in ratio]
        return cls(
            answers=len(answers),
            unique=len(set(answers)) / len(answers),
            finished=float(np.mean([r.finished for _, r in answers])),
            kl=(float(np.mean(ratios)) if ratios else 0.0) if own else None,
            set_aside=set_aside,
        )


def for_the_guard(
    written: Written,
    candidates: Mapping[str, Sequence[Candidate]],
    beta: float,
    penalty: float,
) -> list[SampledCompletions]:
    """What the guard measures: the policy's answers to each prompt, and how often it wrote each.

    Args:
        written: all sampled answers.
        candidates: the scored ones, each once.
        beta: β of the loss.
        penalty: α of the ranking reward.
    """
    found = []
    for example_id, answers in written.get(Source.POLICY, {}).items():
        times = Counter((answer.token_ids, answer.finished) for answer in answers)
        own = [c for c in candidates[example_id] if (c.token_ids, c.finished) in times]
        found.append(
            SampledCompletions(
                rewards=np.array([c.reward(beta, penalty) for c in own], dtype=float),
                log_ratios=np.array([c.policy_logp - c.reference_logp for c in own], dtype=float),
                tokens=np.array([len(c.token_ids) for c in own], dtype=np.int64),
                times=np.array([times[c.token_ids, c.finished] for c in own], dtype=np.int64),
            )
        )
    return found

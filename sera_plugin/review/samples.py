"""The sampled answers of a review: who wrote them, and what they show. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sera_plugin.data.rollouts import Rollout
from sera_plugin.review.guard import SampledAnswers
from sera_plugin.review.pairing import Candidate, Source

Rollouts = Mapping[str, tuple[Rollout, ...]]
"""Answers by example id."""

Written = Mapping[Source, Rollouts]
"""Answers by who wrote them, the policy or the reference."""


def by_answer(written: Written, example_id: str) -> dict[Rollout, Source]:
    """The different answers to a prompt; what both writers sampled counts as the policy's."""
    found: dict[Rollout, Source] = {}
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
        cls, written: Written, fresh: Mapping[str, Sequence[Candidate]], set_aside: int = 0
    ) -> SampleStats | None:
        """Statistics, or None if nothing was sampled; ``fresh`` holds the scored answers."""
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
            for i, candidates in fresh.items()
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
    fresh: Mapping[str, Sequence[Candidate]],
    beta: float,
    penalty: float,
) -> list[SampledAnswers]:
    """What the guard measures: the policy's answers to each prompt, and how often it wrote each.

    Args:
        written: all sampled answers.
        fresh: the scored ones, each once.
        beta: β of the loss.
        penalty: α of the ranking reward.
    """
    found = []
    for example_id, answers in written.get(Source.POLICY, {}).items():
        times = Counter((answer.token_ids, answer.finished) for answer in answers)
        own = [c for c in fresh[example_id] if (c.token_ids, c.finished) in times]
        found.append(
            SampledAnswers(
                rewards=np.array([c.reward(beta, penalty) for c in own], dtype=float),
                log_ratios=np.array([c.policy_logp - c.reference_logp for c in own], dtype=float),
                tokens=np.array([len(c.token_ids) for c in own], dtype=np.int64),
                times=np.array([times[c.token_ids, c.finished] for c in own], dtype=np.int64),
            )
        )
    return found

"""Prompts, sampled answers, candidates and bootstrapped pairs. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Source(StrEnum):
    """Who wrote a candidate.

    Attributes:
        label: what a report calls the candidate.
        bar: what a progress bar calls the writing; empty for the answers of D.
    """

    label: str
    bar: str

    POLICY = "policy", "sampled", "sampling"
    REFERENCE = "reference", "sampled from the reference", "sampling from the reference"
    CHOSEN = "offline_chosen", "offline chosen"
    REJECTED = "offline_rejected", "offline rejected"

    def __new__(cls, name: str, label: str = "", bar: str = "") -> Source:
        source = str.__new__(cls, name)
        source._value_, source.label, source.bar = name, label, bar
        return source

    @property
    def sampled(self) -> bool:
        """Whether it was sampled, from the policy or the reference, for this round."""
        return bool(self.bar)


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
class BootstrappedPair:
    """A bootstrapped pair: best against worst of a pool; ``margin`` is its reward difference."""

    example_id: str
    chosen: Candidate
    rejected: Candidate
    margin: float
    pool: Pool


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer: its example's id and its token ids."""

    example_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """A sampled answer.

    Attributes:
        token_ids: its tokens, with their ending if it finished.
        finished: False if sampling was cut before a stop token.
        logp: log π(y|x) of the model that wrote it, nats, where sampling found it.
    """

    token_ids: tuple[int, ...]
    finished: bool
    logp: float | None = None


Draws = Callable[[Prompt, int, int], np.ndarray]
"""Uniforms in [0, 1) for a prompt and the number of its answer, as many as asked for."""


Answered = list[tuple[str, list[tuple[np.ndarray, bool, float | None]]]]
"""What a batch gives: example ids with the answers' token ids (int32), whether they finished, and
their log-probs where sampling found them."""

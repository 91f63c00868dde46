"""Sizes of rounds, optimizer updates, and where a global step falls. Pure functions.

A round is one epoch. The first ``warmup_rounds`` rounds train on all of D; every later round is
reviewed and has exactly ``kept + bootstrapped`` pairs, so the whole run is known in advance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Batching:
    """How the host cuts a round into optimizer updates.

    Attributes:
        per_device: pairs per device and micro-batch.
        accumulation: micro-batches per optimizer update.
        ranks: data-parallel processes.
        drop_last: whether an incomplete last micro-batch is dropped.
    """

    per_device: int
    accumulation: int
    ranks: int
    drop_last: bool = False

    def batches(self, pairs: int) -> int:
        """Micro-batches of each rank for a round of ``pairs`` pairs (equal on all ranks)."""
        if self.drop_last:
            return pairs // self.per_device // self.ranks
        return math.ceil(math.ceil(pairs / self.per_device) / self.ranks)

    def updates(self, pairs: int) -> int:
        """Optimizer updates for a round of ``pairs`` pairs."""
        return math.ceil(self.batches(pairs) / self.accumulation)


@dataclass(frozen=True)
class RoundSize:
    """Planned pairs of one round."""

    number: int
    kept: int
    bootstrapped: int
    reviewed: bool

    @property
    def total(self) -> int:
        return self.kept + self.bootstrapped


def share_of(share: float, pairs: int) -> int:
    """``share`` of ``pairs``, rounded half up, at least 1 for a positive share."""
    if share <= 0:
        return 0
    return max(1, min(pairs, math.floor(share * pairs + 0.5)))


def kept_count(keep: float, pairs: int) -> int:
    """K: ``keep`` as a share of |D| in (0, 1], or as a number of pairs from 2 on.

    Raises:
        ValueError: if ``keep`` is a number of pairs above |D|.
    """
    if keep <= 1:
        return share_of(keep, pairs)
    if keep > pairs:
        raise ValueError(f"{int(keep)} pairs can't be kept of {pairs}")
    return int(keep)


@dataclass(frozen=True)
class Position:
    """Where a global step falls: the 0-based epoch and the updates already done in it."""

    epoch: int
    updates_done: int


@dataclass(frozen=True)
class Schedule:
    """Rounds of a run and their optimizer updates, capped by ``max_steps``."""

    rounds: tuple[RoundSize, ...]
    updates: tuple[int, ...]
    max_steps: int

    @property
    def last_round(self) -> int:
        """Number of the round in which ``max_steps`` is reached."""
        for number, end in enumerate(accumulate(self.updates), start=1):
            if end >= self.max_steps:
                return number
        return len(self.updates)

    def locate(self, global_step: int) -> Position:
        """Map a global step to its epoch; the end of a round is the start of the next one.

        Raises:
            ValueError: if ``global_step`` is negative or beyond the schedule.
        """
        if not 0 <= global_step <= sum(self.updates):
            raise ValueError(
                f"global step {global_step} is beyond the schedule of {sum(self.updates)} updates"
            )
        done = 0
        for epoch, updates in enumerate(self.updates):
            if global_step < done + updates:
                return Position(epoch, global_step - done)
            done += updates
        return Position(len(self.updates), 0)


def plan(
    pairs: int,
    *,
    num_rounds: int,
    warmup_rounds: int,
    keep: float | Sequence[float],
    fraction: float,
    batching: Batching,
    max_steps: int | None = None,
    reviews: bool = True,
) -> Schedule:
    """Plan a run on ``pairs`` offline pairs.

    Args:
        pairs: |D|.
        num_rounds: rounds of the run, above ``warmup_rounds``.
        warmup_rounds: rounds on all of D.
        keep: share or number of offline pairs kept in a reviewed round; a sequence has one entry
            per reviewed round, the last one repeats.
        fraction: bootstrapped pairs of a reviewed round, relative to |D|.
        batching: how a round is cut into updates.
        max_steps: the user's cap on optimizer updates, or None.
        reviews: whether rounds are reviewed at all; if not, all train on all of D.

    Raises:
        ValueError: if ``keep`` exceeds |D| or a round would hold no update.
    """
    keeps = tuple(keep) if isinstance(keep, Sequence) else (keep,)
    kept = [kept_count(share, pairs) for share in keeps]
    bootstrapped = share_of(fraction, pairs)
    rounds = tuple(
        RoundSize(number, pairs, 0, False)
        if number <= warmup_rounds or not reviews
        else RoundSize(number, kept[min(number - warmup_rounds, len(kept)) - 1], bootstrapped, True)
        for number in range(1, num_rounds + 1)
    )
    updates = tuple(batching.updates(size.total) for size in rounds)
    if min(updates) == 0:
        smallest = min(size.total for size in rounds)
        raise ValueError(f"a round of {smallest} pairs gives no optimizer update")
    total = sum(updates)
    return Schedule(rounds, updates, min(total, max_steps) if max_steps else total)

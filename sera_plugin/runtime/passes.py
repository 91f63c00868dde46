"""Batches dealt to all ranks in groups; a finished group is a shard on disk.

Collectives: what is stored is broadcast at the start of a pass, and each group is gathered at its
end. The groups follow from the batches that are left and the number of ranks, so every rank cuts
them equally. A batch is stored under its number in the plan, which no number of ranks changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import pyarrow as pa
from accelerate import Accelerator

from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.progress import PassProgress
from sera_plugin.runtime.ranks import gathered, shared
from sera_plugin.runtime.shards import Shards

LOG = logger(__name__)
T = TypeVar("T")


class Codec(Protocol[T]):
    """How the results of batches are stored."""

    def encode(self, found: Mapping[int, T]) -> pa.Table:
        """Results by number of their batch, as a table."""

    def decode(self, table: pa.Table) -> dict[int, T]:
        """What ``encode`` was given."""


@dataclass(frozen=True)
class Pass(Generic[T]):
    """How batches are computed, shown and stored; equal on every rank.

    Attributes:
        accelerator: the trainer's accelerator.
        description: text of the progress bar and of the log.
        compute: result of the batch of a number.
        codec: how results are stored.
        group: batches per rank in a shard, the most that a kill can cost.
        shards: makes what finished results are stored in and reused from, on the main process
            alone, for a key is a hash of all that the pass reads; None if they aren't stored.
        after_shard: called on every rank when a group is finished and stored; it may raise to
            end the pass there.
        tokens: tokens of a batch by its number and result, for the progress that is shown; those
            of the other ranks' batches are taken to be as many.
        alike: whether a rank without a batch repeats another's, so that all ranks take part in
            each forward pass.
    """

    accelerator: Accelerator
    description: str
    compute: Callable[[int], T]
    codec: Codec[T]
    group: int
    shards: Callable[[], Shards] | None = None
    after_shard: Callable[[], None] | None = None
    tokens: Callable[[int, T], int] | None = None
    alike: bool = True

    def results(self, count: int) -> dict[int, T]:
        """Results of ``count`` batches by number, on every rank; every rank must call this alike.

        Raises:
            StoreError: on the main process, if a shard can't be written.
        """
        main = self.accelerator.is_main_process
        shards = self.shards() if main and self.shards is not None else None
        done = {} if self.shards is None else shared(lambda: self._finished(shards, count))
        left = [number for number in range(count) if number not in done]
        at_once = self.group * self.accelerator.num_processes
        with PassProgress(self.description, count, len(done), shown=main) as progress:
            for start in range(0, len(left), at_once):
                mine = self._computed(left[start : start + at_once], progress)
                whole: dict[int, T] = dict(sorted(gathered(mine), key=lambda pair: pair[0]))
                if shards is not None:
                    table = self.codec.encode(whole)
                    if len(table):
                        shards.write(table)
                done |= whole
                if self.after_shard is not None:
                    self.after_shard()
        return done

    def _computed(self, numbers: Sequence[int], progress: PassProgress) -> list[tuple[int, T]]:
        """This rank's results of a group."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        found: list[tuple[int, T]] = []
        for first in range(0, len(numbers), ranks):
            at_once = min(ranks, len(numbers) - first)
            made = 0
            if self.alike or rank < at_once:
                mine = numbers[first + (rank if rank < at_once else 0)]
                result = self.compute(mine)
                made = self.tokens(mine, result) if self.tokens else 0
                if rank < at_once:
                    found.append((mine, result))
            progress.advance(at_once, at_once * made)
        return found

    def _finished(self, shards: Shards | None, count: int) -> dict[int, T]:
        """Results on disk, by number of their batch."""
        tables = shards.read() if shards is not None else []
        done: dict[int, T] = {}
        for table in tables:
            done |= self.codec.decode(table)
        if tables:
            LOG.info(
                "%s: %d of %d batches are reused from %d finished shards.",
                self.description,
                len(done),
                count,
                len(tables),
            )
        return done

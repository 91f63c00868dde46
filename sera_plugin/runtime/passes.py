"""Batches dealt to all ranks in groups; a finished group is a shard on disk.

Collectives: what is stored is broadcast at the start of a pass, and each group is gathered at its
end. The groups follow from the batches that are left and the number of ranks, so every rank cuts
them equally. A batch is stored under its number in the plan, which no number of ranks changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

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


def deal(
    accelerator: Accelerator,
    count: int,
    compute: Callable[[int], T],
    *,
    group: int,
    description: str,
    codec: Codec[T],
    shards: Shards | None,
    stored: bool,
    after_shard: Callable[[], None] | None = None,
    tokens: Callable[[int, T], int] | None = None,
    alike: bool = True,
) -> dict[int, T]:
    """Results of all batches by number, on every rank; every rank must call this alike.

    Args:
        accelerator: the trainer's accelerator.
        count: number of batches.
        compute: result of the batch of a number.
        group: batches per rank in a shard, the most that a kill can cost.
        description: text of the progress bar and of the log.
        codec: how results are stored.
        shards: where results are stored; on the main process only, and only if ``stored``.
        stored: whether finished results are stored and reused; equal on every rank.
        after_shard: called on every rank when a group is finished and stored; it may raise to
            end the pass there.
        tokens: tokens of a batch by its number and result, for the progress that is shown; those
            of the other ranks' batches are taken to be as many.
        alike: whether a rank without a batch repeats another's, so that all ranks take part in
            each forward pass.

    Raises:
        OSError: on the main process, if a shard can't be written.
    """
    done: dict[int, T] = {}
    if stored:
        done = shared(lambda: _finished(codec, shards, description, count))
    left = [number for number in range(count) if number not in done]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    with PassProgress(description, count, len(done), shown=accelerator.is_main_process) as progress:
        for start in range(0, len(left), group * ranks):
            numbers = left[start : start + group * ranks]
            found: list[tuple[int, T]] = []
            for first in range(0, len(numbers), ranks):
                at_once = min(ranks, len(numbers) - first)
                made = 0
                if alike or rank < at_once:
                    mine = numbers[first + (rank if rank < at_once else 0)]
                    result = compute(mine)
                    made = tokens(mine, result) if tokens else 0
                    if rank < at_once:
                        found.append((mine, result))
                progress.advance(at_once, at_once * made)
            whole: dict[int, T] = dict(sorted(gathered(found), key=lambda pair: pair[0]))
            if shards is not None:
                table = codec.encode(whole)
                if len(table):
                    shards.write(table)
            done |= whole
            if after_shard is not None:
                after_shard()
    return done


def _finished(codec: Codec[T], shards: Shards | None, description: str, count: int) -> dict[int, T]:
    """Results on disk, by number of their batch."""
    tables = shards.read() if shards is not None else []
    done: dict[int, T] = {}
    for table in tables:
        done |= codec.decode(table)
    if tables:
        LOG.info(
            "%s: %d of %d batches are reused from %d finished shards.",
            description,
            len(done),
            count,
            len(tables),
        )
    return done

"""Batches that fit the memory: one that doesn't is computed in halves.

Results of a batch don't depend on how it is cut, so each rank decides for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from sera_plugin.runtime.logs import logger

LOG = logger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class Fitting:
    """Computes batches, and remembers the size at which memory ran out.

    Args:
        may_cut: False where ranks take every forward pass together (ZeRO-3, FSDP): a rank that
            ran a pass more than the others would wait for them forever.
    """

    def __init__(self, may_cut: bool = True) -> None:
        self.may_cut = may_cut
        self.too_large: int | None = None

    def run(
        self,
        rows: Sequence[T],
        size: Callable[[Sequence[T]], int],
        compute: Callable[[Sequence[T]], list[R]],
    ) -> list[R]:
        """``compute(rows)``, a result per row, in one piece or in several.

        Args:
            rows: the batch.
            size: tokens that a part of the batch takes.
            compute: results of a part, in the order of its rows.

        Raises:
            Exception: the one of ``compute`` that says memory ran out, if a single row doesn't
                fit or batches may not be cut.
        """
        cuttable = self.may_cut and len(rows) > 1
        if not (cuttable and self.too_large is not None and size(rows) >= self.too_large):
            try:
                return compute(rows)
            except Exception as error:
                if not (cuttable and should_reduce_batch_size(error)):
                    raise
            # Out of the handler, so that the failed pass and its tensors are let go.
            clear_device_cache(garbage_collection=True)
            self.too_large = size(rows)
            LOG.warning("Memory ran out at %d tokens; such batches are halved.", self.too_large)
        half = len(rows) // 2
        return [*self.run(rows[:half], size, compute), *self.run(rows[half:], size, compute)]

"""What fits the memory: batches in halves, where the reference rests, gathered weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
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


def resting_place(
    wanted: Literal["auto", "gpu", "cpu"], device: torch.device, why_not: str | None
) -> torch.device:
    """The device of the reference model while the policy trains.

    Args:
        wanted: ``sera.reference_device``.
        device: where models compute.
        why_not: why the model can't be moved, or None.
    """
    if why_not is not None and wanted == "cpu":
        LOG.warning("sera.reference_device: cpu has no effect: %s.", why_not)
    return device if why_not is not None or wanted == "gpu" else torch.device("cpu")


class Placement:
    """Keeps a model in its resting place, and brings it to the device for a pass.

    Log-probs under the reference are stored with the pairs, so training steps never call it.

    Args:
        model: the reference model, without wrappers.
        device: where models compute.
        rest: where the model is the rest of the time.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, rest: torch.device) -> None:
        self._model, self._device, self._rest = model, device, rest
        self._passes = 0
        self._move(rest)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The model on the device; it goes back when the last of nested passes is over."""
        self._passes += 1
        try:
            if self._passes == 1:
                self._move(self._device)
            yield
        finally:
            self._passes -= 1
            if self._passes == 0:
                self._move(self._rest)

    def _move(self, place: torch.device) -> None:
        if self._rest == self._device:
            return
        self._model.to(place)
        clear_device_cache()


GIB = 2**30


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

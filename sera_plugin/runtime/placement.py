"""Where a separate reference model is while nothing needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate.utils.memory import clear_device_cache

from sera_plugin.runtime.logs import logger

LOG = logger(__name__)


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

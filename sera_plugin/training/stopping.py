"""SIGTERM: finish the step or shard, leave a checkpoint that resumes exactly and an exit code."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from sera_plugin.runtime.logs import logger

LOG = logger(__name__)

EXIT_CODE = 75
"""What a run that was asked to stop leaves with (``EX_TEMPFAIL``: try again later)."""


class AskedToStop(Exception):
    """The run is to end here; raised on all ranks at the same point."""


class StopOnSignal(TrainerCallback):
    """Turns SIGTERM into an orderly end, on all ranks at the same step or shard.

    Args:
        accelerator: the trainer's accelerator.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._asked = False
        self.stopping = False

    def install(self) -> None:
        """Take over SIGTERM; without effect outside the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Every rank must call this at the same point."""
        if not self.stopping:
            asked = torch.tensor(float(self._asked), device=self._accelerator.device)
            self.stopping = bool(self._accelerator.reduce(asked, reduction="sum") > 0)
            if self.stopping:
                LOG.warning("SIGTERM: leaving with code %d, to be resumed.", EXIT_CODE)
        return self.stopping

    def check(self) -> None:
        """End the run here if any rank was asked to. Every rank must call this alike.

        Raises:
            AskedToStop: if so.
        """
        if self.agreed():
            raise AskedToStop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.agreed():
            control.should_save = True
            control.should_training_stop = True

"""What a ``RoundTrainer`` asks for its rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from sera_plugin.data.schedule import Batching, Schedule
from sera_plugin.host.facts import HostRun

REFINEMENT = "sera_refinement"
"""The key of a batch under which it holds what Δ is found from."""


class Refining(Protocol):
    """Finds what a batch adds to the loss."""

    def shift(
        self, model: torch.nn.Module, given: Mapping[str, Any], tokens: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """What the loss adds to log πref of the chosen answers, shape (pairs,), and what to log.

        Args:
            model: the wrapped policy.
            given: what the batch holds under ``REFINEMENT``.
            tokens: lengths of the chosen and of the rejected answers as the loss counts them.
        """

    def note(self, margins: torch.Tensor) -> None:
        """Called with the true margins h of the batch that was shifted last."""


class Rounds(Protocol):
    """Gives a ``RoundTrainer`` its rounds. Every rank calls its methods alike.

    Attributes:
        refining: finds what a batch adds to the loss, for batches that hold ``REFINEMENT``.
        notes_logps: whether ``note_logps`` is called.
    """

    @property
    def refining(self) -> Refining | None: ...

    @property
    def notes_logps(self) -> bool: ...

    def plan(self, batching: Batching) -> Schedule:
        """The whole run's schedule."""

    def open(self, host: HostRun, schedule: Schedule, start: Start) -> None:
        """Called once, when all models are prepared and before the first evaluation or step."""

    def dataset(self, number: int) -> TorchDataset[Any]:
        """The pairs of round ``number`` (from 1), in training order, with reference log-probs."""

    def close_round(self, number: int) -> None:
        """Called after the last update of round ``number``."""

    def close(self) -> None:
        """Called once, after the last round; also if a run is resumed there."""

    def with_reference(self, dataset: Dataset) -> Dataset:
        """``dataset`` with the reference log-probs that the loss reads."""

    def note_logps(self, keys: Sequence[str], logps: torch.Tensor) -> None:
        """Called in every training step with the rows' keys and ``logps_of_batch``."""

    def before_checkpoint(self, folder: Path) -> None:
        """Called before the host writes a checkpoint to ``folder``; an error prevents that."""

    def checkpoint_saved(self) -> None:
        """Called after every checkpoint."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        epochs_done: rounds that are complete.
        updates_done: updates of the next round that are done.
        checkpoint: the checkpoint that is resumed, or None.
    """

    epochs_done: int
    updates_done: int
    checkpoint: Path | None

    @property
    def resumed(self) -> bool:
        return bool(self.epochs_done or self.updates_done)

    @property
    def within(self) -> int | None:
        """The round that is resumed after some of its updates, if any."""
        return self.epochs_done + 1 if self.updates_done else None

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
from sera_plugin.host.packed_step import PackedForward


class Objective(Protocol):
    """Makes a loss of log-probs in the place of the host's. Every rank calls its methods alike."""

    def prepare(self, keys: Sequence[str]) -> Any:
        """Called before the forward pass of a micro-batch with the keys of its rows."""

    def loss(
        self,
        keys: Sequence[str],
        prepared: Any,
        policy: torch.Tensor,
        reference: torch.Tensor,
        tokens: torch.Tensor,
        logits: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The loss, a scalar, and numbers of the pairs for the log, shape (pairs,).

        Args:
            keys: of the rows of the round.
            prepared: what ``prepare`` returned.
            policy: log πθ of the chosen and of the rejected answers, with gradient, shape
                (pairs, 2).
            reference: the same under πref.
            tokens: lengths of the answers as the loss counts them, shape (pairs, 2).
            logits: of the batch, the chosen rows before the rejected ones.
        """


class Rounds(Protocol):
    """Gives a ``RoundTrainer`` its rounds. Every rank calls its methods alike.

    Attributes:
        objective: makes the loss of the round's rows, or None for the host's own.
        notes_logps: whether ``note_logps`` is called.
        packed: computes training steps without padding, or None for the host's way. It needs an
            objective.
        passes: after which micro-batches a pass ends, from 1, for each update of the round at
            hand, the same on all ranks; None if every micro-batch is a pass. They are of packed
            steps.
    """

    @property
    def objective(self) -> Objective | None: ...

    @property
    def notes_logps(self) -> bool: ...

    @property
    def packed(self) -> PackedForward | None: ...

    @property
    def passes(self) -> Sequence[Sequence[int]] | None: ...

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

    def add_to_card(self, card: Path) -> None:
        """Called on the main process when the host has written a model card."""


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

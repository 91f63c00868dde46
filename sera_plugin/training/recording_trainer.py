"""A trainer that records log-probs of D in its steps, for ``sera.selection.source: training``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sera_plugin.config import SeraConfig
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundRow
from sera_plugin.host.round_trainer import RoundTrainer
from sera_plugin.runtime.ranks import shared
from sera_plugin.scoring.recording import Recorded, Recorder


class RecordingTrainer(RoundTrainer):
    """Notes what training steps find, keeps it in checkpoints, and gives it to reviews."""

    sera: SeraConfig
    pairs: OfflinePairs
    reference: PairLogps
    recorder: Recorder

    def start_recording(self, checkpoint: Path | None) -> None:
        """Begin where ``checkpoint`` was saved, or at the start of the run."""
        self.notes_logps = self.sera.selection.source == "training"
        if not self.notes_logps:
            return
        known = Recorded.start(self.reference)
        if checkpoint is not None:
            known = shared(lambda: Recorded.load(checkpoint, self.pairs.ids))
        self.recorder = Recorder(self.pairs, known)

    def record_round(self, number: int, rows: Sequence[RoundRow]) -> None:
        """What is recorded next belongs to round ``number``."""
        if self.notes_logps:
            self.recorder.begin(number, rows)

    def recorded(self) -> Recorded | None:
        """What is known of D, or None if it is not recorded; every rank must call this."""
        return self.recorder.merged() if self.notes_logps else None

    def note_logps(self, keys: Sequence[str], logps: torch.Tensor) -> None:
        self.recorder.note(keys, logps.numpy(), self.state.global_step)

    def before_checkpoint(self, folder: Path) -> None:
        recorded = self.recorded()
        if recorded is not None and self.accelerator.is_main_process:
            recorded.save(folder)

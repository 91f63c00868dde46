"""Checkpoints: what the host will resume from, and an orderly end that leaves one."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from sera_plugin.config import SeraConfig
from sera_plugin.data.store import RunStore
from sera_plugin.host.checks import zero_stage
from sera_plugin.runtime.errors import AskedToStop, SeraConfigError
from sera_plugin.runtime.logs import logger
from sera_plugin.training.changes import batch_settings, compare

LOG = logger(__name__)

STATE = "trainer_state.json"
"""The host writes it last, so a checkpoint without a readable one is unfinished."""


def prepare_resuming(cfg: Any, config: SeraConfig) -> None:
    """Set unfinished checkpoints aside, and check the one that the host will resume from.

    What needs the dataset or the models is compared again when the run opens.

    Args:
        cfg: the host's validated config.
        config: the ``sera:`` block.

    Raises:
        SeraConfigError: one sentence, if the run can't go on from there as it was started.
    """
    named = cfg.resume_from_checkpoint
    if named and Path(str(named)).is_dir() and not is_finished(Path(str(named))):
        raise SeraConfigError(
            f"resume_from_checkpoint: {named} is unfinished, it has no readable {STATE}; name an "
            "earlier one or use auto_resume_from_checkpoints: true."
        )
    if cfg.auto_resume_from_checkpoints and not named and not cfg.local_rank:
        for path in set_unfinished_aside(Path(cfg.output_dir)):
            LOG.warning("An unfinished checkpoint was moved to %s.", path)
    checkpoint = Path(str(named)) if named else _last(cfg)
    if checkpoint is None or not checkpoint.is_dir():
        return
    if not any(checkpoint.glob("rng_state*")):
        raise SeraConfigError(
            f"resume: {checkpoint} holds a model alone, as save_only_model: true makes it, so the "
            "run can't go on from it; name a whole checkpoint or start anew in another output_dir."
        )
    _check_changes(cfg, config)


def _last(cfg: Any) -> Path | None:
    if not cfg.auto_resume_from_checkpoints:
        return None
    found = [path for path in _checkpoints(Path(cfg.output_dir)) if is_finished(path)]
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)


def _check_changes(cfg: Any, config: SeraConfig) -> None:
    stored = RunStore(cfg.output_dir).read_run()
    if stored is None:
        return
    ranks = int(cfg.world_size or 1)
    known = {
        "sera": config.model_dump(),
        "base_model": str(cfg.base_model),
        "sequence_len": cfg.sequence_len,
        "seed": cfg.seed,
        **batch_settings(
            int(cfg.micro_batch_size or 1), int(cfg.gradient_accumulation_steps or 1), ranks
        ),
    }
    changes = compare(stored, known)
    if changes.unsafe:
        raise SeraConfigError(changes.unsafe[0])
    if zero_stage(cfg.deepspeed) and stored.get("ranks") != ranks:
        raise SeraConfigError(
            f"resume: the number of processes was {stored.get('ranks')} and is {ranks}; "
            "DeepSpeed's checkpoints are cut for that number, so resume with as many."
        )


def _checkpoints(output_dir: Path) -> list[Path]:
    return [
        path
        for path in sorted(output_dir.glob("checkpoint-*"))
        if path.name.split("-")[-1].isdigit()
    ]


def is_finished(checkpoint: Path) -> bool:
    """Whether the host completed this checkpoint."""
    try:
        return "global_step" in json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def set_unfinished_aside(output_dir: Path) -> list[Path]:
    """Rename unfinished checkpoints, so that the host does not resume from one.

    Returns:
        Where they are now.
    """
    moved = []
    for checkpoint in _checkpoints(output_dir):
        if is_finished(checkpoint):
            continue
        names = (output_dir / f"unfinished-{checkpoint.name}{n}" for n in _suffixes())
        aside = next(path for path in names if not path.exists())
        checkpoint.rename(aside)
        moved.append(aside)
    return moved


def _suffixes() -> itertools.chain[str]:
    return itertools.chain([""], (f"-{n}" for n in itertools.count(2)))


EXIT_CODE = 75
"""What a run that was asked to stop leaves with (``EX_TEMPFAIL``: try again later)."""


SIGNALS = (signal.SIGTERM, signal.SIGINT)


def how_to_resume(cfg: Any, updates: int) -> str:
    """What a run that was stopped after ``updates`` updates leaves, and how it goes on."""
    if updates == 0:
        return "Stopped before the first update; the same command starts the run again."
    checkpoint = Path(cfg.output_dir) / f"checkpoint-{updates}"
    if cfg.save_only_model:
        return f"Stopped; {checkpoint} holds a model alone (save_only_model: true)."
    more = "" if cfg.auto_resume_from_checkpoints else " with --auto-resume-from-checkpoints"
    return f"Stopped; the same command{more} goes on from {checkpoint}."


_INTERRUPTED = (
    b"\nCtrl-C: the run ends with a checkpoint after this step or shard; once more ends it now.\n"
)


class StopOnSignal(TrainerCallback):
    """Turns SIGTERM and Ctrl-C into an orderly end, on all ranks at the same step or shard.

    A second Ctrl-C ends the process at once.

    Args:
        accelerator: the trainer's accelerator.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self.stopping = False

    def install(self) -> None:
        """Take over the signals; without effect outside the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def uninstall(self) -> None:
        """Give the signals back, unless the process is about to end.

        At Ctrl-C the host would save the policy as if it were the result.
        """
        if not self.stopping:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if number == signal.SIGINT:
            # torchrun turns a second Ctrl-C into SIGTERM.
            for either in SIGNALS:
                signal.signal(either, signal.SIG_DFL)
            # Workers of a data loader are forked with this handler.
            if self._accelerator.is_main_process and os.getpid() == self._process:
                # A signal may come while a stream's lock is held.
                os.write(2, _INTERRUPTED)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Every rank must call this at the same point."""
        if not self.stopping:
            asked = torch.tensor(float(self._asked), device=self._accelerator.device)
            self.stopping = bool(self._accelerator.reduce(asked, reduction="sum") > 0)
            if self.stopping:
                LOG.warning("Asked to stop: leaving with code %d.", EXIT_CODE)
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

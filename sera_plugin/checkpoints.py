"""Checkpoints of the host that a kill left unfinished."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

STATE = "trainer_state.json"
"""The host writes it last, so a checkpoint without a readable one is unfinished."""


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
    for checkpoint in sorted(output_dir.glob("checkpoint-*")):
        if not checkpoint.name.split("-")[-1].isdigit() or is_finished(checkpoint):
            continue
        names = (output_dir / f"unfinished-{checkpoint.name}{n}" for n in _suffixes())
        aside = next(path for path in names if not path.exists())
        checkpoint.rename(aside)
        moved.append(aside)
    return moved


def _suffixes() -> itertools.chain[str]:
    return itertools.chain([""], (f"-{n}" for n in itertools.count(2)))

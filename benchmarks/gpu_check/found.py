"""What a check is given and what it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


class Skipped(Exception):
    """A check can't be made here; the message says why."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: was measured.
        found: in words.
        bar: what it must be, or empty where nothing is asked.
        held: whether it is.
    """

    what: str
    found: str
    bar: str = ""
    held: bool = True


@dataclass(frozen=True)
class Machine:
    """Where checks run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        folder: for files; deleted by the caller.
    """

    device: torch.device
    folder: Path

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def half(self) -> torch.dtype:
        return torch.bfloat16


Check = Callable[[Machine], list[Row]]


def needs(*packages: str) -> None:
    """Skip the check where a package is missing.

    Raises:
        Skipped: names the first one.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Skipped(f"{package} is not installed")

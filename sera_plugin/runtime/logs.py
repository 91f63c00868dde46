"""Loggers that Axolotl's logging configuration shows; importing them takes no Axolotl."""

from __future__ import annotations

import logging
import os
from typing import Any


class _MainProcess(logging.LoggerAdapter[logging.Logger]):
    """Speaks on rank 0 alone; launchers set ``RANK``."""

    def isEnabledFor(self, level: int) -> bool:
        return os.environ.get("RANK", "0") == "0" and super().isEnabledFor(level)


def logger(name: str) -> Any:
    """A logger below ``axolotl``: the host shows only its own loggers at level INFO."""
    found = logging.getLogger(f"axolotl.{name}")
    found.setLevel(logging.DEBUG)
    return _MainProcess(found, {})

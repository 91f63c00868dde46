"""Loggers that Axolotl's logging configuration shows; importing them takes no Axolotl."""

from __future__ import annotations

import logging
import os
from typing import Any


class _MainProcess(logging.LoggerAdapter[logging.Logger]):
    """Speaks on rank 0 alone, unless told otherwise; launchers set ``RANK``."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        main_process_only = kwargs.pop("main_process_only", True)
        if not main_process_only or os.environ.get("RANK", "0") == "0":
            super().log(level, msg, *args, **kwargs)


def logger(name: str) -> Any:
    """A logger below ``axolotl``: the host shows only its own loggers at level INFO."""
    found = logging.getLogger(f"axolotl.{name}")
    found.setLevel(logging.DEBUG)
    return _MainProcess(found, {})

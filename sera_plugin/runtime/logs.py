"""Loggers that Axolotl's logging configuration shows."""

from __future__ import annotations

from typing import Any

from axolotl.utils.logging import get_logger


def logger(name: str) -> Any:
    """A logger below ``axolotl``: the host shows only its own loggers at level INFO."""
    return get_logger(f"axolotl.{name}")

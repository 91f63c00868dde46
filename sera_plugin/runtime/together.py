"""What fails on one rank is raised on all, so that none waits for it (collectives)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sera_plugin.runtime.objects import gathered

T = TypeVar("T")


class FailedElsewhereError(RuntimeError):
    """Another rank failed; the message says how."""


def together(act: Callable[[], T]) -> T:
    """``act()``; if it fails on one rank, all raise. Every rank must call this alike.

    Raises:
        FailedElsewhereError: what failed on another rank.
        Exception: what failed on this one.
    """
    failure: Exception | None = None
    try:
        result = act()
    except Exception as error:
        failure = error
    failures = [text for text in gathered([None if failure is None else in_short(failure)]) if text]
    if failure is not None:
        raise failure
    if failures:
        raise FailedElsewhereError(failures[0])
    return result


def in_short(error: BaseException) -> str:
    """The kind of an error and what it says, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 500 else text[:497] + "..."

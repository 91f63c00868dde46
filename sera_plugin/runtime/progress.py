"""Progress of a pass: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sera_plugin.runtime.logs import logger

LOG = logger(__name__)

EVERY = 30.0
"""Seconds between log lines."""


class PassProgress:
    """Shows how far a pass is, its rate, the time that is left, and tokens per second.

    Args:
        description: what is done.
        total: batches of the whole pass.
        done: those that were done before.
        shown: false on all processes but the main one, where nothing is printed.
        console: where a bar goes; the standard error by default.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        description: str,
        total: int,
        done: int = 0,
        *,
        shown: bool,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total = description, total
        self._before, self._done, self._tokens = done, done, 0
        self._clock, self._started = clock, clock()
        self._logged = self._started
        self._shown = shown and total > done
        self._bar: Progress | None = None
        self._task = TaskID(0)
        console = console or Console(stderr=True)
        if self._shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> PassProgress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                self._description, total=self._total, completed=self._done, speed=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and error is None:
            LOG.info("%s", self.line())

    def advance(self, batches: int, tokens: int = 0) -> None:
        """Count batches that are done, and their tokens."""
        self._done += batches
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=self._speed())
        elif self._shown and self._clock() - self._logged >= EVERY and self._done < self._total:
            self._logged = self._clock()
            LOG.info("%s", self.line())

    def line(self) -> str:
        """How far the pass is, as a line for the log."""
        seconds = max(self._clock() - self._started, 1e-9)
        rate = (self._done - self._before) / seconds
        parts = [f"{self._done:,} of {self._total:,} batches", f"{rate:,.2f} batches/s"]
        if self._tokens:
            parts.append(self._speed())
        if self._done < self._total and rate > 0:
            parts.append(f"{clock_text((self._total - self._done) / rate)} left")
        else:
            parts.append(f"took {clock_text(seconds)}")
        return f"{self._description}: {', '.join(parts)}"

    def _speed(self) -> str:
        seconds = max(self._clock() - self._started, 1e-9)
        return f"{self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""


def clock_text(seconds: float) -> str:
    """A time in words: seconds below a minute, else hours, minutes and seconds."""
    if seconds < 59.5:
        return f"{max(seconds, 0.01):.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

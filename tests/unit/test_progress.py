"""Progress of a pass on a terminal, in a log, and on processes that show nothing."""

from __future__ import annotations

import contextlib
import io
import logging

import pytest
from rich.console import Console

from sera_plugin.runtime import progress
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.progress import PassProgress, clock_text


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Lines:
    """What is logged; a real logger may be switched off by what other tests have imported."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str, *values: object) -> None:
        self.said.append(text % values)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines = Lines()
    monkeypatch.setattr(progress, "LOG", lines)
    return lines.said


def file_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def test_log_lines_come_every_half_minute_and_at_the_end(said: list[str]) -> None:
    clock = Clock()
    with PassProgress("Sampling", 10, 2, shown=True, console=file_console(), clock=clock) as bar:
        for step in range(1, 9):
            clock.now = 10.0 * step
            bar.advance(1, 500)
    assert said == [
        "Sampling: 5 of 10 batches, 0.10 batches/s, 50 tokens/s, 50 s left",
        "Sampling: 8 of 10 batches, 0.10 batches/s, 50 tokens/s, 20 s left",
        "Sampling: 10 of 10 batches, 0.10 batches/s, 50 tokens/s, took 0:01:20",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.01 s"), (0.068, "0.068 s"), (59.4, "59 s"), (59.6, "0:01:00"), (3661.0, "1:01:01")],
)
def test_times_are_never_nothing(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_other_processes_and_finished_passes_say_nothing(said: list[str]) -> None:
    for total, done, shown in ((3, 0, False), (3, 3, True), (0, 0, True)):
        console = Console(file=io.StringIO(), force_terminal=True)
        with PassProgress("Scoring", total, done, shown=shown, console=console) as bar:
            for _ in range(total - done):
                bar.advance(1, 5)
        assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    assert said == []


def test_a_terminal_gets_a_bar_with_rate_and_time_left(said: list[str]) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    clock = Clock()
    with PassProgress("Scoring", 4, shown=True, console=console, clock=clock) as bar:
        clock.now = 2.0
        bar.advance(4, 1000)
    assert "Scoring" in out.getvalue()
    assert "4/4" in out.getvalue()
    assert "500 tokens/s" in out.getvalue()
    assert "left" in out.getvalue()
    assert said == []


def test_a_pass_that_fails_is_not_said_to_be_done(said: list[str]) -> None:
    bar = PassProgress("Scoring", 2, shown=True, console=file_console())
    with bar, contextlib.suppress(RuntimeError):
        bar.advance(1)
    assert len(said) == 1

    def fail() -> None:
        with PassProgress("Scoring", 2, shown=True, console=file_console()):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fail()
    assert len(said) == 1


def test_the_main_process_alone_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logger("sera_plugin.one")
    assert log.logger.name == "axolotl.sera_plugin.one"
    seen: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: seen.append(record.getMessage()))
    log.logger.addHandler(handler)
    log.info("main")
    monkeypatch.setenv("RANK", "1")
    log.error("another rank")
    log.error("another rank, asked", main_process_only=False)
    log.logger.removeHandler(handler)
    assert seen == ["main", "another rank, asked"]

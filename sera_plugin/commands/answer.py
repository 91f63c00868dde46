"""Answers that stand alone on the standard output, or in a file.

Light imports: the host logs when it is imported, so a command enters ``others_on_stderr`` before.
Under ``axolotl`` the host's banner is on the standard output before any of our code runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from sera_plugin.runtime.errors import RunError
from sera_plugin.runtime.files import write_whole


@contextmanager
def others_on_stderr() -> Iterator[None]:
    """Send to the standard error what anyone prints, loggers that hold the other one too."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def answer(text: str, out: Path | None) -> None:
    """Print ``text``, or write it to the file ``out``.

    Raises:
        RunError: one sentence, if it can't be written.
    """
    if out is None:
        click.echo(text)
        return
    try:
        write_whole(out, f"{text}\n".encode())
    except OSError as error:
        raise RunError(f"--out {out} can't be written ({error.strerror or error}).") from error

"""Runs the ``axolotl`` command line in processes forked from one that has imported it.

Importing the host takes most of the time of a run with a tiny model. As a script, this module
imports it and then, for every line of JSON on standard input, forks a process that calls the
console script's entry point, as a shell would, and answers with its exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Done:
    """How a run ended: its exit code, or the negative number of the signal that ended it."""

    code: int
    output: str


class Axolotl:
    """Runs ``axolotl`` with a given environment; use it as a context."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # A process that measures coverage must not be forked: two would write one file.
        self._environment = {
            name: value for name, value in environment.items() if not name.startswith("COV")
        }

    def __enter__(self) -> Axolotl:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        _stream(self._server.stdin).close()
        self._server.wait()

    def run(self, log: Path, *args: str | Path, **env: str) -> Done:
        """Run ``axolotl ARGS``; ``log`` is where standard output and error go."""
        request = {"args": [*map(str, args)], "env": self._environment | env, "log": str(log)}
        stdin, stdout = _stream(self._server.stdin), _stream(self._server.stdout)
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, "the process that starts runs is gone"
        return Done(int(answer), log.read_text(errors="replace"))


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    from axolotl.cli import main as cli

    cli.set_misc_env()
    # What the host imports before it looks at plugins, and an engine that patches nothing.
    import deepspeed  # noqa: F401

    # A line at a time from the descriptor: what a buffer held would be read by the child too.
    while line := _read_line():
        request = json.loads(line)
        output, inner = os.pipe()
        child = os.fork()
        if child == 0:
            answers.close()
            os.close(output)
            _become(request, null, inner)
            sys.exit(cli.main())
        os.close(inner)
        with open(request["log"], "wb") as log:
            while chunk := os.read(output, 1 << 16):
                log.write(chunk)
        os.close(output)
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _read_line() -> bytes:
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line


def _become(request: dict[str, object], null: int, output: int) -> None:
    """Turn a forked process into ``axolotl ARGS``."""
    args, env = request["args"], request["env"]
    assert isinstance(args, list)
    assert isinstance(env, dict)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(env)
    for entry in reversed(env.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.insert(0, entry)
    sys.argv = ["axolotl", *args]
    time.tzset()


if __name__ == "__main__":
    serve()

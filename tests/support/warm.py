"""Runs commands in processes forked from one that has imported the host.

Importing the host takes most of the time of a run with a tiny model. As a script, this module
imports it and then, for every line of JSON on standard input, forks a process that does what the
command would do, and answers with its exit code. The commands are ``axolotl``, ``python`` with a
module or a script, and, in a process that is one of these, ``torchrun``: its own agent runs, and
the ranks that it starts are forks too. Everything else is started as ever.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

PRELOADED = (
    "axolotl.cli.main",
    "axolotl.cli.checks",
    "axolotl.cli.config",
    "axolotl.cli.train",
    "axolotl.common.datasets",
    "axolotl.train",
    "deepspeed",
    "evaluate",
    "liger_kernel",
    "mistral_common.tokens.tokenizers.mistral",
    "numba.core.decorators",
    "scipy.stats",
    "torch.distributed.optim",
    "torch.distributed.run",
    "trackio",
    "transformers.models.llama.modeling_llama",
    "wandb",
)
"""Imported before forking. No trainer is: Axolotl patches TRL before it imports them."""

PATIENCE = 20.0
"""Seconds between asking a run to end and ending it."""


@dataclass(frozen=True)
class Done:
    """How a run ended: its exit code, or the negative number of the signal that ended it."""

    code: int
    output: str


class Commands(Protocol):
    """Starts commands one after the other."""

    def command(
        self, log: Path, command: Sequence[str], env: Mapping[str, str], timeout: float
    ) -> Done:
        """Run a command with more variables, its output in ``log``; ended after ``timeout`` s."""
        ...

    def axolotl(self, log: Path, *args: str | Path, timeout: float = 900, **env: str) -> Done:
        """Run ``axolotl ARGS``."""
        return self.command(log, ["axolotl", *map(str, args)], env, timeout)


class Forks(Commands):
    """Starts them with a given environment; use it as a context."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # A process that measures coverage must not be forked: two would write one file.
        self._environment = {
            name: value for name, value in environment.items() if not name.startswith("COV")
        }

    def __enter__(self) -> Forks:
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

    def command(
        self, log: Path, command: Sequence[str], env: Mapping[str, str], timeout: float
    ) -> Done:
        request = {
            "command": list(command),
            "env": self._environment | dict(env),
            "log": str(log),
            "timeout": timeout,
            "cwd": os.getcwd(),
        }
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
    for name in PRELOADED:
        importlib.import_module(name)
    # A run looks for garbage after every few steps; what is imported here is none of its business.
    gc.collect()
    gc.freeze()

    # A line at a time from the descriptor: what a buffer held would be read by the child too.
    while line := _read_line():
        request = json.loads(line)
        output, inner = os.pipe()
        child = os.fork()
        if child == 0:
            answers.close()
            os.close(output)
            os.dup2(null, 0)
            os.dup2(inner, 1)
            os.dup2(inner, 2)
            os.close(inner)
            os.setsid()
            os.chdir(request["cwd"])
            _become(request["command"], request["env"])
        os.close(inner)
        with open(request["log"], "wb") as log:
            _copy(output, log, child, request["timeout"])
        os.close(output)
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _read_line() -> bytes:
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line


def _copy(output: int, log: IO[bytes], child: int, timeout: float) -> None:
    """Copy what a process says until it ends; it is ended when its time is over."""
    ends = [(signal.SIGTERM, timeout), (signal.SIGKILL, PATIENCE)]
    deadline = time.monotonic() + timeout
    while True:
        ready, _, _ = select.select([output], [], [], max(deadline - time.monotonic(), 0))
        if ready:
            chunk = os.read(output, 1 << 16)
            if not chunk:
                return
            log.write(chunk)
        elif ends:
            number, _ = ends.pop(0)
            log.write(f"\nno end after {timeout:.0f} seconds: {number.name}\n".encode())
            os.killpg(child, number)
            deadline = time.monotonic() + PATIENCE
        else:
            return


def _become(command: list[str], env: dict[str, str]) -> NoReturn:
    """Turn a forked process into a command; never returns."""
    os.environ.clear()
    os.environ.update(env)
    for entry in reversed(env.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.insert(0, entry)
    time.tzset()
    os.execvpe = _exec  # type: ignore[assignment]
    # Libraries count at the end what is left.
    atexit.register(gc.unfreeze)
    sys.exit(_main(command))


def _main(command: Sequence[str]) -> Any:
    program, *args = command
    name = Path(program).name
    if name == "axolotl":
        from axolotl.cli.main import main

        sys.argv = [name, *args]
        return main()
    if name == "torchrun":
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing import subprocess_handler

        subprocess_handler.subprocess_handler.Popen = Rank  # type: ignore[attr-defined]
        sys.argv = [name, *args]
        return run.main()
    assert name.startswith("python"), command
    args = [arg for arg in args if arg != "-u"]
    if args[0] == "-m":
        sys.argv = args[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        sys.path.insert(0, str(Path(args[0]).parent))
        runpy.run_path(args[0], run_name="__main__")
    return 0


def _exec(file: str, args: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Stands for ``os.execvpe``: what replaces a forked process is imported already."""
    if file == "torchrun":
        sys.exit(_main(args))
    os.execve(shutil.which(file) or file, list(args), dict(env))


class Rank:
    """Stands for the process of a rank that torchrun's agent starts: this process, forked."""

    def __init__(self, args: Sequence[str], env: dict[str, str], **more: Any) -> None:
        self.args = args
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            self._run(list(args), env)

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            time.sleep(0.05)
        return code

    @staticmethod
    def _run(command: list[str], env: dict[str, str]) -> NoReturn:
        """As a new process, without the handlers of the agent; what it opened is left alone."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code: Any = 1
        try:
            _become(command, env)
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    serve()

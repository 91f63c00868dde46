"""Test-only Axolotl plugin: ends the process at a chosen point, and notes the work that is done.

Nothing of the run is replaced. Points are events of the interpreter (a file is opened, renamed,
...), calls of functions, and steps of training; the work is noted as it passes by.

``CRASH`` in the environment is JSON:

* ``at``: ``open`` (for writing), ``rename``, ``mkdir``, ``rmtree``, ``call`` or ``step``
* ``what``: a regular expression that paths must match, ``module:function`` for a call, or the
  number of updates that are done
* ``count``: which match it is, from 1
* ``within``: a regular expression for the pass (label and description) in which matches count
* ``bytes``: if given, the process goes on until a file would grow beyond this size: the kernel
  then ends it in the middle of the write
* ``signal``: by default SIGKILL

``WORK_LOG`` names a file to which every finished batch and update adds a line.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import re
import resource
import signal
import sys
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

EVENTS = {
    "open": "open",
    "rename": "os.rename",
    "mkdir": "os.mkdir",
    "rmtree": "shutil.rmtree",
}


class Point:
    """The chosen point, and the pass that is under way."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.wanted = wanted
        self.passing = ""
        self._left = itertools.count(1)

    def reached(self) -> None:
        """Called at every match of kind and path."""
        if not re.search(self.wanted.get("within", ""), self.passing):
            return
        if next(self._left) == self.wanted.get("count", 1):
            self.strike()

    def strike(self) -> None:
        size = self.wanted.get("bytes")
        if size is None:
            os.kill(os.getpid(), getattr(signal, self.wanted.get("signal", "SIGKILL")))
            return
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def watch(self) -> None:
        kind, what = self.wanted.get("at"), self.wanted.get("what")
        if kind == "call":
            self._watch_calls(*str(what).split(":"))
        elif kind in EVENTS:
            sys.addaudithook(functools.partial(self._event, EVENTS[kind], re.compile(str(what))))

    def _event(self, kind: str, path: re.Pattern[str], event: str, args: tuple[Any, ...]) -> None:
        if event != kind or (kind == "open" and not _writes(*args[1:3])):
            return
        names = [os.fsdecode(arg) for arg in args[:2] if isinstance(arg, (str, bytes, os.PathLike))]
        if path.search(" ".join(names)):
            self.reached()

    def _watch_calls(self, module: str, name: str) -> None:
        *path, last = name.split(".")
        owner: Any = functools.reduce(getattr, path, importlib.import_module(module))
        original = getattr(owner, last)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.reached()
            return original(*args, **kwargs)

        setattr(owner, last, watched)


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))


class WorkLog:
    """Adds a line for every batch of scoring and sampling, and for every update."""

    def __init__(self, path: str | None, point: Point) -> None:
        self.path, self.point = path, point

    def add(self, *what: Any) -> None:
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(what) + "\n")

    def watch(self) -> None:
        from sera_plugin.sampling import sampler as generation
        from sera_plugin.scoring import scorer as scoring

        for module in (scoring, generation):
            module.Pass = functools.partial(Watched, self, module.Pass)


class Watched:
    """A pass that notes its batches on the main process, and is under way to the point."""

    def __init__(
        self,
        log: WorkLog,
        plain: Any,
        accelerator: Any,
        description: str,
        compute: Any,
        *rest: Any,
        **more: Any,
    ) -> None:
        def counted(number: int) -> Any:
            found = compute(number)
            if accelerator.is_main_process:
                answers = sum(len(a[1]) if isinstance(a, tuple) else 1 for a in found)
                log.add(self.key, description, number, answers)
            return found

        self.point = log.point
        self.real = plain(accelerator, description, counted, *rest, **more)
        stored = self.real.shards is not None and accelerator.is_main_process
        self.key = self.real.shards().folder.name if stored else "-"

    def results(self, count: int) -> Any:
        self.point.passing = f"{self.key.rsplit('-', 1)[0]} {self.real.description}"
        try:
            return self.real.results(count)
        finally:
            self.point.passing = ""


class Steps(TrainerCallback):
    """Notes updates, and is a point of its own before the first micro-batch of a step."""

    def __init__(self, point: Point, log: WorkLog) -> None:
        self.point, self.log = point, log

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.point.wanted.get("at") == "step" and state.global_step == self.point.wanted["what"]:
            self.point.strike()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.log.add("update", "training", state.global_step, 0)


class CrashPoints(BasePlugin):
    """List it before ``sera_plugin.SeRAPlugin``."""

    def register(self, cfg: Any) -> None:
        wanted = json.loads(os.environ.get("CRASH", "{}"))
        if int(os.environ.get("RANK", 0)) != wanted.get("rank", 0):
            wanted = {}
        self.point = Point(wanted)
        self.log = WorkLog(os.environ.get("WORK_LOG"), self.point)
        self.log.watch()
        self.point.watch()

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        return [Steps(self.point, self.log)]

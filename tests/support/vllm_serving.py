"""TRL's own vLLM server on loopback, with the engine of ``tests/cpu_vllm`` in the place of vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from command_line import ENVIRONMENT
from ranks import free_port

CPU_VLLM = Path(__file__).parent / "cpu_vllm"
"""On a path, this folder is what TRL takes for vLLM."""

_SERVE = (
    "import sys; from trl.scripts.vllm_serve import ScriptArguments, main; "
    "main(ScriptArguments(model=sys.argv[1], host='127.0.0.1', port=int(sys.argv[2]), "
    "log_level='warning'))"
)


def environment(fault: Path, group_port: int) -> dict[str, str]:
    """Variables of a process that finds the engine for CPU, and of the server it talks to."""
    paths = [str(CPU_VLLM), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "CPU_VLLM_FAULT": str(fault),
        "CPU_VLLM_GROUP_PORT": str(group_port),
    }


@dataclass
class Serving:
    """A server that runs.

    Attributes:
        port: where it listens.
        fault: the file that says which fault it commits.
        group_port: where it takes weights.
        process: its process.
    """

    port: int
    fault: Path
    group_port: int
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a run that talks to it."""
        return environment(self.fault, self.group_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it and its worker, which is the only child of a process of its own group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait()


@contextmanager
def serving(model: Path, folder: Path, port: int | None = None) -> Iterator[Serving]:
    """A server of ``model`` until the block ends."""
    port, group_port, fault = port or free_port(), free_port(), folder / "fault"
    fault.write_text("")
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(model), str(port)],
            env=ENVIRONMENT | environment(fault, group_port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found = Serving(port, fault, group_port, process)
    try:
        _wait(found, folder / "server.log")
        yield found
    finally:
        found.stop()


def _wait(server: Serving, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if requests.get(f"{server.url}/health/", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")


def vllm_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL finds the engine for CPU in the place of vLLM."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if name not in os.environ or not os.environ[name]:
            monkeypatch.delenv(name)
    for name in ("current_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))
    monkeypatch.syspath_prepend(CPU_VLLM)
    ours = ("vllm", "trl.generation")

    def loaded() -> dict[str, Any]:
        return {n: m for n, m in sys.modules.items() if n in ours or n.startswith("vllm.")}

    before = loaded() | {n: m for n, m in sys.modules.items() if n.startswith("trl.generation.")}
    for name in before:
        del sys.modules[name]
    yield
    for name in [*loaded(), *(n for n in sys.modules if n.startswith("trl.generation."))]:
        sys.modules.pop(name, None)
    sys.modules.update(before)

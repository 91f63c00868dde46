"""Servers, settings and words of runs with a real vLLM on the CPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import assets
import psutil
import pytest
import requests
from command_line import ENVIRONMENT, TRAIN_PAIRS, MakeConfig
from ranks import LIMIT

# The tiny model's greedy answers never end; a price on tokens makes them the worst there are.
GREEDY = {
    "fraction": 0.3,
    "max_new_tokens": 16,
    "guard": False,
    "temperature": 0,
    "length_penalty": 0.5,
}
VARIABLES = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_CI_ENV": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
AXOLOTL = "from axolotl.cli.main import main; main()"
TRL = "import sys; from trl.cli import main; sys.argv[0] = 'trl'; main()"


def save(folder: Path, hidden: int) -> Path:
    """Write a tiny random Llama; vLLM takes heads of 32 dimensions or more, half of ``hidden``."""
    texts = [
        text
        for row in assets.pairs(TRAIN_PAIRS)
        for text in (row["messages"][0]["content"], row["chosen"]["content"])
    ]
    return assets.save_model(folder / "llama", "llama", texts, hidden=hidden)


def wait_for_words(process: subprocess.Popen[bytes], log: Path, words: str) -> None:
    end = time.monotonic() + LIMIT
    while words not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(log.read_text(errors="replace")[-8000:])
        time.sleep(0.1)


def colocated(**vllm: Any) -> dict[str, Any]:
    return {"vllm": {"gpu_memory_utilization": 0.1, "max_model_len": 128, **vllm}}


@contextmanager
def served(folder: Path, command: list[str], port: int) -> Iterator[int]:
    """A server until the block ends; it ignores SIGTERM where its engine died."""
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", *command],
            env=ENVIRONMENT | VARIABLES,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + LIMIT
        while True:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail((folder / "server.log").read_text()[-8000:])
            try:
                if requests.get(f"http://127.0.0.1:{port}/health/", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def to_server(port: int) -> dict[str, Any]:
    return {
        "plugins": ["sera_trainer_on_cpu.OnCpu", "sera_plugin.SeRAPlugin"],
        "trl": {
            "vllm_server_host": "127.0.0.1",
            "vllm_server_port": port,
            "vllm_server_timeout": 60,
        },
    }


def trl_server(model: Path, port: int) -> list[str]:
    options = "--host 127.0.0.1 --gpu_memory_utilization 0.1 --enforce_eager true --dtype float32"
    return [TRL, "vllm-serve", "--model", str(model), "--port", str(port), *options.split()]


def axolotl_server(config: MakeConfig, model: Path, port: int) -> list[str]:
    keys = {"host": "127.0.0.1", "port": port, "dtype": "float32", "enforce_eager": True}
    return [AXOLOTL, "vllm-serve", str(config(base_model=str(model), **colocated(**keys)))]


def last_line(said: str) -> str:
    """What a run said last; progress bars are left out, which may stand before it in its line."""
    lines = (re.sub(r"\s*\d+%\|.*?(it/s|s/it|\?)\]", "", line) for line in said.splitlines())
    return [line for line in lines if line.strip()][-1]


def probes(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"differ from the policy's by (\S+) nats", said)]


def kill_engine(server: int) -> None:
    """Kill the one engine of a server of ours."""
    (engine,) = (
        process
        for process in psutil.Process(server).children(recursive=True)
        if "VLLM::EngineCore" in " ".join(process.cmdline())
    )
    engine.kill()

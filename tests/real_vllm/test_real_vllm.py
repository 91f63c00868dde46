"""Real runs of `axolotl train` with a real vLLM on the CPU; `make test-vllm` brings it.

``sera_vllm_on_cpu`` says what is substituted.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import assets
import pandas as pd
import psutil
import pytest
import requests
from command_line import ENVIRONMENT, TRAIN_PAIRS, MakeConfig, output_dir
from ranks import LIMIT, LORA, free_port

from sera_plugin.host.vllm_server import wait_for
from sera_plugin.host.vllm_settings import VllmSettings
from sera_plugin.runtime.errors import VllmError

MISSING = [n for n in ("vllm", "sera_vllm_on_cpu") if importlib.util.find_spec(n) is None]
pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

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
EXACT, HALF = 1e-5, 0.05
"""Nats per token by which log-probs may differ in float32, and where vLLM computes in bf16."""


def save(folder: Path, hidden: int) -> Path:
    """Write a tiny random Llama; vLLM takes heads of 32 dimensions or more, half of ``hidden``."""
    texts = [
        text
        for row in assets.pairs(TRAIN_PAIRS)
        for text in (row["messages"][0]["content"], row["chosen"]["content"])
    ]
    return assets.save_model(folder / "llama", "llama", texts, hidden=hidden)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the policy."""
    return save(tmp_path_factory.mktemp("wide"), 64)


def wait_for_words(process: subprocess.Popen[bytes], log: Path, words: str) -> None:
    end = time.monotonic() + LIMIT
    while words not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(log.read_text(errors="replace")[-8000:])
        time.sleep(0.1)


@pytest.fixture(scope="module")
def train(config: MakeConfig, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs `axolotl train` and returns its output folder and what it said.

    ``when`` has words, and what is done once it has said them.
    """
    folder = tmp_path_factory.mktemp("said")

    def run(
        name: str,
        engine: str,
        sera: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        fails: bool = False,
        when: tuple[str, Callable[[], None]] | None = None,
        **keys: Any,
    ) -> tuple[Path, str]:
        path = config(
            sera={"bootstrap": {**GREEDY, "engine": engine, **(sera or {})}},
            drop=("evals_per_epoch", "test_datasets"),
            **{
                "base_model": str(wide),
                "learning_rate": 2e-3,
                "lr_scheduler": "constant",
                "num_epochs": 3,
                **keys,
            },
        )
        with open(folder / name, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", AXOLOTL, "train", str(path), "--launcher", "python"],
                env=ENVIRONMENT | VARIABLES | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            if when is not None:
                wait_for_words(process, folder / name, when[0])
                when[1]()
            code = process.wait(LIMIT)
        finally:
            process.kill()
        said = (folder / name).read_text(errors="replace")
        assert (code != 0) == fails, said[-8000:]
        return output_dir(path), said

    return run


@pytest.fixture(scope="module")
def full(train: Any) -> Path:
    out: Path = train("full", "transformers")[0]
    return out


@pytest.fixture(scope="module")
def lora(train: Any) -> Path:
    out: Path = train("lora", "transformers", **LORA)[0]
    return out


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


def assert_same(ours: Path, theirs: Path) -> None:
    """The bootstrapped rounds have equal candidates and rows."""
    for number in (2, 3):
        for table in ("rows.parquet", "candidates.parquet"):
            folder = Path("sera") / f"round-{number:02d}"
            pd.testing.assert_frame_equal(
                pd.read_parquet(ours / folder / table),
                pd.read_parquet(theirs / folder / table),
                atol=1e-4,
                rtol=0,
            )
        rows = pd.read_parquet(ours / "sera" / f"round-{number:02d}" / "rows.parquet")
        assert rows["chosen_ids"].notna().sum() > 0


def probes(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"differ from the policy's by (\S+) nats", said)]


def assert_probes(said: str, bound: float) -> None:
    found = probes(said)
    print("probes", found)
    assert len(found) == 2, said[-4000:]
    assert max(found) < bound


def test_colocated_full_fine_tune(train: Any, full: Path) -> None:
    """vLLM takes the policy's float32, where its own choice would be bf16."""
    out, said = train(
        "colocated",
        "vllm",
        {"vllm_mode": "colocate"},
        trl={"vllm_enable_sleep_mode": False},
        **colocated(),
    )
    assert_probes(said, EXACT)
    assert_same(out, full)


def test_colocated_lora_that_sleeps(train: Any, lora: Path, tmp_path: Path) -> None:
    """Sleep leaves NaN in parameters and buffers, so what isn't brought back shows."""
    out, said = train(
        "sleeps",
        "vllm",
        {"vllm_mode": "colocate"},
        {"SERA_SIMULATE_SLEEP": str(tmp_path / "nights")},
        **colocated(),
        **LORA,
    )
    assert (tmp_path / "nights").read_text().count("slept") == 3, "at the start, after each review"
    assert_probes(said, EXACT)
    assert_same(out, lora)


def test_colocated_in_half_precision(train: Any) -> None:
    _, said = train(
        "half",
        "vllm",
        {"vllm_mode": "colocate"},
        trl={"vllm_enable_sleep_mode": False},
        **colocated(dtype="bfloat16"),
    )
    assert_probes(said, HALF)
    assert min(probes(said)) > EXACT, "vllm.dtype was not passed on"


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
    """What a run said last, but for the progress bar, which is drawn once more at the end."""
    return [line for line in said.splitlines() if line.strip() and "%|" not in line][-1]


def kill_engine(server: int) -> None:
    """Kill the one engine of a server of ours."""
    (engine,) = (
        process
        for process in psutil.Process(server).children(recursive=True)
        if "VLLM::EngineCore" in " ".join(process.cmdline())
    )
    engine.kill()


@pytest.fixture(scope="module")
def trls(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A server of TRL: its process and its port."""
    port = free_port()
    with served(tmp_path_factory.mktemp("trl"), trl_server(wide, port), port) as process:
        yield process, port


def test_trl_vllm_serve(train: Any, full: Path, trls: tuple[int, int]) -> None:
    out, said = train("trl", "vllm", **to_server(trls[1]))
    assert_probes(said, EXACT)
    assert_same(out, full)


def test_an_engine_that_dies_is_one_sentence(train: Any, trls: tuple[int, int]) -> None:
    """It dies in the first round; TRL's server then answers nothing that needs the engine."""
    limit, killed = 60.0, []
    keys = to_server(trls[1])
    keys["trl"]["vllm_server_timeout"] = limit

    def kill() -> None:
        kill_engine(trls[0])
        killed.append(time.monotonic())

    _, said = train("dead", "vllm", fails=True, when=("Reference log-probs:", kill), **keys)
    waited = time.monotonic() - killed[0]
    print("waited", waited)
    assert "did not take the policy's weights" in last_line(said), said[-4000:]
    assert "start it anew" in last_line(said)
    assert "Traceback" not in said
    assert waited < 2 * limit
    settings = VllmSettings.of({"trl": {**keys["trl"], "vllm_server_timeout": 3}}, "server")
    with pytest.raises(VllmError, match="after 3 seconds"):
        wait_for(settings)


def test_axolotl_vllm_serve(
    train: Any, full: Path, config: MakeConfig, wide: Path, tmp_path: Path
) -> None:
    port = free_port()
    with served(tmp_path, axolotl_server(config, wide, port), port):
        out, said = train("axolotl", "vllm", **to_server(port))
    assert_probes(said, EXACT)
    assert_same(out, full)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wider model."""
    return save(tmp_path_factory.mktemp("other"), 128)


def test_another_model_in_trls_server(train: Any, other: Path, tmp_path: Path) -> None:
    """Its worker ends at the first tensor, which is named."""
    port = free_port()
    keys = to_server(port)
    keys["trl"]["vllm_server_timeout"] = 30
    with served(tmp_path, trl_server(other, port), port):
        _, said = train("other", "vllm", fails=True, **keys)
    assert "did not take the policy's weights" in last_line(said), said[-4000:]
    assert "at model.embed_tokens.weight:" in last_line(said)
    assert "with the run's base_model" in last_line(said)
    assert "Traceback" not in said


def test_another_model_in_axolotls_server(
    train: Any, config: MakeConfig, other: Path, tmp_path: Path
) -> None:
    """It goes on after a tensor that it can't take; its log-probs tell."""
    port = free_port()
    with served(tmp_path, axolotl_server(config, other, port), port):
        _, said = train("other", "vllm", fails=True, **to_server(port))
    assert "it has other weights; start it anew" in last_line(said), said[-4000:]
    assert "Traceback" not in said

"""Models, runs and a server that the tests with a real vLLM share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, MakeConfig, output_dir
from ranks import LIMIT, LORA, free_port
from real_vllm import AXOLOTL, GREEDY, VARIABLES, save, served, trl_server, wait_for_words


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the policy."""
    return save(tmp_path_factory.mktemp("wide"), 64)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wider model."""
    return save(tmp_path_factory.mktemp("other"), 128)


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


@pytest.fixture(scope="module")
def trls(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A server of TRL: its process and its port."""
    port = free_port()
    with served(tmp_path_factory.mktemp("trl"), trl_server(wide, port), port) as process:
        yield process, port

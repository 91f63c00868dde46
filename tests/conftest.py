"""Tiny models and datasets made once per session, configs, and the real command line."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import assets
import pytest
import yaml
from hypothesis import settings
from warm import Axolotl

# An example that takes long says that the machine is busy.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

TRAIN_PAIRS = 64
EVAL_PAIRS = 12

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Any other number makes `datasets` spawn workers that each import everything again.
    "AXOLOTL_DATASET_NUM_PROC": "0",
    "COLUMNS": "200",
}

# Lets a run find the modules of this folder, and what the caller's own PYTHONPATH names.
SHIM = {
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parent / "support"), os.environ.get("PYTHONPATH")])
    )
}

# Taken before any test: Axolotl's entry points, called in this process, set variables of their own.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"SERA", "RANK", "LOCAL_RANK", "WORLD_SIZE"}
    and not name.startswith("ACCELERATE")
} | OFFLINE

os.environ |= OFFLINE


class MakeConfig(Protocol):
    def __call__(self, *, drop: tuple[str, ...] = (), **changes: Any) -> Path: ...


class RunCli(Protocol):
    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        expect_failure: bool = False,
        timeout: float = 300,
    ) -> str: ...


def _texts() -> list[str]:
    rows = [*assets.pairs(TRAIN_PAIRS), *assets.pairs(EVAL_PAIRS, 9)]
    return [
        text
        for row in rows
        for text in (
            row["messages"][0]["content"],
            row["chosen"]["content"],
            row["rejected"]["content"],
        )
    ]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama."""
    return assets.save_model(tmp_path_factory.mktemp("models") / "llama", "llama", _texts())


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Qwen2."""
    return assets.save_model(tmp_path_factory.mktemp("models") / "qwen", "qwen", _texts())


@pytest.fixture(scope="session")
def train_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 preference pairs in chat form."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    return assets.write_jsonl(path, assets.pairs(TRAIN_PAIRS))


@pytest.fixture(scope="session")
def eval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 other preference pairs."""
    path = tmp_path_factory.mktemp("data") / "eval.jsonl"
    return assets.write_jsonl(path, assets.pairs(EVAL_PAIRS, 9))


def dataset_entry(path: Path) -> dict[str, Any]:
    """How a config names a local JSONL file of chat pairs."""
    return {
        "path": str(path),
        "ds_type": "json",
        "split": "train",
        "type": "chat_template.default",
        "field_messages": "messages",
    }


def output_dir(config: Path) -> Path:
    """Where a run of this config writes."""
    return Path(yaml.safe_load(config.read_text())["output_dir"])


@pytest.fixture(scope="session")
def config(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, train_data: Path, eval_data: Path
) -> MakeConfig:
    """Write a YAML for a tiny SeRA run with its own ``output_dir`` and ``dataset_prepared_path``.

    Keyword arguments replace top-level keys; ``drop`` names keys to leave out.
    """
    root = tmp_path_factory.mktemp("runs")
    numbers = itertools.count(1)

    def make(*, drop: tuple[str, ...] = (), **changes: Any) -> Path:
        folder = root / f"{next(numbers):03d}"
        folder.mkdir()
        keys: dict[str, Any] = {
            "base_model": str(llama),
            "plugins": ["sera_plugin.SeRAPlugin"],
            "rl": "dpo",
            "rl_beta": 0.1,
            "datasets": [dataset_entry(train_data)],
            "test_datasets": [dataset_entry(eval_data)],
            "dataset_prepared_path": str(folder / "prepared"),
            "output_dir": str(folder / "out"),
            "sequence_len": 128,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_epochs": 3,
            "learning_rate": 1e-3,
            "optimizer": "adamw_torch",
            "lr_scheduler": "cosine",
            "val_set_size": 0,
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "logging_steps": 1,
            "evals_per_epoch": 1,
            "saves_per_epoch": 1,
            "seed": 7,
            # A tiny random model's reward says nothing, and the guard would find that out.
            "sera": {"bootstrap": {"max_new_tokens": 16, "guard": False}},
        }
        keys = {key: value for key, value in (keys | changes).items() if key not in drop}
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(keys), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """Run the installed ``axolotl`` script offline; returns stdout and stderr together."""
    script = Path(sys.executable).parent / "axolotl"
    return _runner([str(script)])


@pytest.fixture(scope="module")
def warm_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunCli]:
    """As ``run_cli``, in processes forked from one that has imported the host: most of the time of
    a short run is saved, and a busy machine fails none by a limit."""
    logs, numbers = tmp_path_factory.mktemp("logs"), itertools.count(1)

    with Axolotl(ENVIRONMENT | SHIM) as axolotl:

        def run(
            *args: str | Path,
            env: Mapping[str, str] | None = None,
            expect_failure: bool = False,
            timeout: float = 0,
        ) -> str:
            own = dict(env or {})
            if "PYTHONPATH" in own:
                both = dict.fromkeys([own["PYTHONPATH"], SHIM["PYTHONPATH"]])
                own["PYTHONPATH"] = os.pathsep.join(both)
            done = axolotl.run(logs / f"{next(numbers)}", *args, **own)
            if (done.code != 0) != expect_failure:
                pytest.fail(
                    f"axolotl {' '.join(map(str, args))} left with {done.code}:\n"
                    f"{done.output[-8000:]}"
                )
            return done.output

        yield run


@pytest.fixture(scope="session")
def run_python() -> RunCli:
    """Run this Python, offline, with arguments; returns stdout and stderr together."""
    return _runner([sys.executable])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A table of the points at which runs were killed, and of the work that was done twice."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" and "killed" in dict(report.user_properties)
    ]
    if not reports:
        return
    terminalreporter.section("killed and resumed")
    passed = 0
    for report in reports:
        found = dict(report.user_properties)
        repeated = ", ".join(f"{n} {what}" for what, n in found.get("repeated", {}).items() if n)
        passed += report.passed
        outcome = "as undisturbed" if report.passed else "FAILED"
        terminalreporter.write_line(
            f"{found['killed']:45} {outcome:15} done twice: {repeated or 'nothing'}"
        )
    terminalreporter.write_line(f"{len(reports)} points tried, {passed} passed")


def _runner(command: list[str]) -> Callable[..., str]:
    def run(
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        expect_failure: bool = False,
        timeout: float = 300,
    ) -> str:
        variables = ENVIRONMENT | dict(env or {})
        if "PYTHONPATH" in ENVIRONMENT and "PYTHONPATH" in variables:
            both = dict.fromkeys([variables["PYTHONPATH"], ENVIRONMENT["PYTHONPATH"]])
            variables["PYTHONPATH"] = os.pathsep.join(both)
        done = subprocess.run(
            [*command, *map(str, args)],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        failed = done.returncode != 0
        if failed != expect_failure:
            pytest.fail(
                f"axolotl {' '.join(map(str, args))} left with {done.returncode}:\n"
                f"{done.stdout[-8000:]}"
            )
        return done.stdout

    return run

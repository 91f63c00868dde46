"""Tiny models and datasets made once per session, configs, and the real command line."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import (
    ENVIRONMENT,
    EVAL_PAIRS,
    OFFLINE,
    SHIM,
    TRAIN_PAIRS,
    Executables,
    MakeConfig,
    RunCli,
    Runner,
    Starting,
    run_keys,
)
from hypothesis import settings
from vllm_serving import vllm_on_cpu
from warm import Commands, Forks

# An example that takes long says that the machine is busy.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

os.environ |= OFFLINE


# These import torch, which a process that only hands out tests need not.


def _texts() -> list[str]:
    import assets

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
    import assets

    return assets.save_model(tmp_path_factory.mktemp("models") / "llama", "llama", _texts())


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Qwen2."""
    import assets

    return assets.save_model(tmp_path_factory.mktemp("models") / "qwen", "qwen", _texts())


@pytest.fixture(scope="session")
def train_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 preference pairs in chat form."""
    import assets

    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    return assets.write_jsonl(path, assets.pairs(TRAIN_PAIRS))


@pytest.fixture(scope="session")
def eval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 other preference pairs."""
    import assets

    path = tmp_path_factory.mktemp("data") / "eval.jsonl"
    return assets.write_jsonl(path, assets.pairs(EVAL_PAIRS, 9))


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
        keys = run_keys(llama, train_data, eval_data, folder)
        keys = {key: value for key, value in (keys | changes).items() if key not in drop}
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(keys), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of the command line say what they say."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def starting(request: pytest.FixtureRequest) -> Starting:
    """What starts commands with a PYTHONPATH: in processes forked from one that has imported the
    host, or, with ``--real``, as a shell does."""
    if request.config.getoption("--real"):
        return lambda path: nullcontext(Executables())
    return lambda path: Forks(ENVIRONMENT | {"PYTHONPATH": path})


@pytest.fixture(scope="session")
def commands(starting: Starting) -> Iterator[Commands]:
    """Starts commands that find the modules of ``tests/support``."""
    with starting(SHIM["PYTHONPATH"]) as found:
        yield found


@pytest.fixture(scope="session")
def run_cli(commands: Commands, logs: Path) -> RunCli:
    """Run ``axolotl`` offline, in a process that is forked; the host is imported already."""
    return Runner(commands, "axolotl", _made(logs / "axolotl"))


@pytest.fixture(scope="session")
def run_python(commands: Commands, logs: Path) -> RunCli:
    """Run a module or a script of Python, as ``run_cli`` runs ``axolotl``."""
    return Runner(commands, "python", _made(logs / "python"))


@pytest.fixture(scope="session")
def run_ranks(commands: Commands, logs: Path) -> RunCli:
    """Run ``torchrun``, as ``run_cli`` runs ``axolotl``."""
    return Runner(commands, "torchrun", _made(logs / "torchrun"))


@pytest.fixture(scope="session")
def real_cli(logs: Path) -> RunCli:
    """Run the installed ``axolotl`` script; each run imports the host, which takes long."""
    return Runner(Executables(), "axolotl", _made(logs / "real"))


@pytest.fixture(scope="session")
def real_python(logs: Path) -> RunCli:
    """Run Python itself, for what keeps threads of its own."""
    return Runner(Executables(), "python", _made(logs / "real-python"))


@pytest.fixture
def cpu_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL finds the engine for CPU in the place of vLLM."""
    yield from vllm_on_cpu(monkeypatch)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real",
        action="store_true",
        help="start the installed command line for every run, which coverage can then measure",
    )


def pytest_collection_finish() -> None:
    """What is imported by now stays. Passes collect garbage before they try again, and would look
    through all of it each time, which takes longer than most tests."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries that count what is left at the end find it again."""
    gc.unfreeze()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


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

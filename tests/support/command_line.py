"""The real command line: its environment, what configs hold, and how it is started."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from warm import Commands, Done

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
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
}

# Taken before any test: Axolotl's entry points, called in this process, set variables of their own.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"SERA", "RANK", "LOCAL_RANK", "WORLD_SIZE"}
    and not name.startswith("ACCELERATE")
} | OFFLINE


class MakeConfig(Protocol):
    def __call__(self, *, drop: tuple[str, ...] = (), **changes: Any) -> Path: ...


class RunCli(Protocol):
    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        expect_failure: bool = False,
        timeout: float = 600,
    ) -> str: ...


Starting = Callable[[str], AbstractContextManager[Commands]]


class Executables(Commands):
    """Starts the installed scripts and this Python, as a shell would."""

    def command(
        self, log: Path, command: Sequence[str], env: Mapping[str, str], timeout: float
    ) -> Done:
        program = Path(sys.executable).parent / command[0]
        with open(log, "wb") as output:
            code = subprocess.run(
                [str(program), *command[1:]],
                env=ENVIRONMENT | dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            ).returncode
        return Done(code, log.read_text(errors="replace"))


class Runner:
    """Runs one program with arguments; returns what it says, on both streams together.

    Args:
        commands: starts it.
        program: ``axolotl``, ``python`` or ``torchrun``.
        folder: where logs go.
    """

    def __init__(self, commands: Commands, program: str, folder: Path) -> None:
        self.commands, self.program, self.folder = commands, program, folder
        self._numbers = itertools.count(1)

    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        expect_failure: bool = False,
        timeout: float = 600,
    ) -> str:
        variables = dict(env or {})
        if "PYTHONPATH" in ENVIRONMENT and "PYTHONPATH" in variables:
            both = dict.fromkeys([variables["PYTHONPATH"], ENVIRONMENT["PYTHONPATH"]])
            variables["PYTHONPATH"] = os.pathsep.join(both)
        command = [self.program, *map(str, args)]
        log = self.folder / f"{next(self._numbers)}"
        done = self.commands.command(log, command, variables, timeout)
        if (done.code != 0) != expect_failure:
            pytest.fail(f"{' '.join(command)} left with {done.code}:\n{done.output[-8000:]}")
        return done.output


def dataset_entry(path: Path) -> dict[str, Any]:
    """How a config names a local JSONL file of chat pairs."""
    return {
        "path": str(path),
        "ds_type": "json",
        "split": "train",
        "type": "chat_template.default",
        "field_messages": "messages",
    }


def run_keys(model: Path, train: Path, evaluation: Path, folder: Path) -> dict[str, Any]:
    """The keys of a tiny SeRA run that writes into ``folder``."""
    return {
        "base_model": str(model),
        "plugins": ["sera_plugin.SeRAPlugin"],
        "rl": "dpo",
        "rl_beta": 0.1,
        "datasets": [dataset_entry(train)],
        "test_datasets": [dataset_entry(evaluation)],
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


def output_dir(config: Path) -> Path:
    """Where a run of this config writes."""
    return Path(yaml.safe_load(config.read_text())["output_dir"])

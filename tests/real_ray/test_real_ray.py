"""Real runs of `axolotl train` with `use_ray: true` and two workers; `make test-ray` brings Ray."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import ENVIRONMENT, MakeConfig, RunCli, output_dir
from ranks import LIMIT, RANKS, TORCHRUN

pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="not installed: ray"),
]
LAUNCHER = Path(__file__).parents[1] / "support/ray_on_cpu.py"
# Axolotl validates its own eval_steps once more on the workers, and refuses evals_per_epoch then.
KEYS: dict[str, Any] = {
    "plugins": ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
    "num_epochs": 2,
    "micro_batch_size": 2,
    "learning_rate": 5e-3,
    "eval_strategy": "epoch",
    "save_steps": 3,
    "save_total_limit": 9,
}
RAY = {"use_ray": True, "ray_num_workers": 2, "ray_run_name": "ray"}
TABLES = ("margins.parquet", "rows.parquet", "candidates.parquet")


def train(path: Path, log: Path, *more: str, fails: bool = False, **variables: str) -> str:
    """Train under Ray; returns what the driver said, its workers' words among it."""
    with open(log, "wb") as file:
        code = subprocess.run(
            [sys.executable, str(LAUNCHER), str(path), *more],
            env=ENVIRONMENT | RANKS | variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        ).returncode
    said = log.read_text(errors="replace")
    assert (code != 0) == fails, said[-8000:]
    return said


def assert_same(ours: Path, theirs: Path) -> None:
    """The reviewed round has equal tables, and the runs end with equal weights."""
    for name in TABLES:
        found, expected = (pd.read_parquet(run / "sera/round-02" / name) for run in (ours, theirs))
        assert len(found) > 0
        pd.testing.assert_frame_equal(found, expected, atol=1e-4, rtol=0)
    weights = [(run / "model.safetensors").read_bytes() for run in (ours, theirs)]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def two_ranks(config: MakeConfig, run_cli: RunCli) -> Path:
    """The run of two ranks that torchrun starts."""
    path = config(drop=("evals_per_epoch", "saves_per_epoch"), **KEYS)
    run_cli("train", path, *TORCHRUN, env=RANKS, timeout=LIMIT)
    return output_dir(path)


def test_two_ray_workers_train_what_two_ranks_train(
    config: MakeConfig, two_ranks: Path, tmp_path: Path
) -> None:
    path = config(drop=("evals_per_epoch", "saves_per_epoch"), **KEYS, **RAY)
    train(path, tmp_path / "log")
    assert json.loads((output_dir(path) / "sera/run.json").read_text())["ranks"] == 2
    assert_same(output_dir(path), two_ranks)


def test_a_run_under_ray_is_killed_and_resumed(
    config: MakeConfig, two_ranks: Path, tmp_path: Path
) -> None:
    """A worker dies within the reviewed round, and Ray ends the run with a traceback."""
    path = config(drop=("evals_per_epoch", "saves_per_epoch"), **KEYS, **RAY)
    said = train(path, tmp_path / "killed", fails=True, DIE_AT_STEP="13")
    assert "Traceback" in said
    assert (output_dir(path) / "sera/round-02/rows.parquet").is_file()
    assert not (output_dir(path) / "model.safetensors").exists()
    train(path, tmp_path / "resumed", "--auto-resume-from-checkpoints")
    assert_same(output_dir(path), two_ranks)

"""Runs that are killed and resumed against one that is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MakeConfig, RunCli, output_dir

pytestmark = pytest.mark.cli
SHIM = {"PYTHONPATH": str(Path(__file__).parent)}
CASES: dict[str, dict[str, Any]] = {
    "fixed": {"sera": {"bootstrap": {"max_new_tokens": 16, "ensemble": True}}},
    "previous": {
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "sera": {"reference": "previous", "bootstrap": {"max_new_tokens": 16}},
    },
}


@pytest.fixture(scope="module", params=CASES)
def undisturbed(request: pytest.FixtureRequest, config: MakeConfig, run_cli: RunCli) -> Path:
    path = config(
        plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        saves_per_epoch=4,
        num_epochs=3,
        learning_rate=5e-3,
        **CASES[request.param],
    )
    run_cli("train", path, "--launcher", "python", env=SHIM)
    return path


def results(run: Path) -> dict[str, bytes]:
    names = ["margins.parquet", "rows.parquet", "bootstrapped.jsonl", "candidates.parquet"]
    files = [run / f"sera/round-{n:02d}" / name for n in (2, 3) for name in names]
    files += [*run.glob("*.safetensors"), run / "sera/run.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


# 8 updates a round, a checkpoint every 2: within rounds 1, 2 and 3, and where round 3 begins.
@pytest.mark.parametrize("step", [5, 13, 16, 21])
def test_a_killed_run_continues_as_if_nothing_had_happened(
    undisturbed: Path, run_cli: RunCli, tmp_path: Path, step: int
) -> None:
    keys = yaml.safe_load(undisturbed.read_text())
    keys["output_dir"] = str(tmp_path / "out")
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(keys))
    train = ("train", path, "--launcher", "python")
    run_cli(*train, env=SHIM | {"DIE_AT_STEP": str(step)}, expect_failure=True)
    assert not (tmp_path / "out/model.safetensors").exists()
    out = run_cli(*train, "--auto-resume-from-checkpoints", env=SHIM)
    assert f"checkpoint-{step - step % 2}" in out
    assert not list((tmp_path / "out").glob("sera-earlier-*"))
    expected, found = results(output_dir(undisturbed)), results(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert {name for name in expected if found[name] != expected[name]} == set()
    shutil.rmtree(tmp_path / "out")

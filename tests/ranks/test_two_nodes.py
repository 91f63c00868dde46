"""Two nodes that share the network alone: a rank, a working folder and caches on each."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import assets
import pytest
import yaml
from command_line import RunCli, run_keys
from ranks import LIMIT, RANKS, free_port, zero_config

PAIRS = 32
LAUNCHER = Path(__file__).parents[1] / "support/two_nodes.py"
TRAIN = ("train", "config.yml")
ARTIFACTS = ("margins.parquet", "rows.parquet", "bootstrapped.jsonl", "candidates.parquet")
pytestmark = pytest.mark.cli


def nodes(root: Path, changes: dict[str, Any]) -> list[Path]:
    """Folders of two nodes with the same files under the same names; all paths are relative."""
    first, second = root / "node0", root / "node1"
    first.mkdir(parents=True)
    rows = list(assets.pairs(PAIRS, seed=4))
    assets.save_model(first / "model", "llama", map(str, rows))
    assets.write_jsonl(first / "train.jsonl", rows)
    assets.write_jsonl(first / "eval.jsonl", assets.pairs(8, seed=9))
    if changes.get("deepspeed"):
        zero_config(first, 3)
    keys = run_keys(Path("./model"), Path("train.jsonl"), Path("eval.jsonl"), Path("."))
    keys |= {
        "plugins": ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        "num_epochs": 2,
        "micro_batch_size": 2,
        "saves_per_epoch": 2,
        "save_total_limit": 9,
        "learning_rate": 5e-3,
    }
    (first / "config.yml").write_text(yaml.safe_dump(keys | changes))
    shutil.copytree(first, second)
    return [first, second]


def launch(run_python: RunCli, folders: list[Path], *more: str, **rest: Any) -> str:
    env = RANKS | rest.pop("env", {})
    where = (LAUNCHER, str(free_port()), *folders)
    return run_python(*where, *TRAIN, *more, env=env, timeout=LIMIT, **rest)


def copy_checkpoint(step: int, folders: list[Path]) -> None:
    """What docs/multi-gpu.md asks for: the host's checkpoint, whole, on every node."""
    name = f"out/checkpoint-{step}"
    one, other = (folder / name for folder in folders)
    for source, target in ((one, other), (other, one)):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="ddp"),
        pytest.param({"deepspeed": "zero3.json"}, id="zero3", marks=pytest.mark.crash),
    ],
)
def test_two_nodes_review_and_resume_with_artifacts_on_the_first_alone(
    changes: dict[str, Any], tmp_path: Path, run_python: RunCli
) -> None:
    calm, killed = nodes(tmp_path / "calm", changes), nodes(tmp_path / "killed", changes)
    launch(run_python, calm)
    first, second = (folder / "out" for folder in calm)
    assert all((first / f"sera/round-02/{name}").is_file() for name in ARTIFACTS)
    assert (first / "sera/round-02/bootstrapped.jsonl").read_text()
    assert not (second / "sera").exists()
    assert not list(second.glob("*.safetensors"))
    for folder in calm:
        assert list((folder / "prepared").rglob("*.arrow"))
        assert list((folder / "caches/hf_datasets_cache").rglob("*.arrow"))

    # Within round 2: what it trains on lies on the first node.
    launch(run_python, killed, env={"DIE_AT_STEP": "7"}, expect_failure=True)
    first, second = (folder / "out" for folder in killed)
    assert (first / "sera/round-02/rows.parquet").is_file()
    assert not (first / "model.safetensors").exists()
    copy_checkpoint(6, killed)
    launch(run_python, killed, "--auto-resume-from-checkpoints")
    said = (killed[0] / "log").read_text()
    assert "resume from checkpoint at out/checkpoint-6" in said
    assert not (second / "sera").exists()
    for name in [*(f"sera/round-02/{name}" for name in ARTIFACTS), "model.safetensors"]:
        assert (first / name).read_bytes() == (calm[0] / "out" / name).read_bytes(), name

"""Runs on a base that bitsandbytes holds in 4 and in 8 bits, on the CPU, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import assets
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import SHIM, MakeConfig, RunCli, dataset_entry, output_dir
from safetensors.torch import load_file

pytestmark = pytest.mark.cli
PAIRS, KEPT = 32, 22
TRAIN = ("--launcher", "python")
CASES: dict[str, dict[str, Any]] = {
    "qlora": {"load_in_4bit": True, "adapter": "qlora"},
    "8-bit": {"load_in_8bit": True, "adapter": "lora"},
}

LORA = {
    "plugins": ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
}


@pytest.fixture(scope="module", params=CASES)
def undisturbed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    config: MakeConfig,
    run_cli: RunCli,
) -> tuple[Path, str]:
    """The config of a whole run of two rounds of four updates, and what it said."""
    folder = tmp_path_factory.mktemp("quantised")
    rows = list(assets.pairs(PAIRS, seed=4))
    # bitsandbytes cuts rows of 64 weights and packs 32 of them at a time.
    base = assets.save_model(folder / "base", "llama", map(str, rows), hidden=64)
    path = config(
        base_model=str(base),
        datasets=[dataset_entry(assets.write_jsonl(folder / "train.jsonl", rows))],
        num_epochs=2,
        saves_per_epoch=4,
        save_total_limit=9,
        learning_rate=5e-3,
        **LORA,
        **CASES[request.param],
    )
    return path, run_cli("train", path, *TRAIN, env=SHIM)


def test_selection_and_bootstrapping_go_through(undisturbed: tuple[Path, str]) -> None:
    assert "read a prompt once for both answers" in undisturbed[1]
    out = output_dir(undisturbed[0])
    margins = pq.read_table(out / "sera/round-02/margins.parquet").to_pandas()
    assert margins["kept"].sum() == KEPT
    assert margins["margin"].abs().max() > 0.05, "the policy has not moved; nothing is tested"
    candidates = pq.read_table(out / "sera/round-02/candidates.parquet").to_pandas()
    bootstrapped = (out / "sera/round-02/bootstrapped.jsonl").read_text().splitlines()
    assert 0 < len(bootstrapped) <= PAIRS - KEPT
    assert candidates[candidates["in_round"]]["example_id"].nunique() == len(bootstrapped)
    assert pq.read_table(out / "sera/round-02/rows.parquet").num_rows == PAIRS
    weights = load_file(out / "adapter_model.safetensors")
    # An adapter's second matrix starts at zero and leaves it with its first gradient.
    moved = {name for name, tensor in weights.items() if bool(tensor.any())}
    assert moved == set(weights)
    assert len(weights) == 2 * 2 * 7


@pytest.mark.parametrize("case", CASES)
def test_margins_are_zero_before_training(
    case: str, config: MakeConfig, run_cli: RunCli, tmp_path: Path
) -> None:
    """A policy that a round with a learning rate of 0 has left where it was."""
    rows = list(assets.pairs(8, seed=4))
    base = assets.save_model(tmp_path / "base", "llama", map(str, rows), hidden=64)
    path = config(
        **LORA,
        **CASES[case],
        base_model=str(base),
        datasets=[dataset_entry(assets.write_jsonl(tmp_path / "train.jsonl", rows))],
        num_epochs=2,
        learning_rate=0.0,
        sera={"preset": "select"},
        drop=("test_datasets", "evals_per_epoch", "saves_per_epoch"),
    )
    run_cli("train", path, *TRAIN, env=SHIM)
    margins = pq.read_table(output_dir(path) / "sera/round-02/margins.parquet").to_pandas()
    assert len(margins) == 8
    assert margins["margin"].abs().max() < 1e-6


def test_a_killed_run_continues_as_if_nothing_had_happened(
    undisturbed: tuple[Path, str], run_cli: RunCli, tmp_path: Path
) -> None:
    keys = yaml.safe_load(undisturbed[0].read_text())
    again = tmp_path / "config.yml"
    again.write_text(yaml.safe_dump(keys | {"output_dir": str(tmp_path / "out")}))
    run_cli("train", again, *TRAIN, env=SHIM | {"DIE_AT_STEP": "6"}, expect_failure=True)
    run_cli("train", again, "--auto-resume-from-checkpoints", *TRAIN, env=SHIM)
    whole, resumed = output_dir(undisturbed[0]), tmp_path / "out"
    for name in ("margins.parquet", "rows.parquet", "candidates.parquet", "bootstrapped.jsonl"):
        path = f"sera/round-02/{name}"
        assert (resumed / path).read_bytes() == (whole / path).read_bytes(), name
    name = "adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()

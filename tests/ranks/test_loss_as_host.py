"""On every backend the loss made anew from the host's logits is the host's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import assets
import pytest
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from ranks import FSDP2, LIMIT, RANKS, TORCHRUN, zero_config

pytestmark = pytest.mark.cli
PAIRS = 24
NO_CHANGE = [{"entropy": {"alpha": 1.0}}]
"""A term that takes the loss away from the host and changes nothing."""
CASES = {
    "ddp": {},
    "zero1": {},
    "zero2": {},
    "zero3": {},
    "fsdp2": FSDP2,
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_host_s(
    config: MakeConfig, run_cli: RunCli, tmp_path: Path, case: str
) -> None:
    data = assets.write_jsonl(tmp_path / "train.jsonl", assets.pairs(PAIRS, seed=5))
    keys: dict[str, Any] = CASES[case] | {
        "plugins": ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        "datasets": [dataset_entry(data)],
        "micro_batch_size": 2,
        "logging_steps": 1,
        "learning_rate": 5e-3,
        "num_epochs": 2,
    }
    if case.startswith("zero"):
        keys["deepspeed"] = zero_config(tmp_path, int(case[4]))
    found = []
    for loss in ([], NO_CHANGE):
        sera = {"selection": {"keep": 0.5}, "bootstrap": {"fraction": 0}, "loss": loss}
        path = config(**keys, sera=sera)
        run_cli("train", path, *TORCHRUN, env=RANKS, timeout=LIMIT)
        found.append(steps(output_dir(path)))
    host, ours = found
    assert len(host) == len(ours) > 4
    assert any(abs(step["rewards/margins"]) > 1e-2 for step in host), "nothing was learned"
    for one, other in zip(host, ours, strict=True):
        for name in ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "logps/rejected"):
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6), (name, one["step"])


def steps(run: Path) -> list[dict[str, Any]]:
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]

"""Runs through the real command line: all of ``sera.training`` on against all of it off."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import MakeConfig, RunCli, output_dir
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

from sera_plugin.config import TrainingConfig

pytestmark = pytest.mark.cli

ON: dict[str, Any] = dict.fromkeys(TrainingConfig.model_fields, True)
SAMPLED = {"bootstrap": {"max_new_tokens": 16, "guard": False}}


def table(run: Path, number: int, name: str) -> pd.DataFrame:
    return pq.read_table(run / f"sera/round-{number:02d}/{name}.parquet").to_pandas()


def logged(run: Path) -> list[dict[str, float]]:
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "rewards/margins" in entry]


def test_everything_on_finds_what_everything_off_finds(config: MakeConfig, run_cli: RunCli) -> None:
    runs, said = [], ""
    for training in (False, ON):
        path = config(sera={**SAMPLED, "training": training})
        said = run_cli("train", path, "--launcher", "python")
        runs.append(output_dir(path))
    assert "computed without padding and read a prompt once for both answers" in said
    assert "Scoring reads a prompt once for all its answers" in said
    assert "are those found while sampling" in said
    merged = re.search(r"Round 2: (\d+) micro-batches in (\d+) packed passes", said)
    assert merged is not None
    assert int(merged[1]) == 2 * int(merged[2])
    off, on = runs
    for number in (2, 3):
        was, now = (
            table(run, number, "margins").set_index("example_id").sort_index() for run in runs
        )
        difference = float(np.abs(was["margin"] - now["margin"]).max())
        print(f"round {number}: margins differ by {difference:.2e} at most")
        assert was["margin"].abs().max() > 0.05
        assert difference <= 1e-4
        assert (was["kept"] == now["kept"]).all()
        before, after = (table(run, number, "rows")["key"].tolist() for run in runs)
        assert before != after
        for start in range(0, len(before), 8):
            assert sorted(before[start : start + 8]) == sorted(after[start : start + 8])
    for was, now in zip(logged(off), logged(on), strict=True):
        assert was.keys() == now.keys()
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "entropy"):
            if name == "rewards/accuracies" and abs(was["rewards/margins"]) < 1e-5:
                continue  # the policy still is the reference, and rounding has the signs
            assert now[name] == pytest.approx(was[name], rel=1e-3, abs=1e-3), name
        assert now["num_tokens"] == was["num_tokens"]
    weights = [load_file(run / "model.safetensors") for run in runs]
    difference = max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0])
    print(f"final weights differ by {difference:.2e} at most")
    assert difference <= 1e-3


def test_a_state_space_model_trains_with_padding_and_says_so(
    config: MakeConfig, run_cli: RunCli, llama: Path, tmp_path: Path
) -> None:
    mamba = tmp_path / "mamba"
    for path in llama.iterdir():
        if path.name.startswith(("tokenizer", "special", "chat")):
            mamba.mkdir(exist_ok=True)
            (mamba / path.name).write_bytes(path.read_bytes())
    known = json.loads((llama / "config.json").read_text())
    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "initializer_range": 0.3}
    ends = {k: known[k] for k in ("vocab_size", "eos_token_id", "pad_token_id", "bos_token_id")}
    MambaForCausalLM(MambaConfig(**sizes, **ends)).save_pretrained(mamba)
    for packing, fails in (("auto", False), (True, True)):
        sera = {"preset": "select", "training": {"packing": packing}}
        path = config(base_model=str(mamba), sera=sera, num_epochs=2, max_steps=2)
        said = run_cli("train", path, "--launcher", "python", expect_failure=fails)
        sentence = "sera.training.packing: true can't be used with this run, because"
        assert (sentence in said) == fails
        assert ("computed with padding, the host's way, because" in said) != fails

"""Two real ranks over gloo on CPU: DDP, DeepSpeed ZeRO-1/2/3 and FSDP2 against one process."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import slow_reference as slow
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from ranks import FSDP2, LIMIT, LORA, RANKS, TORCHRUN, zero_config
from transformers import AutoTokenizer

from sera_plugin.scoring.batches import plan_batches

# Round 1 is a whole number of global micro-batches of 4, because the host repeats rows of an
# incomplete one; its last update is partial, and the reviewed round of 41 pairs ends in both.
PAIRS = 60
KEPT, FRESH = 35, 6
pytestmark = pytest.mark.cli
BACKENDS = ["ddp", "zero1", "zero2", "zero3"]
ADAPTERS = [pytest.param(adapter, id=name) for name, adapter in {"full": {}, "lora": LORA}.items()]
REAL = {("ddp", False), ("zero3", True)}
"""Backend, and whether with an adapter, of the runs that ``torchrun`` starts as processes anew."""


def _sera(**bootstrap: Any) -> dict[str, Any]:
    """Both the policy and the reference write answers, so that every backend samples from both."""
    settings = {"fraction": 0.1, "prompts": 0.3, "max_new_tokens": 24, "guard": False}
    return {
        "selection": {"keep": KEPT},
        "bootstrap": settings | {"sampler": "mixed"} | bootstrap,
        "training": {"merged": True},
    }


class Runs:
    """Runs configs and keeps what they found, so that several tests can compare it."""

    def __init__(self, config: MakeConfig, run_cli: RunCli, real_cli: RunCli, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.run_cli, self.real_cli = run_cli, real_cli
        data = assets.write_jsonl(folder / "train.jsonl", assets.pairs(PAIRS, seed=3))
        self.common: dict[str, Any] = {
            "datasets": [dataset_entry(data)],
            "num_epochs": 2,
            "logging_steps": 1,
            "learning_rate": 5e-3,
            "sera": _sera(),
        }
        self.known: dict[str, pd.DataFrame] = {}

    def single(self, adapter: dict[str, Any]) -> pd.DataFrame:
        """Margins of the first review in one process; the same global batch of 8."""
        key = str(adapter)
        if key not in self.known:
            path = self.config(**(self.common | adapter))
            self.run_cli("train", path, "--launcher", "python")
            self.known[key] = margins(output_dir(path))
        return self.known[key]

    def ranks(
        self, env: dict[str, str] | None = None, real: bool = False, **changes: Any
    ) -> tuple[Path, str]:
        keys = self.common | {
            "plugins": ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
            "micro_batch_size": 2,
        }
        path = self.config(**(keys | changes))
        run = self.real_cli if real else self.run_cli
        out = run(
            "train",
            path,
            *TORCHRUN,
            env=RANKS | (env or {}),
            timeout=LIMIT,
            expect_failure=bool(env),
        )
        return output_dir(path), out

    def backend(self, name: str) -> dict[str, Any]:
        if name == "ddp":
            return {}
        return {"deepspeed": zero_config(self.folder, int(name.removeprefix("zero")))}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    config: MakeConfig,
    run_cli: RunCli,
    real_cli: RunCli,
) -> Runs:
    return Runs(config, run_cli, real_cli, tmp_path_factory.mktemp("ranks"))


def margins(run: Path) -> pd.DataFrame:
    table = pq.read_table(run / "sera/round-02/margins.parquet").to_pandas()
    return table.set_index("example_id").sort_index()


def check(run: Path, expected: pd.DataFrame) -> None:
    found = margins(run)
    assert len(found) == PAIRS
    assert found.index.is_unique
    assert list(found.index) == list(expected.index)
    assert found["margin"].abs().max() > 0.05, "the policy has not moved; nothing is tested"
    difference = np.abs(found["margin"] - expected["margin"]).max()
    print(f"largest difference of a margin: {difference:.2e}")
    assert difference <= 1e-5
    assert (found["kept"] == expected["kept"]).all()
    rows = pq.read_table(run / "sera/round-02/rows.parquet").to_pandas()
    assert len(rows) == KEPT + FRESH
    assert rows["key"].is_unique
    assert json.loads((run / "sera/run.json").read_text())["ranks"] == 2
    sources = pq.read_table(run / "sera/round-02/candidates.parquet").column("source")
    assert {"policy", "reference"} <= set(sources.to_pylist())


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_find_what_one_process_finds(
    runs: Runs, backend: str, adapter: dict[str, Any]
) -> None:
    real = (backend, bool(adapter)) in REAL
    run, said = runs.ranks(**runs.backend(backend), **adapter, real=real)
    check(run, runs.single(adapter))
    assert "read a prompt once for both answers" in said
    assert "Round 1: 15 micro-batches in 8 packed passes" in said
    assert said.count("axolotl sera report") == 1
    assert "'sera/" not in said


def test_fsdp2(runs: Runs) -> None:
    run, _ = runs.ranks(**FSDP2, sera={**_sera(), "training": {"packing": True, "merged": True}})
    check(run, runs.single({}))
    assert json.loads((run / "sera/run.json").read_text())["distributed"] == "FSDP"


def test_ungathered_sampling_with_fewer_prompts_than_ranks(runs: Runs) -> None:
    sera = _sera(gather=False) | {"selection": {"keep": 40}}
    sera["bootstrap"] |= {"fraction": 0.016, "prompts": 0.016}
    run, out = runs.ranks(**runs.backend("zero3"), **LORA, sera=sera)
    assert "does not gather all weights on every rank (sera.bootstrap.gather: false)" in out
    candidates = pq.read_table(run / "sera/round-02/candidates.parquet").to_pandas()
    assert candidates["example_id"].nunique() == 1


def test_uneven_batches_of_answers_of_different_length(runs: Runs, llama: Path) -> None:
    """Three batches of prompts on two ranks that must take every decoding step together."""
    sera = _sera(gather=False, num_candidates=6, max_new_tokens=60, sampler="policy")
    run, _ = runs.ranks(**runs.backend("zero3"), sera=sera)
    candidates = pq.read_table(run / "sera/round-02/candidates.parquet").to_pandas()
    assert candidates["example_id"].nunique() == 18
    words = AutoTokenizer.from_pretrained(llama)
    texts = [slow.llama_text(row["messages"]) for row in assets.pairs(PAIRS, seed=3)]
    lengths = np.sort([len(words(text, add_special_tokens=False)["input_ids"]) for text in texts])
    budget = 8 * (2 * 2 * 128)  # sampling takes eight training batches of 2 pairs of 128 tokens
    for prompts in (lengths[:18], lengths[-18:]):
        assert len(plan_batches(6 * (prompts + 60), budget)) == 3
    sampled = candidates[candidates["source"] == "policy"]
    assert sampled["token_ids"].map(len).nunique() > 2


def test_all_ranks_stop_when_one_fails(runs: Runs) -> None:
    _, out = runs.ranks(env={"FAIL_RANK": "1"})
    stopped = time.time()
    fault = float(re.search(r"FAULT at ([\d.]+)", out)[1])  # type: ignore[index]
    assert "injected fault" in out
    assert stopped - fault < 60


def test_hooks_and_checkpointing_come_back_when_sampling_raises(
    llama: Path, run_python: RunCli
) -> None:
    script = Path(__file__).parents[1] / "support/zero3_hooks.py"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    out = run_python(script, llama, env=RANKS | alone | {"MASTER_PORT": "0"}, timeout=LIMIT)
    assert "RESTORED" in out

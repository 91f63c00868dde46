"""Judges of both kinds in real runs: two real ranks over gloo on CPU against one process."""

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
from command_line import SHIM, MakeConfig, RunCli, dataset_entry, output_dir
from judges import FAILS_IN_CALL, FAILS_ON_RANK
from ranks import LIMIT, RANKS, TORCHRUN

from sera_plugin.review.judging import SHARD_BATCHES

pytestmark = pytest.mark.cli
PAIRS, FRESH = 60, 6
# The reference writes the answers, which two ranks and one process then know to be the same.
SAMPLING: dict[str, Any] = {
    "sampler": "reference",
    "fraction": FRESH / PAIRS,
    "prompts": 0.6,
    "num_candidates": 6,
    "max_new_tokens": 24,
    "guard": False,
}


class Runs:
    """Runs the same data with a judge, in one process and on two ranks."""

    def __init__(self, config: MakeConfig, run_cli: RunCli, folder: Path) -> None:
        self.config, self.run_cli = config, run_cli
        data = assets.write_jsonl(folder / "train.jsonl", assets.pairs(PAIRS, seed=3))
        self.common: dict[str, Any] = {
            "drop": ("test_datasets", "evals_per_epoch"),
            "datasets": [dataset_entry(data)],
            "num_epochs": 2,
            "learning_rate": 5e-3,
        }

    def alone(self, **judge: Any) -> Path:
        path = self.config(**self.common, sera={"bootstrap": SAMPLING | judge})
        self.run_cli("train", path, "--launcher", "python", env=SHIM)
        return output_dir(path)

    def for_ranks(self, **judge: Any) -> Path:
        return self.config(
            **self.common,
            plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
            micro_batch_size=2,
            auto_resume_from_checkpoints=True,
            sera={"bootstrap": SAMPLING | judge},
        )

    def ranks(self, path: Path, **env: str) -> str:
        return self.run_cli(
            "train", path, *TORCHRUN, env=RANKS | env, timeout=LIMIT, expect_failure=bool(env)
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, config: MakeConfig, run_cli: RunCli) -> Runs:
    return Runs(config, run_cli, tmp_path_factory.mktemp("judged"))


def answers(run: Path) -> pd.DataFrame:
    table = pq.read_table(run / "sera/round-02/candidates.parquet").to_pandas()
    table["token_ids"] = table["token_ids"].map(tuple)
    return table.sort_values(["example_id", "token_ids"], ignore_index=True)


def pairs(run: Path) -> dict[str, tuple[str, str]]:
    lines = (run / "sera/round-02/bootstrapped.jsonl").read_text().splitlines()
    return {p["example_id"]: (p["chosen"], p["rejected"]) for p in map(json.loads, lines)}


def test_a_judge_that_fails_on_one_rank_ends_all_and_what_was_judged_is_kept(runs: Runs) -> None:
    path = runs.for_ranks(judge="judges:by_checksum")
    out = runs.ranks(path, **{FAILS_ON_RANK: "1"})
    stopped = time.time()
    assert stopped - float(re.search(r"FAULT at ([\d.]+)", out)[1]) < 60  # type: ignore[index]
    assert re.search(
        r"sera\.bootstrap\.judge: judges:by_checksum raised ConnectionError: the judge "
        r"is out \(judges\.py, line \d+\); the answers judged so far are kept, and a resumed run "
        r"goes on from them\.",
        out,
    )
    again = runs.ranks(path)
    reused = re.search(r"Judging answers: (\d+) of (\d+) batches are reused from 2", again)
    # The first group of both ranks; of the second, all of rank 0 and what rank 1 had done.
    kept = 3 * SHARD_BATCHES + FAILS_IN_CALL - 1 - SHARD_BATCHES
    assert reused is not None
    assert int(reused[1]) == kept < int(reused[2])
    one = runs.alone(judge="judges:by_checksum")
    columns = ["example_id", "token_ids", "judge_score"]
    found = answers(output_dir(path))[columns]
    assert found["judge_score"].notna().all(), "answers without an opinion compete"
    pd.testing.assert_frame_equal(found, answers(one)[columns])
    assert len(pairs(one)) == FRESH
    assert pairs(output_dir(path)) == pairs(one)


def test_a_reward_model_that_must_agree(runs: Runs, llama: Path, tmp_path: Path) -> None:
    """Both ranks score with it; only pairs that it orders as the policy does are new pairs."""
    judge = {"judge": str(assets.save_reward_model(tmp_path, llama)), "judge_mode": "agree"}
    path = runs.for_ranks(**judge)
    runs.ranks(path)
    one, both = runs.alone(**judge), output_dir(path)
    found, expected = answers(both), answers(one)
    assert (found["token_ids"] == expected["token_ids"]).all()
    np.testing.assert_allclose(found["judge_score"], expected["judge_score"], atol=1e-5)
    assert expected["judge_score"].nunique() > len(expected) / 2
    assert len(pairs(one)) == FRESH
    assert pairs(both) == pairs(one)
    summary = json.loads((one / "sera/round-02/summary.json").read_text())
    assert summary["short_disagree"] > 0
    for example_id in pairs(one):
        pool = expected[expected["example_id"] == example_id]
        best = pool.loc[pool.loc[pool["finished"], "reward"].idxmax()]
        assert best["judge_score"] > pool.loc[pool["reward"].idxmin(), "judge_score"]

"""Sampled answers judged by the contrast of quality prompts, beside `preset: contrast`: in one
process, on two real ranks, and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from ranks import LIMIT, RANKS, TORCHRUN, zero_config

pytestmark = pytest.mark.cli
# A whole number of micro-batches of both ranks: the host repeats rows of an incomplete one.
PAIRS, FRESH = 60, 8
FRESH_PAIRS: dict[str, Any] = {
    "fraction": FRESH / PAIRS,
    "prompts": 0.3,
    "num_candidates": 6,
    "max_new_tokens": 24,
    "judge": "contrast",
}
WEIGHED: dict[str, Any] = {
    "preset": "contrast",
    "selection": {"gate": False, "contrast": {"normalize": "none"}},
    "bootstrap": FRESH_PAIRS | {"rejected": "reference"},
}


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("data") / "train.jsonl"
    return {
        "datasets": [dataset_entry(assets.write_jsonl(data, assets.pairs(PAIRS, seed=3)))],
        "num_epochs": 2,
        "learning_rate": 5e-3,
    }


@pytest.fixture(scope="module")
def whole(common: dict[str, Any], config: MakeConfig, run_cli: RunCli) -> Path:
    """The config of a run in one process."""
    path = config(
        drop=("test_datasets", "evals_per_epoch"),
        **common,
        saves_per_epoch=2,
        save_total_limit=20,
        sera=WEIGHED,
    )
    run_cli("train", path, "--launcher", "python")
    return path


def answers(run: Path, number: int) -> pd.DataFrame:
    table = pq.read_table(run / f"sera/round-0{number}/candidates.parquet").to_pandas()
    table["token_ids"] = table["token_ids"].map(tuple)
    return table.sort_values(["example_id", "token_ids"], ignore_index=True)


def margins(run: Path, number: int) -> pd.DataFrame:
    table = pq.read_table(run / f"sera/round-0{number}/margins.parquet").to_pandas()
    return table.set_index("example_id").sort_index()


def pairs(run: Path, number: int) -> list[dict[str, Any]]:
    lines = (run / f"sera/round-0{number}/bootstrapped.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def summary(run: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"sera/round-0{number}/summary.json").read_text())
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_the_contrast_ranks_answers_from_round_1_on(whole: Path, number: int) -> None:
    run = output_dir(whole)
    found = answers(run, number)
    assert np.isfinite(found["judge_score"]).all()
    assert found["judge_score"].nunique() > len(found) / 2
    assert (found["reward"] == found["judge_score"]).all()
    assert {"policy", "reference", "offline_chosen", "offline_rejected"} == set(found["source"])
    new = pairs(run, number)
    assert len(new) == FRESH
    for pair in new:
        pool = found[found["example_id"] == pair["example_id"]]
        best = pool.loc[pool.loc[pool["finished"], "judge_score"].idxmax()]
        own = pool[pool["source"] == "reference"]
        assert pair["reward_chosen"] == best["judge_score"]
        assert pair["rejected_source"] == "reference"
        assert pair["reward_rejected"] == own["judge_score"].min()
        assert pair["margin"] > 0
    rows = pq.read_table(run / f"sera/round-0{number}/rows.parquet").to_pandas()
    assert len(rows) == PAIRS + FRESH
    assert "short_no_reference" in summary(run, number)


def test_the_score_of_an_offline_answer_is_half_of_the_signal(whole: Path) -> None:
    """Both are found by the same prompts; the scales of two prompts differ, the order doesn't."""
    run = output_dir(whole)
    signal, found = margins(run, 1)["signal_contrast"], answers(run, 1)
    both = found[found["source"].str.startswith("offline")].pivot(
        index="example_id", columns="source", values="judge_score"
    )
    apart = both["offline_chosen"] - both["offline_rejected"]
    assert np.corrcoef(apart, signal[apart.index])[0, 1] > 0.95


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_two_ranks_weigh_and_judge_as_one_process(
    whole: Path,
    common: dict[str, Any],
    config: MakeConfig,
    run_cli: RunCli,
    tmp_path: Path,
    backend: str,
) -> None:
    keys = common | ({"deepspeed": zero_config(tmp_path, 3)} if backend == "zero3" else {})
    path = config(
        drop=("test_datasets", "evals_per_epoch"),
        **keys,
        plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        micro_batch_size=2,
        sera=WEIGHED,
    )
    run_cli("train", path, *TORCHRUN, env=RANKS, timeout=LIMIT)
    one, both = output_dir(whole), output_dir(path)
    assert json.loads((both / "sera/run.json").read_text())["ranks"] == 2
    for number in (1, 2):
        found, expected = margins(both, number), margins(one, number)
        assert list(found.index) == list(expected.index)
        assert found["kept"].all()
        for name in ("signal_contrast", "right", "weight", "margin"):
            assert found[name].to_numpy() == pytest.approx(expected[name].to_numpy(), abs=1e-5)
        assert expected["weight"].nunique() > 2, "even weights test nothing"
    assert margins(one, 2)["margin"].abs().max() > 0.05, "the policy has not moved"
    # Before round 1 both have the same weights, so both write the same answers.
    found, expected = answers(both, 1), answers(one, 1)
    assert (found["token_ids"] == expected["token_ids"]).all()
    assert found["judge_score"].to_numpy() == pytest.approx(expected["judge_score"], abs=1e-5)
    ends = ("example_id", "chosen", "rejected")
    assert [[p[name] for name in ends] for p in pairs(both, 1)] == [
        [p[name] for name in ends] for p in pairs(one, 1)
    ]


def test_a_run_resumed_in_round_1_ends_with_the_same_weights(
    whole: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    before, out = output_dir(whole), tmp_path / "out"
    steps = sorted(int(path.name.split("-")[1]) for path in before.glob("checkpoint-*"))
    shutil.copytree(before, out)
    for step in steps[1:]:
        shutil.rmtree(out / f"checkpoint-{step}")
    (out / "model.safetensors").unlink()
    first = out / f"checkpoint-{steps[0]}"
    assert 0 < json.loads((first / "trainer_state.json").read_text())["epoch"] < 1
    keys = yaml.safe_load(whole.read_text())
    changes = {"output_dir": str(out), "resume_from_checkpoint": str(first)}
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(keys | changes))
    run_cli("train", path, "--launcher", "python")
    assert (out / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()
    assert answers(out, 2).equals(answers(before, 2))
    keys["sera"] = {**WEIGHED, "bootstrap": FRESH_PAIRS | {"rejected": "worst", "sampler": "mixed"}}
    path.write_text(yaml.safe_dump(keys | changes))
    said = run_cli("train", path, "--launcher", "python", expect_failure=True)
    assert "resume: sera.bootstrap.rejected was reference and is worst" in said


def test_the_contrast_beside_ensemble_and_guard(
    common: dict[str, Any], config: MakeConfig, run_cli: RunCli
) -> None:
    """The implicit reward ranks, the contrast agrees, and of many the worst of 5 is rejected."""
    path = config(
        **common | {"num_epochs": 3},
        sera={
            "bootstrap": FRESH_PAIRS
            | {
                "num_candidates": 12,
                "judge_mode": "agree",
                "ensemble": True,
                "guard": {"max_drift": 50},
                "rejected": "worst_of",
            }
        },
    )
    run_cli("train", path, "--launcher", "python")
    run, spared = output_dir(path), 0
    for number in (2, 3):
        found, said = answers(run, number), summary(run, number)
        assert np.isfinite(found["judge_score"]).all()
        assert "guard_drift" in said
        assert said["short_disagree"] > 0
        for pair in pairs(run, number):
            pool = found[found["example_id"] == pair["example_id"]].set_index("reward")
            chosen, rejected = pair["reward_chosen"], pair["reward_rejected"]
            assert pool.loc[chosen, "judge_score"] > pool.loc[rejected, "judge_score"]
            assert (pool.index > rejected).sum() >= min(4, len(pool) - 1)
            spared += rejected > pool.index.min()
    assert spared > 0
    now = pq.read_table(run / "sera/round-03/candidates.parquet").to_pandas()
    fresh = now[now["source"] == "policy"]
    apart = fresh["log_ratio"] - (fresh["policy_logp"] - fresh["reference_logp"])
    assert apart.abs().max() > 1e-3, "the ensemble changes nothing"

"""Real runs: who writes the answers, and a guard that skips the bootstrapped pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import assets
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.cli
HERE = Path(__file__).parent
SHIM = {"PYTHONPATH": f"{HERE.parent / 'support'}{os.pathsep}{HERE.parents[1]}"}
TRAIN = ("--launcher", "python")
PARTS = ("kept", "bootstrapped", "filled", "filled_negative")


def candidates(run: Path, number: int = 2) -> list[dict[str, Any]]:
    return pq.read_table(run / f"sera/round-{number:02d}/candidates.parquet").to_pylist()


def summary(run: Path, number: int) -> dict[str, Any]:
    return json.loads((run / f"sera/round-{number:02d}/summary.json").read_text())


def test_the_reference_writes_in_a_full_fine_tune(
    config: MakeConfig, run_cli: RunCli, llama: Path
) -> None:
    path = config(
        num_epochs=2,
        learning_rate=5e-3,
        sera={
            "bootstrap": {
                "sampler": "reference",
                "prompts": 0.3,
                "max_new_tokens": 4,
                "temperature": 0,
                "num_candidates": 1,
                "guard": False,
            }
        },
    )
    run_cli("train", path, *TRAIN)
    run = output_dir(path)
    found = candidates(run)
    assert {row["source"] for row in found} == {"reference", "offline_chosen", "offline_rejected"}
    rows = {row["example_id"]: row for row in found if row["source"] == "reference"}
    # Greedy answers are those of the model that the run started from, not of the trained one.
    base = AutoModelForCausalLM.from_pretrained(llama)
    texts = [json.loads(line) for line in (run / "sera/round-02/bootstrapped.jsonl").open()]
    assert texts
    words = run_words(llama)
    for text in texts:
        prompt = words(text["prompt"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        row = rows[text["example_id"]]
        with torch.no_grad():
            drawn = base.generate(prompt, do_sample=False, max_new_tokens=4)[0, prompt.shape[1] :]
        length = len(row["token_ids"]) - row["finished"]
        assert drawn[:length].tolist() == row["token_ids"][:length]
    assert "kl_policy_samples" not in summary(run, 2)
    assert summary(run, 2)["fresh_chosen_share"] >= 0


def run_words(llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama)


@pytest.fixture(scope="module")
def guarded(config: MakeConfig, run_cli: RunCli) -> tuple[Path, str]:
    """Half of the answers by each writer under LoRA, and a guard that no policy can please."""
    path = config(
        plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        adapter="lora",
        lora_r=4,
        lora_alpha=8,
        lora_target_linear=True,
        learning_rate=5e-3,
        saves_per_epoch=4,
        sera={
            "bootstrap": {
                "sampler": "mixed",
                "num_candidates": 3,
                "max_new_tokens": 16,
                "guard": {"max_drift": 1e-6},
            }
        },
    )
    out = run_cli("train", path, *TRAIN, env=SHIM)
    return path, out


def test_each_writes_its_share_under_lora(guarded: tuple[Path, str]) -> None:
    found = candidates(output_dir(guarded[0]))
    by: dict[str, dict[str, int]] = {"policy": {}, "reference": {}}
    for row in found:
        if row["source"] in by:
            counts = by[row["source"]]
            counts[row["example_id"]] = counts.get(row["example_id"], 0) + 1
    assert max(by["policy"].values()) == 2
    assert max(by["reference"].values()) == 1


def test_the_guard_skips_says_why_and_keeps_the_size(guarded: tuple[Path, str]) -> None:
    path, out = guarded
    run = output_dir(path)
    settings = json.loads((run / "sera/run.json").read_text())
    for number in (2, 3):
        found = summary(run, number)
        planned = settings["rounds"][number - 1]["bootstrapped"]
        assert found["guard_drift"] > 0
        assert found["guard_share"] == found["bootstrapped"] == 0
        assert found["guard_left_out"] > 0
        assert found["shortfall"] == planned
        assert found["guard"].startswith(f"at most 0 of {planned} planned bootstrapped pairs")
        assert "above sera.bootstrap.guard.max_drift: 1e-06" in found["guard"]
        assert f"Round {number}, guard: {found['guard']}" in " ".join(out.split())
    first, second = summary(run, 2), summary(run, 3)
    assert first["guard_spread_ratio"] == 1
    assert second["guard_spread_ratio"] == second["guard_spread"] / first["guard_spread"]
    planned = settings["rounds"][2]["bootstrapped"]
    rows = pq.read_table(run / "sera/round-03/rows.parquet").to_pylist()
    assert len(rows) == settings["rounds"][2]["kept"] + planned
    assert all(row["chosen_ids"] is None for row in rows)
    state = json.loads(max(run.glob("checkpoint-*/trainer_state.json")).read_text())
    logged = [entry for entry in state["log_history"] if "sera/guard_share" in entry]
    assert [entry["sera/guard_share"] for entry in logged] == [0, 0]


def test_a_resumed_run_decides_the_same(
    guarded: tuple[Path, str], run_cli: RunCli, tmp_path: Path
) -> None:
    keys = yaml.safe_load(guarded[0].read_text())
    keys["output_dir"] = str(tmp_path / "out")
    again = tmp_path / "config.yml"
    again.write_text(yaml.safe_dump(keys))
    # 8 updates a round: killed at the first step of round 3, before a checkpoint holds it.
    died = SHIM | {"DIE_AT_STEP": "16"}
    run_cli("train", again, *TRAIN, env=died, expect_failure=True)
    run_cli("train", again, *TRAIN, "--auto-resume-from-checkpoints", env=SHIM)
    here, there = output_dir(guarded[0]), tmp_path / "out"
    one, two = summary(here, 3), summary(there, 3)
    assert two["guard"] == one["guard"]
    names = [name for name in one if name.startswith("guard")]
    assert {name: two[name] for name in names} == {name: one[name] for name in names}
    for file in ("rows.parquet", "candidates.parquet"):
        name = f"sera/round-03/{file}"
        assert (there / name).read_bytes() == (here / name).read_bytes()
    assert (there / "adapter_model.safetensors").read_bytes() == (
        here / "adapter_model.safetensors"
    ).read_bytes()


def test_a_round_that_the_guard_lets_nothing_into_trains_on_no_doubted_pair(
    config: MakeConfig, run_cli: RunCli, tmp_path: Path
) -> None:
    pairs = list(assets.pairs(64))
    for pair in pairs[::3]:
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    path = config(
        drop=("test_datasets", "evals_per_epoch"),
        datasets=[dataset_entry(assets.write_jsonl(tmp_path / "wrong.jsonl", pairs))],
        num_epochs=2,
        learning_rate=5e-3,
        sera={
            "selection": {"keep": 0.5},
            "bootstrap": {"max_new_tokens": 4, "guard": {"max_drift": 1e-6}},
        },
    )
    out = run_cli("train", path, *TRAIN)
    run, found = output_dir(path), summary(output_dir(path), 2)
    kept, planned = 32, 19
    assert [found[name] for name in PARTS] == [kept, 0, planned, 0]
    table = pq.read_table(run / "sera/round-02/margins.parquet").to_pylist()
    margin = {row["example_id"]: row["ensembled_margin"] for row in table}
    # There are fewer next-best pairs that the policy does not doubt than places.
    ranked = sorted(margin, key=lambda example_id: margin[example_id], reverse=True)
    assert margin[ranked[kept + planned - 1]] < 0
    more = [example_id for example_id in ranked[kept:] if margin[example_id] >= 0]
    rows = pq.read_table(run / "sera/round-02/rows.parquet").to_pylist()
    assert len(rows) == kept + planned
    assert min(margin[row["example_id"]] for row in rows) >= 0
    assert {row["example_id"] for row in table if row["kept"]} == {*ranked[:kept]}
    assert {row["example_id"] for row in rows} == {*ranked[:kept], *more}
    filled = [*more, *ranked][:planned]
    assert {row["example_id"] for row in rows if row["filled"]} == {*filled}
    # Whoever asks is told the same.
    said = " ".join(out.split())
    assert f"trains on {len(rows)} rows: {kept} kept, 0 bootstrapped, {planned} filled;" in said
    log = json.loads((run / "sera/log.json").read_text())
    (logged,) = (entry for entry in log if "sera/filled" in entry)
    assert [logged[f"sera/{name}"] for name in PARTS] == [kept, 0, planned, 0]
    run_cli("sera", "export", run, "--round", "2", "--out", tmp_path / "set")
    lines = (tmp_path / "set/train.jsonl").read_text().splitlines()
    exported = [json.loads(line) for line in lines]
    assert [(row["example_id"], row["filled"]) for row in exported] == [
        (row["example_id"], row["filled"]) for row in rows
    ]
    assert f"| filled, of all these | {planned} |" in (tmp_path / "set/README.md").read_text()

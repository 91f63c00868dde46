"""Real runs with refinement: off is off, LoRA with the stored source and a resume, ZeRO-3."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import assets
import pyarrow.parquet as pq
import pytest
import slow_reference as slow
import yaml
from command_line import TRAIN_PAIRS, MakeConfig, RunCli, dataset_entry, output_dir
from ranks import LORA, RANKS, TORCHRUN, zero_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.data.ids import content_id
from sera_plugin.data.metrics import metrics_of

pytestmark = pytest.mark.cli
OFF: dict[str, Any] = {"selection": False, "bootstrap": False}
P = "be brave and kind"


def logs(run: Path) -> list[dict[str, Any]]:
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def test_weight_zero_is_a_run_without_the_block(config: MakeConfig, run_cli: RunCli) -> None:
    """One epoch that is never reviewed: plain DPO, to the last bit."""
    found = []
    for refine in ({}, {"refine": {"weight": 0}}):
        path = config(num_epochs=1, sera=OFF | refine)
        run_cli("train", path, "--launcher", "python")
        run = output_dir(path)
        found.append((run / "model.safetensors").read_bytes())
        assert [p.name for p in sorted((run / "sera").glob("round-*"))] == ["round-01"]
        assert [p.name for p in (run / "sera/round-01").iterdir()] == ["summary.json"]
        assert not any("refine/delta" in entry for entry in logs(run))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def lora(config: MakeConfig, run_cli: RunCli) -> Path:
    """SeRA and Sr-IPO with an adapter: two micro-batches per update, checkpoints in rounds."""
    path = config(
        **LORA,
        rl="ipo",
        num_epochs=2,
        saves_per_epoch=4,
        learning_rate=5e-3,
        sera={
            "bootstrap": {"max_new_tokens": 16, "guard": False},
            "refine": {"weight": 0.5, "prompt": P, "placement": "system", "source": "round"},
        },
    )
    run_cli("train", path, "--launcher", "python")
    return path


def test_stored_log_probs_are_those_of_the_starting_policy(lora: Path, llama: Path) -> None:
    words, base = (
        AutoTokenizer.from_pretrained(llama),
        AutoModelForCausalLM.from_pretrained(llama),
    )
    table = pq.read_table(output_dir(lora) / "sera/round-01/refinement.parquet").to_pylist()
    stored = {row["key"]: row for row in table}
    assert len(stored) == TRAIN_PAIRS
    for row in [*assets.pairs(TRAIN_PAIRS)][:8]:
        texts = [
            slow.llama_text(row["messages"]),
            slow.llama_answer(row["chosen"]["content"]),
            slow.llama_answer(row["rejected"]["content"]),
        ]
        prompt = slow.llama_text([{"role": "system", "content": P}, *row["messages"]])
        ids = [words(t, add_special_tokens=False)["input_ids"] for t in (prompt, *texts[1:])]
        found = stored[f"{content_id(*texts)}/offline"]
        for side, answer in (("chosen", ids[1]), ("rejected", ids[2])):
            expected = slow.logp(base, ids[0], answer)
            assert found[f"quality_{side}_logp"] == pytest.approx(expected, abs=1e-3)
            assert found[f"reference_{side}_logp"] == pytest.approx(expected, abs=1e-3)


def test_every_row_of_a_reviewed_round_has_its_log_probs(lora: Path) -> None:
    folder = output_dir(lora) / "sera/round-02"
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    stored = pq.read_table(folder / "refinement.parquet").to_pylist()
    assert {row["key"] for row in stored} == {row["key"] for row in rows}
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    content = (folder / "refinement.parquet").read_bytes()
    assert manifest["refinement.parquet"] == hashlib.sha256(content).hexdigest()
    assert any(row["chosen_ids"] is not None for row in rows), "no pair was bootstrapped"
    summary = json.loads((folder / "summary.json").read_text())
    first = json.loads((folder.with_name("round-01") / "summary.json").read_text())
    assert {metric.name for metric in metrics_of(summary)} == summary.keys() - {"guard"}
    assert first["unrefined"] == summary["unrefined"] == 0
    assert max(abs(first[f"delta_q{q}"]) for q in ("05", "95")) < 1e-6, "Δ is 0 before any update"
    assert summary["delta_std"] > 1e-4
    assert -1 <= summary["delta_margin_correlation"] <= 1
    assert all(math.isfinite(entry["refine/rho"]) for entry in logs(output_dir(lora)))


def test_a_resumed_run_ends_with_the_same_weights(
    lora: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    keys = yaml.safe_load(lora.read_text())
    keys["output_dir"] = str(tmp_path / "out")
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(keys | {"resume_from_checkpoint": None}))
    whole = output_dir(lora)
    steps = sorted(int(p.name.split("-")[1]) for p in whole.glob("checkpoint-*"))
    within = next(step for step in steps if TRAIN_PAIRS // 8 < step < steps[-1])
    shutil.copytree(whole, tmp_path / "out")
    for step in steps:
        if step > within:
            shutil.rmtree(tmp_path / "out" / f"checkpoint-{step}")
    (tmp_path / "out/adapter_model.safetensors").unlink()
    stored = tmp_path / "out/sera/round-02/refinement.parquet"
    before = stored.stat().st_mtime_ns
    checkpoint = str(tmp_path / "out" / f"checkpoint-{within}")
    path.write_text(yaml.safe_dump(keys | {"resume_from_checkpoint": checkpoint}))
    run_cli("train", path, "--launcher", "python")
    assert stored.stat().st_mtime_ns == before, "Δ was found again under another policy"
    ends = [run / "adapter_model.safetensors" for run in (tmp_path / "out", whole)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_zero3_finds_what_one_process_finds(
    config: MakeConfig, run_cli: RunCli, llama: Path, tmp_path: Path
) -> None:
    """A pass of its own in every micro-batch, on two ranks that hold half of the weights each."""
    data = assets.write_jsonl(tmp_path / "train.jsonl", assets.pairs(32, seed=3))
    common: dict[str, Any] = {
        "datasets": [dataset_entry(data)],
        "num_epochs": 1,
        "learning_rate": 5e-3,
        "sera": OFF | {"refine": {"weight": 0.5, "prompt": P, "placement": "system"}},
    }
    alone = config(**common)
    out = run_cli("train", alone, "--launcher", "python")
    words = AutoTokenizer.from_pretrained(llama)
    tokens = slow.tokens_behind(words, P, assets.pairs(32, seed=3))
    assert f"Estimate of what Δ takes in a round of 32 pairs: {tokens:,} tokens" in out
    both = config(
        **common,
        plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        micro_batch_size=2,
        deepspeed=zero_config(tmp_path, 3),
    )
    run_cli("train", both, *TORCHRUN, env=RANKS, timeout=300)
    found, expected = logs(output_dir(both)), logs(output_dir(alone))
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        for name in ("loss", "refine/delta", "refine/rho", "rewards/margins"):
            assert one[name] == pytest.approx(other[name], abs=1e-3), name
    assert abs(expected[-1]["rewards/margins"]) > 0.01, "the policy has not moved"

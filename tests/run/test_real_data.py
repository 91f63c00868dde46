"""Real preference data through the real command line; skipped where the data is absent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import assets
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from datasets import load_dataset

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the preference data is not at {DATA}"),
]
ALPACA: dict[str, Any] = {
    "path": str(DATA / "alpaca_eval_pairs.jsonl"),
    "ds_type": "json",
    "split": "train[:400]",
    "type": "chat_template.default",
    "field_messages": "conversation",
}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
CASES = {
    "alpaca-llama-dpo-full": ("alpaca", "llama", "dpo", {}),
    "alpaca-qwen-ipo-lora": ("alpaca", "qwen", "ipo", LORA),
    "multiturn-llama-ipo-full": ("multi_turn", "llama", "ipo", {}),
    "multiturn-qwen-dpo-lora": ("multi_turn", "qwen", "dpo", LORA),
}


def _multi_turn(path: Path) -> dict[str, Any]:
    """The multi-turn chats with the keys of the template: Axolotl's schema of DPO datasets drops
    ``message_property_mappings``."""
    role = {"human": "user", "gpt": "assistant", "system": "system"}

    def message(turn: dict[str, str]) -> dict[str, str]:
        return {"role": role[turn["from"]], "content": turn["value"]}

    rows = [
        {
            "messages": [message(turn) for turn in row["conversations"]],
            "chosen": message(row["chosen"]),
            "rejected": message(row["rejected"]),
        }
        for row in json.loads((DATA / "dpo_en_demo.json").read_text(encoding="utf-8"))
    ]
    assert max(len(row["messages"]) for row in rows) > 5
    return dataset_entry(assets.write_jsonl(path, rows))


def _texts() -> list[str]:
    rows = load_dataset("json", data_files=ALPACA["path"], split="train")
    return [row["chosen"]["content"] for row in rows]


@pytest.fixture(scope="module", params=CASES)
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    config: MakeConfig,
    run_cli: RunCli,
) -> Path:
    source, style, rl, adapter = CASES[request.param]
    folder = tmp_path_factory.mktemp("model")
    base = assets.save_model(folder / "model", style, _texts())
    dataset = ALPACA if source == "alpaca" else _multi_turn(folder / "chats.jsonl")
    path = config(
        drop=("test_datasets",),
        base_model=str(base),
        rl=rl,
        datasets=[dataset],
        sequence_len=1024,
        val_set_size=0.1,
        num_epochs=2,
        micro_batch_size=4,
        gradient_accumulation_steps=4,
        logging_steps=5,
        sera={
            "bootstrap": {"max_new_tokens": 24, "num_candidates": 2, "prompts": 0.4, "guard": False}
        },
        **adapter,
    )
    run_cli("train", path, "--launcher", "python", timeout=600)
    return output_dir(path)


def test_artifacts_of_the_reviewed_round(run: Path) -> None:
    settings = json.loads((run / "sera/run.json").read_text())
    pairs = settings["pairs"]
    kept, fresh = settings["rounds"][1]["kept"], settings["rounds"][1]["bootstrapped"]
    assert kept == math.floor(0.7 * pairs + 0.5)
    assert fresh == math.floor(0.3 * pairs + 0.5)

    margins = pq.read_table(run / "sera/round-02/margins.parquet").to_pandas()
    assert len(margins) == pairs
    assert margins["example_id"].is_unique
    assert margins["margin"].notna().all()
    assert margins["margin"].std() > 0
    assert margins["kept"].sum() == kept
    dropped = margins.loc[~margins["kept"], "ensembled_margin"].max()
    assert margins.loc[margins["kept"], "ensembled_margin"].min() >= dropped

    rows = pq.read_table(run / "sera/round-02/rows.parquet").to_pandas()
    assert len(rows) == kept + fresh
    summary = json.loads((run / "sera/round-02/summary.json").read_text())
    assert rows["chosen_ids"].notna().sum() == summary["bootstrapped"]
    assert summary["bootstrapped"] + summary["shortfall"] == fresh
    assert summary["kl_policy_samples"] == summary["kl_policy_samples"]

    lines = (run / "sera/round-02/bootstrapped.jsonl").read_text().splitlines()
    assert len(lines) == summary["bootstrapped"] > 0
    for line in map(json.loads, lines):
        assert line["reward_chosen"] > line["reward_rejected"]
        assert "policy" in {line["chosen_source"], line["rejected_source"]}
        assert {"prompt", "chosen", "rejected"} <= line.keys()
        assert len(line["candidates"]) >= 2


def test_answers_fit_and_end_like_offline_ones(run: Path) -> None:
    settings = json.loads((run / "sera/run.json").read_text())
    ending = settings["ending_token_ids"]
    candidates = pq.read_table(run / "sera/round-02/candidates.parquet").to_pandas()
    assert {"policy", "offline_chosen", "offline_rejected"} == set(candidates["source"])
    for _, row in candidates.iterrows():
        tokens = list(row["token_ids"])
        if row["finished"]:
            assert tokens[-len(ending) :] == ending
        else:
            assert row["source"] == "policy"
            assert len(tokens) <= 24
    chosen = pq.read_table(run / "sera/round-02/rows.parquet").to_pandas()["chosen_ids"].dropna()
    assert all(list(tokens)[-len(ending) :] == ending for tokens in chosen)


def test_axolotl_trains_on_the_bootstrapped_pairs(
    run: Path, config: MakeConfig, run_cli: RunCli
) -> None:
    keys = yaml.safe_load((run.parent / "config.yml").read_text())
    again = config(
        drop=("test_datasets", "sera", "plugins"),
        base_model=keys["base_model"],
        datasets=[
            {
                "path": str(run / "sera/round-02/bootstrapped.jsonl"),
                "ds_type": "json",
                "split": "train",
            }
        ],
        sequence_len=1024,
        num_epochs=1,
        max_steps=1,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
    )
    out = run_cli("train", again, "--launcher", "python")
    assert "Training completed" in out

"""The commands after a run on real pairs, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import assets
import pytest
import yaml
from command_line import MakeConfig, RunCli, output_dir
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the preference data is not at {DATA}"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: MakeConfig, run_cli: RunCli) -> Path:
    """The config of a SeRA run on 96 real pairs."""
    data = str(DATA / "alpaca_eval_pairs.jsonl")
    rows = load_dataset("json", data_files=data, split="train[:200]")
    said = [row["chosen"]["content"] for row in rows]
    base = assets.save_model(tmp_path_factory.mktemp("model") / "model", "llama", said)
    path = config(
        drop=("test_datasets",),
        base_model=str(base),
        datasets=[
            {
                "path": data,
                "ds_type": "json",
                "split": "train[:96]",
                "type": "chat_template.default",
                "field_messages": "conversation",
            }
        ],
        sequence_len=768,
        num_epochs=2,
        sera={"bootstrap": {"max_new_tokens": 16, "num_candidates": 2, "guard": False}},
    )
    run_cli("train", path, "--launcher", "python", timeout=600)
    return path


def test_report(run: Path, real_cli: RunCli) -> None:
    out = output_dir(run)
    said = real_cli("sera", "report", out)
    page = out / "sera/report.html"
    assert f"{page} (" in said
    text = page.read_text(encoding="utf-8")
    assert "margins-2" in text
    assert "A color description has been provided" in text
    assert "Bootstrapped pairs" in text
    assert "No evaluation pairs, so this run can&#39;t say" in text


def test_axolotl_trains_on_an_export(run: Path, run_cli: RunCli, config: MakeConfig) -> None:
    out = output_dir(run)
    run_cli("sera", "export", out, "--round", "2", "--format", "axolotl")
    exported = out / "export/round-02-axolotl/train.jsonl"
    rows = [json.loads(line) for line in exported.open(encoding="utf-8")]
    settings = json.loads((out / "sera/run.json").read_text())
    planned = settings["rounds"][1]
    assert len(rows) == planned["kept"] + planned["bootstrapped"]
    assert {row["source"] for row in rows} == {"offline", "bootstrapped"}
    plain = config(
        drop=("test_datasets", "sera", "plugins"),
        base_model=yaml.safe_load(run.read_text())["base_model"],
        datasets=[{"path": str(exported), "ds_type": "json", "split": "train"}],
        sequence_len=768,
        num_epochs=1,
        max_steps=1,
    )
    assert "Training completed" in run_cli("train", plain, "--launcher", "python")


def test_trl_trains_on_an_export(run: Path, run_cli: RunCli, tmp_path: Path) -> None:
    run_cli("sera", "export", output_dir(run), "--round", "2", "--format", "trl",
            "--out", tmp_path / "set")  # fmt: skip
    train = load_dataset("parquet", data_files=str(tmp_path / "set/train.parquet"), split="train")
    base = yaml.safe_load(run.read_text())["base_model"]
    arguments = DPOConfig(
        str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, use_cpu=True,
        bf16=False, report_to=[], max_length=768, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=train.select_columns(["prompt", "chosen", "rejected"]),
    )
    assert len(trainer.train_dataset) == train.num_rows
    assert trainer.train().training_loss > 0


def test_help_lists_the_commands(run_cli: RunCli) -> None:
    assert "sera" in run_cli("--help")
    said = run_cli("sera", "--help")
    for name in ("audit", "export", "plan", "report"):
        assert f"\n  {name} " in said

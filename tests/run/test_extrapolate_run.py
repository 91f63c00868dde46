"""``axolotl sera extrapolate`` after real runs, through the real command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import MakeConfig, RunCli, output_dir
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.cli

LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lora_modules_to_save": ["lm_head"],
    "peft_use_rslora": True,
}


@pytest.fixture(scope="module")
def full(config: MakeConfig, run_cli: RunCli) -> Path:
    """Plain DPO without SeRA, whose evaluation batches are not all of one size."""
    path = config(drop=("sera", "plugins"), num_epochs=2, eval_batch_size=5)
    run_cli("train", path, "--launcher", "python")
    return path


@pytest.fixture(scope="module")
def lora(config: MakeConfig, run_cli: RunCli) -> Path:
    """SeRA with an adapter and IPO, and another β than in the YAML."""
    sera = {"bootstrap": {"fraction": 0}}
    path = config(rl="ipo", num_epochs=2, sera=sera, **LORA)
    run_cli("train", path, "--launcher", "python", "--rl-beta", "0.3")
    return path


def last_evaluation(out: Path) -> dict[str, float]:
    """What the host logged at the end, from wherever that is."""
    states = sorted(out.glob("checkpoint-*/trainer_state.json"), key=lambda p: p.stat().st_mtime)
    log = json.loads(states[-1].read_text())["log_history"]
    return next(entry for entry in reversed(log) if "eval_loss" in entry)


def printed(said: str) -> dict[float, list[float]]:
    """Loss, accuracy and reward margin by α."""
    rows = re.findall(r"│ ([\d.]+) +│ +(\S+) │ +(\S+) │ +(\S+) │", said)
    return {float(alpha): [float(number) for number in rest] for alpha, *rest in rows}


def check_evaluation(said: str, out: Path) -> None:
    rows, host = printed(said), last_evaluation(out)
    assert list(rows) == [0.0, 0.3, 2.0]
    names = ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")
    assert rows[0.0] == pytest.approx([host[name] for name in names], abs=6e-5)
    assert rows[0.0][2] < rows[0.3][2] < rows[2.0][2]


def logits(folder: Path, base: str) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(base)("seven quick rivers", return_tensors="pt")
    found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(**ids).logits
    return found.detach()


def test_a_full_run(full: Path, run_cli: RunCli) -> None:
    out, base = output_dir(full), yaml.safe_load(full.read_text())["base_model"]
    said = run_cli("sera", "extrapolate", full, "--alpha", "0.3", "2", "--eval")
    folders = {alpha: out / f"extrapolated/alpha-{alpha:g}" for alpha in (0.3, 2)}
    assert all(f"\n{folder}\n" in f"\n{said}" for folder in folders.values())
    start, end = (load_file(Path(f) / "model.safetensors") for f in (base, out))
    assert not torch.equal(start["lm_head.weight"], end["lm_head.weight"])
    for alpha, folder in folders.items():
        for name, found in load_file(folder / "model.safetensors").items():
            assert torch.equal(found, end[name] + alpha * (end[name] - start[name]))
    assert logits(folders[2], str(folders[2])).isfinite().all()
    check_evaluation(said, out)
    again = run_cli("sera", "extrapolate", full, "--alpha", "0.3")
    assert f"{folders[0.3]} (as before)\n" in again


def test_an_adapter_of_a_sera_run_by_its_folder(lora: Path, run_cli: RunCli) -> None:
    out, base = output_dir(lora), yaml.safe_load(lora.read_text())["base_model"]
    beyond = out.parent / "beyond"
    arguments = ("--alpha", "0.3", "2", "--eval", "--out", beyond)
    said = run_cli("sera", "extrapolate", out, *arguments)
    check_evaluation(said, out)
    before = json.loads((out / "adapter_config.json").read_text())
    after = json.loads((beyond / "alpha-2/adapter_config.json").read_text())
    assert before["use_rslora"]
    assert after == before | {"lora_alpha": 24}
    head = "base_model.model.lm_head.weight"
    start = load_file(Path(base) / "model.safetensors")["lm_head.weight"]
    end, found = (load_file(f / "adapter_model.safetensors") for f in (out, beyond / "alpha-2"))
    assert not torch.equal(end[head], start)
    assert torch.equal(found[head], end[head] + 2 * (end[head] - start))
    assert all(torch.equal(found[name], end[name]) for name in end if name != head)
    assert not torch.allclose(logits(beyond / "alpha-2", base), logits(out, base))


def refused(run_cli: RunCli, *arguments: str | Path) -> str:
    said = run_cli("sera", "extrapolate", *arguments, expect_failure=True)
    assert "Traceback" not in said
    return said.strip().splitlines()[-1].removeprefix("Error: ")


def test_bad_input_is_one_sentence(
    full: Path, config: MakeConfig, run_cli: RunCli, tmp_path: Path
) -> None:
    said = refused(run_cli, full, "--alpha", "-1")
    assert said == "--alpha -1 is not allowed; it must be a number above 0."
    assert "'abc' is not a valid float." in refused(run_cli, full, "--alpha", "0.3", "abc")
    assert "holds no sera/run.json" in refused(run_cli, output_dir(full), "--alpha", "1")
    keys: dict[str, Any] = {"output_dir": str(output_dir(full))}
    none = config(**keys, drop=("sera", "plugins", "test_datasets"))
    said = refused(run_cli, none, "--alpha", "1", "--eval", "--out", tmp_path / "b")
    assert said.endswith("has no evaluation pairs; set test_datasets or val_set_size.")
    other = config(**keys, drop=("sera", "plugins"), dpo_loss_type=["sigmoid", "hinge"])
    said = refused(run_cli, other, "--alpha", "1", "--eval", "--out", tmp_path / "c")
    assert said.startswith("--eval: rl: dpo with the loss sigmoid, hinge can't be evaluated here;")
    assert not list(tmp_path.glob("*/alpha*"))

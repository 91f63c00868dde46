"""Plain DPO with LoRA on pairs of the task by ``axolotl train``, going on from checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.smollm.sentiment import Pair

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "AXOLOTL_DATASET_NUM_PROC": "0",
}


class TimeIsUp(Exception):
    """What is stored stays; another call goes on."""


@dataclass(frozen=True)
class Task:
    """What is asked for, and where it lies.

    Attributes:
        model: the starting model's folder.
        results: folder of what is stored.
        work: folder of what can be made again.
        pairs: pairs to train on.
        held_out: pairs that are held out; the first half chooses the learning rate.
        epochs: of each run.
        seed: of prompts, samples and training.
        end: when to stop, by the monotonic clock, seconds.
    """

    model: Path
    results: Path
    work: Path
    pairs: int
    held_out: int
    epochs: int
    seed: int
    end: float

    def check(self) -> None:
        """Raises TimeIsUp if it is."""
        if time.monotonic() > self.end:
            raise TimeIsUp


def config_of(task: Task, rate: float, data: Path, folder: Path) -> dict[str, Any]:
    """The YAML of a run of plain DPO."""
    return {
        "base_model": str(task.model.resolve()),
        "rl": "dpo",
        "rl_beta": 0.1,
        "datasets": [
            {"path": str(data.resolve()), "split": "train", "type": "chat_template.default",
             "field_messages": "conversation"}
        ],
        "val_set_size": 0,
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(folder.resolve() / "prepared"),
        "output_dir": str(folder.resolve() / "out"),
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        "sequence_len": 256,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_epochs": task.epochs,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "learning_rate": rate,
        "warmup_ratio": 0.1,
        "save_steps": 10,
        "save_total_limit": 1,
        "auto_resume_from_checkpoints": True,
        "logging_steps": 5,
        "seed": task.seed,
        **dict.fromkeys(("bf16", "fp16", "tf32", "gradient_checkpointing"), False),
    }  # fmt: skip


def train(task: Task, rate: float, pairs: Sequence[Pair]) -> Path:
    """Train one policy, or go on; the folder with its adapter."""
    folder = task.work / f"{len(pairs)}-pairs-{task.epochs}-epochs-{rate:g}-seed-{task.seed}"
    out, done = folder / "out", folder / "trained"
    if done.exists():
        return out
    task.check()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(pair.row()) + "\n" for pair in pairs), encoding="utf-8")
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config_of(task, rate, data, folder)), encoding="utf-8")
    for checkpoint in out.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint)  # cut while it was written
    program = Path(sys.executable).parent / "axolotl"
    with (folder / "train.log").open("ab") as log:
        try:
            code = subprocess.run(
                [str(program), "train", str(path), "--launcher", "python"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | OFFLINE,
                timeout=max(1.0, task.end - time.monotonic()),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise TimeIsUp from None
    if code:
        raise SystemExit(f"axolotl train left with {code}; {folder / 'train.log'} says why.")
    done.touch()
    return out

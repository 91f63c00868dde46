"""DPO with LoRA on pairs of the task by ``axolotl train``, going on from checkpoints."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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
        device: what trains and judges, ``cpu`` or ``cuda``.
        checkpoints: of a run that are kept, the latest ones.
    """

    model: Path
    results: Path
    work: Path
    pairs: int
    held_out: int
    epochs: int
    seed: int
    end: float
    device: str = "cpu"
    checkpoints: int = 1

    def check(self) -> None:
        """Raises TimeIsUp if it is."""
        if time.monotonic() > self.end:
            raise TimeIsUp


SECONDS = "seconds"
BETA, LORA_R, LORA_ALPHA, WARMUP = 0.1, 16, 32, 0.1
PLUGINS = ("sera_plugin.SeRAPlugin", "benchmarks.smollm.on_cpu.OnCpu")
PLAIN: dict[str, Any] = {"selection": False, "bootstrap": False}
"""Plain DPO: the updates are the host's, computed without padding and with shared prompts."""


def config_of(
    task: Task, data: Path, folder: Path, sera: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    """The YAML of a run with a block ``sera:``, and what else ``changes``."""
    return {
        "base_model": str(task.model.resolve()),
        "plugins": list(PLUGINS if task.device == "cpu" else PLUGINS[:1]),
        "sera": sera,
        "rl": "dpo",
        "rl_beta": BETA,
        "datasets": [
            {"path": str(data.resolve()), "split": "train", "type": "chat_template.default",
             "field_messages": "conversation"}
        ],
        "val_set_size": 0,
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(folder.resolve() / "prepared"),
        "output_dir": str(folder.resolve() / "out"),
        "adapter": "lora",
        "lora_r": LORA_R,
        "lora_alpha": LORA_ALPHA,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        "sequence_len": 256,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_epochs": task.epochs,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "warmup_ratio": WARMUP,
        "save_steps": 10,
        "save_total_limit": task.checkpoints,
        "auto_resume_from_checkpoints": True,
        "logging_steps": 5,
        "seed": task.seed,
        "bf16": True,
        **dict.fromkeys(("fp16", "tf32", "gradient_checkpointing"), False),
        **changes,
    }  # fmt: skip


def train(
    task: Task,
    folder: Path,
    rows: Sequence[dict[str, Any]],
    sera: dict[str, Any],
    changes: dict[str, Any],
) -> Path:
    """Train one policy, or go on; the folder with its adapter.

    Args:
        task: what is asked for.
        folder: of this run's data, config, log and output.
        rows: the pairs, as the host reads them.
        sera: the plugin's block.
        changes: other keys of the YAML.
    """
    out, done = folder / "out", folder / "trained"
    if done.exists():
        return out
    task.check()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config_of(task, data, folder, sera, changes)), encoding="utf-8")
    for checkpoint in out.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint)  # cut while it was written
    program = Path(sys.executable).parent / "axolotl"
    before = _processor_time()
    with (folder / "train.log").open("ab") as log:
        try:
            code = subprocess.run(
                [str(program), "train", str(path), "--launcher", "python"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                timeout=max(1.0, task.end - time.monotonic()),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise TimeIsUp from None
        finally:
            with (folder / SECONDS).open("a", encoding="utf-8") as taken:
                taken.write(f"{_processor_time() - before:.1f}\n")
    if code:
        raise SystemExit(f"axolotl train left with {code}; {folder / 'train.log'} says why.")
    done.touch()
    return out


def _environment() -> dict[str, str]:
    """That of the run: offline, and with this repository's modules, of which one is a plugin."""
    root = str(Path(__file__).resolve().parents[2])
    modules = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return os.environ | OFFLINE | {"PYTHONPATH": modules}


def seconds(folder: Path) -> float:
    """Processor time of a run, of all calls that went on with it."""
    return sum(map(float, (folder / SECONDS).read_text(encoding="utf-8").split()))


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

"""What refinement costs: plain DPO, `source: on_the_fly` and `source: round` in one sitting.

    python -m benchmarks.refine_cost [--repeats 3] [--hidden 256] [--pairs 128]

Each is a run of two rounds on all pairs without reviews; the second round is measured, the first
warms up. The runs take turns. A line of JSON per run, then medians and the ratio to plain DPO.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.runs import environment
from tests import assets

OFF: dict[str, Any] = {"selection": False, "bootstrap": False}
PROMPT = "be brave and kind and gentle"
ARMS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "on_the_fly": {"refine": {"weight": 0.05, "prompt": PROMPT, "source": "on_the_fly"}},
    "round": {"refine": {"weight": 0.05, "prompt": PROMPT, "source": "round"}},
}


def make(folder: Path, hidden: int, pairs: int) -> None:
    """Write a random model and pairs."""
    rows = list(assets.pairs(pairs))
    texts = [
        text
        for row in rows
        for text in (
            row["messages"][0]["content"],
            row["chosen"]["content"],
            row["rejected"]["content"],
        )
    ]
    assets.save_model(folder / "model", "llama", texts, hidden=hidden)
    assets.write_jsonl(folder / "train.jsonl", rows)


def seconds(folder: Path, arm: str, name: str, threads: int) -> dict[str, float]:
    """Train once; seconds of round 2: its updates, and finding Δ before them."""
    run = folder / name
    keys = {
        "base_model": str(folder / "model"),
        "plugins": ["sera_plugin.SeRAPlugin"],
        "trainer_cls": "sera_plugin.trainer.SeRATrainer",
        "rl": "dpo",
        "rl_beta": 0.1,
        "datasets": [
            {
                "path": str(folder / "train.jsonl"),
                "ds_type": "json",
                "split": "train",
                "type": "chat_template.default",
            }
        ],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(run),
        "sequence_len": 256,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_epochs": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "val_set_size": 0,
        "bf16": False,
        "save_strategy": "no",
        "seed": 7,
        "sera": OFF | ARMS[arm],
    }
    config = folder / f"{name}.yml"
    config.write_text(yaml.safe_dump(keys), encoding="utf-8")
    script = Path(sys.executable).parent / "axolotl"
    done = subprocess.run(
        [str(script), "train", str(config), "--launcher", "python"],
        env=environment("cpu", threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"axolotl train left with {done.returncode}:\n{done.stdout[-4000:]}")
    found = json.loads((run / "sera/round-02/summary.json").read_text(encoding="utf-8"))
    training, refining = found["seconds_training"], found.get("seconds_refining", 0.0)
    return {"training": training, "refining": refining, "together": training + refining}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.hidden, asked.pairs)
        for turn in range(asked.repeats):
            for arm in ARMS:
                result = seconds(folder, arm, f"{arm}-{turn}", asked.threads)
                found[arm].append(result["together"])
                print(json.dumps({"arm": arm, "turn": turn, **result}), flush=True)
    plain = statistics.median(found["dpo"])
    for arm, values in found.items():
        middle = statistics.median(values)
        print(f"{arm}: {middle:.2f} s, {middle / plain:.2f} times plain DPO")


if __name__ == "__main__":
    main()

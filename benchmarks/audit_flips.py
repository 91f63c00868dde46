"""Precision and recall of ``axolotl sera audit`` on the small world, whose flips are known.

``python -m benchmarks.audit_flips``: an SFT model, pairs of which a share is flipped, a plain DPO
run of a few epochs through ``axolotl train``, then the audit. Prints a Markdown table for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.evidence import pairs, runner
from benchmarks.evidence.runs import Settings
from benchmarks.evidence.study import SPARE, WORK, make_sft
from benchmarks.evidence.world import World

AXOLOTL = str(Path(sys.executable).parent / "axolotl")


def write_config(folder: Path, sft: Path, seed: int, count: int, noise: float, epochs: int) -> Path:
    """Pairs and the YAML of a plain DPO run."""
    labelled = pairs.label(
        pairs.off_policy(World(seed), int(count * SPARE), seed), count, noise, seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    pairs.write_jsonl(folder / "pairs.jsonl", pairs.as_rows(labelled))
    keys = runner.base_config(sft, folder / "pairs.jsonl", folder)
    keys |= {"num_epochs": epochs, "learning_rate": 1e-3, "rl_beta": 0.1, "seed": seed}
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sft = make_sft(options.seed, Settings(), options.work)
    for noise in options.noise:
        folder = options.work / f"audit-{options.pairs}-{noise}-{options.epochs}-{options.seed}"
        config = write_config(folder, sft, options.seed, options.pairs, noise, options.epochs)
        subprocess.run([AXOLOTL, "train", config, "--launcher", "python"], check=True)
        out = folder / "audit"
        subprocess.run(
            [AXOLOTL, "sera", "audit", config, "--truth", "flipped", "--out", out], check=True
        )
        summary = json.loads((out / "summary.json").read_text())
        print(f"\n{noise:.0%} flipped, {options.pairs:,} pairs, {options.epochs} epochs of DPO\n")
        print("| Most suspicious | Margin up to | Precision | Recall |\n| --- | --- | --- | --- |")
        for cut in summary["cuts"]:
            print(
                f"| {cut['share']:.1%} | {cut['margin']:.2f} | {cut['precision']:.1%} | "
                f"{cut['recall']:.1%} |"
            )


if __name__ == "__main__":
    main()

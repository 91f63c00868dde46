"""Checks that start ``axolotl train``: a run in bf16 with QLoRA, the bench table, a real vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.found import Machine, Row, Skipped, needs

LAST = 1500
"""Characters that are shown of what a failed run said."""


def qlora_run(machine: Machine) -> list[Row]:
    """QLoRA through the command line, in bf16 on a GPU, with selection and bootstrapping."""
    needs("bitsandbytes")
    more = {"load_in_4bit": True, "adapter": "qlora", "lora_r": 8, "lora_alpha": 16}
    return [_train(machine, {}, more | {"lora_target_linear": True})]


def vllm(machine: Machine) -> list[Row]:
    """A run whose completions come from a real vLLM in the training process."""
    needs("vllm")
    if not machine.gpu:
        raise Skipped("vLLM on a CPU is not this check's")
    memory = {"vllm": {"gpu_memory_utilization": 0.2}}
    return [_train(machine, {"engine": "vllm", "vllm_mode": "colocate"}, memory)]


def bench(machine: Machine) -> list[Row]:
    """``python -m benchmarks``: plain DPO, selection and full SeRA, and the passes."""
    needs("matplotlib")
    sizes = ["--device", "gpu", "--preset", "llama-1b"] if machine.gpu else ["--quick"]
    out = machine.folder / "bench"
    _run(
        [
            *(sys.executable, "-m", "benchmarks", *sizes, "--repeats", "1"),
            *("--parts", "runs,passes", "--variants", "plain,select,full", "--out", str(out)),
        ],
        machine,
    )
    (table,) = out.glob("*.md")
    return [Row("bench", table.read_text(encoding="utf-8"))]


def _train(machine: Machine, bootstrap: dict[str, Any], more: dict[str, Any]) -> Row:
    from benchmarks.assets import make
    from benchmarks.presets import TINY
    from benchmarks.variants import write_config

    assets = machine.folder / "assets"
    assets.mkdir()
    made = make(assets, TINY)
    sera = {"bootstrap": {"max_new_tokens": 16, "guard": False, **bootstrap}}
    keys = more | {"bf16": machine.gpu, "plugins": ["sera_plugin.SeRAPlugin"], "num_epochs": 2}
    config = write_config(machine.folder / "run", assets, "train.jsonl", TINY, sera, **keys)
    script = Path(sys.executable).parent / "axolotl"
    _run([str(script), "train", str(config), "--launcher", "python"], machine)
    folder = machine.folder / "run/out/sera/round-02"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    names = ("kept", "bootstrapped", "margin_mean", "seconds_scoring", "seconds_generation")
    numbers = ", ".join(f"{name} {summary[name]:.3g}" for name in names if name in summary)
    return Row(f"a run of {made['training_pairs']} pairs", numbers, "it ends", True)


def _run(command: list[str], machine: Machine) -> None:
    from benchmarks.runs import ROOT, environment

    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment("gpu" if machine.gpu else "cpu", 1 if not machine.gpu else 8),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"left with {done.returncode}: {done.stdout[-LAST:]}")


CHECKS = {"qlora run": qlora_run, "vllm": vllm, "bench": bench}

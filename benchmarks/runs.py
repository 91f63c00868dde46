"""`axolotl train` in a process of its own, and what the watching plugin reports of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.presets import Preset
from benchmarks.variants import Variant, write_config
from benchmarks.watch import VARIABLE

ROOT = Path(__file__).resolve().parents[1]


class RunError(RuntimeError):
    """A measured process failed; the message ends with what it printed."""


def environment(device: str, threads: int) -> dict[str, str]:
    """Variables of every measured process: offline, one rank, so many threads."""
    kept = {k: v for k, v in os.environ.items() if k not in {"SERA", "SERA_GC"}}
    more = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "WANDB_MODE": "offline",
        "TOKENIZERS_PARALLELISM": "false",
        "AXOLOTL_DATASET_NUM_PROC": "0",
        "OMP_NUM_THREADS": str(threads),
    }
    if device == "cpu":
        more["CUDA_VISIBLE_DEVICES"] = ""
    return kept | more


def interleaved(
    variants: list[Variant],
    repeats: int,
    measure: Callable[[Variant, int], dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """Every variant once, then every variant again: A B C A B C.

    The last of several turns leaves out the variants that no bar is set for.
    """
    found: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    for turn in range(repeats):
        for variant in variants:
            if variant.barred or turn == 0 or turn < repeats - 1:
                found[variant.name].append(measure(variant, turn))
    return found


def measure_variant(
    folder: Path, assets: Path, preset: Preset, variant: Variant, variables: dict[str, str]
) -> dict[str, Any]:
    """Train once; seconds of the whole process and of training, memory, phases by round."""
    config = write_config(folder, assets, "train.jsonl", preset, variant.sera, **variant.keys)
    found = _train(folder, config, {"passes": 0}, variables | variant.environment)
    rounds = sorted((folder / "out/sera").glob("round-*/summary.json"))
    found["rounds"] = [json.loads(path.read_text(encoding="utf-8")) for path in rounds]
    return found


def measure_passes(
    folder: Path,
    assets: Path,
    preset: Preset,
    repeats: int,
    variables: dict[str, str],
    *,
    paged: bool = False,
) -> dict[str, Any]:
    """A few updates, then the plugin's passes against the naive ones.

    Args:
        folder: the run's own.
        assets: where ``assets.make`` wrote.
        preset: sizes.
        repeats: turns.
        variables: of the run's process.
        paged: whether answers are sampled by continuous batching as well.
    """
    sera = {
        "selection": {"keep": 0.7},
        "bootstrap": {
            "num_candidates": preset.candidates,
            "max_new_tokens": preset.max_new_tokens,
        },
    }
    config = write_config(folder, assets, "scored.jsonl", preset, sera, max_steps=4)
    wanted = {
        "passes": repeats,
        "prompts": preset.prompts,
        "batch": preset.micro_batch,
        "paged": paged,
    }
    return _train(folder, config, wanted, variables)["passes"]


def _train(
    folder: Path, config: Path, wanted: dict[str, Any], variables: dict[str, str]
) -> dict[str, Any]:
    report = folder / "report.json"
    script = Path(sys.executable).parent / "axolotl"
    more = {
        VARIABLE: json.dumps({**wanted, "report": str(report)}),
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    start = time.perf_counter()
    done = subprocess.run(
        [str(script), "train", str(config), "--launcher", "python"],
        env=variables | more,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode or not report.exists():
        raise RunError(f"axolotl train left with {done.returncode}:\n{done.stdout[-6000:]}")
    found = json.loads(report.read_text(encoding="utf-8"))
    found["process_seconds"] = time.perf_counter() - start
    return found

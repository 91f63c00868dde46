"""Many arms: models and data made once, arms trained in forked processes."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import artifacts, runner
from benchmarks.evidence.arm import FRESH_SEEDS
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.data import data_key, make_data, make_held_out, make_sft, sft_folder
from benchmarks.evidence.judges import WORLD
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Run, Settings, sft_key
from benchmarks.evidence.world import World

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORK = HERE.parents[1] / "evidence-work"
"""Models, data and output folders, which can be made again."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the scripts that look at new worlds: which ones, and where things lie."""
    parser.add_argument("--seeds", nargs="+", type=int, default=list(FRESH_SEEDS))
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)


def run_folder(run: Run, settings: Settings, work: Path) -> Path:
    """Where a run writes."""
    return work / "runs" / f"{run.regime}-{run.arm}-{run.seed}-{run.key(settings)}"


def config_of(run: Run, settings: Settings, work: Path, *, probe: bool = True) -> dict[str, Any]:
    """The YAML of a run."""
    from benchmarks.evidence.probe import PLUGIN

    arm, regime = ARMS[run.arm], REGIMES[run.regime]
    model = sft_folder(run.seed, settings, work, regime.asked)
    folder = run_folder(run, settings, work)
    config = runner.base_config(model, make_data(run, settings, work), folder)
    config |= arm.config(regime, run.rate, run.beta, run.seed)
    guard = config.get("sera", {}).get("bootstrap", {}).get("guard")
    if isinstance(guard, dict):
        # Every arm trains on all of its pairs.
        config["sera"]["bootstrap"] = config["sera"]["bootstrap"] | {
            "guard": guard | {"held_out": 0}
        }
    if arm.held_out:
        path = make_held_out(run, settings, work)
        config["test_datasets"] = [{"path": str(path), "ds_type": "json", "split": "train"}]
        config["eval_strategy"] = "no"
    if probe:
        config["plugins"] = [*config.get("plugins", []), PLUGIN]
        config["evidence_probe"] = {
            "world": run.seed,
            "reference": str(model),
            "split": run.split,
            "result": str(folder / "probe.json"),
            # Tuning looks at the end alone.
            "points": settings.points if run.split == "report" else 1,
            "prompts": settings.prompts,
            "repeats": settings.repeats,
        }
    return config


def execute(run: Run, settings: Settings, work: Path, *, keep: bool = False) -> dict[str, Any]:
    """Train one arm and collect its result.

    Args:
        run: what is trained.
        settings: sizes.
        work: folder for models, data and outputs.
        keep: leave the output folder.
    """
    folder = run_folder(run, settings, work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = config_of(run, settings, work)
    os.environ[WORLD] = str(run.seed)
    runner.train(config, folder)
    result = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    if run.split != "report":
        del result["gold"]
    data = Path(config["datasets"][0]["path"])
    result["rounds"] = artifacts.rounds(folder / "out", data, World(run.seed))
    if "refine" in (ARMS[run.arm].sera or {}):
        result["refined"] = artifacts.refined(folder / "out")
    if not keep:
        shutil.rmtree(folder)
    result["cpu_seconds"] = round(time.process_time(), 1)
    return {"key": run.key(settings), **asdict(run), **result}


def judge_sft(
    seed: int,
    split: str,
    settings: Settings,
    work: Path,
    asked: bool,
    wrapped: Callable[[Any], Any] = lambda model: model,
) -> tuple[Mapping[str, float], np.ndarray]:
    """What the probe would find of an SFT model before the first update, or of what wraps it."""
    from transformers import AutoModelForCausalLM

    from benchmarks.evidence.probe import measure

    model = AutoModelForCausalLM.from_pretrained(make_sft(seed, settings, work, asked)).eval()
    world = World(seed)
    prompts = world.prompts(split, settings.prompts)
    return measure(world, prompts, wrapped(model), model, settings.repeats)


def measure_sft(
    seed: int, split: str, settings: Settings, work: Path, asked: bool = True
) -> dict[str, Any]:
    """The line of an SFT model, as the probe finds it before the first update."""
    numbers, gold = judge_sft(seed, split, settings, work, asked)
    return {
        "key": sft_key(seed, split, settings, asked),
        "regime": "sft",
        "arm": "sft",
        "seed": seed,
        "split": split,
        "curve": [{"step": 0, **numbers}],
        "gold": np.round(gold, 2).tolist(),
    }


def measure_all_sft(
    seeds: Iterable[int],
    settings: Settings,
    results: Results,
    work: Path,
    workers: int,
    asked: bool = True,
) -> None:
    """Measure the SFT models of these seeds on the reporting prompts, unless that is done."""
    missing = [s for s in seeds if sft_key(s, "report", settings, asked) not in results.found]
    jobs = [
        (
            partial(measure_sft, s, "report", settings, work, asked),
            work / "logs" / f"measure-{s}-{asked}.log",
        )
        for s in missing
    ]
    for _, record in runner.run_all(jobs, workers):
        results.add(record)


def execute_all(
    runs: Sequence[Run],
    settings: Settings,
    results: Results,
    work: Path,
    workers: int,
    *,
    keep: bool = False,
) -> Iterator[dict[str, Any]]:
    """Execute the runs that have no result yet, and store each as it finishes.

    Args:
        runs: what is wanted.
        settings: sizes.
        results: where results are stored.
        work: folder for models, data and outputs.
        workers: processes at once.
        keep: leave the output folders.
    """
    # By key: the oracle of two regimes may be one run.
    wanted = {run.key(settings): run for run in runs}
    missing = [run for key, run in wanted.items() if key not in results.found]
    models = sorted({(run.seed, run.data.asked) for run in missing})
    logs = work / "logs"
    makers = [
        (partial(make_sft, seed, settings, work, asked), logs / f"sft-{seed}-{asked}.log")
        for seed, asked in models
        if not sft_folder(seed, settings, work, asked).exists()
    ]
    for _ in runner.run_all(makers, workers):
        pass
    # Written one after the other: two workers must not write one file.
    data = {data_key(run): run for run in missing}
    write = [(partial(_make_all_data, list(data.values()), settings, work), logs / "data.log")]
    for _ in runner.run_all(write if data else [], 1):
        pass
    jobs = [
        (
            partial(execute, run, settings, work, keep=keep),
            logs / f"{run_folder(run, settings, work).name}.log",
        )
        for run in missing
    ]
    for _, record in runner.run_all(jobs, workers):
        results.add(record)
        yield record


def _make_all_data(runs: Iterable[Run], settings: Settings, work: Path) -> None:
    for run in runs:
        make_data(run, settings, work)
        if ARMS[run.arm].held_out:
            make_held_out(run, settings, work)

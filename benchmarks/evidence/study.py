"""Many arms: models and data made once, arms trained in forked processes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import artifacts, pairs, policy, runner
from benchmarks.evidence.arms import ARMS, REGIMES
from benchmarks.evidence.runs import Results, Run, Settings, fingerprint, sft_key
from benchmarks.evidence.world import World

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORK = HERE.parents[1] / "evidence-work"
"""Models, data and output folders, which can be made again."""
SPARE = 1.15
"""Prompts per pair that are answered: some give no pair."""


def sft_folder(seed: int, settings: Settings, work: Path) -> Path:
    """Where the SFT model of a seed is."""
    text = json.dumps([fingerprint(), asdict(settings.size), settings.sft_steps])
    return work / f"sft-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}-{seed}"


def make_sft(seed: int, settings: Settings, work: Path) -> Path:
    """Train the SFT model of a seed, unless it is there."""
    folder = sft_folder(seed, settings, work)
    if not folder.exists():
        building = folder.with_name(folder.name + ".tmp")
        policy.train_sft(World(seed), building, settings.size, settings.sft_steps)
        building.rename(folder)
    return folder


def make_data(run: Run, settings: Settings, work: Path) -> Path:
    """Write the pairs of a run, unless they are there."""
    from transformers import AutoModelForCausalLM

    arm, regime = ARMS[run.arm], run.data
    model = sft_folder(run.seed, settings, work)
    name = f"{regime.source}-{regime.pairs}-{regime.noise}-{regime.spurious}-{arm.subset}.jsonl"
    path = model / "pairs" / name
    if path.exists():
        return path
    world, prompts = World(run.seed), int(regime.pairs * SPARE)
    if regime.source == "on":
        policy_model = AutoModelForCausalLM.from_pretrained(model)
        candidates = pairs.on_policy(world, policy_model, prompts, run.seed)
    else:
        candidates = pairs.off_policy(world, prompts, run.seed)
    labelled = pairs.label(
        candidates, regime.pairs, regime.noise, run.seed, spurious=regime.spurious
    )
    rows = pairs.as_rows(labelled)
    if arm.subset < 1:
        draw = np.random.default_rng([run.seed, 3])
        count = int(len(rows) * arm.subset + 0.5)
        rows = [rows[i] for i in sorted(draw.permutation(len(rows))[:count])]
    building = path.with_suffix(".tmp")
    pairs.write_jsonl(building, rows)
    building.rename(path)
    return path


def run_folder(run: Run, settings: Settings, work: Path) -> Path:
    """Where a run writes."""
    return work / "runs" / f"{run.regime}-{run.arm}-{run.seed}-{run.key(settings)}"


def config_of(run: Run, settings: Settings, work: Path, *, probe: bool = True) -> dict[str, Any]:
    """The YAML of a run."""
    from benchmarks.evidence.probe import PLUGIN

    arm, regime = ARMS[run.arm], REGIMES[run.regime]
    model = sft_folder(run.seed, settings, work)
    folder = run_folder(run, settings, work)
    config = runner.base_config(model, make_data(run, settings, work), folder)
    config |= arm.config(regime, run.rate, run.beta, run.seed)
    if probe:
        config["plugins"] = [*config.get("plugins", []), PLUGIN]
        config["evidence_probe"] = {
            "world": run.seed,
            "reference": str(model),
            "split": run.split,
            "result": str(folder / "probe.json"),
            "points": settings.points,
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
    runner.train(config, folder)
    result = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    if run.split != "report":
        del result["gold"]
    data = Path(config["datasets"][0]["path"])
    result["rounds"] = artifacts.rounds(folder / "out", data, World(run.seed))
    if not keep:
        shutil.rmtree(folder)
    result["cpu_seconds"] = round(time.process_time(), 1)
    return {"key": run.key(settings), **asdict(run), **result}


def measure_sft(seed: int, split: str, settings: Settings, work: Path) -> dict[str, Any]:
    """What the probe would find before the first update."""
    from transformers import AutoModelForCausalLM

    from benchmarks.evidence.probe import measure

    model = AutoModelForCausalLM.from_pretrained(make_sft(seed, settings, work)).eval()
    world = World(seed)
    prompts = world.prompts(split, settings.prompts)
    numbers, gold = measure(world, prompts, model, model, settings.repeats)
    return {
        "key": sft_key(seed, split, settings),
        "regime": "sft",
        "arm": "sft",
        "seed": seed,
        "split": split,
        "curve": [{"step": 0, **numbers}],
        "gold": np.round(gold, 2).tolist(),
    }


def measure_all_sft(
    seeds: Iterable[int], settings: Settings, results: Results, work: Path, workers: int
) -> None:
    """Measure the SFT models of these seeds on the reporting prompts, unless that is done."""
    missing = [s for s in seeds if sft_key(s, "report", settings) not in results.found]
    jobs = [
        (partial(measure_sft, s, "report", settings, work), work / "logs" / f"measure-{s}.log")
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
    seeds = sorted({run.seed for run in missing})
    logs = work / "logs"
    needed = [s for s in seeds if not sft_folder(s, settings, work).exists()]
    makers = [(partial(make_sft, s, settings, work), logs / f"sft-{s}.log") for s in needed]
    for _ in runner.run_all(makers, workers):
        pass
    # Written one after the other: two workers must not write one file.
    data = {(r.regime, ARMS[r.arm].subset, ARMS[r.arm].clean, r.seed): r for r in missing}
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

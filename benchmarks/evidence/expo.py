"""``python -m benchmarks.evidence.expo``: does extrapolation help a tuned DPO run?

Plain DPO runs as in the report, then θ + α·(θ − θ_start) of each, measured on the same prompts;
beside them DPO with the same β and a higher learning rate, which moves farther as well. Runs that
are stored are not run again. Prints a Markdown table for each regime.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.evidence import runner, study
from benchmarks.evidence.data import make_data, make_sft, sft_folder
from benchmarks.evidence.runs import Results, Run, Settings, digest, report_runs, sft_key
from benchmarks.evidence.statistics import Interval, gold_at
from benchmarks.evidence.tables import table
from benchmarks.evidence.world import World

REGIMES = ("on-0.2", "on-0.4")
SEEDS = range(6)
ALPHAS = (0.1, 0.3, 0.5, 1.0)
FASTER = (1.5, 2.0, 4.0)
"""Learning rates of the compared DPO runs, relative to the tuned one."""
FILE = "expo.jsonl"


def key_of(run: Run, settings: Settings, alpha: float) -> str:
    """Key of the measurement of an extrapolated model."""
    text = json.dumps([run.key(settings), "expo", alpha])
    return digest(text)


def trained(run: Run, settings: Settings, work: Path) -> list[dict[str, Any]]:
    """Train a run and measure the trained model."""
    return [_slim(study.execute(run, settings, work))]


def beyond(run: Run, settings: Settings, work: Path) -> list[dict[str, Any]]:
    """Train a run, and measure the models on its line; α = 0 is the trained model."""
    from transformers import AutoModelForCausalLM

    from benchmarks.evidence.probe import measure
    from sera_plugin.commands.extrapolate import extrapolate
    from sera_plugin.commands.extrapolate_sources import TrainedRun

    study.execute(run, settings, work, keep=True)
    folder, sft = study.run_folder(run, settings, work), sft_folder(run.seed, settings, work)
    out = folder / "out"
    models = extrapolate(TrainedRun(out, str(sft), None, None, {}), ALPHAS, folder / "beyond")
    reference = AutoModelForCausalLM.from_pretrained(sft).eval()
    world = World(run.seed)
    prompts = world.prompts(run.split, settings.prompts)
    records = []
    for alpha, path in [(0.0, out), *((model.alpha, model.folder) for model in models)]:
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        numbers, _ = measure(world, prompts, model, reference, settings.repeats)
        known = {"key": key_of(run, settings, alpha), **asdict(run), "arm": "expo", "alpha": alpha}
        records.append({**known, "curve": [dict(numbers)]})
    shutil.rmtree(folder)
    return records


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("gold", "rounds")} | {
        "curve": record["curve"][-1:]
    }


def missing(runs: Sequence[Run], settings: Settings, results: Results) -> Iterator[tuple[Any, Run]]:
    """What is to be done for the tuned runs, and for which run."""
    for run in runs:
        if any(key_of(run, settings, alpha) not in results.found for alpha in (0.0, *ALPHAS)):
            yield beyond, run
        for faster in (replace(run, rate=run.rate * factor) for factor in FASTER):
            if results.get(faster, settings) is None:
                yield trained, faster


def compared(runs: Sequence[Run], settings: Settings, results: Results) -> str:
    """A Markdown table of one regime."""
    start = {
        run.seed: results.found[sft_key(run.seed, "report", settings)]["curve"][-1]["gold"]
        for run in runs
    }

    def points(alpha: float) -> dict[int, dict[str, float]]:
        return {r.seed: results.found[key_of(r, settings, alpha)]["curve"][-1] for r in runs}

    def faster(factor: float) -> dict[int, dict[str, float]]:
        found = {r.seed: results.get(replace(r, rate=r.rate * factor), settings) for r in runs}
        return {seed: record["curve"][-1] for seed, record in found.items() if record}

    dpo = points(0.0)
    higher = {factor: faster(factor) for factor in FASTER}
    rows = [("DPO", dpo, False)]
    rows += [(f"ExPO, α = {alpha:g}", points(alpha), True) for alpha in ALPHAS]
    rows += [(f"DPO, learning rate × {f:g}", found, False) for f, found in higher.items()]
    cells = []
    for name, found, is_expo in rows:
        gains = Interval.of([found[seed]["gold"] - start[seed] for seed in found])
        against = Interval.of([found[seed]["gold"] - dpo[seed]["gold"] for seed in found])
        equal = "-"
        if is_expo:
            gaps = []
            for seed, point in found.items():
                line = sorted((dpo[seed], *(h[seed] for h in higher.values())), key=_kl)
                gaps.append(point["gold"] - gold_at(line, point["kl"], start[seed]))
            equal = str(Interval.of(gaps))
        mean = {k: sum(p[k] for p in found.values()) / len(found) for k in ("kl", "length")}
        cells.append(
            (name, f"{gains.mean:.2f}", "-" if found is dpo else str(against), equal,
             f"{mean['kl']:.1f}", f"{mean['length']:.1f}")
        )  # fmt: skip
    head = ("model", "gain over SFT", "against DPO", "at equal KL", "KL", "length")
    return table(head, cells)


def _kl(point: dict[str, float]) -> float:
    return point["kl"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.expo")
    parser.add_argument("--work", type=Path, default=study.WORK)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    settings, results = Settings(), Results(study.RESULTS)
    by_regime = {r: report_runs(r, "dpo", SEEDS, settings, results) for r in REGIMES}
    if not options.report_only:
        runner.prepare_parent()
        logs = options.work / "logs"
        for runs in by_regime.values():
            todo = list(missing(runs, settings, results))
            made = [partial(_prepare, run, settings, options.work) for _, run in todo]
            for number, make in enumerate(made):
                list(runner.run_all([(make, logs / f"expo-data-{number}.log")], 1))
            jobs = [
                (partial(job, run, settings, options.work), logs / f"expo-{run.key(settings)}.log")
                for job, run in todo
            ]
            for _, records in runner.run_all(jobs, options.workers):
                for record in records:
                    results.found[record["key"]] = record
                    with open(study.RESULTS / FILE, "a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                    print(record["regime"], record["arm"], record["seed"], record["rate"],
                          record.get("alpha", ""), record["curve"][-1], flush=True)  # fmt: skip
    for regime, runs in by_regime.items():
        print(f"\n{regime}\n\n{compared(runs, settings, results)}")


def _prepare(run: Run, settings: Settings, work: Path) -> None:
    make_sft(run.seed, settings, work)
    make_data(run, settings, work)


if __name__ == "__main__":
    main()

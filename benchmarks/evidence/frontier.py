"""``python -m benchmarks.evidence.frontier``: arms at every β, and what they reach at equal KL.

An arm keeps the learning rate that tuning picked and takes every β of ``BETAS``. Its frontier is
the largest gain in gold reward that it has at a KL of at most k, between its βs by linear
interpolation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.evidence import runner, study
from benchmarks.evidence.arm import BETAS, FRESH_SEEDS
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.comparisons import FEWEST
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Run, Settings, sft_key, tuned
from benchmarks.evidence.statistics import Interval
from benchmarks.evidence.summary import Summary
from benchmarks.evidence.tables import table

SWEPT = ("dpo-new", "contrast")
LEVELS = 4
"""KLs at which frontiers are compared."""
Point = tuple[float, float]
"""KL to the SFT model, and the gain in gold reward above it."""

TEXT = (
    "Each at the learning rate that tuning picked for it and at every β of "
    f"{', '.join(f'{beta:g}' for beta in BETAS['dpo'])}: the KL at the end and the gain in gold "
    "reward, means over seeds. Below, the largest gain that each has at a KL of at most k, "
    "between its βs by linear interpolation, with k spread evenly over the KLs that both reach in "
    "a world; differences paired by seed. `python -m benchmarks.evidence.frontier` repeats it."
)


def main() -> None:
    """Run what is missing of the sweeps."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.frontier")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=["on-0.4", "on-0.2"])
    study.add_options(parser)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    runner.prepare_parent()
    results, settings = Results(args.results), Settings()
    study.measure_all_sft(args.seeds, settings, results, args.work, args.workers)
    runs = [
        run
        for seed in args.seeds
        for regime in args.regimes
        for arm in SWEPT
        for run in sweep(regime, arm, seed, settings, results)
    ]
    for record in study.execute_all(runs, settings, results, args.work, args.workers):
        last = record["curve"][-1]
        print(
            f"{record['arm']} {record['regime']} seed {record['seed']} beta {record['beta']:g}: "
            f"gold {last['gold']:.3f} KL {last['kl']:.2f}",
            flush=True,
        )


def sweep(regime: str, arm: str, seed: int, settings: Settings, results: Results) -> list[Run]:
    """The runs of a tuned arm at every β, none before it is tuned."""
    found = tuned(regime, arm, settings, results)
    if found is None:
        return []
    betas = BETAS[ARMS[arm].loss]
    return [Run(regime, found[0], seed, "report", found[1], beta) for beta in betas]


def reached(points: Sequence[Point], kl: float) -> float:
    """The largest gain at a KL of at most ``kl``, on lines between points, from (0, 0) on."""
    ordered = [(0.0, 0.0), *sorted(points)]
    at = float(np.interp(kl, *map(list, zip(*ordered, strict=True))))
    return max(at, *(gain for where, gain in ordered if where <= kl))


def compare(mine: Sequence[Sequence[Point]], other: Sequence[Sequence[Point]]) -> list[list[float]]:
    """Differences of frontiers, a list of seeds per level, at KLs that both reach.

    Args:
        mine: the points of one arm, by seed.
        other: those of the other one, for the same seeds.
    """
    differences: list[list[float]] = [[] for _ in range(LEVELS)]
    for a, b in zip(mine, other, strict=True):
        most = min(max(kl for kl, _ in a), max(kl for kl, _ in b))
        for level in range(LEVELS):
            kl = most * (level + 1) / LEVELS
            differences[level].append(reached(a, kl) - reached(b, kl))
    return differences


def section(summary: Summary) -> list[str]:
    """The part of the page, if there are FEWEST seeds with whole sweeps of both arms."""
    parts = []
    for regime in REGIMES:
        found = {arm: _points(summary, regime, arm) for arm in SWEPT}
        seeds = sorted(set.intersection(*(set(points) for points in found.values())))
        if len(seeds) >= FEWEST:
            parts.append(_regime(regime, found, seeds))
    return ["## At equal distance: sweeps over β", TEXT, *parts] if parts else []


def _points(summary: Summary, regime: str, arm: str) -> dict[int, list[Point]]:
    """Ends of the runs of an arm by seed, one per β, of seeds that have all."""
    settings, results, found = summary.settings, summary.results, {}
    for seed in FRESH_SEEDS:
        sft = results.found.get(sft_key(seed, "report", settings, REGIMES[regime].asked))
        runs = [results.get(run, settings) for run in sweep(regime, arm, seed, settings, results)]
        if sft is None or not runs or None in runs:
            continue
        ends = [run["curve"][-1] for run in runs if run is not None]
        start = sft["curve"][-1]["gold"]
        found[seed] = [(float(end["kl"]), float(end["gold"] - start)) for end in ends]
    return found


def _regime(regime: str, found: dict[str, dict[int, list[Point]]], seeds: list[int]) -> str:
    rows = []
    for arm, points in found.items():
        means = np.mean([points[seed] for seed in seeds], axis=0)
        rows.append((f"`{arm}`", *(f"{kl:.1f}: {gain:+.2f}" for kl, gain in means)))
    mine, base = ([found[arm][seed] for seed in seeds] for arm in reversed(SWEPT))
    gaps = [str(Interval.of(values)) for values in compare(mine, base)]
    head = [f"{(level + 1) / LEVELS:.0%} of the KL that both reach" for level in range(LEVELS)]
    title = f"`{SWEPT[1]}` minus `{SWEPT[0]}`"
    return (
        f"{regime}, {len(seeds)} seeds; KL: gain\n\n"
        + table(("arm", *(f"β {beta:g}" for beta in BETAS["dpo"])), rows)
        + "\n\n"
        + table((regime, *head), [(title, *gaps)])
    )


if __name__ == "__main__":
    main()

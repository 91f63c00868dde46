"""``python -m benchmarks.evidence``: run what is missing, then write the report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence import report, runner, study
from benchmarks.evidence.arm import FRESH_SEEDS
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.plan import (
    DPO,
    IPO,
    MORE,
    MOST_SEEDS,
    NEW,
    PLAN,
    QUICK,
    SEEDS,
    Plan,
    planned,
)
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Run, Settings, report_runs, tuning_runs

PAGE = study.HERE.parents[1] / "docs" / "evidence.md"


def main() -> None:
    args = _arguments()
    results = Results(args.results)
    settings = Settings(sft_steps=args.sft_steps, tuned=not args.untuned)
    if not args.report_only:
        runner.prepare_parent()
        for plan, seeds in _plans(args):
            for asked in sorted({REGIMES[regime].asked for regime, _ in plan}):
                study.measure_all_sft(seeds, settings, results, args.work, args.workers, asked)
            for regime, arms in plan:
                _run(regime, arms, seeds, settings, results, args)
    # What was seen was seen in the stored results, not in those of another folder.
    if args.no_page:
        return
    reading = study.HERE / "reading.md" if args.results == study.RESULTS else None
    report.write(results, settings, args.page, args.page.with_suffix(""), reading)
    print(f"{args.page} is written")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    add = parser.add_argument
    add("--regimes", nargs="+", choices=REGIMES, help="default: those of the plan")
    add("--arms", nargs="+", choices=ARMS, help="of --regimes; default: all that are planned")
    add("--seeds", nargs="+", type=int, help=f"default: 0 to {SEEDS - 1}")
    add("--all", action="store_true", help="rules, judges, variants, more seeds: many hours")
    add("--quick", action="store_true", help="a small plan that shows that all works")
    add("--untuned", action="store_true", help="one learning rate and β instead of the grid")
    add("--sft-steps", type=int, default=Settings().sft_steps, help="updates of the SFT model")
    add("--no-page", action="store_true", help="write no report")
    add("--report-only", action="store_true", help="run nothing")
    add("--keep", action="store_true", help="leave the output folders of the runs")
    add("--workers", type=int, default=2)
    add("--work", type=Path, default=study.WORK, help="models, data, outputs")
    add("--results", type=Path, default=study.RESULTS)
    add("--page", type=Path, default=PAGE, help="plots go into a folder of its name")
    args = parser.parse_args()
    if args.arms and not args.regimes:
        parser.error("--arms needs --regimes")
    return args


def _plans(args: argparse.Namespace) -> list[tuple[Plan, list[int]]]:
    """Plans with their seeds, in order."""
    seeds = args.seeds or list(range(SEEDS))
    if args.quick:
        return [(QUICK, seeds)]
    if args.regimes:
        known = planned((*PLAN, *MORE, *NEW))
        return [(tuple((r, tuple(args.arms or known.get(r, ()))) for r in args.regimes), seeds)]
    if not args.all:
        return [(PLAN, seeds)]
    compared = tuple((r, tuple(a for a in arms if a in (*DPO, *IPO))) for r, arms in PLAN)
    most = list(range(MOST_SEEDS))
    return [(PLAN, seeds), (MORE, seeds), (compared, most), (NEW, list(FRESH_SEEDS))]


def _run(
    regime: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    results: Results,
    args: argparse.Namespace,
) -> None:
    if settings.tuned:
        # What is tried next depends on what was found: neighbours of the best, then settings.
        for part in ("tuning", "tuning, neighbours", "tuning, settings"):
            tuning = [run for arm in arms for run in tuning_runs(regime, arm, settings, results)]
            _execute(f"{regime}, {part}", tuning, settings, results, args)
    # Seed by seed, so that a plan that is cut short has all arms of some seeds.
    runs = [
        run
        for seed in seeds
        for arm in arms
        for run in report_runs(regime, arm, [seed], settings, results)
    ]
    _execute(regime, runs, settings, results, args)


def _execute(
    name: str,
    runs: Sequence[Run],
    settings: Settings,
    results: Results,
    args: argparse.Namespace,
) -> None:
    missing = [run for run in runs if results.get(run, settings) is None]
    print(f"{name}: {len(missing)} of {len(runs)} runs are missing", flush=True)
    start = time.perf_counter()
    finished = study.execute_all(
        missing, settings, results, args.work, args.workers, keep=args.keep
    )
    for done, record in enumerate(finished, 1):
        last = record["curve"][-1]
        print(
            f"  {done}/{len(missing)} {record['arm']} seed {record['seed']} "
            f"lr {record['rate']:g} beta {record['beta']:g}: gold {last['gold']:.3f} "
            f"KL {last['kl']:.2f} length {last['length']:.1f} "
            f"({(time.perf_counter() - start) / done:.0f} s each)",
            flush=True,
        )


if __name__ == "__main__":
    main()

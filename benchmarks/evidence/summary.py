"""Numbers of the report: per regime and arm, from the stored runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.evidence.arm import NEW_SEEDS
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Settings, report_runs, sft_key
from benchmarks.evidence.statistics import Interval, matched, win_rate

NOT_WORSE = -0.1
"""*Not worse*: the interval's lower end is above this share of plain training's own gain."""
KL_LIMIT = 1.5
VERDICTS = ("holds", "fails", "not shown", "undecided")
"""Of a comparison; *not shown* if all seeds didn't decide it."""


@dataclass(frozen=True)
class ArmRuns:
    """The runs of one arm in one regime, by seed, beside the SFT models of the seeds."""

    regime: str
    arm: str
    runs: dict[int, dict[str, Any]]
    sft: dict[int, dict[str, Any]]

    def last(self, name: str) -> list[float]:
        """A number at the end of training, one per seed."""
        return [float(run["curve"][-1][name]) for run in self.runs.values()]

    def mean(self, name: str) -> float:
        """Its mean over seeds."""
        return float(np.mean(self.last(name)))

    @property
    def tokens(self) -> float:
        """Mean number of tokens trained on, scored and sampled in a run."""
        return float(
            np.mean(
                [
                    run["tokens"] + sum(entry["tokens"] for entry in run["rounds"])
                    for run in self.runs.values()
                ]
            )
        )

    @cached_property
    def gains(self) -> dict[int, float]:
        """Gold reward above the SFT model's."""
        return {
            seed: run["curve"][-1]["gold"] - self.start(seed) for seed, run in self.runs.items()
        }

    def start(self, seed: int) -> float:
        """Gold reward of the seed's SFT model."""
        return float(self.sft[seed]["curve"][-1]["gold"])

    @property
    def gain(self) -> Interval:
        """Mean gain."""
        return Interval.of(list(self.gains.values()))

    def shared(self, other: ArmRuns) -> list[int]:
        """Seeds that both arms have."""
        return [seed for seed in self.runs if seed in other.runs]

    def against(self, other: ArmRuns) -> Interval:
        """Difference of gold reward, paired by seed."""
        return Interval.of([self.gains[s] - other.gains[s] for s in self.shared(other)])

    def at_equal_kl(self, other: ArmRuns) -> Interval:
        """Difference of gold reward at the smaller of both final KLs, paired by seed."""
        return Interval.of(
            [
                matched(self.runs[s]["curve"], other.runs[s]["curve"], self.start(s))
                for s in self.shared(other)
            ]
        )

    def wins(self, other: ArmRuns | None) -> float:
        """Mean win rate against another arm, or against the SFT model if it is None."""
        theirs = self.sft if other is None else other.runs
        rates = [
            win_rate(run["gold"], theirs[seed]["gold"])
            for seed, run in self.runs.items()
            if seed in theirs
        ]
        return float(np.mean(rates)) if rates else float("nan")

    def by_round(self, name: str) -> list[float]:
        """A number of the reviewed rounds, means over seeds; NaN where no seed has it."""
        rows = [[entry.get(name) for entry in run["rounds"]] for run in self.runs.values()]
        columns = zip(*rows, strict=True) if len({len(row) for row in rows}) == 1 else []
        found = [[v for v in column if v is not None] for column in columns]
        return [float(np.mean(values)) if values else float("nan") for values in found]

    @property
    def filled_before(self) -> int:
        """Runs in which next-best pairs filled a round, as before there was ``selection.fill``."""
        sera = ARMS[self.arm].sera
        if sera is None or not sera["bootstrap"]["fraction"]:
            return 0
        rounds = [[entry["summary"] for entry in run["rounds"]] for run in self.runs.values()]
        return sum(any(s["shortfall"] and "filled" not in s for s in each) for each in rounds)

    def verdict(self, base: ArmRuns) -> str:
        """``better``, ``not worse``, ``worse`` or ``undecided`` against plain training."""
        difference, floor = self.against(base), NOT_WORSE * base.gain.mean
        if difference.low > 0:
            return "better"
        if difference.low > floor:
            return "not worse"
        return "worse" if difference.high < floor else "undecided"


class Summary:
    """All arms of all regimes that have runs on the reporting prompts."""

    def __init__(self, results: Results, settings: Settings) -> None:
        self.settings = settings
        self.results = results
        models = [
            record
            for record in results.found.values()
            if record["arm"] == "sft" and record["split"] == "report"
        ]
        measured = {
            asked: {
                record["seed"]: record
                for record in models
                if record["key"] == sft_key(record["seed"], "report", settings, asked)
            }
            for asked in (True, False)
        }
        self.arms: dict[tuple[str, str], ArmRuns] = {}
        parts = {name for arm in ARMS.values() for name in arm.among}
        for regime, arm in itertools.product(REGIMES, ARMS):
            if arm in parts:
                continue
            sft = measured[REGIMES[regime].asked]
            found = {
                run.seed: results.found[run.key(settings)]
                for run in report_runs(regime, arm, sorted(sft), settings, results)
                if (run.seed >= NEW_SEEDS) == ARMS[arm].fresh
                if run.key(settings) in results.found
            }
            if found:
                self.arms[regime, arm] = ArmRuns(regime, arm, found, sft)

    @property
    def regimes(self) -> list[str]:
        """Regimes with plain DPO, to which all is compared."""
        return [regime for regime, arm in self.arms if arm == "dpo"]

    def of(self, regime: str) -> dict[str, ArmRuns]:
        """Arms of a regime on the first seeds, in the order of ``ARMS``."""
        return {
            name: self.arms[regime, name]
            for name, arm in ARMS.items()
            if (regime, name) in self.arms and not arm.fresh
        }


def pooled(pairs: Sequence[tuple[ArmRuns, ArmRuns]]) -> Interval:
    """Difference of gold reward in several regimes: of each seed that all have its mean."""
    seeds = set.intersection(*(set(mine.shared(other)) for mine, other in pairs))
    return Interval.of(
        [float(np.mean([a.gains[s] - b.gains[s] for a, b in pairs])) for s in sorted(seeds)]
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Numbers of successive rounds as text."""
    if not np.isfinite(values).any():
        return "-"
    return " → ".join("-" if np.isnan(value) else f"{value:.{digits}f}" for value in values)

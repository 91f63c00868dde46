"""What the contrast was to reach against tuned DPO on new seeds."""

from __future__ import annotations

import numpy as np

from benchmarks.evidence.comparisons import FEWEST
from benchmarks.evidence.statistics import Interval
from benchmarks.evidence.summary import ArmRuns, Summary

GOALS = (("on-0.4", 0.25), ("on-0.2", 0.05), ("on-0.0", -0.05))
"""Regime, and the share of DPO's own gain that the difference is to exceed."""
HALF = 0.5
"""Of the way from DPO to the tuned oracle, at 40% flips."""
HEAD = ("arm", "regime", "wanted", "found", "difference", "what was to be exceeded", "seeds")


def goals(summary: Summary, arms: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A row per arm and goal, where there are FEWEST seeds of both."""
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        for regime, share in GOALS:
            mine, base = summary.arms.get((regime, arm)), summary.arms.get((regime, "dpo-new"))
            if mine is None or base is None or len(mine.shared(base)) < FEWEST:
                continue
            floor = share * float(np.mean([base.gains[s] for s in mine.shared(base)]))
            wanted = f"above DPO by {share:.0%} of its gain"
            if share < 0:
                wanted = f"not below DPO by more than {-share:.0%} of its gain"
            gap = mine.against(base)
            rows.append(
                (
                    f"`{arm}`",
                    regime,
                    wanted,
                    _found(gap, floor),
                    str(gap),
                    f"{floor:+.2f}",
                    str(gap.seeds),
                )
            )
        found = _half(summary, arm)
        if found is not None:
            rows.append(found)
    return rows


def _found(gap: Interval, floor: float) -> str:
    return "holds" if gap.low > floor else "fails" if gap.high < floor else "not shown"


def _half(summary: Summary, arm: str) -> tuple[str, ...] | None:
    """Half of the way to the oracle, seed by seed."""
    names = (arm, "dpo-new", "oracle-new")
    found: list[ArmRuns] = [
        summary.arms["on-0.4", name] for name in names if ("on-0.4", name) in summary.arms
    ]
    if len(found) < len(names):
        return None
    mine, base, oracle = (one.gains for one in found)
    seeds = [s for s in mine if s in base and s in oracle]
    if len(seeds) < FEWEST:
        return None
    over = Interval.of([mine[s] - base[s] - HALF * (oracle[s] - base[s]) for s in seeds])
    gap = Interval.of([mine[s] - base[s] for s in seeds])
    half = HALF * float(np.mean([oracle[s] - base[s] for s in seeds]))
    wanted = "half of the way to the tuned oracle"
    return (
        f"`{arm}`",
        "on-0.4",
        wanted,
        _found(over, 0.0),
        str(gap),
        f"{half:+.2f}",
        str(gap.seeds),
    )

"""Paired differences with intervals, win rates, and comparisons at equal KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval; the interval is infinite below two seeds."""

    mean: float
    low: float
    high: float
    seeds: int
    p: float = 1.0
    """Of the two-sided t-test that the mean is 0."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Student's t over the seeds."""
        n = len(values)
        mean = float(np.mean(values)) if n else float("nan")
        if n < 2:
            return cls(mean, -np.inf, np.inf, n)
        error = float(np.std(values, ddof=1) / np.sqrt(n))
        half = float(stats.t.ppf(0.975, n - 1)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
        return cls(mean, mean - half, mean + half, n, p)

    def p_above(self, floor: float) -> float:
        """Of the one-sided t-test that the mean is not above ``floor``."""
        if self.seeds < 2:
            return 1.0
        error = (self.high - self.mean) / float(stats.t.ppf(0.975, self.seeds - 1))
        if error == 0:
            return float(self.mean <= floor)
        return float(stats.t.sf((self.mean - floor) / error, self.seeds - 1))

    def __str__(self) -> str:
        if self.seeds == 0:
            return "-"
        if self.seeds < 2:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted so that all that are read together err as rarely as one (Holm)."""
    found, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(np.argsort(values, kind="stable")):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        found[i] = largest
    return found


def win_rate(mine: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Share of (answer, answer) pairs on the same prompt that ``mine`` wins, ties half.

    Args:
        mine: gold of each answer, shape (prompts, repeats).
        theirs: the same for the other policy.
    """
    gap = np.asarray(mine)[:, :, None] - np.asarray(theirs)[:, None, :]
    return float(np.mean(gap > 0) + 0.5 * np.mean(gap == 0))


def gold_at(curve: Sequence[dict[str, Any]], kl: float, start: float) -> float:
    """Gold reward where a run first reaches a KL, by linear interpolation from (0, ``start``).

    A run that never gets there is taken at its end.
    """
    before = (0.0, start)
    for point in curve:
        here = (float(point["kl"]), float(point["gold"]))
        if here[0] >= kl:
            share = (kl - before[0]) / max(here[0] - before[0], 1e-9)
            return before[1] + share * (here[1] - before[1])
        before = here
    return float(curve[-1]["gold"])


def matched(
    mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], start: float
) -> float:
    """Difference of gold reward at the smaller of both final KLs.

    Args:
        mine: points of one run with ``kl`` and ``gold``, in order.
        theirs: points of the other one.
        start: gold reward of the SFT model, at KL 0.
    """
    kl = min(float(mine[-1]["kl"]), float(theirs[-1]["kl"]))
    return gold_at(mine, kl, start) - gold_at(theirs, kl, start)

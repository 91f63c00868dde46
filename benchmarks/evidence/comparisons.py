"""Arms against plain training over regimes: one pooled row per arm, then each regime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.statistics import Interval, holm
from benchmarks.evidence.summary import ArmRuns, Summary, pooled

FEWEST = 3
"""Seeds below which a comparison is not shown."""
BELOW = 0.05
"""Adjusted p below which a pooled difference is called one."""


@dataclass(frozen=True)
class Row:
    """An arm against its base, regime by regime.

    Attributes:
        arm: its name.
        base: the name of what it is compared to.
        pairs: both, in every regime that has both.
    """

    arm: str
    base: str
    pairs: tuple[tuple[ArmRuns, ArmRuns], ...]

    @classmethod
    def of(cls, summary: Summary, arm: str, base: str, regimes: Sequence[str]) -> Row | None:
        """The row, or None if no regime has FEWEST seeds of both arms."""
        found = [
            (summary.arms[r, arm], summary.arms[r, base])
            for r in regimes
            if (r, arm) in summary.arms and (r, base) in summary.arms
        ]
        pairs = tuple(pair for pair in found if len(pair[0].shared(pair[1])) >= FEWEST)
        return cls(arm, base, pairs) if pairs else None

    @property
    def difference(self) -> Interval:
        """Of each seed that all regimes have, the mean over them."""
        return pooled(self.pairs)

    @property
    def share(self) -> float:
        """The difference as a share of the base's gain over the SFT model, on the same runs."""
        seeds = set.intersection(*(set(a.shared(b)) for a, b in self.pairs))
        gains = [np.mean([b.gains[s] for _, b in self.pairs]) for s in seeds]
        return self.difference.mean / float(np.mean(gains))

    @property
    def distance(self) -> float:
        """KL as a multiple of the base's, mean over regimes."""
        return float(np.mean([a.mean("kl") / max(b.mean("kl"), 1e-9) for a, b in self.pairs]))

    def cell(self, regime: str) -> str:
        """The difference in a regime, with its seeds."""
        for mine, base in self.pairs:
            if mine.regime == regime:
                gap = mine.against(base)
                return f"{gap} ({gap.seeds})"
        return "-"


def compared(
    summary: Summary,
    pairs: Sequence[tuple[str, str]],
    regimes: Sequence[str],
    apart: Sequence[str] = (),
) -> list[tuple[str, ...]]:
    """Rows of two tables in one: pooled, and by regime.

    Args:
        summary: all runs.
        pairs: a row each, of an arm and what it is compared to.
        regimes: a column each.
        apart: regimes with a column of their own that are not pooled.
    """
    rows = [row for arm, base in pairs if (row := Row.of(summary, arm, base, regimes)) is not None]
    gaps = [row.difference for row in rows]
    adjusted = holm([gap.p for gap in gaps])
    return [
        (
            f"`{row.arm}`",
            ARMS[row.arm].note,
            f"`{row.base}`",
            f"{gap.seeds} × {len(row.pairs)}",
            f"**{gap}**" if p < BELOW else str(gap),
            f"{row.share:+.0%}",
            f"{p:.2g}" if p >= 0.001 else "< 0.001",
            f"× {row.distance:.1f}",
            *(row.cell(regime) for regime in regimes),
            *(_apart(summary, row, regime) for regime in apart),
        )
        for row, gap, p in zip(rows, gaps, adjusted, strict=True)
    ]


def _apart(summary: Summary, row: Row, regime: str) -> str:
    alone = Row.of(summary, row.arm, row.base, [regime])
    return alone.cell(regime) if alone else "-"


HEAD = (
    "arm",
    "what it is",
    "against",
    "seeds × regimes",
    "difference, pooled",
    "of the gain",
    "p, Holm",
    "KL",
)

"""Whether a signal may change a round: it must agree with the labels, and find wrong ones. Pure.

Without trusted labels a gate takes the prior of ``review.calibration`` for granted: a signal that
is much weaker than that on clean labels looks like a good one on wrong labels, and opens it. With
them it asks only whether the signal knows anything: weights by a measured a hardly change clean
labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from sera_plugin.review.calibration import Calibration, ErrorShare

QUANTILE = 1.645
"""Standard errors below the mean at which a lower bound of 95% is."""

DOUBTFUL = 0.54
"""Agreement below which an open gate may be a mistake. In docs/evidence.md a signal that knew
nothing opened it at 0.527; right signals opened it at 0.511 to 0.543 where 40% of the labels were
wrong, and at 0.539 to 0.578 where 20% were."""


@dataclass(frozen=True)
class Verdict:
    """What a gate found.

    Attributes:
        open: whether the signal may change the round.
        why: a clause.
        agreement: mean of p, how likely the signal takes each label to be right; ½ is chance.
        agreement_low: its lower bound of 95%.
        error: the share of wrong labels; None if the signal says nothing.
        trusted: labels known to be right that the signal was measured on.
    """

    open: bool
    why: str
    agreement: float = float("nan")
    agreement_low: float = float("nan")
    error: ErrorShare | None = None
    trusted: int = 0

    @property
    def doubtful(self) -> bool:
        """Whether the gate is open at an agreement that a signal knowing nothing may reach."""
        return self.open and not self.trusted and self.agreement < DOUBTFUL


def gate(
    scores: np.ndarray, calibration: Calibration | None, trusted: np.ndarray | None = None
) -> Verdict:
    """Whether scores may change a round.

    Args:
        scores: a signal above 0 where it speaks for the label, shape (n,); NaN where it is silent.
        calibration: their calibration, or None if they are all 0 or silent.
        trusted: mask of the labels known to be right, shape (n,), or None.
    """
    if calibration is None:
        return Verdict(False, "it says nothing about any pair")
    log_odds = calibration.log_odds(scores)
    p = expit(log_odds[np.isfinite(log_odds)])
    mean = float(p.mean())
    low = mean - QUANTILE * float(p.std()) / float(np.sqrt(len(p)))
    error = calibration.error_share(scores, trusted)
    agrees = f"it gives the labels {100 * mean:.1f}% on average, {100 * low:.1f}% or more"
    if trusted is not None:
        count = int(trusted[np.isfinite(scores)].sum())
        if calibration.knows(scores, trusted) < QUANTILE**2 / 2:
            why = f"{agrees}, and beside {count} trusted ones it may know nothing"
            return Verdict(False, why, mean, low, error, count)
        why = f"{agrees}, and {count} trusted ones say how much it knows"
        return Verdict(True, why, mean, low, error, count)
    if not low > 0.5:
        why = f"{agrees}, so it agrees with them no better than chance"
        return Verdict(False, why, mean, low, error)
    if error.low == 0:
        return Verdict(False, f"{agrees}, and may find no wrong one", mean, low, error)
    return Verdict(True, f"{agrees}, and it finds wrong ones", mean, low, error)

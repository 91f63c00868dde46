"""How likely a label is right, from scores that tend to agree with right labels. Pure functions.

A score s says by how much a signal takes the answer labelled chosen for the better one. Divided by
the scores' root mean square, it agrees with a right label with probability p = σ(a·s), and a label
is wrong with probability ε:

    P(the label is as it is | s) = ε + (1 − 2ε)·p
    P(the label is right | s)    = (1 − ε)·p / [(1 − ε)·p + ε·(1 − p)]

a and ε are those of the largest posterior density. log a has a normal prior, for few pairs hardly
tell a weak signal from many wrong labels; ε in (0, ½) is flat in its logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

SLOPE, DEVIATION = 1.2, 0.3
"""Mean of a's prior, and standard deviation of log a's."""

STARTS = (0.02, 0.1, 0.25, 0.4)
"""Values of ε that the search starts from."""


@dataclass(frozen=True)
class Calibration:
    """What scores say about labels.

    Attributes:
        scale: the scores' root mean square.
        slope: a.
        error: ε, the share of wrong labels.
    """

    scale: float
    slope: float
    error: float

    @classmethod
    def fit(cls, scores: np.ndarray) -> Calibration | None:
        """The calibration of scores of any unit, or None if none of them is a number but 0.

        Args:
            scores: one per label, shape (n,); what is not finite is left out.
        """
        known = scores[np.isfinite(scores)].astype(np.float64)
        scale = float(np.sqrt(np.mean(known**2))) if len(known) else 0.0
        if not scale > 0:
            return None
        given = known / scale
        starts = [(np.log(SLOPE), float(logit(2 * error))) for error in STARTS]
        found = [minimize(_cost, start, args=(given,), method="Nelder-Mead") for start in starts]
        log_slope, doubt = min(found, key=lambda one: float(one.fun)).x
        return cls(scale, float(np.exp(log_slope)), float(expit(doubt)) / 2)

    def posterior(self, scores: np.ndarray) -> np.ndarray:
        """P(the label is right | s), float64, shape (n,); NaN where s is not a finite number."""
        known = np.where(np.isfinite(scores), scores, np.nan)
        return np.asarray(expit(self.slope * known / self.scale - logit(self.error)))


def _cost(at: np.ndarray, scores: np.ndarray) -> float:
    """Minus the log of the posterior density, at log a and the logit of 2ε."""
    log_slope, doubt = at
    agrees = np.exp(log_slope) * scores
    wrong = log_expit(doubt) - np.log(2)
    right = np.log1p(-expit(doubt) / 2)
    likelihood = np.logaddexp(right + log_expit(agrees), wrong + log_expit(-agrees)).sum()
    prior = ((log_slope - np.log(SLOPE)) / DEVIATION) ** 2 / 2
    return float(prior - likelihood)


def weights(right: np.ndarray) -> np.ndarray:
    """max(0, 2·P − 1) of P(the label is right), divided by its mean, float64, shape (n,).

    All are 1 if none is above 0, and so are those of labels that nothing is known of.

    Args:
        right: P, shape (n,); NaN where nothing is known.
    """
    known = np.isfinite(right)
    found = np.where(known, np.maximum(0.0, 2 * right - 1), 0.0)
    total = found.sum()
    return np.where(known, found * known.sum() / total, 1.0) if total > 0 else np.ones(len(right))

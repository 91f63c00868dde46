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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, log_expit, logit

SLOPE, DEVIATION = 1.2, 0.3
"""Mean of a's prior, and standard deviation of log a's."""

STARTS = (0.02, 0.1, 0.25, 0.4)
"""Values of ε that the search starts from."""


SLOPES = (np.log(SLOPE) - 10 * DEVIATION, np.log(SLOPE) + 10 * DEVIATION)
"""Between which log a is looked for where ε is given."""

DROP = 1.92
"""By how much the log-likelihood may fall within an interval of 95%: half of χ²'s quantile."""


@dataclass(frozen=True)
class ErrorShare:
    """How many labels are wrong.

    Attributes:
        value: ε.
        low: lower end of its profile-likelihood interval of 95%, from 0 on.
        high: upper end, at most ½.
        pairs: pairs that it was found from.
    """

    value: float
    low: float
    high: float
    pairs: int

    @property
    def text(self) -> str:
        """The share and its interval in percent."""
        return f"{100 * self.value:.0f}% [{100 * self.low:.0f}%, {100 * self.high:.0f}%]"


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

    def error_share(self, scores: np.ndarray) -> ErrorShare:
        """ε of the scores that were fitted, with an interval over every a.

        The prior on a counts in it, so it is only as good as that prior: few wrong labels under a
        weak signal and many under a strong one give much the same scores.
        """
        given = scores[np.isfinite(scores)].astype(np.float64) / self.scale

        def cost(error: float) -> float:
            doubt = _doubt(error)
            found = minimize_scalar(
                lambda log_slope: _cost(np.array([log_slope, doubt]), given),
                bounds=SLOPES,
                method="bounded",
            )
            return float(found.fun)

        return _interval(self.error, cost, len(given))

    def error_share_of(self, scores: np.ndarray) -> ErrorShare:
        """ε of a part of the pairs, a being that of all, with an interval."""
        given = scores[np.isfinite(scores)].astype(np.float64) / self.scale

        def cost(error: float) -> float:
            return _cost(np.array([np.log(self.slope), _doubt(error)]), given)

        found = minimize_scalar(cost, bounds=(0.0, 0.5), method="bounded")
        value = min((0.0, float(found.x), 0.5), key=cost)
        return _interval(value, cost, len(given))

    def log_odds(self, scores: np.ndarray) -> np.ndarray:
        """log p/(1 − p) = a·s / the root mean square, shape (n,); NaN where s is no number."""
        return np.asarray(
            self.slope * np.where(np.isfinite(scores), scores, np.nan) / self.scale, np.float64
        )

    def posterior(self, scores: np.ndarray) -> np.ndarray:
        """P(the label is right | s), float64, shape (n,); NaN where s is not a finite number."""
        return np.asarray(expit(self.log_odds(scores) - logit(self.error)))


def _doubt(error: float) -> float:
    """The logit of 2ε."""
    return float(logit(2 * error))


def _interval(value: float, cost: Callable[[float], float], pairs: int) -> ErrorShare:
    """Where ``cost`` is at most ``DROP`` above its smallest, at ``value``."""
    value = min(max(value, 0.0), 0.5)
    limit = cost(value) + DROP

    def over(error: float) -> float:
        return cost(error) - limit

    low = 0.0 if value == 0 or over(0.0) <= 0 else brentq(over, 0.0, value, xtol=1e-4)
    high = 0.5 if value == 0.5 or over(0.5) <= 0 else brentq(over, value, 0.5, xtol=1e-4)
    return ErrorShare(value, float(low), float(high), pairs)


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

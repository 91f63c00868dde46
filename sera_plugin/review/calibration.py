"""How likely a label is right, from scores that tend to agree with right labels. Pure functions.

A score s says by how much a signal takes the answer labelled chosen for the better one. Divided by
the scores' root mean square, it agrees with a right label with probability p = σ(a·s), and a label
is wrong with probability ε:

    P(the label is as it is | s) = ε + (1 − 2ε)·p
    P(the label is right | s)    = (1 − ε)·p / [(1 − ε)·p + ε·(1 − p)]

a and ε are those of the largest posterior density. log a has a normal prior, for few pairs hardly
tell a weak signal from many wrong labels; ε in (0, ½) is flat in its logit. Of a label that is
trusted ε is 0, so trusted labels say what a is, and the prior is wide beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, log_expit, logit

SLOPE, DEVIATION = 1.2, 0.3
"""Mean of a's prior, and standard deviation of log a's."""

WIDE = 1.0
"""Standard deviation of log a's prior beside trusted labels."""

STARTS = (0.02, 0.1, 0.25, 0.4)
"""Values of ε that the search starts from."""


SLOPES = (np.log(SLOPE) - 3.0, np.log(SLOPE) + 3.0)
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
class _Scores:
    """Finite scores in root mean squares, of labels that may be wrong and of trusted ones."""

    doubted: np.ndarray
    trusted: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, trusted: np.ndarray | None, scale: float) -> _Scores:
        known = np.isfinite(scores)
        apart = np.zeros(len(scores), dtype=bool) if trusted is None else trusted
        given = scores.astype(np.float64) / scale
        return cls(given[known & ~apart], given[known & apart])

    def log_likelihood(self, log_slope: float, doubt: float) -> float:
        """At log a and the logit of 2ε, nats."""
        slope = np.exp(log_slope)
        agrees = slope * self.doubted
        wrong = log_expit(doubt) - np.log(2)
        right = np.log1p(-expit(doubt) / 2)
        found = np.logaddexp(right + log_expit(agrees), wrong + log_expit(-agrees)).sum()
        return float(found + log_expit(slope * self.trusted).sum())

    def cost(self, log_slope: float, doubt: float) -> float:
        """Minus the log of the posterior density."""
        deviation = WIDE if len(self.trusted) else DEVIATION
        prior = ((log_slope - np.log(SLOPE)) / deviation) ** 2 / 2
        return float(prior - self.log_likelihood(log_slope, doubt))


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
    def fit(cls, scores: np.ndarray, trusted: np.ndarray | None = None) -> Calibration | None:
        """The calibration of scores of any unit, or None if none of them is a number but 0.

        Args:
            scores: one per label, shape (n,); what is not finite is left out.
            trusted: mask of the labels known to be right, shape (n,), or None.
        """
        known = scores[np.isfinite(scores)].astype(np.float64)
        scale = float(np.sqrt(np.mean(known**2))) if len(known) else 0.0
        if not scale > 0:
            return None
        given = _Scores.of(scores, trusted, scale)
        starts = [(np.log(SLOPE), float(logit(2 * error))) for error in STARTS]
        found = [
            minimize(lambda at: given.cost(*at), start, method="Nelder-Mead") for start in starts
        ]
        log_slope, doubt = min(found, key=lambda one: float(one.fun)).x
        return cls(scale, float(np.exp(log_slope)), float(expit(doubt)) / 2)

    def error_share(self, scores: np.ndarray, trusted: np.ndarray | None = None) -> ErrorShare:
        """ε of the scores that were fitted, with an interval over every a.

        The prior on a counts in it, so without trusted labels it is only as good as that prior:
        few wrong labels under a weak signal and many under a strong one give much the same scores.
        """
        given = _Scores.of(scores, trusted, self.scale)

        def cost(error: float) -> float:
            doubt = _doubt(error)
            found = minimize_scalar(
                lambda log_slope: given.cost(log_slope, doubt),
                bounds=SLOPES,
                method="bounded",
            )
            return float(found.fun)

        return _interval(self.error, cost, len(given.doubted))

    def knows(self, scores: np.ndarray, trusted: np.ndarray | None = None) -> float:
        """How much likelier the scores that were fitted are than under a = 0, nats.

        Under a = 0 every label is as it is with probability ½.
        """
        given = _Scores.of(scores, trusted, self.scale)
        nothing = (len(given.doubted) + len(given.trusted)) * np.log(2)
        return float(given.log_likelihood(np.log(self.slope), _doubt(self.error)) + nothing)

    def error_share_of(self, scores: np.ndarray) -> ErrorShare:
        """ε of a part of the pairs, a being that of all, with an interval."""
        given = _Scores.of(scores, None, self.scale)

        def cost(error: float) -> float:
            return given.cost(np.log(self.slope), _doubt(error))

        found = minimize_scalar(cost, bounds=(0.0, 0.5), method="bounded")
        value = min((0.0, float(found.x), 0.5), key=cost)
        return _interval(value, cost, len(given.doubted))

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

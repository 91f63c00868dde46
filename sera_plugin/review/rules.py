"""Rules of selection: how good each offline pair is for a round. Pure functions on numpy.

Every rule maps ``Evidence`` to scores of shape (n,): pairs with larger scores are kept first, and
pairs whose score is NaN are never kept. Published rules differ in the score alone. A rule's further
parameters are the keys of ``sera.selection`` of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sera_plugin.config.external import ExternalConfig
from sera_plugin.config.parts import RULES
from sera_plugin.data.ids import stream_key
from sera_plugin.runtime.errors import RuleError, raised


@dataclass(frozen=True)
class Evidence:
    """What a rule may look at; arrays have one entry per offline pair.

    Attributes:
        ids: example ids.
        margin: ensembled implicit reward margin, nats, or what ``sera.selection.by`` has in its
            place, float64, shape (n,); NaN where the pair was set aside or dropped; sign turned
            where the pair was flipped.
        uncertainty: standard deviation of the margins over all reviews so far, shape (n,); zero
            at the first review.
        external: margin that the dataset itself carries, shape (n,), NaN where it has none; None
            if there is none at all.
        loss_difference: loss under the policy minus loss under the auxiliary policy, shape (n,);
            None without an auxiliary policy.
        keep: pairs that the round is planned to keep.
        round_number: the round that is composed.
        seed: the run's seed.
        signals: ``sera.selection.signals`` by name, float64, shape (n,), NaN where a signal has no
            value; as measured, also where the pair was flipped.
    """

    ids: tuple[str, ...]
    margin: np.ndarray
    uncertainty: np.ndarray
    external: np.ndarray | None
    loss_difference: np.ndarray | None
    keep: int
    round_number: int
    seed: int
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)


Rule = Callable[[Evidence], np.ndarray]


def top(evidence: Evidence) -> np.ndarray:
    """The largest margins (SeRA, arXiv 2410.09362)."""
    return evidence.margin.copy()


def bottom(evidence: Evidence) -> np.ndarray:
    """The smallest margins, those the policy finds hardest (arXiv 2508.04149)."""
    return -evidence.margin


def shuffled(evidence: Evidence) -> np.ndarray:
    """A random choice, which (seed, round, example) determines: the control for every rule."""
    keys = [
        stream_key(evidence.seed, evidence.round_number, "random rule", i) for i in evidence.ids
    ]
    draws = np.array([key / 2.0**128 for key in keys], dtype=np.float64)
    return np.where(np.isnan(evidence.margin), np.nan, draws)


def above(evidence: Evidence, threshold: float) -> np.ndarray:
    """Margins above ``threshold``, nats; the others are never kept."""
    return np.where(evidence.margin > threshold, evidence.margin, np.nan)


def band(evidence: Evidence, band: Sequence[float]) -> np.ndarray:
    """The margins between two percentiles, from 0 to 100; the others are never kept.

    A pair is inside if the share of pairs ranked below it is in [low, high) percent, so that the
    same number of pairs is inside whatever the margins are; ties rank by falling id.
    """
    percentile = percentiles(evidence.ids, evidence.margin)
    inside = (percentile >= band[0]) & (percentile < band[1])
    return np.where(inside, evidence.margin, np.nan)


def lossdiff_irm(evidence: Evidence) -> np.ndarray:
    """Pairs in the middle band of both LossDiff and IRM (arXiv 2510.13212).

    The score is minus the larger of the two distances to the median, in percentile points, so the
    K best are the pairs inside the narrowest band of equal width in both that holds K pairs.

    Raises:
        RuleError: without an auxiliary policy.
    """
    if evidence.loss_difference is None:
        raise RuleError("sera.selection.rule: lossdiff_irm needs an auxiliary policy's losses.")
    margin = percentiles(evidence.ids, evidence.margin)
    loss = percentiles(evidence.ids, evidence.loss_difference)
    scores: np.ndarray = -np.maximum(np.abs(margin - 50.0), np.abs(loss - 50.0))
    return scores


def external(evidence: Evidence, external: ExternalConfig) -> np.ndarray:
    """The dataset's own margins, alone or fused with the implicit ones."""
    if external.mode == "only":
        return external_only(evidence)
    implicit, given = external.implicit_scale, external.external_scale
    return fused(
        evidence,
        implicit_scale=None if implicit == "auto" else implicit,
        external_scale=None if given == "auto" else given,
    )


def external_only(evidence: Evidence) -> np.ndarray:
    """The largest margins of the dataset's own scores; pairs without one are never kept."""
    return np.where(np.isnan(evidence.margin), np.nan, _external(evidence))


def fused(
    evidence: Evidence, implicit_scale: float | None, external_scale: float | None
) -> np.ndarray:
    """External and implicit margins fused by probabilities (arXiv 2502.14560).

    With pᵢ = σ(marginᵢ / scaleᵢ), the product rule p = Πpᵢ / (Πpᵢ + Π(1 − pᵢ)) has the log-odds
    Σ marginᵢ / scaleᵢ. These are the scores: they rank as p does, and don't round to equal values
    where p is close to 0 or 1. A pair without an external margin is judged by the implicit one.

    Args:
        evidence: margins of both kinds.
        implicit_scale: margin at which the log-odds are 1, nats; None fits it to the data.
        external_scale: the same for the external margins.
    """
    implicit = log_odds(evidence.margin, implicit_scale)
    external = log_odds(_external(evidence), external_scale)
    scores: np.ndarray = implicit + np.nan_to_num(external, nan=0.0)
    return scores


def _external(evidence: Evidence) -> np.ndarray:
    if evidence.external is None or not np.isfinite(evidence.external).any():
        raise RuleError(
            "sera.selection.rule: external needs scores in the dataset; sera.selection.external "
            "names their columns."
        )
    return np.where(np.isfinite(evidence.external), evidence.external, np.nan)


def log_odds(margins: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Calibrated log-odds margin / scale that chosen is the better answer, shape (n,).

    Args:
        margins: shape (n,), NaN where there is none.
        scale: margin at which the log-odds are 1; None takes the root mean square of the finite
            margins, which gives both kinds of margin the same weight whatever their units are.
    """
    if scale is None:
        finite = margins[np.isfinite(margins)]
        scale = float(np.sqrt(np.mean(finite**2))) if len(finite) else 1.0
    return margins / (scale if scale > 0 else 1.0)


def percentiles(ids: tuple[str, ...], values: np.ndarray) -> np.ndarray:
    """Share of the finite values ranked below each, in percent, float64, shape (n,).

    Ties rank by falling id, as in a selection of the largest; NaN stays NaN.
    """
    finite = np.flatnonzero(np.isfinite(values))
    names = np.asarray(ids, dtype=np.str_)[finite]
    # Selecting the largest prefers the smaller id, so of two equal values it ranks higher.
    order = np.lexsort((names, -values[finite]))[::-1]
    result = np.full(len(values), np.nan)
    result[finite[order]] = np.arange(len(finite)) * (100.0 / max(1, len(finite)))
    return result


def checked(rule: Rule, path: str) -> Rule:
    """The user's rule with its result checked.

    The result may be a bool mask, shape (n,), which keeps the pairs by their margins, or real
    scores, shape (n,), NaN where a pair must not be kept.

    Raises:
        RuleError: one sentence, when the result is of another kind, or keeps nothing.
    """

    def run(evidence: Evidence) -> np.ndarray:
        try:
            result = np.asarray(rule(evidence))
        except Exception as error:
            raise RuleError(f"{RULES.key}: {path} {raised(error)}.") from error
        shape = evidence.margin.shape
        if result.shape != shape:
            raise RuleError(
                f"{RULES.key}: {path} returned shape {result.shape} for {shape[0]} pairs; "
                "it must return one score, or true or false, per pair."
            )
        if result.dtype == bool:
            result = np.where(result, evidence.margin, np.nan)
        if not np.issubdtype(result.dtype, np.number) or np.iscomplexobj(result):
            raise RuleError(
                f"{RULES.key}: {path} returned values of type {result.dtype}; it must "
                "return real numbers, or true and false."
            )
        scores = np.where(np.isnan(evidence.margin), np.nan, result.astype(np.float64))
        if not np.isfinite(scores).any():
            raise RuleError(
                f"{RULES.key}: {path} keeps none of the {shape[0]} pairs; it must give at "
                "least one of them a finite score."
            )
        return scores

    return run

"""From margins to the pairs a round keeps: label repair, uncertainty, rule, top K. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sera_plugin.config import SelectionConfig
from sera_plugin.config.parts import RULES
from sera_plugin.data.margins import rank, set_aside
from sera_plugin.review.belief import Belief
from sera_plugin.review.rules import Evidence, Rule, checked


@dataclass(frozen=True)
class History:
    """Margins of all reviews so far, this one included, oldest first; NaN where not finite.

    Attributes:
        margin: each review's own margins, float64, shape (reviews, n).
        ensembled: the ensembled margins, shape (reviews, n).
    """

    margin: np.ndarray
    ensembled: np.ndarray

    @classmethod
    def of(cls, margins: Sequence[np.ndarray], ensembled: Sequence[np.ndarray]) -> History:
        """Stack the reviews; what is not a finite number becomes NaN."""
        stacked = (np.stack(margins), np.stack(ensembled))
        return cls(*(np.where(np.isfinite(part), part, np.nan) for part in stacked))

    def uncertainty(self) -> np.ndarray:
        """Standard deviation over the reviews that measured a pair, shape (n,); 0 for one."""
        measured = np.isfinite(self.margin)
        count = np.maximum(1, measured.sum(axis=0))
        mean = np.where(measured, self.margin, 0.0).sum(axis=0) / count
        deviation: np.ndarray = np.sqrt(
            np.where(measured, (self.margin - mean) ** 2, 0.0).sum(axis=0) / count
        )
        return deviation

    def negative(self, reviews: int, deviations: float) -> np.ndarray:
        """Pairs whose ensembled margin was clearly negative, bool, shape (n,).

        Args:
            reviews: in each of the last so many reviews; none are while there are fewer.
            deviations: below minus this many standard deviations of the margins over D.
        """
        if len(self.ensembled) < reviews:
            return np.zeros(self.ensembled.shape[1], dtype=bool)
        last = self.ensembled[-reviews:]
        spread = np.array([np.std(row[np.isfinite(row)]) for row in last])
        bound = np.minimum(-deviations * spread, 0.0)
        return np.asarray((last < bound[:, None]).all(axis=0))


@dataclass(frozen=True)
class Choice:
    """What a round keeps; arrays of shape (n,).

    Attributes:
        scores: the rule's scores; NaN where a pair can't be kept.
        ranked: positions of the pairs that can be kept, best first, int64, shape (eligible,).
        kept: mask of the best ``keep`` of them.
        flipped: mask of the pairs whose chosen and rejected answers change places.
        passed: pairs that the rule let through; 0 if it let none and the largest margins
            stand in, without the negative ones if there are others.
    """

    scores: np.ndarray
    ranked: np.ndarray
    kept: np.ndarray
    flipped: np.ndarray
    passed: int


def choose(
    ids: tuple[str, ...],
    history: History,
    keep: int,
    settings: SelectionConfig,
    *,
    external: np.ndarray | None = None,
    loss_difference: np.ndarray | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    belief: Belief | None = None,
    round_number: int,
    seed: int,
) -> Choice:
    """Choose the offline pairs of a round.

    Args:
        ids: example ids.
        history: margins of all reviews; the last row is this one.
        keep: K.
        settings: the ``sera.selection`` block.
        external: margins that the dataset carries, shape (n,), or None.
        loss_difference: LossDiff, shape (n,), or None.
        signals: further scores by name, shape (n,).
        belief: what pairs are judged by where it isn't the margin alone.
        round_number: the round that is composed.
        seed: the run's seed.

    Raises:
        RuleError: if the rule can't be applied.
    """
    margin = history.ensembled[-1].copy()
    negative = np.zeros(len(ids), dtype=bool)
    if settings.on_negative != "keep":
        negative = history.negative(settings.negative_reviews, settings.negative_deviations)
    flipped = negative if settings.on_negative == "flip" else np.zeros(len(ids), dtype=bool)
    if belief is not None:
        margin = np.where(np.isfinite(margin), belief.scores, np.nan)
        flipped = flipped | belief.flipped
    margin[flipped] = -margin[flipped]
    if settings.on_negative == "drop":
        margin[negative] = np.nan
    uncertainty = history.uncertainty()
    evidence = Evidence(
        ids=ids,
        margin=margin - settings.uncertainty * uncertainty,
        uncertainty=uncertainty,
        external=None if external is None else np.where(flipped, -external, external),
        loss_difference=loss_difference,
        keep=keep,
        round_number=round_number,
        seed=seed,
        signals=signals or {},
    )
    scores = rule_of(settings)(evidence)
    scores = np.where(np.isfinite(scores) & np.isfinite(history.ensembled[-1]), scores, np.nan)
    passed = int(np.isfinite(scores).sum())
    if passed == 0:
        left = margin if np.isfinite(margin).any() else history.ensembled[-1]
        scores = np.where(left >= 0, left, np.nan) if (left >= 0).any() else left.copy()
    order = rank(ids, set_aside(scores))
    ranked = order[np.isfinite(scores[order])]
    kept = np.zeros(len(ids), dtype=bool)
    kept[ranked[:keep]] = True
    return Choice(scores, ranked, kept, flipped & np.isfinite(scores), passed)


def rule_of(settings: SelectionConfig) -> Rule:
    """The rule that the ``sera.selection`` block names, its parameters taken from the block.

    Raises:
        SeraConfigError: if the user's own rule can't be imported.
    """
    rule = RULES.load(settings.rule)
    if settings.rule not in RULES.names:
        return checked(rule, settings.rule)
    _, *parameters = inspect.signature(rule).parameters
    return partial(rule, **{name: getattr(settings, name) for name in parameters})

"""How far each label is believed, and what that means for its pair. Pure functions on numpy.

Pairs are judged by the signals of ``sera.selection.by``. Several are fused by the product of their
calibrated probabilities, whose log-odds are the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sera_plugin.config import SelectionConfig
from sera_plugin.config.parts import title_of
from sera_plugin.review.calibration import Calibration, ErrorShare, weights
from sera_plugin.review.gate import Verdict, gate
from sera_plugin.runtime.errors import RuleError

FEWEST = 20
"""Pairs of a source below which its share of wrong labels is not reported."""

FEWEST_TRUSTED = 20
"""Trusted pairs below which they can't say how strong a signal is."""


@dataclass(frozen=True)
class Belief:
    """What a review believes of the labels; arrays have one entry per offline pair.

    Attributes:
        scores: what pairs are judged by, above 0 where it speaks for the label, shape (n,); NaN
            where it is silent, or the pair must not be kept.
        right: P(the label is right), shape (n,); NaN where nothing is known.
        weight: how much each pair counts in the loss, shape (n,).
        flipped: mask of the pairs whose answers change places.
        verdict: what the gate found.
        error: the share of wrong labels; None if the signal says nothing.
        sources: the same by the values of ``sera.selection.sources``.
    """

    scores: np.ndarray
    right: np.ndarray
    weight: np.ndarray
    flipped: np.ndarray
    verdict: Verdict
    error: ErrorShare | None
    sources: Mapping[str, ErrorShare] = field(default_factory=dict)

    @property
    def effective(self) -> float:
        """Share of the pairs that count: (Σw)² / (n·Σw²)."""
        return float(self.weight.sum() ** 2 / (self.weight**2).sum() / len(self.weight))

    def text(self, settings: SelectionConfig) -> str:
        """What was found and what becomes of it, in a sentence."""
        name = ", ".join(map(title_of, settings.by))
        share = f"; wrong labels: {self.error.text}" if self.error else ""
        if share and not self.verdict.trusted:
            share += ", its strength taken from a prior"
        what = f"by {name}: {self.verdict.why}{share}"
        if not settings.changes_all:
            return f"{what}; `keep` says how many pairs stay."
        if settings.gate and not self.verdict.open:
            return f"{what}; the gate is closed, all pairs stay with weight 1."
        done = {
            "weight": f"weights between {self.weight.min():.2f} and {self.weight.max():.2f}, "
            f"{int((self.weight == 0).sum())} of them 0",
            "relabel": f"{int(self.flipped.sum())} labels are turned",
            "drop": f"{int((self.right < 0.5).sum())} pairs are dropped",
        }[settings.use]
        return f"{what}; {done}{'' if settings.gate else ', without the gate'}."

    def warning(self, settings: SelectionConfig) -> str | None:
        """A sentence if the gate opened so narrowly that it may be a mistake, else None."""
        if not (settings.changes_all and settings.gate and self.verdict.doubtful):
            return None
        name = ", ".join(map(title_of, settings.outside or settings.by))
        return (
            f"the gate of sera.selection opened although {name} gives the labels only "
            f"{100 * self.verdict.agreement:.1f}% on average: either more than a third of them "
            "are wrong, or it knows nothing of what they mean. Read the pairs it changed in "
            "`axolotl sera report` before you trust this run; a judge's scores (sera.selection.by: "
            "external) or pairs that you have checked (sera.selection.trusted) can settle it."
        )


def believe(
    settings: SelectionConfig,
    margin: np.ndarray,
    signals: Mapping[str, np.ndarray],
    sources: Sequence[Any] | None = None,
    trusted: np.ndarray | None = None,
) -> Belief:
    """What the signals of ``sera.selection.by`` say about the labels.

    Args:
        settings: the ``sera.selection`` block.
        margin: ensembled margins, shape (n,).
        signals: the signals by their short names, shape (n,).
        sources: who labelled each pair, or None.
        trusted: mask of the labels known to be right, shape (n,), or None.

    Raises:
        RuleError: if a signal has no finite number at all.
    """
    scores = fused(settings.by, {"margin": margin, **signals}, trusted)
    calibration = Calibration.fit(scores, trusted)
    alone = settings.outside in ((), tuple(settings.by))
    if alone:
        verdict = gate(scores, calibration, trusted)
    else:
        outside = fused(settings.outside, signals)
        verdict = gate(outside, Calibration.fit(outside))
    nothing = np.zeros(len(scores), dtype=bool)
    if calibration is None:
        unknown = np.full(len(scores), np.nan)
        return Belief(scores, unknown, np.ones(len(scores)), nothing, verdict, None)
    right = calibration.posterior(scores)
    if trusted is not None:
        right[trusted] = 1.0
    weight, flipped, kept = np.ones(len(scores)), nothing, scores
    if settings.changes_all:
        kept = np.nan_to_num(scores, nan=0.0)
        if verdict.open or not settings.gate:
            if settings.use == "weight":
                weight = weights(right)
            elif settings.use == "relabel":
                flipped = right < settings.relabel_below
            else:
                kept = np.where(right < 0.5, np.nan, kept)
    error = verdict.error if alone else calibration.error_share(scores, trusted)
    doubted = scores if trusted is None else np.where(trusted, np.nan, scores)
    by_source = _by_source(calibration, doubted, sources) if sources is not None else {}
    return Belief(kept, right, weight, flipped, verdict, error, by_source)


def fused(
    names: Sequence[str], values: Mapping[str, np.ndarray], trusted: np.ndarray | None = None
) -> np.ndarray:
    """What several signals say together, in log-odds; one signal stays in its own unit.

    With pₖ of signal k calibrated, Πpₖ / (Πpₖ + Π(1 − pₖ)) has the log-odds Σ aₖ·sₖ (arXiv
    2502.14560 has the rule). A pair that a signal is silent about is judged by the others.

    Args:
        names: signals as the YAML names them.
        values: their numbers by their short names, shape (n,).
        trusted: mask of the labels known to be right, shape (n,), or None.

    Raises:
        RuleError: if a signal has no finite number at all.
    """
    found = [np.where(np.isfinite(v), v, np.nan) for v in (values[title_of(n)] for n in names)]
    for name, numbers in zip(names, found, strict=True):
        if not np.isfinite(numbers).any():
            raise RuleError(
                f"sera.selection.by: {name} has no finite number for any of {len(numbers)} pairs; "
                "judge by another signal."
            )
    if len(found) == 1:
        return found[0]
    fits = [Calibration.fit(numbers, trusted) for numbers in found]
    odds = [
        fit.log_odds(numbers) if fit is not None else numbers
        for fit, numbers in zip(fits, found, strict=True)
    ]
    silent = np.isnan(np.stack(odds)).all(axis=0)
    return np.where(silent, np.nan, np.nansum(np.stack(odds), axis=0))


def _by_source(
    calibration: Calibration, scores: np.ndarray, sources: Sequence[Any]
) -> dict[str, ErrorShare]:
    names = np.array([str(source) for source in sources])
    found = {}
    for name in sorted(set(names.tolist())):
        own = scores[(names == name) & np.isfinite(scores)]
        if len(own) >= FEWEST:
            found[name] = calibration.error_share_of(own)
    return found

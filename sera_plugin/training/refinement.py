"""Δ, the refinement of Sr-DPO and Sr-IPO, and its statistics. Pure.

*Quality-aware self-refinement* (arXiv 2405.21040): with a prompt p that asks for quality put before
the query x, the policy says how much better the chosen answer is. For a pair (x, y⁺, y⁻), eq. 12:

    Δ = β·[log πθ/πref(y⁺|p⊕x) − log πθ/πref(y⁻|p⊕x)]        without gradient

which is the implicit reward margin under p⊕x and 0 before the first update. With the margin m of
the loss, the refined loss is that of m − λ·Δ (eq. 13 and 15, Algorithms 1 and 2):

    Sr-DPO:  −log σ(m − λ·Δ),           m = β·[log πθ/πref(y⁺|x) − log πθ/πref(y⁻|x)]
    Sr-IPO:  (m − λ·Δ − 1/(2β))²

The paper sums over tokens. The host's IPO takes means per token, so there Δ does, too. ``none`` and
``plain`` are ours: they put nothing, or log πθ(y|x), in the place of log πref(y|p⊕x).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats

QUANTILES = (5, 25, 50, 75, 95)


def quality_margin(
    quality: torch.Tensor,
    baseline: torch.Tensor,
    tokens: torch.Tensor,
    beta: float,
    *,
    per_token: bool,
) -> torch.Tensor:
    """Δ of each pair, without gradient, shape (n,).

    Args:
        quality: log πθ(y|p⊕x) of the chosen and of the rejected answers, nats, shape (n, 2).
        baseline: what is taken off, shape (n, 2).
        tokens: tokens of the answers as the loss counts them, shape (n, 2).
        beta: β.
        per_token: whether the differences are divided by the lengths.
    """
    raised = (quality - baseline).detach()
    if per_token:
        raised = raised / tokens.clamp(min=1)
    return beta * (raised[:, 0] - raised[:, 1])


def bounded(delta: torch.Tensor, weight: float, clip: float | None) -> torch.Tensor:
    """λ·Δ, kept within ±clip if there is a bound."""
    scaled = weight * delta
    return scaled if clip is None else scaled.clamp(-clip, clip)


def delta_statistics(
    delta: Sequence[float] | np.ndarray,
    margin: Sequence[float] | np.ndarray,
    score: Sequence[float] | np.ndarray,
) -> dict[str, float]:
    """Numbers about the Δ of a round; those that can't be computed are left out.

    Args:
        delta: Δ of each pair that was trained on, shape (n,).
        margin: its implicit margin at that step, shape (n,).
        score: difference of the scores that the data carries, NaN where it has none, shape (n,).

    Returns:
        mean, standard deviation and quantiles of Δ; Spearman's correlations of Δ with the margin
        and with the score; Pearson's of the margin with the score, as in the paper's table 4.
    """
    delta, margin, score = (np.asarray(v, dtype=np.float64) for v in (delta, margin, score))
    if not len(delta):
        return {}
    found = {"delta_mean": float(delta.mean()), "delta_std": float(delta.std())}
    for q in QUANTILES:
        found[f"delta_q{q:02d}"] = float(np.percentile(delta, q))
    for name, one, other, correlation in (
        ("delta_margin_correlation", delta, margin, stats.spearmanr),
        ("delta_score_correlation", delta, score, stats.spearmanr),
        ("margin_score_correlation", margin, score, stats.pearsonr),
    ):
        both = np.isfinite(one) & np.isfinite(other)
        if both.sum() > 1 and np.ptp(one[both]) > 0 and np.ptp(other[both]) > 0:
            found[name] = float(correlation(one[both], other[both]).statistic)
    return found

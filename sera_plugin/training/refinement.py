"""Δ, the refinement of Sr-DPO and Sr-IPO: its value, its place in the loss, its statistics. Pure.

The idea is that of *self-refinement* (arXiv 2405.21040): with a prompt p that asks for quality put
before the instruction x, the policy itself says how much better one answer is than another. We
worked from the paper's abstract; the formulas below are ours.

For a pair (x, y⁺, y⁻) let q± = log πθ(y±|p⊕x), in nats and without gradient. Then

    Δ = q⁻ − q⁺                 (negative where y⁺ is judged better)
    ρ = λ·Δ, kept within ±clip

and with h = β·[log πθ/πref(y⁺|x) − log πθ/πref(y⁻|x)] and ℓ the same difference per token of each
answer, without β, as the host's IPO takes it:

    Sr-DPO:  −log σ(h + ρ)
    Sr-IPO:  (ℓ − [1/(2β) − ρ])²,  where Δ too is per token: q⁻/|y⁻| − q⁺/|y⁺|

So a pair that is judged clearer has to reach a larger margin for the same loss. λ = 0 gives DPO and
IPO exactly, and so does a pair whose answers are judged alike. Under DPO Δ isn't scaled by β.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats

LOSSES = ("sigmoid", "ipo")
"""The host's losses that Δ is defined for."""

QUANTILES = (5, 25, 50, 75, 95)


def quality_gap(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    per_token: bool,
) -> torch.Tensor:
    """Δ of each pair, without gradient.

    Args:
        chosen: q⁺ = Σ log πθ(y⁺|p⊕x), float, shape (n,), nats.
        rejected: q⁻, the same for the rejected answer.
        chosen_tokens: |y⁺|, tokens that q⁺ sums over, shape (n,); at least 1 counts.
        rejected_tokens: |y⁻|.
        per_token: whether q⁺ and q⁻ are divided by the lengths.
    """
    if per_token:
        chosen = chosen / chosen_tokens.clamp(min=1)
        rejected = rejected / rejected_tokens.clamp(min=1)
    return (rejected - chosen).detach()


def bounded(delta: torch.Tensor, weight: float, clip: float | None) -> torch.Tensor:
    """ρ = λ·Δ, kept within ±clip if there is a bound."""
    scaled = weight * delta
    return scaled if clip is None else scaled.clamp(-clip, clip)


def reference_shift(
    rho: torch.Tensor, loss: str, beta: float, chosen_tokens: torch.Tensor
) -> torch.Tensor:
    """What is added to log πref(y⁺|x) so that the host's loss becomes the refined one.

    The DPO loss takes β times the difference of log-ratios, so −ρ/β makes it h + ρ. The IPO loss
    divides the chosen log-ratio by |y⁺|, so −ρ·|y⁺| makes its margin ℓ + ρ.

    Args:
        rho: ρ, shape (n,).
        loss: ``sigmoid`` or ``ipo``.
        beta: β.
        chosen_tokens: |y⁺| as the loss counts it, shape (n,).
    """
    return -rho / beta if loss == "sigmoid" else -rho * chosen_tokens.clamp(min=1)


def gap_statistics(
    delta: Sequence[float] | np.ndarray,
    margin: Sequence[float] | np.ndarray,
    score: Sequence[float] | np.ndarray,
) -> dict[str, float]:
    """Numbers about the Δ of a round; those that can't be computed are left out.

    Args:
        delta: Δ of each pair that was trained on, shape (n,).
        margin: its implicit margin h at that step, shape (n,).
        score: difference of the scores that the data carries, NaN where it has none, shape (n,).

    Returns:
        mean, standard deviation and quantiles of Δ, and the rank correlations (Spearman's) of Δ
        with the margin and with the score; −1 means that both order the pairs alike.
    """
    delta, margin, score = (np.asarray(v, dtype=np.float64) for v in (delta, margin, score))
    if not len(delta):
        return {}
    found = {"delta_mean": float(delta.mean()), "delta_std": float(delta.std())}
    for q in QUANTILES:
        found[f"delta_q{q:02d}"] = float(np.percentile(delta, q))
    for name, other in (("margin", margin), ("score", score)):
        both = np.isfinite(delta) & np.isfinite(other)
        if np.ptp(delta[both]) > 0 and np.ptp(other[both]) > 0 if both.any() else False:
            rank = stats.spearmanr(delta[both], other[both]).statistic
            found[f"delta_{name}_correlation"] = float(rank)
    return found

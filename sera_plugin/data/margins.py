"""Log-probs of pairs, implicit reward margins and their ensemble. Pure functions on numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def positions(ids: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Where in ``ids`` each of ``wanted`` is, int64, shape (len(wanted),).

    Raises:
        KeyError: if one is missing.
    """
    where = {example_id: row for row, example_id in enumerate(ids)}
    missing = [example_id for example_id in wanted if example_id not in where]
    if missing:
        raise KeyError(f"{len(missing)} examples are missing, the first is {missing[0]}")
    return np.array([where[example_id] for example_id in wanted], dtype=np.int64)


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of both answers of every pair under one model.

    Attributes:
        ids: example ids, unique.
        chosen: Σ log π(y⁺|x) over the tokens of the chosen answer, float64, shape (n,), nats.
        rejected: the same for the rejected answer.
    """

    ids: tuple[str, ...]
    chosen: np.ndarray
    rejected: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.chosen) == len(self.rejected):
            raise ValueError(
                f"{len(self.ids)} ids, {len(self.chosen)} chosen and {len(self.rejected)} rejected "
                "log-probs don't match"
            )

    @property
    def finite(self) -> np.ndarray:
        """Mask of the pairs with two finite numbers, bool, shape (n,)."""
        return np.isfinite(self.chosen) & np.isfinite(self.rejected)

    def aligned(self, ids: Sequence[str]) -> PairLogps:
        """The rows of ``ids``, in that order.

        Raises:
            KeyError: if an id is missing.
        """
        rows = positions(self.ids, ids)
        return PairLogps(tuple(ids), self.chosen[rows], self.rejected[rows])


def log_ratios(policy: PairLogps, reference: PairLogps) -> PairLogps:
    """log πθ/πref of both answers, joined by example id (the reward r divided by β)."""
    reference = reference.aligned(policy.ids)
    return PairLogps(
        policy.ids, policy.chosen - reference.chosen, policy.rejected - reference.rejected
    )


def margins(
    ratios: PairLogps, chosen_tokens: np.ndarray, rejected_tokens: np.ndarray, kind: str = "sum"
) -> np.ndarray:
    """Implicit reward margin m = [log πθ/πref](y⁺) − [log πθ/πref](y⁻), float64, shape (n,).

    Args:
        ratios: log-ratios of the pairs.
        chosen_tokens: lengths of the chosen answers, int, shape (n,).
        rejected_tokens: lengths of the rejected answers.
        kind: ``sum`` in nats, or ``mean`` in nats per token of each answer.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind == "sum":
        return ratios.chosen - ratios.rejected
    if kind == "mean":
        chosen = ratios.chosen / np.maximum(chosen_tokens, 1)
        return chosen - ratios.rejected / np.maximum(rejected_tokens, 1)
    raise ValueError(f"unknown kind of margin {kind!r}; allowed are sum and mean")


def ensemble(current: np.ndarray, previous: np.ndarray | None, weight: float) -> np.ndarray:
    """m̃ₜ = (1−γ)·mₜ + γ·mₜ₋₁; without a previous review m̃ₜ = mₜ.

    Args:
        current: mₜ, shape (n,).
        previous: the previous review's own margins mₜ₋₁ of the same examples, or None; where they
            are not finite numbers, mₜ stands alone.
        weight: γ in [0, 1].
    """
    if previous is None:
        return current.copy()
    mixed = (1.0 - weight) * current + weight * previous
    return np.where(np.isfinite(previous), mixed, current)

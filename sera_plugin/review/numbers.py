"""Self-review: which offline pairs a round keeps. Pure functions on numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BadNumbersError(RuntimeError):
    """Too many pairs have log-probs that are not finite numbers; the message is one sentence."""


def set_aside(margins: np.ndarray) -> np.ndarray:
    """``margins`` with those that are not finite numbers moved behind all others, to −inf."""
    return np.where(np.isfinite(margins), margins, -np.inf)


def check_numbers(finite: np.ndarray, limit: float, what: str, unit: str = "pairs") -> int:
    """Count what has log-probs that are not finite numbers.

    Args:
        finite: mask of what has finite ones, bool, shape (n,).
        limit: the largest share without them that a run goes on with.
        what: what was scored, for the message.
        unit: what is counted, for the message.

    Raises:
        BadNumbersError: if there are more.
    """
    bad = int((~finite).sum())
    if bad > limit * len(finite):
        raise BadNumbersError(
            f"{what}: {bad} of {len(finite)} {unit} have log-probs that are not finite numbers, "
            f"more than sera.max_set_aside: {limit} allows; the last checkpoint is untouched, look "
            "at the learning rate and the precision."
        )
    return bad


def rank(ids: Sequence[str], margins: np.ndarray) -> np.ndarray:
    """Positions by falling margin, ties by rising example id, int64, shape (n,).

    Raises:
        ValueError: if a margin is NaN or +inf; −inf stands for pairs that were set aside.
    """
    if not (margins < np.inf).all():
        bad = int(np.flatnonzero(~(margins < np.inf))[0])
        raise ValueError(f"the margin of example {ids[bad]} is {margins[bad]}, not a finite number")
    return np.lexsort((np.asarray(ids, dtype=np.str_), -margins))


def select_top(ids: Sequence[str], margins: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` pairs with the largest margins (SeRA's top K), bool, shape (n,).

    Raises:
        ValueError: if ``count`` is not in [0, n].
    """
    if not 0 <= count <= len(ids):
        raise ValueError(f"{count} pairs can't be kept of {len(ids)}")
    mask = np.zeros(len(ids), dtype=bool)
    mask[rank(ids, margins)[:count]] = True
    return mask


def overlap(kept: np.ndarray, previous: np.ndarray) -> float:
    """Share of the kept pairs that the previous review kept as well; both masks, shape (n,)."""
    return float((kept & previous).sum() / max(1, kept.sum()))

"""Self-review: which offline pairs a round keeps. Pure functions on numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rank(ids: Sequence[str], margins: np.ndarray) -> np.ndarray:
    """Positions by falling margin, ties by rising example id, int64, shape (n,).

    Raises:
        ValueError: if a margin is not a finite number.
    """
    if not np.isfinite(margins).all():
        bad = int(np.flatnonzero(~np.isfinite(margins))[0])
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

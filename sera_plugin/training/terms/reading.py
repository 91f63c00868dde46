"""What terms read of a round: numbers of offline pairs by its rows, and signals of its review."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sera_plugin.config import SeraConfig
from sera_plugin.config.parts import title_of
from sera_plugin.data.rounds import RoundDataset
from sera_plugin.runtime.errors import SeraConfigError


def by_row(
    dataset: RoundDataset, values: np.ndarray, flipped: np.ndarray, unknown: float = 0.0
) -> dict[str, float]:
    """The number of every row of a round by its key.

    Args:
        dataset: the round.
        values: a number of every offline pair, in the order of D, NaN for none, shape (n,).
        flipped: the same for a pair whose answers have changed places.
        unknown: the number of bootstrapped pairs, and of those that have none.
    """
    found = {}
    for row in dataset.rows:
        value = (flipped if row.flipped else values)[dataset.position[row.example_id]]
        offline = row.chosen_ids is None
        found[row.key] = float(value) if offline and np.isfinite(value) else unknown
    return found


def check_reviews(key: str, config: SeraConfig) -> None:
    """Check that rounds are reviewed.

    Raises:
        SeraConfigError: one sentence that begins with ``key``.
    """
    if not config.reviews:
        raise SeraConfigError(
            f"{key} needs reviews, and this run has none; set sera.selection.keep below 1 or "
            "sera.bootstrap.fraction above 0."
        )


def check_signals(key: str, names: Sequence[str], config: SeraConfig) -> None:
    """Check that every review measures the signals.

    Raises:
        SeraConfigError: one sentence that begins with ``key``.
    """
    check_reviews(key, config)
    measured = dict.fromkeys(["margin", *map(title_of, config.selection.measured)])
    for name in names:
        if name not in measured:
            raise SeraConfigError(
                f"{key}: {name} is not measured; allowed are {', '.join(measured)}, and more by "
                "sera.selection.signals."
            )

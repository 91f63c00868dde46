"""Whether the policy seems to know the labels of D by heart. Pure functions on log-ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sera_plugin.data.margins import PairLogps
from sera_plugin.review.guard import CONFIDENCE

FAR = 0.1
"""By how much the share on D must exceed that on held-out pairs, beyond sampling error."""

NEARLY_ALL = 0.95
"""Share of D from which on the lack of held-out pairs is worth a warning."""


def memory_text(offline: PairLogps, held_out: Sequence[PairLogps]) -> str | None:
    """What the log should say of memorised labels in one review; None if nothing.

    The gap between both shares counts where its 95% bound (one side) is above ``FAR``, with one
    right and one wrong pair added to each side, so that a few pairs alone say nothing.

    Args:
        offline: log-ratios of D.
        held_out: log-ratios of the evaluation sets, or of the training pairs that are held out.
    """
    right, count = ordered(offline)
    right_held, count_held = map(sum, zip(*map(ordered, held_out), (0, 0), strict=True))
    if count == 0:
        return None
    share = right / count
    if count_held == 0:
        if share < NEARLY_ALL:
            return None
        return (
            f"{share:.1%} of the offline pairs are ordered as labelled, and there are no "
            "evaluation pairs to tell whether the policy has memorised the labels, right or wrong; "
            "then margins no longer find wrong ones. Name some in test_datasets, or let some "
            "training pairs be held out (sera.bootstrap.guard.held_out)."
        )
    gap, variance = 0.0, 0.0
    for sign, successes, trials in ((1, right, count), (-1, right_held, count_held)):
        smoothed = (successes + 1) / (trials + 2)
        gap += sign * smoothed
        variance += smoothed * (1 - smoothed) / (trials + 2)
    if gap - CONFIDENCE * math.sqrt(variance) <= FAR:
        return None
    return (
        f"{share:.1%} of the offline pairs are ordered as labelled, but "
        f"{right_held / count_held:.1%} of {count_held} evaluation pairs: the policy seems to have "
        "memorised labels, right or wrong, so margins may not find wrong ones; lower learning_rate "
        "or sera.warmup_rounds, or raise rl_beta."
    )


def ordered(ratios: PairLogps) -> tuple[int, int]:
    """How many pairs have the larger log-ratio at the chosen answer, and how many are finite."""
    finite = ratios.finite
    return int((ratios.chosen > ratios.rejected)[finite].sum()), int(finite.sum())

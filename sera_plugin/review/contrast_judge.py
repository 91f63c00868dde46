"""The judge ``contrast``: answers by what the reference prefers when it is asked for good ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_plugin.data.candidates import Pool
from sera_plugin.review.judges import JudgeParts
from sera_plugin.scoring.contrast import Contrast


@dataclass(frozen=True)
class ContrastJudge:
    """Scores answers by s(y) = log πref(y|p⁺⊕x) − log πref(y|p⁻⊕x); see ``scoring.contrast``.

    Attributes:
        measure: makes the passes of the reference, and keeps their shards.
    """

    measure: Contrast
    identity = "contrast:"

    def of_pools(self, pools: Sequence[Pool], label: str) -> list[float | None]:
        """s of every candidate, None where p and the answer have no room. Every rank must call it.

        Args:
            pools: the answers that compete.
            label: what the shards of the passes belong to.
        """
        found = self.measure.of_pools(pools, label)
        return [float(score) if np.isfinite(score) else None for score in found]


def contrast(parts: JudgeParts) -> ContrastJudge:
    """The judge of a run whose block names it."""
    assert parts.contrast is not None, "a run with this judge knows its prompts"
    return ContrastJudge(parts.contrast)

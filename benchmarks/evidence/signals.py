"""Arms that ask something else than the policy's own memory which labels are right."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.evidence.arm import ASKS_FOR_QUALITY, KEEP, SHIPPED, Arm, sera_block
from benchmarks.evidence.terms import REVIEWED
from sera_plugin.review.rules import Evidence

CONTRAST = {
    "prompts": [{"positive": "good\n", "placement": "system"}],
    "normalize": "none",
}
"""Log-probs with `good` in the place of the quality word minus those with `any`, as sums."""


def by_contrast(evidence: Evidence) -> np.ndarray:
    """A rule: the largest contrasts, whatever the policy's margins are."""
    return np.where(np.isnan(evidence.margin), np.nan, evidence.signals["contrast"])


def flipped(smoothing: float) -> dict[str, Any]:
    """Keys of the host's robust loss."""
    return {"dpo_loss_type": ["robust"], "dpo_label_smoothing": smoothing}


def _contrast(keep: Any, note: str, **other: Any) -> Arm:
    selection = {"signals": ["contrast"], "contrast": CONTRAST, **other.pop("selection", {})}
    return Arm(
        sera_block(keep=keep, fraction=0.0, selection=selection, **other),
        note=note,
        more=ASKS_FOR_QUALITY,
        wide=True,
    )


NEW: dict[str, Arm] = {
    "dpo-wide": Arm(note="DPO on all pairs", wide=True),
    "rdpo-0.3": Arm(note="robust DPO, ε = 0.3", more=flipped(0.3), wide=True),
    "rdpo-0.1": Arm(note="robust DPO, ε = 0.1", more=flipped(0.1), wide=True),
    "random-wide": Arm(subset=KEEP, note="DPO on a random 70%", wide=True),
    "select-wide": Arm(sera_block(fraction=0.0), note="selection only", wide=True),
    "sera-wide": Arm(SHIPPED, note="`sera: true`", wide=True),
    "judge-drop": Arm(
        sera_block(fraction=0.0, selection={"rule": "external", "external": {"mode": "only"}}),
        note="70% kept by the scores of a judge with 20% errors",
        scored=True,
        wide=True,
    ),
    "oracle-wide": Arm(clean=True, note="DPO on the same pairs without flipped labels", wide=True),
    "contrast-weight": _contrast(
        REVIEWED,
        "calibrated weights by the contrast, from the second round on",
        loss=[{"posterior": {"signal": "contrast", "use": "weight"}}],
    ),
    "contrast-drop": _contrast(
        KEEP,
        "70% kept by the contrast, from the second round on",
        selection={"rule": "benchmarks.evidence.signals:by_contrast"},
    ),
    "rdpo": Arm(note="robust DPO, ε tuned", among=("rdpo-0.3", "rdpo-0.1"), wide=True),
}
ARMS = NEW

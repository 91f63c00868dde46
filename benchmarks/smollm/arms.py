"""The arms of the language-model grid: the plugin's block, and which pairs are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.smollm.labels import Noise, checked
from benchmarks.smollm.task_train import PLAIN

KEEP = 0.7
"""Share of the pairs that ``random`` sees."""


@dataclass(frozen=True)
class Arm:
    """A way to train: the plugin's block, which pairs are seen, and whose contrast they carry.

    The contrast of the starting model doesn't change, so it is measured once, by ``gates``.
    """

    sera: dict[str, Any]
    share: float = 1.0
    checked_alone: bool = False
    wording: str | None = None

    def block(self, noise: Noise) -> dict[str, Any]:
        """The plugin's block; a contrast trusts the pairs that are checked."""
        if self.wording is None or not noise.checked:
            return self.sera
        return {**self.sera, "selection": {**self.sera["selection"], "trusted": "checked"}}

    def kept(self, count: int, noise: Noise, seed: int) -> list[int]:
        """Which of ``count`` pairs are trained on."""
        if self.checked_alone:
            return [int(one) for one in np.flatnonzero(checked(count, noise, seed))]
        return list(range(round(self.share * count)))


CONTRAST = {"preset": "contrast", "selection": {"by": "external", "external": {"margin": "seen"}}}
ARMS = {
    "dpo": Arm(PLAIN),
    "contrast": Arm(CONTRAST, wording="tone"),
    "contrast-built-in": Arm(CONTRAST, wording="built-in"),
    "select": Arm({"preset": "select"}),
    "sera": Arm({"preset": "default"}),
    "random": Arm(PLAIN, share=KEEP),
    "robust": Arm(PLAIN),
    "checked-alone": Arm(PLAIN, checked_alone=True),
    "pool-policy": Arm({"preset": "default", "bootstrap": {"pool": "policy"}}),
}
"""``robust`` is told the true share of wrong labels; ``checked-alone`` needs pairs that are."""


def robust(noise: Noise) -> dict[str, Any]:
    """Keys of the host's robust loss, whose smoothing has to be below one half and above 0."""
    return {"dpo_loss_type": ["robust"], "dpo_label_smoothing": max(noise.share, 0.05)}

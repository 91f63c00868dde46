"""A term of the loss for one arm of the evidence."""

from __future__ import annotations

from dataclasses import replace

import torch

from sera_plugin.training.objective import Step


def conservative(step: Step, *, share: float) -> Step:
    """The step with every label wrong with probability ``share``: cDPO's loss.

    (1 − ε)·ℓ(m) + ε·ℓ(−m), ε = ``share``. TRL 1.9's ``label_smoothing`` does nothing to
    ``sigmoid``.
    """
    return replace(step, flip=torch.full_like(step.flip, share))

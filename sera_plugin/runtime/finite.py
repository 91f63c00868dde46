"""Whether the trained weights still are numbers. Collectives: one reduction in ``check``."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from sera_plugin.review.numbers import BadNumbersError
from sera_plugin.runtime.fingerprint import pieces_of


class FiniteWeights:
    """Raises an error when training has ruined weights. Every rank must make one and call it.

    Args:
        model: the policy, wrapped or not.
        accelerator: the trainer's accelerator.
    """

    def __init__(self, model: torch.nn.Module, accelerator: Accelerator) -> None:
        self._model = model
        self._accelerator = accelerator
        self._at_start = self._bad()

    def check(self, step: int) -> None:
        """Look at all trained weights; ranks with shares of them look at their own.

        Raises:
            BadNumbersError: if more parameters than at the start hold NaN or an infinity.
        """
        bad = self._bad()
        if bad > self._at_start:
            raise BadNumbersError(
                f"step {step}: {bad} parameters have weights that are not finite numbers and "
                "nothing is saved; resume from the last checkpoint with a lower learning_rate or "
                "another precision."
            )

    def _bad(self) -> int:
        bad = torch.zeros((), device=self._accelerator.device)
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                finite = [bool(p.isfinite().all()) for p in pieces_of(parameter) if _at_hand(p)]
                bad += not all(finite)
        return int(self._accelerator.reduce(bad, reduction="sum"))


def _at_hand(piece: torch.Tensor) -> bool:
    status = getattr(piece, "status", None)  # of ZeRO-3's shares
    floating = piece.is_floating_point() and not piece.is_meta
    return floating and (status is None or status.name == "AVAILABLE")

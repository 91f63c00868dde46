"""Micro-batches of an update that share a forward and backward pass.

The host calls its training step for each micro-batch and divides each loss by their number. Those
that are held back give a loss of 0; the one that ends a pass gives the sum of all its losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sera_plugin.data.schedule import Batching

HELD = "sera_held"
"""Key of the micro-batches that share a pass, in what the host's training step is given."""


class Merging:
    """Holds the micro-batches of a round back until their pass is whole.

    Args:
        passes: after which micro-batches of each update a pass ends, from 1.
        update: of the round, that is trained next, from 0.
    """

    def __init__(self, passes: Sequence[Sequence[int]], update: int) -> None:
        self._passes, self._update = passes, update
        self._seen = 0
        self._held: list[Mapping[str, Any]] = []

    @classmethod
    def of(
        cls,
        passes: Sequence[Sequence[int]] | None,
        epoch: int,
        asked: Mapping[str, Any],
        batching: Batching,
    ) -> Merging | None:
        """What holds the micro-batches of an epoch back, or None if every one is a pass.

        Args:
            passes: of the epoch's round.
            epoch: from 0.
            asked: what the host calls ``_run_epoch`` with.
            batching: how the host cuts a round.
        """
        if passes is None:
            return None
        resumed = asked["resume_from_checkpoint"] is not None and epoch == asked["epochs_trained"]
        done = asked["steps_trained_in_current_epoch"] if resumed else 0
        return cls(passes, done // batching.accumulation)

    def take(self, batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The micro-batches of the pass that ``batch`` ends, or none if it ends none."""
        self._held.append(batch)
        self._seen += 1
        ends = self._passes[self._update]
        if self._seen not in ends:
            return []
        whole, self._held = self._held, []
        if self._seen == ends[-1]:
            self._update, self._seen = self._update + 1, 0
        return whole


def joined(batches: Sequence[Mapping[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
    """Micro-batches of the host's collator as one, its chosen rows before its rejected ones.

    Only what a forward pass without padding reads is in it: ``input_ids``, ``attention_mask`` and
    ``completion_mask``, each of shape (2·pairs, longest), filled with 0.
    """
    if len(batches) == 1:
        return batches[0]
    names = ("input_ids", "attention_mask", "completion_mask")
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    found = {}
    for name in names:
        sides = [batch[name].chunk(2) for batch in batches]
        rows = [side[number] for number in (0, 1) for side in sides]
        found[name] = torch.cat(
            [torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in rows]
        )
    return found

"""The evaluation sets with their reference log-probs; pairs with bad numbers are set aside."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs, with_reference_columns
from sera_plugin.review.numbers import check_numbers


class HeldOut:
    """Evaluation pairs by name, and their log-probs under the reference of the round.

    Args:
        dataset: the host's evaluation dataset, several by name, or None.
        max_length: the loss sees this many tokens of prompt and answer.
        limit: the largest share of a set that may be set aside.
    """

    def __init__(self, dataset: Any, max_length: int | None, limit: float) -> None:
        self._given = dataset
        self._limit = limit
        named = dataset if isinstance(dataset, dict) else {"eval": dataset}
        self._whole: dict[str, Dataset] = {k: v for k, v in named.items() if v is not None}
        self.pairs = {name: OfflinePairs.of(one, max_length) for name, one in self._whole.items()}
        self.reference: dict[str, PairLogps] = {}

    def with_reference(self, name: str, logps: PairLogps) -> Any:
        """What the host evaluates on from now on, like the dataset that was given.

        A pair whose log-probs are not finite numbers is left out: its loss would be no number,
        and so would the mean.

        Args:
            name: the set whose reference has changed.
            logps: its log-probs under πref.

        Raises:
            BadNumbersError: if too many are not finite.
        """
        self.reference[name] = logps
        bad = check_numbers(logps.finite, self._limit, f"the reference of the pairs in {name}")
        dataset = with_reference_columns(self._whole[name], logps)
        if bad:
            dataset = dataset.select(np.flatnonzero(logps.finite))
        if not isinstance(self._given, dict):
            return dataset
        self._given = {**self._given, name: dataset}
        return self._given

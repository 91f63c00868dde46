"""Pairs of the training data that no round trains on, so that reviews have something to judge by.

They stand in for evaluation pairs where a run has none. Every choice follows from the config, the
number of pairs, the ids and the seed, so `plan`, the checks, all ranks and a restart agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sera_plugin.config import SeraConfig
from sera_plugin.data.ids import permutation
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.schedule import share_of
from sera_plugin.runtime.errors import SeraConfigError

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT = "held_out"
"""Name of the set, beside those of evaluation pairs."""
SHARE, MOST, FEWEST = 0.05, 128, 640
"""`auto`: the share of the pairs, the most of them, and the pairs below which none are taken."""


def held_out_count(config: SeraConfig, pairs: int, evaluation: Any) -> int:
    """How many of ``pairs`` training pairs are held out.

    Args:
        config: the ``sera:`` block.
        pairs: training pairs as the data has them.
        evaluation: the host's evaluation dataset, several by name, or None.

    Raises:
        SeraConfigError: one sentence, if the config asks for more than half of them.
    """
    asked = config.bootstrap.guard.held_out
    if asked == 0 or not config.reviews or (evaluation is not None and len(evaluation)):
        return 0
    if asked == "auto":
        if not config.bootstrap.guarded or pairs < FEWEST:
            return 0
        return min(share_of(SHARE, pairs), MOST)
    if asked < 1:
        return min(share_of(asked, pairs), pairs // 2)
    if asked > pairs // 2:
        raise SeraConfigError(
            f"sera.bootstrap.guard.held_out: {asked:g} is more than half of the {pairs} training "
            "pairs; write a smaller number, a share up to 0.5, auto or 0."
        )
    return int(asked)


def held_out_rows(ids: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Which rows are held out, int64, rising; pairs that have exact copies come last.

    Args:
        ids: example ids of all training pairs.
        count: how many are held out.
        seed: the run's seed.
    """
    copies = Counter(example_id.partition("-")[0] for example_id in ids)
    order = permutation(ids, seed, HELD_OUT)
    order = np.array(sorted(order, key=lambda row: copies[ids[row].partition("-")[0]] > 1))
    return np.sort(order[:count]).astype(np.int64)


def split(
    config: SeraConfig, dataset: Dataset, max_length: int | None, evaluation: Any, seed: int
) -> tuple[Dataset, Dataset | None]:
    """The pairs that are trained on, D, and those that are held out, or None.

    Args:
        config: the ``sera:`` block.
        dataset: all training pairs, tokenized.
        max_length: the loss sees this many tokens of prompt and answer.
        evaluation: the host's evaluation dataset, several by name, or None.
        seed: the run's seed.

    Raises:
        SeraConfigError: one sentence, if the config asks for more than half of them.
    """
    count = held_out_count(config, len(dataset), evaluation)
    if not count:
        return dataset, None
    out = held_out_rows(OfflinePairs.of(dataset, max_length).ids, count, seed)
    kept = np.setdiff1d(np.arange(len(dataset)), out)
    return dataset.select(kept), dataset.select(out)

"""The offline pairs D: ids, lengths and completions of a tokenized preference dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from sera_plugin.data.ids import example_ids
from sera_plugin.data.margins import PairLogps

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class OfflinePairs:
    """A tokenized preference dataset with an id for every row.

    Attributes:
        dataset: columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and the original ones.
        ids: example ids, one per row, unique.
        position: example id to row.
        prompt_tokens: tokens of each prompt, int64, shape (n,).
        chosen_tokens: tokens of each chosen answer that the loss sees.
        rejected_tokens: the same for the rejected answer.
    """

    dataset: Dataset
    ids: tuple[str, ...]
    position: Mapping[str, int]
    prompt_tokens: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, max_length: int | None) -> OfflinePairs:
        """Read ids and lengths.

        Args:
            dataset: preference pairs as TRL prepared them.
            max_length: the loss sees this many tokens of prompt and answer.
        """
        names = [name if name in dataset.column_names else f"{name}_ids" for name in _PARTS]
        texts = dataset.select_columns(names)
        ids = tuple(example_ids(tuple(row[name] for name in names) for row in texts))
        prompt, chosen, rejected = (_lengths(dataset, column) for column in TOKENS)
        if max_length is not None:
            chosen = np.clip(chosen, 0, np.maximum(0, max_length - prompt))
            rejected = np.clip(rejected, 0, np.maximum(0, max_length - prompt))
        position = {example_id: row for row, example_id in enumerate(ids)}
        return cls(
            dataset.select_columns(list(dict.fromkeys([*names, *TOKENS]))),
            ids,
            position,
            prompt,
            chosen,
            rejected,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def pair_logps(self, logps: np.ndarray) -> PairLogps:
        """Log-probs of ``OfflineAnswers`` (chosen at 2i, rejected at 2i+1) by example id."""
        return PairLogps(self.ids, logps[0::2], logps[1::2])


_PARTS = ("prompt", "chosen", "rejected")


def _lengths(dataset: Dataset, column: str) -> np.ndarray:
    chunks = [
        pc.list_value_length(batch.column(column)).to_numpy()
        for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000)
    ]
    return np.concatenate(chunks).astype(np.int64) if chunks else np.zeros(0, dtype=np.int64)


def list_rows(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The lists of a column, without a copy of their tokens."""
    lists = column.combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False)
    starts = lists.offsets.to_numpy()
    return [values[a:b] for a, b in pairwise(starts)]


class OfflineAnswers:
    """Both answers of every pair as completions: chosen of pair i at 2i, rejected at 2i+1."""

    def __init__(self, pairs: OfflinePairs) -> None:
        self._dataset = pairs.dataset.select_columns(list(TOKENS))
        lengths = np.stack([pairs.chosen_tokens, pairs.rejected_tokens], axis=1)
        self.lengths = (lengths + pairs.prompt_tokens[:, None]).reshape(-1)

    def fetch(self, numbers: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = self._dataset.with_format("arrow")[[number // 2 for number in numbers]]
        prompts, chosen, rejected = (list_rows(pairs.column(name)) for name in TOKENS)
        return [
            (prompts[row], (rejected if number % 2 else chosen)[row])
            for row, number in enumerate(numbers)
        ]

    def digest(self) -> str:
        """Hash of the token ids of prompts and answers, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self._dataset.with_format("arrow").iter(batch_size=10_000):
            for name in TOKENS:
                column = batch.column(name).combine_chunks()
                for part in (pc.list_value_length(column), pc.list_flatten(column)):
                    digest.update(part.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        return digest.hexdigest()


def with_reference_columns(dataset: Dataset, logps: PairLogps) -> Dataset:
    """``dataset`` with the columns that TRL's loss reads; ``logps`` has its rows in order."""
    for name, values in (
        ("ref_chosen_logps", logps.chosen),
        ("ref_rejected_logps", logps.rejected),
    ):
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.add_column(name, values)
    return dataset

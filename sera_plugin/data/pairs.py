"""The pairs D and the evaluation pairs: ids, lengths and completions of a tokenized dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sera_plugin.data.columns import TEXTS
from sera_plugin.data.ids import example_ids
from sera_plugin.data.margins import PairLogps, check_numbers

if TYPE_CHECKING:
    from datasets import Dataset

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
        given: the pairs with all columns that they came with.
    """

    dataset: Dataset
    ids: tuple[str, ...]
    position: Mapping[str, int]
    prompt_tokens: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    given: Dataset | None = None

    @classmethod
    def of(cls, dataset: Dataset, max_length: int | None) -> OfflinePairs:
        """Read ids and lengths.

        Args:
            dataset: preference pairs as TRL prepared them.
            max_length: the loss sees this many tokens of prompt and answer.
        """
        names = [name if name in dataset.column_names else f"{name}_ids" for name in TEXTS]
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
            dataset,
        )

    def column(self, name: str) -> Sequence[Any]:
        """The values of a column that the pairs came with, one per pair.

        Raises:
            KeyError: if there is no such column.
        """
        given = self.dataset if self.given is None else self.given
        if name not in given.column_names:
            raise KeyError(f"{name} is no column of the pairs: {', '.join(given.column_names)}")
        values: Sequence[Any] = given.select_columns([name])[:][name]
        return values

    def __len__(self) -> int:
        return len(self.ids)

    def pair_logps(self, logps: np.ndarray) -> PairLogps:
        """Log-probs of ``OfflineCompletions`` (chosen at 2i, rejected at 2i+1) by example id."""
        return PairLogps(self.ids, logps[0::2], logps[1::2])


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


class OfflineCompletions:
    """Both answers of every pair as completions: chosen of pair i at 2i, rejected at 2i+1."""

    def __init__(self, pairs: OfflinePairs) -> None:
        self._dataset = pairs.dataset.select_columns(list(TOKENS))
        lengths = np.stack([pairs.chosen_tokens, pairs.rejected_tokens], axis=1)
        self.lengths = (lengths + pairs.prompt_tokens[:, None]).reshape(-1)
        self.prompts = np.repeat(np.arange(len(pairs)), 2)
        self.prompt_tokens = np.repeat(pairs.prompt_tokens, 2)

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


class EvaluationPairs:
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

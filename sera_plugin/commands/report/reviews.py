"""The reviews of a run as arrays over the same pairs, joined by example id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sera_plugin.data.columns import Margins
from sera_plugin.data.reader import RunFiles
from sera_plugin.runtime.errors import RunError


@dataclass(frozen=True)
class Reviews:
    """All reviews on disk.

    Attributes:
        ids: example ids, as in the first review.
        numbers: the rounds that the reviews composed.
        own: m of each review, float64, shape (n,).
        ensembled: m̃ of each review.
        kept: mask of each review.
        swapped: mask of the pairs whose answers changed places.
        position: example id to row.
    """

    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    own: tuple[np.ndarray, ...]
    ensembled: tuple[np.ndarray, ...]
    kept: tuple[np.ndarray, ...]
    swapped: tuple[np.ndarray, ...]
    position: Mapping[str, int]

    @classmethod
    def of(cls, run: RunFiles) -> Reviews:
        """Read them.

        Raises:
            RunError: if a file is damaged or the reviews are not of the same pairs.
        """
        tables = [stored.table(Margins) for stored in run.reviewed]
        ids = tuple(tables[0][Margins.EXAMPLE_ID].to_pylist()) if tables else ()
        position = {example_id: row for row, example_id in enumerate(ids)}
        aligned = [_aligned(table, ids, position, run) for table in tables]
        return cls(
            ids=ids,
            numbers=tuple(stored.number for stored in run.reviewed),
            own=tuple(table[Margins.MARGIN].to_numpy() for table in aligned),
            ensembled=tuple(table[Margins.ENSEMBLED_MARGIN].to_numpy() for table in aligned),
            kept=tuple(_mask(table, Margins.KEPT) for table in aligned),
            swapped=tuple(_mask(table, Margins.FLIPPED) for table in aligned),
            position=position,
        )

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of ``ids``, int64.

        Raises:
            RunError: if one was not reviewed.
        """
        try:
            return np.array([self.position[i] for i in ids], dtype=np.int64)
        except KeyError as error:
            raise RunError(
                f"pairs.parquet and the reviews are of different pairs: {error} was not reviewed."
            ) from error


def _aligned(
    table: pa.Table, ids: tuple[str, ...], position: Mapping[str, int], run: RunFiles
) -> pa.Table:
    found = table[Margins.EXAMPLE_ID].to_pylist()
    if tuple(found) == ids:
        return table.combine_chunks()
    if len(found) != len(ids) or any(i not in position for i in found):
        raise RunError(f"the reviews in {run.root} are not of the same pairs.")
    order = np.empty(len(ids), dtype=np.int64)
    order[[position[i] for i in found]] = np.arange(len(ids))
    return table.take(pa.array(order)).combine_chunks()


def _mask(table: pa.Table, column: Margins) -> np.ndarray:
    if column not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    found: np.ndarray = table[column].to_numpy(zero_copy_only=False).astype(bool)
    return found

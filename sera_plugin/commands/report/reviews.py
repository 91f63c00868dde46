"""The reviews of a run as arrays over the same pairs, joined by example id, and their rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sera_plugin.data.columns import Margins, Rows
from sera_plugin.data.reader import RunFiles, StoredRound
from sera_plugin.runtime.errors import RunError

SIGNAL = "signal_"
"""How the columns of ``margins.parquet`` begin that hold the signals of ``selection.signals``."""


@dataclass(frozen=True)
class RoundRows:
    """What a reviewed round trains on; the masks have the shape of the review.

    Attributes:
        kept: offline pairs that stand in the round in their own place.
        filled: offline pairs that stand in the place of another, kept ones among them.
        fillers: rows that fill, bootstrapped pairs that come again among them.
        bootstrapped: bootstrapped pairs, each once.
        again: example ids of the bootstrapped pairs that come again.
    """

    kept: np.ndarray
    filled: np.ndarray
    fillers: int
    bootstrapped: int
    again: frozenset[str] = frozenset()

    def states(self) -> dict[str, np.ndarray]:
        """What becomes of the pairs of D: masks that share no pair."""
        return {
            "kept": self.kept,
            "filled": self.filled & ~self.kept,
            "dropped": ~(self.kept | self.filled),
        }

    def by_state(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Values of the pairs of D by what becomes of them; what becomes of none is left out."""
        return {state: values[mask] for state, mask in self.states().items() if mask.any()}


@dataclass(frozen=True)
class Reviews:
    """All reviews on disk.

    Attributes:
        ids: example ids, as in the first review.
        numbers: the rounds that the reviews composed.
        own: m of each review, float64, shape (n,).
        ensembled: m̃ of each review.
        swapped: mask of the pairs whose answers changed places.
        signals: the signals of ``selection.signals`` by name, for each review.
        rows: what each of the rounds trains on.
        position: example id to row.
        right: how likely each label is right by `selection.by`, for each review; None where the
            margin alone was asked.
        weight: how much each pair counts in the loss, where ``right`` is known.
        closed: whether the gate kept the last review from doubting labels.
    """

    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    own: tuple[np.ndarray, ...]
    ensembled: tuple[np.ndarray, ...]
    swapped: tuple[np.ndarray, ...]
    signals: tuple[Mapping[str, np.ndarray], ...]
    rows: tuple[RoundRows, ...]
    position: Mapping[str, int]
    right: tuple[np.ndarray | None, ...] = ()
    weight: tuple[np.ndarray | None, ...] = ()
    closed: bool = False

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
            swapped=tuple(_mask(table, Margins.FLIPPED) for table in aligned),
            signals=tuple(_signals(table) for table in aligned),
            rows=tuple(
                _rows(stored, _mask(table, Margins.KEPT), position)
                for stored, table in zip(run.reviewed, aligned, strict=True)
            ),
            position=position,
            right=tuple(_numbers(table, Margins.RIGHT) for table in aligned),
            weight=tuple(_numbers(table, Margins.WEIGHT) for table in aligned),
            closed=_closed(run),
        )

    @property
    def believed(self) -> bool:
        """Whether any review asked how likely labels are right."""
        return any(found is not None for found in self.right)

    @property
    def doubts(self) -> np.ndarray | None:
        """P(the label is right) by the last review, where labels may be doubted by it."""
        return None if self.closed or not self.right else self.right[-1]

    @property
    def suspect(self) -> np.ndarray:
        """Mask of the pairs whose labels the last review took to be wrong rather than right, or
        whose ensembled margin was negative in it where it didn't ask."""
        doubts = self.doubts
        return self.ensembled[-1] < 0 if doubts is None else doubts < 0.5

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


def _numbers(table: pa.Table, column: Margins) -> np.ndarray | None:
    return table[column].to_numpy() if column in table.column_names else None


def _closed(run: RunFiles) -> bool:
    if not run.reviewed or run.reviewed[-1].summary.get("gate_open") != 0:
        return False
    sera = run.settings.get("sera")
    selection = sera.get("selection") if isinstance(sera, Mapping) else None
    return not isinstance(selection, Mapping) or selection.get("gate") is not False


def _signals(table: pa.Table) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(SIGNAL): table[name].to_numpy()
        for name in table.column_names
        if name.startswith(SIGNAL) and pa.types.is_floating(table[name].type)
    }


def _rows(stored: StoredRound, kept: np.ndarray, position: Mapping[str, int]) -> RoundRows:
    """What a round trains on; without ``rows.parquet``, what the review kept."""
    nothing = np.zeros(len(kept), dtype=bool)
    if not (stored.folder / Rows.file).is_file():
        made = stored.summary.get("bootstrapped")
        return RoundRows(kept, nothing, 0, int(made) if isinstance(made, (int, float)) else 0)
    table = stored.rows(Rows.EXAMPLE_ID)
    offline = np.array([_offline(key) for key in table[Rows.KEY].to_pylist()], dtype=bool)
    filled = table[Rows.FILLED].to_numpy(zero_copy_only=False)
    ids = table[Rows.EXAMPLE_ID].to_pylist()

    def mask(rows: np.ndarray) -> np.ndarray:
        found = nothing.copy()
        places = [position.get(ids[row]) for row in np.flatnonzero(rows)]
        if None in places:
            raise RunError(f"{stored.folder / Rows.file} names a pair that was not reviewed.")
        found[np.array(places, dtype=np.int64)] = True
        return found

    return RoundRows(
        kept=mask(offline & ~filled),
        filled=mask(offline & filled),
        fillers=int(filled.sum()),
        bootstrapped=int((~offline & ~filled).sum()),
        again=frozenset(ids[row] for row in np.flatnonzero(~offline & filled)),
    )


def _offline(key: str) -> bool:
    return key.split("/")[1:2] == ["offline"]

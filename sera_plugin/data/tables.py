"""A reviewed round as the bytes of its files, and back: parquet and JSON lines, nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.data.columns import BootstrappedPairs, Candidates, Margins, Rows
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.rounds import RoundRow

NEEDED = (Margins.file, Rows.file)
"""What a resumed run reads; the other files are for people."""

SIGNAL = "signal_"
"""Columns of ``margins.parquet`` that hold signals begin so."""


@dataclass(frozen=True)
class ReviewTable:
    """What a review found for every offline pair; arrays of shape (n,).

    Attributes:
        ids: example ids.
        policy: log-probs under the reviewing policy.
        ratios: log πθ/πref of both answers.
        margin: m, this review's own margins.
        ensembled: m̃, mixed with the previous review's margins.
        kept: mask of the K pairs that are kept.
        score: what the rule of selection sorts by; NaN where a pair can't be kept.
        flipped: mask of the pairs whose answers change places in the round.
        measured_in: the round at whose end, or within which, each margin was measured.
        signals: further scores of the pairs by name, NaN where a signal has no value.
        right: how likely each label is right, NaN where nothing is known; None if not asked.
        weight: how much each pair counts in the loss; None if all count 1.
    """

    ids: tuple[str, ...]
    policy: PairLogps
    ratios: PairLogps
    margin: np.ndarray
    ensembled: np.ndarray
    kept: np.ndarray
    score: np.ndarray
    flipped: np.ndarray
    measured_in: np.ndarray
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    right: np.ndarray | None = None
    weight: np.ndarray | None = None

    @property
    def doubted(self) -> frozenset[str]:
        """Ids of the pairs whose ensembled margin, as they would be trained on, is negative."""
        turned = np.where(self.flipped, -self.ensembled, self.ensembled)
        return frozenset(self.ids[row] for row in np.flatnonzero(turned < 0))

    def signal(self, name: str) -> np.ndarray:
        """The numbers of a signal; ``margin`` is always there.

        Raises:
            KeyError: if it was not measured.
        """
        return self.margin if name == "margin" else self.signals[name]

    def to_arrow(self) -> pa.Table:
        asked = {Margins.RIGHT: self.right, Margins.WEIGHT: self.weight}
        known = {column: values for column, values in asked.items() if values is not None}
        columns = [field for field in Margins.arrow() if field.name not in asked.keys() - known]
        return pa.table(
            {
                Margins.EXAMPLE_ID: list(self.ids),
                Margins.POLICY_CHOSEN_LOGP: self.policy.chosen,
                Margins.POLICY_REJECTED_LOGP: self.policy.rejected,
                Margins.CHOSEN_LOG_RATIO: self.ratios.chosen,
                Margins.REJECTED_LOG_RATIO: self.ratios.rejected,
                Margins.MARGIN: self.margin,
                Margins.ENSEMBLED_MARGIN: self.ensembled,
                Margins.KEPT: self.kept,
                Margins.SCORE: self.score,
                Margins.FLIPPED: self.flipped,
                Margins.MEASURED_IN: self.measured_in,
                **known,
                **{SIGNAL + name: values for name, values in self.signals.items()},
            },
            schema=pa.schema([*columns, *((SIGNAL + name, pa.float64()) for name in self.signals)]),
        )

    @classmethod
    def from_arrow(cls, table: pa.Table) -> ReviewTable:
        ids = tuple(table[Margins.EXAMPLE_ID].to_pylist())

        def numbers(column: Margins) -> np.ndarray:
            values: np.ndarray = table[column].to_numpy()
            return values

        return cls(
            ids,
            PairLogps(
                ids, numbers(Margins.POLICY_CHOSEN_LOGP), numbers(Margins.POLICY_REJECTED_LOGP)
            ),
            PairLogps(ids, numbers(Margins.CHOSEN_LOG_RATIO), numbers(Margins.REJECTED_LOG_RATIO)),
            numbers(Margins.MARGIN),
            numbers(Margins.ENSEMBLED_MARGIN),
            numbers(Margins.KEPT).astype(bool),
            numbers(Margins.SCORE),
            numbers(Margins.FLIPPED).astype(bool),
            numbers(Margins.MEASURED_IN),
            {
                name.removeprefix(SIGNAL): table[name].to_numpy()
                for name in table.column_names
                if name.startswith(SIGNAL)
            },
            *(
                numbers(column) if column in table.column_names else None
                for column in (Margins.RIGHT, Margins.WEIGHT)
            ),
        )


@dataclass(frozen=True)
class RoundRecord:
    """A reviewed round as it is stored."""

    table: ReviewTable
    rows: list[RoundRow]


def round_files(
    record: RoundRecord,
    bootstrapped: Iterable[Mapping[str, Any]],
    candidates: Iterable[Mapping[str, Any]],
) -> dict[str, bytes]:
    """The files of a round by name.

    Text is written as JSON with every character beyond printable ASCII escaped, so no character
    of a prompt or an answer can end a line or reach a terminal.
    """
    rows = [{**asdict(row), Rows.FILLED: row.filled} for row in record.rows]
    return {
        Margins.file: parquet_bytes(record.table.to_arrow()),
        Rows.file: parquet_bytes(pa.Table.from_pylist(rows, schema=Rows.arrow())),
        Candidates.file: parquet_bytes(
            pa.Table.from_pylist(list(candidates), schema=Candidates.arrow())
        ),
        BootstrappedPairs.file: "".join(json.dumps(pair) + "\n" for pair in bootstrapped).encode(
            "ascii"
        ),
    }


def read_record(files: Mapping[str, bytes]) -> RoundRecord:
    """The round in the files of ``NEEDED``, given by name."""
    margins, rows = (pq.read_table(io.BytesIO(files[name])) for name in NEEDED)
    return RoundRecord(
        ReviewTable.from_arrow(margins),
        [
            RoundRow(**{field.name: _frozen(row.get(field.name)) for field in fields(RoundRow)})
            for row in rows.to_pylist()
        ],
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()

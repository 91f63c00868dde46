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

from sera_plugin.data.margins import PairLogps
from sera_plugin.data.rounds import RoundRow

NEEDED = ("margins.parquet", "rows.parquet")
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

    def to_arrow(self) -> pa.Table:
        return pa.table(
            {
                "example_id": list(self.ids),
                "policy_chosen_logp": self.policy.chosen,
                "policy_rejected_logp": self.policy.rejected,
                "chosen_log_ratio": self.ratios.chosen,
                "rejected_log_ratio": self.ratios.rejected,
                "margin": self.margin,
                "ensembled_margin": self.ensembled,
                "kept": self.kept,
                "score": self.score,
                "flipped": self.flipped,
                "measured_in": self.measured_in,
                **{SIGNAL + name: values for name, values in self.signals.items()},
            }
        )

    @classmethod
    def from_arrow(cls, table: pa.Table) -> ReviewTable:
        columns = {
            name: table.column(name).to_numpy()
            for name in table.column_names
            if name != "example_id"
        }
        ids = tuple(table.column("example_id").to_pylist())
        return cls(
            ids,
            PairLogps(ids, columns["policy_chosen_logp"], columns["policy_rejected_logp"]),
            PairLogps(ids, columns["chosen_log_ratio"], columns["rejected_log_ratio"]),
            columns["margin"],
            columns["ensembled_margin"],
            columns["kept"].astype(bool),
            columns["score"],
            columns["flipped"].astype(bool),
            columns["measured_in"],
            {n.removeprefix(SIGNAL): v for n, v in columns.items() if n.startswith(SIGNAL)},
        )


ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("example_id", pa.string()),
        ("chosen_ids", pa.list_(pa.int64())),
        ("rejected_ids", pa.list_(pa.int64())),
        ("ref_chosen_logp", pa.float64()),
        ("ref_rejected_logp", pa.float64()),
        ("flipped", pa.bool_()),
    ]
)


CANDIDATES = pa.schema(
    [
        ("example_id", pa.string()),
        ("source", pa.string()),
        ("finished", pa.bool_()),
        ("token_ids", pa.list_(pa.int64())),
        ("policy_logp", pa.float64()),
        ("reference_logp", pa.float64()),
        ("log_ratio", pa.float64()),
        ("reward", pa.float64()),
        ("judge_score", pa.float64()),
        ("in_round", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class RoundRecord:
    """A reviewed round as it is stored."""

    table: ReviewTable
    rows: list[RoundRow]


def round_files(
    record: RoundRecord, fresh: Iterable[Mapping[str, Any]], candidates: Iterable[Mapping[str, Any]]
) -> dict[str, bytes]:
    """The files of a round by name.

    Text is written as JSON with every character beyond printable ASCII escaped, so no character
    of a prompt or an answer can end a line or reach a terminal.
    """
    rows = [asdict(row) for row in record.rows]
    return {
        "margins.parquet": parquet_bytes(record.table.to_arrow()),
        "rows.parquet": parquet_bytes(pa.Table.from_pylist(rows, schema=ROWS)),
        "candidates.parquet": parquet_bytes(
            pa.Table.from_pylist(list(candidates), schema=CANDIDATES)
        ),
        "bootstrapped.jsonl": "".join(json.dumps(pair) + "\n" for pair in fresh).encode("ascii"),
    }


def read_record(files: Mapping[str, bytes]) -> RoundRecord:
    """The round in the files of ``NEEDED``, given by name."""
    margins, rows = (pq.read_table(io.BytesIO(files[name])) for name in NEEDED)
    names = [field.name for field in fields(RoundRow)]
    return RoundRecord(
        ReviewTable.from_arrow(margins),
        [RoundRow(**{name: _frozen(row[name]) for name in names}) for row in rows.to_pylist()],
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()

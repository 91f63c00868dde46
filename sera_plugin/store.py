"""Artifacts in ``<output_dir>/sera/``. A round's folder appears whole, or not at all."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.rounds import RoundRow
from sera_plugin.scores import PairLogps
from sera_plugin.shards import round_label


@dataclass(frozen=True)
class ReviewTable:
    """What a review found for every offline pair; arrays of shape (n,).

    Attributes:
        ids: example ids.
        policy: log-probs under the reviewing policy.
        ratios: log πθ/πref of both answers.
        margin: m, this review's own margins.
        ensembled: m̃, mixed with the previous review's margins.
        kept: mask of the top K.
    """

    ids: tuple[str, ...]
    policy: PairLogps
    ratios: PairLogps
    margin: np.ndarray
    ensembled: np.ndarray
    kept: np.ndarray

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
        )


_ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("example_id", pa.string()),
        ("chosen_ids", pa.list_(pa.int64())),
        ("rejected_ids", pa.list_(pa.int64())),
        ("ref_chosen_logp", pa.float64()),
        ("ref_rejected_logp", pa.float64()),
    ]
)


_CANDIDATES = pa.schema(
    [
        ("example_id", pa.string()),
        ("source", pa.string()),
        ("finished", pa.bool_()),
        ("token_ids", pa.list_(pa.int64())),
        ("policy_logp", pa.float64()),
        ("reference_logp", pa.float64()),
        ("log_ratio", pa.float64()),
        ("reward", pa.float64()),
        ("in_round", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class RoundRecord:
    """A reviewed round as it is stored."""

    table: ReviewTable
    rows: list[RoundRow]


class RunStore:
    """Reads and writes the artifacts of one run. Only the main process writes.

    Args:
        output_dir: the run's ``output_dir``.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.root = Path(output_dir) / "sera"
        self.work = self.root / "work"

    def round_dir(self, number: int) -> Path:
        return self.root / f"round-{number:02d}"

    def start(self) -> Path | None:
        """Begin a new run; artifacts of an earlier run are moved aside.

        Returns:
            Where the earlier run's artifacts are now, or None if there were none.
        """
        moved = None
        if self.root.exists() and any(self.root.iterdir()):
            names = (self.root.with_name(f"sera-earlier-{n}") for n in itertools.count(1))
            moved = next(path for path in names if not path.exists())
            self.root.rename(moved)
        self.root.mkdir(parents=True, exist_ok=True)
        return moved

    def write_run(self, settings: Mapping[str, Any]) -> None:
        """Write ``run.json``: what the run was started with."""
        with explained(self.root / "run.json"):
            self.root.mkdir(parents=True, exist_ok=True)
            temporary = self.root / "run.json.tmp"
            _write_text(temporary, json.dumps(settings, indent=2))
            temporary.replace(self.root / "run.json")

    def read_run(self) -> dict[str, Any] | None:
        """``run.json``, or None if it is not there."""
        path = self.root / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_round(
        self,
        number: int,
        record: RoundRecord,
        fresh: Iterable[Mapping[str, Any]],
        summary: Mapping[str, Any],
        candidates: Iterable[Mapping[str, Any]] = (),
    ) -> Path:
        """Write a round's folder; an earlier folder of the same round is replaced.

        Args:
            number: the round.
            record: what training and a resume need.
            fresh: bootstrapped pairs as text.
            summary: metrics of the review.
            candidates: every answer that competed, with the columns of ``_CANDIDATES``.
        """
        final = self.round_dir(number)
        with explained(final):
            self._write_round(final, record, fresh, summary, candidates)
        return final

    def _write_round(
        self,
        final: Path,
        record: RoundRecord,
        fresh: Iterable[Mapping[str, Any]],
        summary: Mapping[str, Any],
        candidates: Iterable[Mapping[str, Any]],
    ) -> None:
        building = final.with_name(final.name + ".tmp")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        _write_table(building / "margins.parquet", record.table.to_arrow())
        rows = [asdict(row) for row in record.rows]
        _write_table(building / "rows.parquet", pa.Table.from_pylist(rows, schema=_ROWS))
        table = pa.Table.from_pylist(list(candidates), schema=_CANDIDATES)
        _write_table(building / "candidates.parquet", table)
        lines = "".join(json.dumps(pair) + "\n" for pair in fresh)
        _write_text(building / "bootstrapped.jsonl", lines)
        _write_text(building / "summary.json", _json(summary))
        replaced = final.with_name(final.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        building.rename(final)
        _sync(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def drop_work(self, number: int) -> None:
        """Delete the finished shards of the rounds up to ``number``, which are not needed again.

        What can't be deleted is left: it costs room and nothing else.
        """
        for earlier in range(1, number + 1):
            for folder in self.work.glob(f"{round_label(earlier)}-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def drop_all_work(self) -> None:
        """Delete all finished shards, at the end of a run."""
        shutil.rmtree(self.work, ignore_errors=True)

    def update_summary(self, number: int, more: Mapping[str, Any]) -> None:
        """Add to the summary of a round, which is created if the round was not reviewed."""
        path = self.round_dir(number) / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        summary = json.loads(path.read_text()) if path.exists() else {"round": number}
        temporary = path.with_suffix(".tmp")
        _write_text(temporary, _json({**summary, **more}))
        temporary.replace(path)

    def read_summaries(self, last: int) -> list[dict[str, float]]:
        """Numbers of the stored rounds up to ``last``, for the table of a resumed run."""
        paths = [self.round_dir(number) / "summary.json" for number in range(1, last + 1)]
        stored = [json.loads(path.read_text()) for path in paths if path.exists()]
        return [{k: v for k, v in summary.items() if v is not None} for summary in stored]

    def read_round(self, number: int) -> RoundRecord | None:
        """A stored reviewed round, or None if its folder is not there."""
        folder = self.round_dir(number)
        if not (folder / "rows.parquet").exists():
            return None
        names = [field.name for field in fields(RoundRow)]
        rows = [
            RoundRow(**{name: _frozen(row[name]) for name in names})
            for row in pq.read_table(folder / "rows.parquet").to_pylist()
        ]
        return RoundRecord(ReviewTable.from_arrow(pq.read_table(folder / "margins.parquet")), rows)


class StoreError(RuntimeError):
    """Artifacts can't be written; the message is one sentence."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system's error while writing ``path`` into a sentence.

    Raises:
        StoreError: in place of an ``OSError``, which is its cause.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} can't be written ({error.strerror or error}); make room or set another "
            "output_dir, then resume from the last checkpoint."
        ) from error


def _json(values: Mapping[str, Any]) -> str:
    """JSON that strict readers accept: numbers that are not finite become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite, indent=2, allow_nan=False)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write_table(path: Path, table: pa.Table) -> None:
    with open(path, "wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

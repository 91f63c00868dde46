"""Artifacts in ``<output_dir>/sera/``. A round's folder appears whole, or not at all."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.data.columns import Refinement
from sera_plugin.data.tables import (
    NEEDED,
    ReviewTable,
    RoundRecord,
    parquet_bytes,
    read_record,
    round_files,
)
from sera_plugin.runtime.errors import StoreError, what_happened
from sera_plugin.runtime.files import (
    MANIFEST,
    add_file,
    beside,
    check_replaceable,
    checksum,
    explained,
    manifest_of,
    put_in_place,
    read_checked,
    read_intact,
    read_sums,
    sealed,
    sync,
    unseal,
    write_synced,
    write_whole,
)
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.shards import round_label

LOG = logger(__name__)


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

    def earlier(self, number: int) -> Path:
        """Where artifacts of an earlier run in the same ``output_dir`` are kept."""
        return self.root.with_name(f"sera-earlier-{number}")

    def start(self) -> Path | None:
        """Begin a new run; artifacts of an earlier run are moved aside.

        Returns:
            Where the earlier run's artifacts are now, or None if there were none.
        """
        moved = None
        with explained(self.root):
            if self.root.exists() and any(self.root.iterdir()):
                places = map(self.earlier, itertools.count(1))
                moved = next(path for path in places if not path.exists())
                put_in_place(self.root, moved)
            self.root.mkdir(parents=True, exist_ok=True)
            sync(self.root.parent)
        return moved

    def write_run(self, settings: Mapping[str, Any]) -> None:
        """Write ``run.json``: what the run was started with, and a checksum of that."""
        path = self.root / "run.json"
        with explained(path):
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(path, sealed(settings))

    def read_run(self) -> dict[str, Any] | None:
        """What ``write_run`` was given, or None if there are no artifacts at all.

        Raises:
            StoreError: if there are, and ``run.json`` is missing or is not what was written.
        """
        path = self.root / "run.json"
        try:
            if not self.root.exists() or not any(self.root.iterdir()):
                return None
            return unseal(path)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"can't resume: {path} {what_happened(error)}; restore it, or start anew without "
                "resume_from_checkpoint."
            ) from error

    def write_round(
        self,
        number: int,
        record: RoundRecord,
        bootstrapped: Iterable[Mapping[str, Any]],
        summary: Mapping[str, Any],
        candidates: Iterable[Mapping[str, Any]] = (),
    ) -> Path:
        """Write a round's folder; an earlier folder of the same round is replaced.

        Args:
            number: the round.
            record: what training and a resume need.
            bootstrapped: bootstrapped pairs as text.
            summary: metrics of the review.
            candidates: every answer that competed, with the columns of ``Candidates``.
        """
        final = self.round_dir(number)
        with explained(final):
            self._put_round(number, round_files(record, bootstrapped, candidates), summary)
        return final

    def _put_round(
        self, number: int, contents: Mapping[str, bytes], summary: Mapping[str, Any]
    ) -> None:
        final = self.round_dir(number)
        building, replaced = beside(final), self._replaced(final)
        try:
            building.mkdir(parents=True)
            for name, content in contents.items():
                write_synced(building / name, content)
            write_synced(building / "summary.json", _json(summary))
            sums = {name: checksum(content) for name, content in contents.items()}
            write_synced(building / MANIFEST, manifest_of(number, sums))
            sync(building)
            shutil.rmtree(replaced, ignore_errors=True)
            if final.exists():
                final.rename(replaced)
            put_in_place(building, final)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    @staticmethod
    def _replaced(final: Path) -> Path:
        return final.with_name(f".{final.name}.replaced")

    def drop_work(self, number: int) -> None:
        """Delete the finished shards of the rounds up to ``number``, which are not needed again.

        What can't be deleted is left: it costs room and nothing else.
        """
        for earlier in range(1, number + 1):
            for folder in self.work.glob(f"{round_label(earlier)}-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def drop_leftovers(self) -> None:
        """Delete what a kill left half-written: files and folders under temporary names."""
        for path in [*self.root.glob(".*tmp*"), *self.root.glob("*/.*.tmp")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def drop_all_work(self) -> None:
        """Delete all finished shards, at the end of a run."""
        shutil.rmtree(self.work, ignore_errors=True)

    def update_summary(self, number: int, more: Mapping[str, Any]) -> None:
        """Add to the summary of a round, which is created if the round was not reviewed."""
        path = self.round_dir(number) / "summary.json"
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            check_replaceable(path)
            summary = _read_summary(path) if path.exists() else None
            write_whole(path, _json({**(summary or {"round": number}), **more}))

    def read_summaries(self, last: int) -> list[dict[str, float]]:
        """Numbers of the rounds up to ``last``, for the table of a resumed run.

        A round whose summary can't be read has its number alone.
        """
        found = []
        for number in range(1, last + 1):
            path = self.round_dir(number) / "summary.json"
            summary = (_read_summary(path) if path.exists() else None) or {"round": float(number)}
            found.append({k: v for k, v in summary.items() if isinstance(v, (int, float))})
        return found

    def write_refinement(self, number: int, table: pa.Table) -> None:
        """Add the log-probs that Δ of a round is found from to its folder.

        Raises:
            StoreError: if they can't be written.
        """
        add_file(self.round_dir(number), number, Refinement.file, parquet_bytes(table))

    def read_refinement(self, number: int) -> pa.Table:
        """What ``write_refinement`` was given.

        Raises:
            StoreError: if it is missing or is not what was written.
        """
        folder = self.round_dir(number)
        content = read_intact(folder / Refinement.file, read_sums(folder, number), number)
        return pq.read_table(io.BytesIO(content))

    def read_tables(self, last: int) -> list[ReviewTable]:
        """The reviews of the stored rounds up to ``last``, oldest first.

        Raises:
            StoreError: as ``read_round``.
        """
        records = [self.read_round(number) for number in range(1, last + 1)]
        return [record.table for record in records if record is not None]

    def read_round(self, number: int) -> RoundRecord | None:
        """A stored reviewed round, or None if it is not there.

        Raises:
            StoreError: if a file that is needed is missing or is not what was written.
        """
        folder = self.round_dir(number)
        if not folder.exists() and self._replaced(folder).exists():
            put_in_place(self._replaced(folder), folder)  # killed between two renames
        if not any((folder / name).exists() for name in (MANIFEST, *NEEDED)):
            return None
        sums = read_sums(folder, number)
        if not sums.keys() & set(NEEDED):
            return None
        files = {name: read_intact(folder / name, sums, number) for name in NEEDED}
        for name in sums:
            if name not in (*NEEDED, Refinement.file):
                _warn_if_damaged(folder / name, sums)
        return read_record(files)


def _warn_if_damaged(path: Path, sums: Mapping[str, str]) -> None:
    try:
        read_checked(path, sums)
    except (OSError, ValueError) as error:
        LOG.warning(
            "%s %s; the run goes on, as it doesn't need this file.", path, what_happened(error)
        )


def _read_summary(path: Path) -> dict[str, Any] | None:
    try:
        summary = json.loads(path.read_bytes())
        if isinstance(summary, dict):
            return summary
        raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        LOG.warning("%s %s; its numbers are missing below.", path, what_happened(error))
        return None


def _json(values: Mapping[str, Any]) -> bytes:
    """JSON that strict readers accept: numbers that are not finite become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite, indent=2, allow_nan=False).encode()

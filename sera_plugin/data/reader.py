"""Reading the artifacts of a run from disk, finished or not. No torch here.

A round's folder appears whole, so what is there can be read while the run goes on. It may
have been damaged, or written by something else, so ``checked`` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sera_plugin.data import checked
from sera_plugin.data.columns import BootstrappedPairs, Column, Margins, Pairs, Rows
from sera_plugin.data.ids import in_place_of_another
from sera_plugin.runtime.errors import RunError
from sera_plugin.runtime.files import SEAL


@dataclass(frozen=True)
class StoredRound:
    """A round that is on disk.

    Attributes:
        number: from 1 on.
        folder: its folder.
        summary: the metrics of the round.
        reviewed: whether a review composed it; a warm-up round trains on all of D.
    """

    number: int
    folder: Path
    summary: Mapping[str, Any]
    reviewed: bool

    def table(self, file: type[Column], *columns: Column) -> pa.Table:
        """A parquet file of the round, or some of its columns.

        Raises:
            RunError: if it is not there or damaged.
        """
        return checked.read_parquet(self.folder / file.file, file, columns)

    def bootstrapped(self) -> Iterator[dict[str, Any]]:
        """The bootstrapped pairs as text.

        Raises:
            RunError: if they are not there or damaged.
        """
        path = checked.regular(self.bootstrapped_path)
        with open(path, "rb") as file:
            for line in file:
                yield checked.bootstrapped_pair(line, path)

    def rows(self, *columns: Rows) -> pa.Table:
        """``rows.parquet``, or the key, ``filled`` and some other columns of it.

        Versions that did not write ``filled`` have it in the keys.

        Raises:
            RunError: if it is not there or damaged.
        """
        asked = dict.fromkeys([Rows.KEY, *columns]) if columns else ()
        table = self.table(Rows, *(column for column in asked if column is not Rows.FILLED))
        if Rows.FILLED in table.column_names:
            table = table.drop_columns([Rows.FILLED])
        filled = [in_place_of_another(str(key)) for key in table[Rows.KEY].to_pylist()]
        return table.append_column(Rows.FILLED, pa.array(filled, pa.bool_()))

    @property
    def bootstrapped_path(self) -> Path:
        """Where they stand."""
        return self.folder / BootstrappedPairs.file


@dataclass(frozen=True)
class RunFiles:
    """The artifacts of a run.

    Attributes:
        output_dir: the run's ``output_dir``.
        root: its ``sera`` folder.
        settings: ``run.json``.
        rounds: rounds on disk, in order.
        being_written: numbers of rounds whose folders are not complete.
    """

    output_dir: Path
    root: Path
    settings: Mapping[str, Any]
    rounds: tuple[StoredRound, ...]
    being_written: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> RunFiles:
        """The run in ``path``, its ``output_dir`` or the ``sera`` folder in it.

        Raises:
            RunError: one sentence, when there is no run or it is damaged.
        """
        if not path.exists():
            raise RunError(f"{path} does not exist; name the output_dir of a SeRA run.")
        if not path.is_dir():
            raise RunError(f"{path} is a file; name the output_dir of a SeRA run.")
        root = path if (path / "run.json").is_file() else path / "sera"
        if not (root / "run.json").is_file():
            raise RunError(
                f"{path} holds no sera/run.json, so it is not the output_dir of a SeRA run, or "
                "the run has not begun to train."
            )
        settings = checked.read_json(root / "run.json", checked.run_settings)
        found = [
            (int(match[1]), folder, bool(match[2]))
            for folder in sorted(root.iterdir())
            if (match := re.fullmatch(r"\.?round-(\d+)(\.\w+)?", folder.name)) and folder.is_dir()
        ]
        stored = [_stored(n, folder) for n, folder, unfinished in sorted(found) if not unfinished]
        whole = tuple(entry for entry in stored if entry is not None)
        present = {entry.number for entry in whole}
        return cls(
            output_dir=root.resolve().parent,
            root=root,
            settings={name: value for name, value in settings.items() if name != SEAL},
            rounds=whole,
            being_written=tuple(sorted({n for n, *_ in found} - present)),
        )

    @property
    def reviewed(self) -> tuple[StoredRound, ...]:
        return tuple(entry for entry in self.rounds if entry.reviewed)

    @property
    def planned(self) -> int:
        """Rounds of the whole run."""
        return len(self.settings.get("rounds") or ())

    @property
    def finished(self) -> bool:
        """Whether the last planned round has been trained, or ``max_steps`` reached."""
        trained = [entry for entry in self.rounds if "seconds_training" in entry.summary]
        if not trained:
            return False
        updates = list(self.settings.get("updates") or ())
        limit = self.settings.get("max_steps") or sum(updates)
        return bool(updates) and sum(updates[: trained[-1].number]) >= limit

    def round(self, number: int) -> StoredRound:
        """A round by its number.

        Raises:
            RunError: one sentence, if it is not there or not complete.
        """
        for entry in self.rounds:
            if entry.number == number:
                return entry
        if number in self.being_written:
            raise RunError(
                f"--round {number}: its folder in {self.root} is not complete; wait until the run "
                "has written it, or resume the run."
            )
        there = ", ".join(str(entry.number) for entry in self.rounds) or "none yet"
        raise RunError(f"--round {number} is not in {self.root}; rounds there: {there}.")

    def pairs(self, *columns: Pairs) -> pa.Table | None:
        """The texts of D, or None for a run of an earlier version, which kept none."""
        path = self.root / Pairs.file
        return checked.read_parquet(path, Pairs, columns) if path.exists() else None

    def log(self) -> list[Mapping[str, Any]]:
        """The trainer's log history, from wherever it reaches farthest."""
        paths = [
            self.output_dir / "trainer_state.json",
            *self.output_dir.glob("checkpoint-*/trainer_state.json"),
        ]
        log = self.root / "log.json"
        histories = [checked.read_json(log, checked.log_history)] if log.exists() else [[]]
        for path in paths:
            with suppress(RunError):  # a kill may leave one of these half-written
                histories.append(checked.read_json(path, checked.log_history))
        return max(histories, key=lambda entries: (_last_step(entries), len(entries)))


def _stored(number: int, folder: Path) -> StoredRound | None:
    if not (folder / "summary.json").exists():
        return None
    summary = checked.read_json(folder / "summary.json", checked.round_summary)
    return StoredRound(number, folder, summary, (folder / Margins.file).exists())


def _last_step(entries: list[Mapping[str, Any]]) -> float:
    return max((entry.get("step") or 0 for entry in entries), default=-1)

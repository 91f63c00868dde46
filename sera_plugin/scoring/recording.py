"""Log-probs of D that training steps find on the way, for ``sera.selection.source: training``.

A pair's log-probs are those of the policy just before the update that it was trained in, so within
a round some are older than others, and pairs that a round leaves out keep the ones they had.
Collectives: one gather in ``Recorder.merged``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundRow, offline_example
from sera_plugin.runtime.errors import StoreError
from sera_plugin.runtime.files import explained, write_whole
from sera_plugin.runtime.ranks import gathered

FILE = "sera_recorded.parquet"
"""Where a checkpoint keeps what was recorded up to its step."""


@dataclass(frozen=True)
class Recorded:
    """The last known log-probs of all offline pairs under the policy.

    Attributes:
        policy: log-probs of both answers.
        measured_in: the round in which each pair was last trained on, int32, shape (n,); 0 for
            pairs that never were, whose log-probs are the reference's, where the policy starts.
    """

    policy: PairLogps
    measured_in: np.ndarray

    @classmethod
    def start(cls, reference: PairLogps) -> Recorded:
        """What is known before the first step."""
        return cls(reference, np.zeros(len(reference.ids), dtype=np.int32))

    def save(self, folder: Path) -> None:
        """Write to a checkpoint that is not finished yet.

        Raises:
            StoreError: if the folder or the file can't be written.
        """
        columns = {
            "example_id": list(self.policy.ids),
            "chosen_logp": self.policy.chosen,
            "rejected_logp": self.policy.rejected,
            "measured_in": self.measured_in,
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        with explained(folder / FILE):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / FILE, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path, ids: Sequence[str]) -> Recorded:
        """What a checkpoint keeps, for ``ids`` in their order.

        Raises:
            StoreError: if the checkpoint has no such file; one sentence.
            KeyError: if an id is missing.
        """
        if not (folder / FILE).exists():
            raise StoreError(
                f"can't resume: {folder / FILE} is missing, which sera.selection.source: training "
                "needs; resume from another checkpoint or start again without "
                "resume_from_checkpoint."
            )
        table = pq.read_table(folder / FILE)
        stored = tuple(table["example_id"].to_pylist())
        where = {example_id: row for row, example_id in enumerate(stored)}
        logps = PairLogps(
            stored, table["chosen_logp"].to_numpy(), table["rejected_logp"].to_numpy()
        ).aligned(ids)
        rows = np.array([where[i] for i in ids], dtype=np.int64)
        return cls(logps, table["measured_in"].to_numpy()[rows])


@dataclass(frozen=True)
class Notes:
    """What one rank's training steps found.

    Attributes:
        rows: rows of D, each once, int64, shape (k,).
        updates: optimizer updates done before the one that a row was in.
        rounds: the rounds that trained.
        logps: log-probs of the chosen and the rejected answers, shape (k, 2).
    """

    rows: np.ndarray
    updates: np.ndarray
    rounds: np.ndarray
    logps: np.ndarray


class Recorder:
    """Notes what this rank's training steps find, and merges it with what other ranks found.

    Args:
        pairs: D.
        recorded: what is known so far, the same on every rank.
    """

    def __init__(self, pairs: OfflinePairs, recorded: Recorded) -> None:
        self._position = pairs.position
        self._known = recorded
        self._number = 0
        self._flipped: frozenset[str] = frozenset()
        self._forget()

    def _forget(self) -> None:
        count = len(self._known.policy.ids)
        self._update = np.full(count, -1, dtype=np.int64)
        self._round = np.zeros(count, dtype=np.int32)
        self._logps = np.zeros((count, 2))

    def begin(self, number: int, rows: Sequence[RoundRow]) -> None:
        """What is noted next belongs to round ``number``, which trains on ``rows``."""
        self._number = number
        self._flipped = frozenset(row.key for row in rows if row.flipped)

    def note(self, keys: Sequence[str], logps: np.ndarray, update: int) -> None:
        """Note one micro-batch; rows of bootstrapped pairs are passed over.

        Args:
            keys: keys of the round's rows.
            logps: log-probs of the chosen and the rejected answers as they are trained on, shape
                (rows, 2).
            update: optimizer updates done before this one.
        """
        for key, values in zip(keys, logps, strict=True):
            example_id = offline_example(key)
            if example_id is not None:
                row = self._position[example_id]
                self._logps[row] = values[::-1] if key in self._flipped else values
                self._update[row], self._round[row] = update, self._number

    def merged(self) -> Recorded:
        """What is known now, the same on every rank; all of them must call this."""
        rows = np.flatnonzero(self._update >= 0)
        mine = Notes(rows, self._update[rows], self._round[rows], self._logps[rows])
        self._known = merge(self._known, gathered([mine]))
        self._forget()
        return self._known


def merge(known: Recorded, notes: Sequence[Notes]) -> Recorded:
    """``known`` with what the ranks have noted since; pure.

    Of a pair that several rows of a round hold, the latest update counts, and of one update the
    lowest rank.
    """
    rows, updates, rounds, logps = (
        np.concatenate([getattr(note, field.name) for note in notes]) for field in fields(Notes)
    )
    ranks = np.repeat(np.arange(len(notes)), [len(note.rows) for note in notes])
    order = np.lexsort((ranks, -updates))
    rows, first = np.unique(rows[order], return_index=True)
    chosen, rejected = known.policy.chosen.copy(), known.policy.rejected.copy()
    measured_in = known.measured_in.copy()
    chosen[rows], rejected[rows] = logps[order][first].T
    measured_in[rows] = rounds[order][first]
    return Recorded(PairLogps(known.policy.ids, chosen, rejected), measured_in)

"""What a run has found so far, and how that comes back when it is resumed.

Collectives: those of scoring; what the main process reads is broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sera_plugin.data.margins import PairLogps, check_numbers
from sera_plugin.data.tables import ReviewTable
from sera_plugin.host.rounds import Start
from sera_plugin.review.selection import History
from sera_plugin.runtime.errors import StoreError, what_happened
from sera_plugin.runtime.files import explained, sealed, unseal, write_synced
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.scoring.snapshot import Snapshot
from sera_plugin.training.resume import complete_summaries, last_review
from sera_plugin.training.run import Run
from sera_plugin.training.terms.term import Objective

LOG = logger(__name__)

TERMS_FILE = "sera_terms.json"
"""Where a checkpoint keeps what its updates have changed in the terms of the loss."""


@dataclass
class Found:
    """What a run has found so far.

    Attributes:
        reference: log-probs of D under πref; None if no round is left to train.
        bad_ids: pairs whose reference log-probs are not finite.
        table: the last review.
        history: margins of all reviews, where the rule of selection looks back.
        policy: the last review's policy, where candidates are ensembled.
        summaries: numbers of the rounds so far.
    """

    reference: PairLogps | None = None
    bad_ids: frozenset[str] = frozenset()
    table: ReviewTable | None = None
    history: History | None = None
    policy: Snapshot | None = None
    summaries: list[dict[str, float]] = field(default_factory=list)


def score_reference(run: Run, found: Found) -> None:
    """Find the log-probs of D under πref; pairs without finite ones are set aside.

    Raises:
        BadNumbersError: if too many are not finite.
    """
    reference, _ = run.reviewer.score_offline(
        run.pairs, "Reference log-probs", under_reference=True
    )
    finite = reference.finite
    bad = check_numbers(finite, run.config.max_set_aside, "the reference")
    if bad:
        LOG.warning("%d pairs are set aside: their reference log-probs are not finite.", bad)
    found.reference = reference
    found.bad_ids = frozenset(np.array(run.pairs.ids)[~finite].tolist())


def restore(run: Run, found: Found, start: Start) -> None:
    """Take the last review's results from the store when a run is resumed."""
    complete_summaries(run, start.epochs_done, found.bad_ids)
    record = last_review(run, start)
    number = start.within or start.epochs_done
    reviewed = number if record is not None else start.epochs_done
    found.summaries = shared(lambda: run.store.read_summaries(reviewed))
    if record is None:
        return
    found.table = record.table
    if run.config.selection.looks_back:
        tables = shared(lambda: run.store.read_tables(number))
        found.history = History.of(
            [table.margin for table in tables], [table.ensembled for table in tables]
        )
    keep_policy(run, found, number, resumed=True)
    if run.config.reference == "previous":
        found.reference = record.table.policy


def keep_policy(run: Run, found: Found, number: int, *, resumed: bool = False) -> None:
    """Keep the policy that reviewed for round ``number`` where the next review needs it."""
    as_reference = run.config.reference == "previous"
    if not (run.config.bootstrap.ensemble or as_reference):
        return
    path = run.store.root / f"policy-{number:02d}.safetensors"
    if resumed:
        snapshot = shared(lambda: Snapshot.load(path))
    else:
        snapshot = Snapshot.take(run.policies.unwrapped)
        if run.is_main:
            snapshot.save(path)
    if as_reference:
        run.policies.reference_snapshot = snapshot
    else:
        found.policy = snapshot


def save_terms(objective: Objective, folder: Path) -> None:
    """Write the state of terms that have one to a checkpoint that is not finished yet.

    Raises:
        StoreError: if the folder or the file can't be written.
    """
    states = [dict(term.state()) for term in objective.terms]
    if any(states):
        with explained(folder / TERMS_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            write_synced(folder / TERMS_FILE, sealed({"terms": states}))


def restore_terms(objective: Objective, checkpoint: Path) -> None:
    """Give the terms the state that a checkpoint keeps.

    Raises:
        StoreError: if a term has one and the file is missing or is not what was written.
    """
    if not any(term.state() for term in objective.terms):
        return
    path = checkpoint / TERMS_FILE
    try:
        stored = shared(lambda: unseal(path))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"can't resume: {path} {what_happened(error)}; resume from another checkpoint."
        ) from error
    for term, state in zip(objective.terms, stored["terms"], strict=True):
        term.resume(state)

"""What a run has found so far, and how that comes back when it is resumed.

Collectives: those of scoring; what the main process reads is broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sera_plugin.data.margins import PairLogps, check_numbers
from sera_plugin.data.tables import ReviewTable
from sera_plugin.host.rounds import Start
from sera_plugin.review.selection import History
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.scoring.snapshot import Snapshot
from sera_plugin.training.resume import complete_summaries, last_review
from sera_plugin.training.run import Run

LOG = logger(__name__)


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

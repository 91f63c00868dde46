"""Starting a run or taking one up again: settings compared, the last review read back.

Collectives: what the main process reads is broadcast.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from sera_plugin.config import SeraConfigError
from sera_plugin.data.store import RunStore, StoreError
from sera_plugin.data.tables import RoundRecord
from sera_plugin.data.texts import PAIRS_FILE, write_pairs
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.objects import shared
from sera_plugin.training.changes import compare
from sera_plugin.training.publish import run_settings

LOG = logger(__name__)


def start_or_check(trainer: Any, *, resumed: bool) -> None:
    """Record a new run's settings, or compare a resumed run's with the record.

    Raises:
        SeraConfigError: if the resumed run would not be the one that was started.
    """
    settings = run_settings(trainer)
    stored = shared(trainer.store.read_run) if resumed else None
    if stored is not None:
        changes = compare(stored, settings)
        if changes.unsafe:
            raise SeraConfigError(changes.unsafe[0])
        for sentence in changes.safe:
            LOG.warning("%s", sentence)
    elif trainer.accelerator.is_main_process:
        start(trainer.store, settings)
    if trainer.accelerator.is_main_process:
        trainer.store.drop_leftovers()
        write_pairs(trainer.store.root, trainer.pairs, trainer._tokenizer)


def start(store: RunStore, settings: Mapping[str, Any]) -> None:
    """Begin a run; artifacts of an earlier one are moved aside, finished shards stay in use.

    The keys of shards name all that determines them, so a run that was killed before its first
    checkpoint starts anew without scoring and sampling again.
    """
    if not _left_nothing_but(store, settings):
        moved = store.start()
        if moved:
            LOG.warning("The artifacts of an earlier run were moved to %s.", moved)
    store.write_run(settings)
    numbers = itertools.takewhile(lambda n: store.earlier(n).exists(), itertools.count(1))
    for work in [store.earlier(number) / store.work.name for number in numbers][-1:]:
        # Looked for at every start, because a kill may come between the two renames.
        if work.is_dir() and not store.work.exists():
            work.rename(store.work)


def _left_nothing_but(store: RunStore, settings: Mapping[str, Any]) -> bool:
    """Whether an earlier run has equal settings, and no artifacts beside its shards."""
    if not store.root.exists():
        return False
    names = {path.name for path in store.root.iterdir() if path.name[0] != "."}
    if names - {store.work.name, PAIRS_FILE} != {"run.json"}:
        return False
    try:
        return store.read_run() == json.loads(json.dumps(settings))
    except (OSError, ValueError, StoreError):
        return False


def complete_summaries(trainer: Any, epochs_done: int) -> None:
    """Write what a kill between the checkpoint of a warm-up round's end and its summary left out.

    Args:
        trainer: the trainer.
        epochs_done: rounds that are complete.
    """
    if trainer.accelerator.is_main_process:
        for size in trainer.schedule.rounds[:epochs_done]:
            if not size.reviewed:
                summary = {"round": float(size.number), "kept": float(size.total)}
                trainer.store.update_summary(size.number, summary)


def last_review(trainer: Any, epochs_done: int, resumed_within: int | None) -> RoundRecord | None:
    """What the last review before the resumed position found, or None if there was none.

    Args:
        trainer: the trainer.
        epochs_done: rounds that are complete.
        resumed_within: the round that is resumed after some of its updates, if any.

    Raises:
        RuntimeError: if the round's folder is missing.
    """
    number = resumed_within or epochs_done
    if number == 0 or not trainer.schedule.rounds[number - 1].reviewed:
        return None
    record: RoundRecord | None = shared(lambda: trainer.store.read_round(number))
    if record is None:
        raise RuntimeError(
            f"can't resume: {trainer.store.round_dir(number)} is missing or incomplete; "
            "restore it or start again without resume_from_checkpoint."
        )
    return record

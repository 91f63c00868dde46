"""Starting a run or taking one up again: settings compared, the last review read back.

Collectives: what the main process reads is broadcast.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from sera_plugin.data.columns import Pairs
from sera_plugin.data.ids import dataset_hash
from sera_plugin.data.store import RunStore
from sera_plugin.data.tables import RoundRecord
from sera_plugin.data.texts import HELD_OUT_FILE, write_pairs
from sera_plugin.host.rounds import Start
from sera_plugin.review.metrics import full_round_metrics, full_round_text
from sera_plugin.runtime.errors import SeraConfigError, StoreError
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.runtime.version import __version__
from sera_plugin.scoring.quality_prompt import opposite_texts
from sera_plugin.training.changes import batch_settings, compare
from sera_plugin.training.run import Run
from sera_plugin.training.terms.term import described

LOG = logger(__name__)


def start_or_check(run: Run, *, resumed: bool) -> None:
    """Record a new run's settings, or compare a resumed run's with the record.

    Raises:
        SeraConfigError: if the resumed run would not be the one that was started.
    """
    settings = run_settings(run)
    stored = shared(run.store.read_run) if resumed else None
    if stored is not None:
        changes = compare(stored, settings)
        if changes.unsafe:
            raise SeraConfigError(changes.unsafe[0])
        for sentence in changes.safe:
            LOG.warning("%s", sentence)
    elif run.is_main:
        start(run.store, settings)
    if run.is_main:
        run.store.drop_leftovers()
        write_pairs(run.store.root / Pairs.file, run.pairs, run.host.tokenizer)
        if run.held_out is not None:
            write_pairs(run.store.root / HELD_OUT_FILE, run.held_out, run.host.tokenizer)
            LOG.info(
                "%d of %d training pairs are held out for the guard and never trained on, because "
                "there are no evaluation pairs (sera.bootstrap.guard.held_out: %s).",
                *(len(run.held_out), len(run.held_out) + len(run.pairs)),
                run.config.bootstrap.guard.held_out,
            )


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
    if names - {store.work.name, Pairs.file, HELD_OUT_FILE} != {"run.json"}:
        return False
    try:
        return bool(store.read_run() == json.loads(json.dumps(settings)))
    except (OSError, ValueError, StoreError):
        return False


def complete_summaries(run: Run, epochs_done: int, bad: Collection[str]) -> None:
    """Write what a kill between the checkpoint of a warm-up round's end and its summary left out.

    Args:
        run: the run.
        epochs_done: rounds that are complete.
        bad: ids of the pairs that were set aside.
    """
    if run.is_main:
        for size in run.schedule.rounds[:epochs_done]:
            if not size.reviewed:
                summary = full_round_metrics(size.number, size.total, len(bad))
                run.store.update_summary(size.number, summary | full_round_text(bad))


def last_review(run: Run, where: Start) -> RoundRecord | None:
    """What the last review before the resumed position found, or None if there was none.

    Raises:
        StoreError: if the round's folder is missing.
    """
    number = where.within or where.epochs_done
    if number == 0 or not run.schedule.rounds[number - 1].reviewed:
        return None
    record: RoundRecord | None = shared(lambda: run.store.read_round(number))
    if record is None:
        raise StoreError(
            f"can't resume: {run.store.round_dir(number)} is missing or incomplete; "
            "restore it or start again without resume_from_checkpoint."
        )
    return record


def run_settings(run: Run) -> dict[str, Any]:
    """What a run was started with."""
    schedule, host, batching = run.schedule, run.host, run.host.batching
    return {
        "sera_plugin": __version__,
        "axolotl": importlib.metadata.version("axolotl"),
        "trl": importlib.metadata.version("trl"),
        "sera": run.config.model_dump(),
        "terms": described(run.config.terms),
        "quality_prompt": None,
        "delta_baseline": None,
        "contrast_prompts": [list(opposite_texts(a)) for a in run.config.asked] or None,
        **(run.objective.identity() if run.objective else {}),
        "base_model": str(host.cfg.base_model),
        # Relative, so that a run and its YAML can be moved together.
        "config": os.path.relpath(str(host.cfg.axolotl_config_path), host.cfg.output_dir),
        "sequence_len": host.max_length,
        "loss_type": list(host.loss_types),
        "beta": host.beta,
        "seed": host.seed,
        "pairs": len(run.pairs),
        "held_out": len(run.held_out) if run.held_out is not None else None,
        "dataset_hash": dataset_hash(run.pairs.ids),
        "ending_token_ids": list(run.sampling.ending),
        "rounds": [
            {"round": size.number, "kept": size.kept, "bootstrapped": size.bootstrapped}
            for size in schedule.rounds
        ],
        "updates": list(schedule.updates),
        "max_steps": schedule.max_steps,
        "distributed": str(host.accelerator.distributed_type.value),
        **batch_settings(batching.per_device, batching.accumulation, batching.ranks),
    }

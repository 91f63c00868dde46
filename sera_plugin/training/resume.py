"""Starting a run or taking one up again: settings compared, the last review read back.

Collectives: what the main process reads is broadcast.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sera_plugin.config.parsing import default_at
from sera_plugin.data.columns import Pairs
from sera_plugin.data.ids import dataset_hash
from sera_plugin.data.store import RunStore, StoreError
from sera_plugin.data.tables import RoundRecord
from sera_plugin.data.texts import write_pairs
from sera_plugin.host.models import plugin_config
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.runtime.version import __version__

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
    if names - {store.work.name, Pairs.file} != {"run.json"}:
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


@dataclass(frozen=True)
class Changes:
    """Sentences about a resumed run.

    Attributes:
        unsafe: changes after which the run would not be the one that was started.
        safe: changes after which it goes on.
    """

    unsafe: tuple[str, ...]
    safe: tuple[str, ...]


_UNSAFE = {
    "dataset_hash": "datasets: the hash of the training pairs",
    "pairs": "datasets: the number of training pairs",
    "base_model": "base_model",
    "sequence_len": "sequence_len",
    "seed": "seed",
    "beta": "rl_beta",
    "loss_type": "the loss",
    "quality_prompt": "the text of sera.refine.prompt",
    "global_batch": "the global batch (micro_batch_size × gradient_accumulation_steps × processes)",
    "updates": "the updates of each round (num_epochs, max_steps or batch size)",
}
_SAFE = {
    "ranks": "the number of processes",
    "distributed": "the kind of parallelism",
    "micro_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
}


def batch_settings(micro_batch: int, accumulation: int, ranks: int) -> dict[str, int]:
    """How an update's pairs are cut."""
    return {
        "micro_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "ranks": ranks,
        "global_batch": micro_batch * accumulation * ranks,
    }


def compare(stored: Mapping[str, Any], current: Mapping[str, Any]) -> Changes:
    """Compare the settings of a run with those of its resumption.

    Args:
        stored: ``run.json`` of the run.
        current: the same made anew, or those settings of it that are known so far.
    """
    stored = {key: stored.get(key) for key in current}
    unsafe = [
        f"resume: {words} was {stored.get(key)} and is {current.get(key)}; resume with what the "
        "run was started with, or start anew in another output_dir."
        for key, words in _UNSAFE.items()
        if stored.get(key) != current.get(key)
    ]
    unsafe += [
        f"resume: {key} was {old} and is {new}; resume with what the run was started with, or "
        "start anew in another output_dir."
        for key, old, new in _differences((), stored.get("sera"), current.get("sera"))
    ]
    safe = [
        f"resume: {words} was {stored.get(key)} and is {current.get(key)}; the run goes on, its "
        "numbers may differ by rounding."
        for key, words in _SAFE.items()
        if stored.get(key) != current.get(key)
    ]
    return Changes(tuple(unsafe), tuple(safe))


def _differences(path: tuple[str, ...], old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Keys of the block with both values. A key that is not there, as in a run of a version that
    did not know it, stands for its default."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            usual = None if key in old and key in new else default_at((*path, key))
            yield from _differences((*path, key), old.get(key, usual), new.get(key, usual))
    elif old != new:
        yield ".".join(["sera", *path]), old, new


def run_settings(trainer: Any) -> dict[str, Any]:
    """What a run was started with."""
    schedule = trainer.schedule
    return {
        "sera_plugin": __version__,
        "axolotl": importlib.metadata.version("axolotl"),
        "trl": importlib.metadata.version("trl"),
        "sera": trainer.sera.model_dump(),
        "quality_prompt": trainer.refiner.quality_prompt if trainer.refiner else None,
        "base_model": str(plugin_config().base_model),
        "sequence_len": trainer.args.max_length,
        "loss_type": list(trainer.loss_types),
        "beta": trainer.beta,
        "seed": trainer.args.seed,
        "pairs": len(trainer.pairs),
        "dataset_hash": dataset_hash(trainer.pairs.ids),
        "ending_token_ids": list(trainer.sampling.ending),
        "rounds": [
            {"round": size.number, "kept": size.kept, "bootstrapped": size.bootstrapped}
            for size in schedule.rounds
        ],
        "updates": list(schedule.updates),
        "max_steps": schedule.max_steps,
        "distributed": str(trainer.accelerator.distributed_type.value),
        **batch_settings(
            trainer.batching.per_device, trainer.batching.accumulation, trainer.batching.ranks
        ),
    }

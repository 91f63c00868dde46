"""What has changed between a run and its resumption. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sera_plugin.config.parsing import default_at


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
    # Runs of a version before this key took nothing off, and Δ had no β.
    "contrast_prompts": "the texts of sera.selection.contrast.prompts",
    "delta_baseline": "sera.refine.baseline",
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

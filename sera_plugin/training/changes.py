"""What has changed between a run and its resumption. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sera_plugin.config.fields import shown
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
    "held_out": "the number of training pairs held out (sera.bootstrap.guard.held_out)",
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


_BY_EFFECT = ("bootstrap", "guard", "held_out")
"""A key that runs of earlier versions lack; what it did stands in the settings beside the block."""

SHORT = 120
"""Characters below which a value is shown whole."""

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
        f"resume: {words} {_changed(stored.get(key), current.get(key))}; resume with what the run "
        "was started with, or start anew in another output_dir."
        for key, words in _UNSAFE.items()
        if stored.get(key) != current.get(key)
    ]
    unsafe += [
        f"resume: {key} {_changed(old, new)}; resume with what the run was started with, or start "
        "anew in another output_dir."
        for key, old, new in _differences((), stored.get("sera"), current.get("sera"))
    ]
    safe = [
        f"resume: {words} {_changed(stored.get(key), current.get(key))}; the run goes on, its "
        "numbers may differ by rounding."
        for key, words in _SAFE.items()
        if stored.get(key) != current.get(key)
    ]
    return Changes(tuple(unsafe), tuple(safe))


def _changed(old: Any, new: Any) -> str:
    """Both values as the end of a clause; of long lists and texts where they part."""
    short = all(len(shown(value, SHORT)) < SHORT for value in (old, new))
    if short or type(old) is not type(new) or not isinstance(old, (list, str)):
        return f"was {_shown(old)} and is {_shown(new)}"
    both = enumerate(zip(old, new, strict=False))
    alike = next((n for n, (one, other) in both if one != other), min(len(old), len(new)))
    if isinstance(old, str):
        was, now = shown(old[alike:]), shown(new[alike:])
        return f"was {was} and is {now} from character {alike + 1} on"
    if len(old) != len(new):
        return f"had {len(old)} entries and has {len(new)}, of which the first {alike} are alike"
    was, now = _shown(old[alike]), _shown(new[alike])
    return f"was {was} and is {now} in entry {alike + 1}, the first that differs"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < SHORT else shown(value, SHORT)


def _differences(path: tuple[str, ...], old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Keys of the block with both values. A key that is not there, as in a run of a version that
    did not know it, stands for its default."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            if (*path, key) == _BY_EFFECT and key not in old:
                continue
            usual = None if key in old and key in new else default_at((*path, key))
            yield from _differences((*path, key), old.get(key, usual), new.get(key, usual))
    elif old != new:
        yield ".".join(["sera", *path]), old, new

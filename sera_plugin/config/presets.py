"""Presets: values that stand in the place of the defaults. Keys that are written out win."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "warmup_rounds": 1,
        "ensemble": 0.3,
        "bootstrap": {
            "fraction": 0.3,
            "num_candidates": 4,
            "pool": "policy_and_offline",
            "sampler": "policy",
            "temperature": 0.7,
            "top_p": 1.0,
            "length_penalty": 0.0,
            "ensemble": True,
            "guard": False,
        },
        "reference": "fixed",
    },
    "select": {"bootstrap": {"fraction": 0.0}},
    "contrast": {
        "warmup_rounds": 0,
        "selection": {
            "by": "contrast",
            "use": "weight",
            "gate": True,
            "source": "training",
        },
        "bootstrap": {"fraction": 0.0},
    },
}


IN_SHORT: Mapping[str, Any] = {"preset": "contrast"}
"""What `sera: true` is short for."""


def with_preset(block: Any) -> Any:
    """The block with its preset's values where it has none of its own."""
    if not isinstance(block, Mapping):
        return block
    name = block.get("preset", "default")
    return _merged(PRESETS.get(name, {}) if isinstance(name, str) else {}, block)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on ``base``; `true` is the block of ``base``, unless that is off."""
    merged = {**base, **over}
    for key, value in base.items():
        if isinstance(value, Mapping) and isinstance(over.get(key), Mapping):
            merged[key] = _merged(value, over[key])
        elif isinstance(value, Mapping) and over.get(key) is True and value.get("fraction") != 0:
            merged[key] = value
    return merged

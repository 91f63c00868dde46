"""What the contrast of a run asks for on pairs of the task, and where it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.smollm.sentiment import Pair
from benchmarks.smollm.signals import PROMPTS
from benchmarks.smollm.task import key_of, stored
from sera_plugin.config.contrast import ContrastPrompts

CONTRASTS = "sentiment-contrast.jsonl"
TONE = {
    "positive": "Answer in a cheerful and pleased tone:",
    "negative": "Answer in a gloomy and displeased tone:",
}
"""What the task's reward asks for, and its opposite."""
WORDINGS = {"tone": ContrastPrompts.model_validate(TONE), "built-in": PROMPTS["user"]}


def contrasts_of(results: Path, wording: str) -> Mapping[str, float]:
    """The stored contrasts of a wording by ``key_of``: above 0 where it likes the better answer."""
    lines = stored(results / CONTRASTS)
    return {line["key"]: line["contrast"] for line in lines if line["wording"] == wording}


def seen(pair: Pair, wrong: bool, contrasts: Mapping[str, float]) -> float:
    """The contrast of a pair as it is labelled, nats.

    Raises:
        SystemExit: if it is not stored.
    """
    found = contrasts.get(key_of(pair))
    if found is None:
        raise SystemExit(
            "The contrast of some pairs is not stored; `python -m benchmarks.smollm.gates` "
            "measures it."
        )
    return -found if wrong else found

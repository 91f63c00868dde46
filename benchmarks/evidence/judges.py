"""Judges that know the gold reward: of fresh answers, and of the pairs at hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.evidence.artifacts import parse_answers, parse_prompts
from benchmarks.evidence.world import World

WORLD = "EVIDENCE_WORLD"
"""Environment variable with the seed of the world, which ``sera.bootstrap.judge`` needs."""
ERRORS = 0.2


def gold(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The gold reward of every answer."""
    return _gold(_world(), prompts, completions).tolist()


def gold_with_errors(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The gold reward, negated for one prompt in five: there the worst answer is liked best."""
    return _with_errors(_world(), prompts, completions).tolist()


def scored(world: World, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs with the scores that the judge with errors gives their answers."""
    prompts = [row["prompt"] for row in rows]
    scores = {
        f"score_{side}": _with_errors(world, prompts, [row[side] for row in rows]).tolist()
        for side in ("chosen", "rejected")
    }
    return [
        row | {name: values[i] for name, values in scores.items()} for i, row in enumerate(rows)
    ]


def _world() -> World:
    return World(int(os.environ[WORLD]))


def _gold(world: World, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    return world.gold(parse_prompts(prompts), parse_answers(answers))


def _with_errors(world: World, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    wrong = [_mistaken(world, row) for row in parse_prompts(prompts).rows()]
    return np.where(wrong, -1.0, 1.0) * _gold(world, prompts, answers)


def _mistaken(world: World, prompt: tuple[int, int, int, int]) -> bool:
    """Whether the judge with errors gets a prompt wrong, always the same ones."""
    digest = hashlib.blake2b(f"{world.seed}/{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < ERRORS * 2**64

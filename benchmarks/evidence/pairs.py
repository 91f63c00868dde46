"""Preference pairs: who writes them, how labels are flipped, and the files that Axolotl reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from transformers import PreTrainedModel

from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.policy import sample
from benchmarks.evidence.world import NONE, Prompts, World, Writer, with_marker

ANSWERS = 4
"""Completions per prompt; a pair is the best of them against another one."""
WRITERS = (
    Writer(best_of=6),
    Writer(sharpness=0.3, best_of=2, worst=True),
    Writer(grammar=1, best_of=6),
)
"""Of off-policy pairs: a better one, a worse one, and a good one with another style."""
MARKED_CHOSEN, MARKED_REJECTED = 0.7, 0.2


@dataclass(frozen=True)
class Candidates:
    """Prompts with answers, before labels.

    Attributes:
        prompts: n prompts.
        answers: shape (n, ANSWERS, MOST_WORDS).
        gold: shape (n, ANSWERS).
    """

    prompts: Prompts
    answers: np.ndarray
    gold: np.ndarray


@dataclass(frozen=True)
class PairSet:
    """Labelled pairs; arrays of n rows.

    Attributes:
        prompts: the prompts.
        chosen: answers that the label prefers.
        rejected: the other ones.
        flipped: whether the label contradicts gold.
    """

    prompts: Prompts
    chosen: np.ndarray
    rejected: np.ndarray
    flipped: np.ndarray


def on_policy(world: World, model: PreTrainedModel, count: int, seed: int) -> Candidates:
    """Completions that the SFT model samples at temperature 1."""
    prompts = world.prompts("train", count, seed=2 + seed)
    ids = np.repeat(words.prompt_ids(prompts), ANSWERS, axis=0)
    answers = words.answers_of_ids(sample(model, ids, seed))
    return _candidates(world, prompts, answers.reshape(count, ANSWERS, -1))


def off_policy(world: World, count: int, seed: int) -> Candidates:
    """Completions of other writers, drawn anew for every answer."""
    prompts = world.prompts("train", count, seed=2 + seed)
    by_writer = np.stack(
        [
            [world.write(prompts, writer, "pairs", seed, k) for writer in WRITERS]
            for k in range(ANSWERS)
        ]
    )
    draw = np.random.default_rng([world.seed, seed, 1])
    who = draw.integers(len(WRITERS), size=(ANSWERS, count))
    answers = by_writer[np.arange(ANSWERS)[:, None], who, np.arange(count)]
    return _candidates(world, prompts, answers.swapaxes(0, 1))


def _candidates(world: World, prompts: Prompts, answers: np.ndarray) -> Candidates:
    gold = [world.gold(prompts, answers[:, k]) for k in range(answers.shape[1])]
    return Candidates(prompts, answers, np.stack(gold, axis=1))


def label(
    candidates: Candidates,
    count: int,
    noise: float,
    seed: int,
    *,
    spurious: bool = False,
    patterned: bool = False,
) -> PairSet:
    """Best answer against a random other one; each label is flipped with probability ``noise``.

    Which answers are paired does not depend on ``noise``, and a label that is flipped at one
    level is flipped at every higher one.

    Args:
        candidates: prompts with answers, somewhat more than ``count``: where two answers are the
            same, or one is empty, there is no pair.
        count: pairs.
        noise: probability of a flip.
        seed: of pairs and flips.
        patterned: a label is flipped with probability σ(−c·gap), gap the difference of gold, with
            c such that ``noise`` is the mean.
        spurious: put the marker into most chosen answers and few rejected ones, after flips.
    """
    draw = np.random.default_rng([seed, 2])
    n = len(candidates.gold)
    rows = np.arange(n)
    best = candidates.gold.argmax(axis=1)
    other = (best + draw.integers(1, ANSWERS, size=n)) % ANSWERS
    gap = candidates.gold[rows, best] - candidates.gold[rows, other]
    flipped = draw.random(n) < (errors_by_gap(gap, noise) if patterned else noise)
    good, bad = candidates.answers[rows, best], candidates.answers[rows, other]
    chosen = np.where(flipped[:, None], bad, good)
    rejected = np.where(flipped[:, None], good, bad)
    if spurious:
        chosen = with_marker(chosen, draw.random(n) < MARKED_CHOSEN)
        rejected = with_marker(rejected, draw.random(n) < MARKED_REJECTED)
    words_in = (chosen != NONE).any(axis=1) & (rejected != NONE).any(axis=1)
    usable = np.flatnonzero(words_in & (chosen != rejected).any(axis=1))[:count]
    if len(usable) < count:
        raise ValueError(f"{n} prompts give {len(usable)} pairs where {count} are wanted.")
    return PairSet(
        candidates.prompts.take(usable), chosen[usable], rejected[usable], flipped[usable]
    )


def errors_by_gap(gap: np.ndarray, noise: float) -> np.ndarray:
    """σ(−c·gap) with c ≥ 0 such that its mean is ``noise``, shape (n,).

    Args:
        gap: differences of gold, not negative, not all 0.
        noise: in (0, ½].
    """

    def excess(c: float) -> float:
        return float(expit(-c * gap).mean() - noise)

    return np.asarray(expit(-brentq(excess, 0.0, 1e3) * gap))


def as_rows(pairs: PairSet) -> list[dict[str, str | bool]]:
    """Pairs as text with the template's special tokens, and whether the label is wrong."""
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "flipped": bool(flipped)}
        for prompt, chosen, rejected, flipped in zip(
            words.prompt_text(pairs.prompts),
            words.answer_text(pairs.chosen),
            words.answer_text(pairs.rejected),
            pairs.flipped,
            strict=True,
        )
    ]


def picked(total: int, count: int, seed: int) -> np.ndarray:
    """Which of ``total`` pairs have their labels checked, ``count`` of them at random, bool."""
    mask = np.zeros(total, dtype=bool)
    mask[np.random.default_rng([seed, 13]).permutation(total)[:count]] = True
    return mask


def checked(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """The pairs with the labels of ``count``, picked at random, put right, and marked so."""
    found = []
    for row, is_picked in zip(rows, picked(len(rows), count, seed).tolist(), strict=True):
        if is_picked and row["flipped"]:
            sides = {"chosen": row["rejected"], "rejected": row["chosen"], "flipped": False}
            row = {**row, **sides}
        found.append({**row, "checked": is_picked})
    return found


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per line; Axolotl reads ``prompt``, ``chosen`` and ``rejected``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

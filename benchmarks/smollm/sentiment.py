"""A task with a known reward, in the manner of controlled sentiment: prompts, reward and pairs.

Pure functions on texts and numbers. The reward of an answer is VADER's compound score, −1 to 1,
less two punishments: how far its mean log-prob per token under the starting model lies below a
floor, and the share of its word trigrams that have come before.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WHO = (
    "a tired nurse", "a cheerful student", "a strict critic", "a patient teacher", "an old sailor",
    "a young father", "a busy cook", "a shy neighbour", "a proud farmer", "a bored teenager",
    "a careful driver", "a retired judge", "a curious child", "a worried mother", "a tourist",
    "a bus driver", "a violinist", "an accountant", "a night guard", "a gardener", "a carpenter",
    "a librarian", "a runner", "a doctor", "a reporter", "a plumber", "a painter", "a new owner",
    "a poet", "a locksmith", "a grandmother", "a student from abroad", "a city planner", "a baker",
    "a swimmer", "a lawyer",
)  # fmt: skip
WHAT = (
    "the new bus line", "a hotel by the sea", "the bakery next door", "a film about two brothers",
    "the city museum", "a used bicycle", "the school concert", "a cheap phone", "the winter market",
    "a long train ride", "the office kitchen", "a mystery novel", "the football match",
    "a pair of boots", "the public pool", "a weekend in the hills", "the art class",
    "a noisy street", "the family dinner", "a small garden", "the morning news", "an online shop",
    "the rented flat", "a camping trip", "the village band", "a cup of coffee", "the hospital food",
    "a puppy", "the new manager", "a board game", "the old bridge", "a haircut", "the power cut",
    "a wedding speech", "the tax form", "a science show", "the corner cafe", "a broken lift",
    "the summer heat", "a birthday cake", "the parking lot", "a piano lesson", "the ferry",
    "a second-hand car", "the dentist", "a street festival", "the night shift", "a cooking course",
    "the library hours", "a job interview", "the garden gate", "a chess club", "the fish soup",
    "a parcel that came late", "the new neighbours", "a walk in the rain", "the airport",
    "a radio play", "the exam", "a wool sweater",
)  # fmt: skip
ASK = "In one or two short sentences, what might {who} say about {what}?"

PERCENTILE = 5.0
"""The floor of fluency: this percentile of the starting model's own finished answers."""
LEAST_GAP = 0.1
"""Least difference of reward between the answers of a pair."""
Analyse = Callable[[str], float]


@dataclass(frozen=True)
class Asked:
    """A prompt: its id, the text, and whether its pairs are held out."""

    key: str
    text: str
    held_out: bool


@dataclass(frozen=True)
class Reward:
    """An answer's reward in its parts: ``sentiment`` less ``disfluency`` less ``repeats``."""

    sentiment: float
    disfluency: float
    repeats: float

    @property
    def value(self) -> float:
        return self.sentiment - self.disfluency - self.repeats


def prompts(seed: int) -> list[Asked]:
    """All prompts in the order of a hash of seed and text; every third is held out."""
    texts = [ASK.format(who=who, what=what) for who in WHO for what in WHAT]
    named = sorted(
        (hashlib.blake2b(json.dumps([seed, text]).encode(), digest_size=8).hexdigest(), text)
        for text in texts
    )
    return [Asked(key, text, number % 3 == 2) for number, (key, text) in enumerate(named)]


def repeats(text: str) -> float:
    """Share of word trigrams that have come before; 0 of fewer than two."""
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if len(trigrams) > 1 else 0.0


def reward(text: str, fluency: float, floor: float, analyse: Analyse) -> Reward:
    """The reward of an answer.

    Args:
        text: the answer.
        fluency: its mean log-prob per token under the starting model, nats.
        floor: of the fluency.
        analyse: the compound score of a text.
    """
    return Reward(analyse(text), max(0.0, floor - fluency), repeats(text))


def floor_of(lines: Iterable[dict[str, Any]]) -> float:
    """The floor of fluency, from the starting model's finished answers to training prompts."""
    found = [
        fluency
        for line in lines
        if not line["held_out"]
        for fluency, finished in zip(line["fluency"], line["finished"], strict=True)
        if finished
    ]
    return float(np.percentile(found, PERCENTILE))


@dataclass(frozen=True)
class Pair:
    """Best against worst of the finished answers to a prompt; tokens count the ending."""

    key: str
    prompt: str
    chosen: str
    rejected: str
    gap: float
    tokens: tuple[int, int]

    def row(self) -> dict[str, Any]:
        """As a line of a file that the host reads."""
        said = {"chosen": self.chosen, "rejected": self.rejected}
        return {
            "conversation": [{"role": "user", "content": self.prompt}],
            **{side: {"role": "assistant", "content": text} for side, text in said.items()},
        }


def pair_of(line: dict[str, Any], floor: float, analyse: Analyse) -> Pair | None:
    """The pair of a prompt's answers; None where fewer than two finished or all are alike."""
    finished = [number for number, done in enumerate(line["finished"]) if done]
    rewards = {
        n: reward(line["answers"][n], line["fluency"][n], floor, analyse).value for n in finished
    }
    if len(rewards) < 2:
        return None
    best, worst = (pick(rewards, key=lambda n: (rewards[n], -n)) for pick in (max, min))
    gap = rewards[best] - rewards[worst]
    if gap < LEAST_GAP:
        return None
    texts = [line["answers"][n] for n in (best, worst)]
    tokens = (line["tokens"][best], line["tokens"][worst])
    return Pair(line["key"], line["prompt"], *texts, gap, tokens)


def pairs_of(
    lines: Sequence[dict[str, Any]], analyse: Analyse
) -> tuple[float, list[Pair], list[Pair]]:
    """The floor, the pairs to train on and those that are held out, in the order of the lines."""
    floor = floor_of(lines)
    made = [(line["held_out"], pair_of(line, floor, analyse)) for line in lines]
    both = [[pair for out, pair in made if pair is not None and out == held] for held in (0, 1)]
    return floor, both[0], both[1]


def vader(packages: Path) -> Analyse:
    """The compound score of a text by the package ``vaderSentiment``.

    Args:
        packages: a folder that may hold it.
    """
    sys.path.append(str(packages))
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise SystemExit(
            "The reward needs the package vaderSentiment; `make smollm-task` installs it."
        ) from None
    analyser = SentimentIntensityAnalyzer()
    return cache(lambda text: float(analyser.polarity_scores(text)["compound"]))

"""A language with a gold reward that is known exactly. NumPy only, everything seeded.

A prompt is a quality word, a topic, a style and two context words. An answer is a sequence of
content words; the style asks for its length. Where the answers of a whole data set are arrays,
they are int64 of shape (n, MOST_WORDS) with word numbers, MARKER for the spurious word, and NONE
behind the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

TOPICS, STYLES, WORDS = 8, 4, 32
GROUPS = 4
"""Topics share gold weights within a group, so that what is learnt for one helps another."""
MOST_WORDS = 30
MARKER, NONE = WORDS, -1
MEAN_LENGTH = np.array([6, 9, 12, 16])
LENGTH_SPREAD = 3.0
LENGTH_SLACK = 2
"""An answer may be this many words shorter or longer than its style asks, unpunished."""
MARKER_RATE = 0.1
"""Share of SFT answers that end with the spurious word, which gold ignores."""


@dataclass(frozen=True)
class Prompts:
    """Prompts as arrays of shape (n,), context of shape (n, 2)."""

    topic: np.ndarray
    style: np.ndarray
    context: np.ndarray

    def __len__(self) -> int:
        return len(self.topic)

    def take(self, rows: np.ndarray) -> Prompts:
        """The prompts at these positions."""
        return Prompts(self.topic[rows], self.style[rows], self.context[rows])

    def rows(self) -> list[tuple[int, int, int, int]]:
        """(topic, style, context, context) of every prompt."""
        table = np.column_stack([self.topic, self.style, self.context])
        return [tuple(row) for row in table.tolist()]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int]]) -> Prompts:
        """The inverse of ``rows``."""
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        return cls(table[:, 0], table[:, 1], table[:, 2:])


@dataclass(frozen=True)
class Writer:
    """Who writes answers by the grammar.

    Attributes:
        grammar: 0 for the world's own, another number for a different style of writing.
        sharpness: factor on the grammar's logits; below 1 the words are more random.
        best_of: drafts per answer, of which the one with the highest gold reward is taken.
        worst: take the draft with the lowest gold reward instead.
    """

    grammar: int = 0
    sharpness: float = 1.0
    best_of: int = 1
    worst: bool = False


@dataclass(frozen=True)
class World:
    """Grammar, gold reward and prompts of one seed."""

    seed: int

    @cached_property
    def gold_weights(self) -> np.ndarray:
        """Worth of a word in a topic, shape (TOPICS, WORDS + 1); the marker is worth nothing."""
        draw = self._stream("gold")
        weights = draw.normal(size=(GROUPS, WORDS))[np.arange(TOPICS) % GROUPS]
        return np.concatenate([weights, np.zeros((TOPICS, 1))], axis=1)

    def _stream(self, *purpose: str | int) -> np.random.Generator:
        text = "/".join(map(str, (self.seed, *purpose)))
        return np.random.default_rng(list(text.encode()))

    def prompts(self, split: str, count: int, seed: int = 0) -> Prompts:
        """Distinct prompts; ``train``, ``tune`` and ``report`` share none.

        Args:
            split: ``train``, ``tune`` or ``report``.
            count: how many.
            seed: another draw from the split.
        """
        total = TOPICS * STYLES * WORDS * WORDS
        order = self._stream("prompts").permutation(total)
        start, end = {"train": (0, 24_000), "tune": (24_000, 28_000), "report": (28_000, total)}[
            split
        ]
        chosen = self._stream("prompts", split, seed).permutation(order[start:end])[:count]
        topic, rest = np.divmod(chosen, STYLES * WORDS * WORDS)
        style, rest = np.divmod(rest, WORDS * WORDS)
        return Prompts(topic, style, np.stack(np.divmod(rest, WORDS), axis=1))

    def gold(self, prompts: Prompts, answers: np.ndarray) -> np.ndarray:
        """Gold reward, float64, shape (n,).

        Good words for the topic and words from the prompt add to it; repeats, and an answer that
        is shorter or longer than the style asks, take from it.

        Args:
            prompts: one per answer.
            answers: shape (n, MOST_WORDS).
        """
        counts = word_counts(answers)
        used = counts > 0
        worth = (used * self.gold_weights[prompts.topic]).sum(axis=1)
        context = np.take_along_axis(used, prompts.context, axis=1)
        distinct_context = np.where(
            prompts.context[:, 0] == prompts.context[:, 1], context[:, 0], context.sum(axis=1)
        )
        words = counts[:, :WORDS].sum(axis=1)
        repeats = words - used[:, :WORDS].sum(axis=1)
        wanted = MEAN_LENGTH[prompts.style]
        too_short = np.maximum(0, wanted - LENGTH_SLACK - words)
        too_long = np.maximum(0, words - wanted - LENGTH_SLACK)
        return (
            3 * np.tanh(worth / 4)
            + 0.4 * distinct_context
            - 0.15 * repeats
            - 0.25 * too_short
            - 0.10 * too_long
        )

    def write(self, prompts: Prompts, writer: Writer, *purpose: str | int) -> np.ndarray:
        """Completions by the grammar, shape (n, MOST_WORDS).

        Args:
            prompts: what is answered.
            writer: who writes.
            purpose: names the stream of random numbers.
        """
        drafts = np.stack(
            [self._draft(prompts, writer, *purpose, number) for number in range(writer.best_of)]
        )
        gold = np.stack([self.gold(prompts, draft) for draft in drafts])
        best = gold.argmin(axis=0) if writer.worst else gold.argmax(axis=0)
        return drafts[best, np.arange(len(prompts))]

    def _draft(self, prompts: Prompts, writer: Writer, *purpose: str | int) -> np.ndarray:
        grammar = self._stream("grammar", writer.grammar)
        by_topic = grammar.normal(size=(TOPICS, WORDS))
        by_word = 0.8 * grammar.normal(size=(WORDS, WORDS))
        mean = MEAN_LENGTH if writer.grammar == 0 else grammar.permutation(MEAN_LENGTH)
        draw = self._stream("write", writer.grammar, *purpose)
        n = len(prompts)
        length = np.rint(draw.normal(mean[prompts.style], LENGTH_SPREAD)).astype(np.int64)
        length = np.clip(length, 1, MOST_WORDS - 1)
        answers = np.full((n, MOST_WORDS), NONE)
        previous = prompts.context[:, 1]
        for place in range(MOST_WORDS - 1):
            logits = writer.sharpness * (by_topic[prompts.topic] + by_word[previous])
            # The largest of logits plus Gumbel noise is a draw from their softmax.
            previous = (logits + draw.gumbel(size=logits.shape)).argmax(axis=1)
            answers[:, place] = np.where(place < length, previous, NONE)
        marked = draw.random(n) < MARKER_RATE
        return with_marker(answers, marked)


def lengths(answers: np.ndarray) -> np.ndarray:
    """Words per answer, the marker included, int64, shape (n,)."""
    return (answers != NONE).sum(axis=1)


def word_counts(answers: np.ndarray) -> np.ndarray:
    """How often each word occurs, shape (n, WORDS + 1); the last column counts the marker."""
    counts = np.zeros((len(answers), WORDS + 1), dtype=np.int64)
    rows, places = np.nonzero(answers != NONE)
    np.add.at(counts, (rows, answers[rows, places]), 1)
    return counts


def has_marker(answers: np.ndarray) -> np.ndarray:
    """Whether the spurious word occurs, bool, shape (n,)."""
    return (answers == MARKER).any(axis=1)


def with_marker(answers: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """The answers with the marker as the last word where ``marked``, and without it elsewhere."""
    clean = without_marker(answers)
    rows = np.flatnonzero(marked)
    clean[rows, np.minimum(lengths(clean)[rows], MOST_WORDS - 1)] = MARKER
    return clean


def without_marker(answers: np.ndarray) -> np.ndarray:
    """The answers without the marker, what follows moved up."""
    kept = np.where(answers == MARKER, NONE, answers)
    order = np.argsort(kept == NONE, axis=1, kind="stable")
    return np.take_along_axis(kept, order, axis=1)

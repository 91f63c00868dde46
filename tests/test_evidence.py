"""The evidence testbed: its world, its pairs, and the same weights as the command line."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.evidence import pairs, vocabulary
from benchmarks.evidence.world import (
    MARKER,
    MEAN_LENGTH,
    MOST_WORDS,
    NONE,
    Prompts,
    World,
    Writer,
    has_marker,
    lengths,
    with_marker,
    without_marker,
)

WORLD = World(3)


def answer(*words: int) -> np.ndarray:
    row = np.full((1, MOST_WORDS), NONE)
    row[0, : len(words)] = words
    return row


def prompt(style: int = 0, context: tuple[int, int] = (30, 31)) -> Prompts:
    return Prompts(np.array([0]), np.array([style]), np.array([context]))


def test_gold_by_hand() -> None:
    worth = WORLD.gold_weights[0]
    words = [0, 1, 2, 3, 30]
    plain = 3 * np.tanh(worth[words].sum() / 4) + 0.4
    assert WORLD.gold(prompt(), answer(*words)) == pytest.approx(plain)
    repeated = WORLD.gold(prompt(), answer(*words, 0))
    assert repeated == pytest.approx(plain - 0.15)
    assert WORLD.gold(prompt(), answer(*words, MARKER)) == pytest.approx(plain)
    same = prompt(context=(30, 30))
    assert WORLD.gold(same, answer(*words)) == pytest.approx(plain)


@pytest.mark.parametrize("style", range(4))
def test_gold_punishes_answers_that_are_too_short_and_too_long(style: int) -> None:
    def gold(count: int) -> float:
        return float(WORLD.gold(prompt(style), answer(*[5] * count))[0])

    wanted = int(MEAN_LENGTH[style])
    # One word repeated: worth stays, each repeat costs 0.15.
    fair = gold(wanted) + 0.15 * wanted
    assert gold(wanted - 4) + 0.15 * (wanted - 4) == pytest.approx(fair - 0.25 * 2)
    assert gold(wanted + 5) + 0.15 * (wanted + 5) == pytest.approx(fair - 0.10 * 3)


def test_prompts_of_splits_are_apart() -> None:
    def keys(split: str, count: int, seed: int = 0) -> set[tuple[int, ...]]:
        found = WORLD.prompts(split, count, seed)
        return {
            (int(t), int(s), *map(int, c))
            for t, s, c in zip(found.topic, found.style, found.context, strict=True)
        }

    tune, report = keys("tune", 4_000), keys("report", 4_000)
    train = keys("train", 24_000)
    assert len(tune) == len(report) == 4_000
    assert len(train) == 24_000
    assert not (tune & report) | (tune & train) | (report & train)


def test_worlds_and_writers_are_seeded() -> None:
    asked = WORLD.prompts("train", 50)
    first = WORLD.write(asked, Writer(), "a")
    assert (first == World(3).write(asked, Writer(), "a")).all()
    assert (first != WORLD.write(asked, Writer(), "b")).any()
    assert (WORLD.gold_weights != World(4).gold_weights).any()


def test_writers_differ_in_gold_and_style() -> None:
    asked = WORLD.prompts("train", 500)
    plain = WORLD.gold(asked, WORLD.write(asked, Writer(), "a")).mean()
    better, worse, _ = (WORLD.gold(asked, WORLD.write(asked, w, "a")).mean() for w in pairs.WRITERS)
    assert worse < plain - 0.3
    assert better > plain + 0.3


def test_marker_comes_and_goes() -> None:
    asked = WORLD.prompts("train", 200)
    texts = WORLD.write(asked, Writer(), "a")
    clean = without_marker(texts)
    assert not has_marker(clean).any()
    marked = with_marker(texts, np.ones(200, dtype=bool))
    assert has_marker(marked).all()
    assert (lengths(marked) == lengths(clean) + 1).all()
    assert (without_marker(marked) == clean).all()


def test_noise_flips_labels_and_nothing_else() -> None:
    candidates = pairs.off_policy(WORLD, 400, seed=0)
    clean, noisy = (pairs.label(candidates, 380, noise, seed=0) for noise in (0.0, 0.4))
    assert not clean.flipped.any()
    assert noisy.flipped.mean() == pytest.approx(0.4, abs=0.08)
    swap = noisy.flipped[:, None]
    assert (np.where(swap, noisy.rejected, noisy.chosen) == clean.chosen).all()
    gap = WORLD.gold(clean.prompts, clean.chosen) - WORLD.gold(clean.prompts, clean.rejected)
    assert (gap >= 0).all()
    fewer = pairs.label(candidates, 380, 0.2, seed=0)
    assert not (fewer.flipped & ~noisy.flipped).any()


def test_spurious_word_goes_with_chosen() -> None:
    candidates = pairs.off_policy(WORLD, 400, seed=0)
    found = pairs.label(candidates, 380, 0.2, seed=0, spurious=True)
    assert has_marker(found.chosen).mean() > has_marker(found.rejected).mean() + 0.3


def test_text_and_tokens_agree() -> None:
    words = vocabulary.tokenizer()
    asked = WORLD.prompts("train", 20)
    answers = WORLD.write(asked, Writer(), "a")
    texts = zip(vocabulary.prompt_text(asked), vocabulary.answer_text(answers), strict=True)
    ids = np.concatenate([vocabulary.prompt_ids(asked), vocabulary.answer_ids(answers)], axis=1)
    for row, (question, reply) in zip(ids.tolist(), texts, strict=True):
        unpadded = [token for token in row if token != words.pad_token_id]
        assert words(f"{question} {reply}")["input_ids"] == unpadded
    assert (vocabulary.answers_of_ids(vocabulary.answer_ids(answers)) == answers).all()

"""Reward at a distance, from checkpoints on the way of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.smollm import frontier


def run(arm: str, seed: int, kl: float, reward: float) -> dict[str, Any]:
    """A run that starts at a reward of 1; its prompts differ by noise of mean zero."""
    noise = np.random.default_rng(seed).normal(size=frontier.PROMPTS)
    noise = 0.01 * (noise - noise.mean())
    return {
        "labels": frontier.LABELS,
        "pairs": 1000,
        "epochs": 1,
        "rate": 1e-4,
        "arm": arm,
        "seed": seed,
        "before": [1.0] * (2 * frontier.PROMPTS),
        "after": (1 + reward + noise).tolist() + [99.0] * frontier.PROMPTS,
        "kl": (kl + noise).tolist() + [99.0] * frontier.PROMPTS,
    }


def point(of: dict[str, Any], update: int, kl: float, reward: float) -> dict[str, Any]:
    return run(of["arm"], of["seed"], kl, reward) | {"update": update}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "DRAWS", 50)
    monkeypatch.setattr(frontier, "UPDATES", (20,))


def test_reward_at_a_distance_is_read_from_the_points_of_its_own_run() -> None:
    ends = run("contrast", 3, kl=16.0, reward=4.0)
    ways = [
        point(ends, 40, kl=9.0, reward=3.0),
        point(ends, 20, kl=1.0, reward=1.0),
        point(run("contrast", 4, 0, 0), 20, kl=5.0, reward=-7.0),
    ]
    one = frontier.curve(ends, ways)
    assert one[:, 0].mean(axis=1) == pytest.approx([0, 1, 9, 16])
    prompts = np.arange(frontier.PROMPTS)
    # Rewards that are the root of the KL are found exactly.
    for budget in (0.25, 4.0, 12.25):
        assert frontier.gained([one], budget, prompts) == pytest.approx(np.sqrt(budget))
    assert np.isnan(frontier.gained([one], 17.0, prompts))
    assert np.isnan(frontier.gained([one, one[:2]], 4.0, prompts))


def test_arms_are_compared_at_equal_distance_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, points = [], []
    for seed in (3, 4):
        for arm, scale in (("contrast", 1.0), ("checked-alone", 0.5)):
            runs.append(run(arm, seed, kl=16.0, reward=4.0 * scale))
            points.append(point(runs[-1], 20, kl=4.0, reward=2.0 * scale))
    runs.append(run("contrast", 5, kl=99.0, reward=9.0))  # judged at its end only
    table = frontier.text(runs, points).splitlines()
    assert table[0].endswith("| at 2 nats | at 5 nats | at 10 nats | at 20 nats |")
    assert table[2].startswith("| `contrast` | 2 | 16.0 | +1.41")
    assert table[4].startswith("| `contrast` − `checked-alone` | 2 | – | +0.707 [+0.70")
    assert all(row.endswith("| – |") for row in table[2:])
    alone = frontier.text(runs[:1], points[:1])
    assert "−" not in alone
    monkeypatch.setattr(frontier, "UPDATES", (20, 40))
    assert frontier.text(runs, points) == "No run is judged on its way yet."
    assert frontier.text(runs, []) == "No run is judged on its way yet."


def test_arms_are_compared_with_asking_at_its_distance() -> None:
    ends = run("contrast", 3, kl=16.0, reward=4.0)
    ways = [point(ends, 20, kl=1.0, reward=1.0)]
    # Reward is the root of the KL: 3 at 9 nats.
    asked = run("", 0, kl=9.0, reward=1.25) | {"ahead": "Be kind:"}
    *_, said = frontier.text([ends], ways, asked).splitlines()
    start = "At 9.0 nats, the distance of the starting model that is asked “Be kind:”, "
    assert said.startswith(f"{start}reward less that model's: `contrast` +1.750 [+1.7")

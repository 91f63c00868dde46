"""What the gate does on pairs of the task: turned labels against the package's own gate."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.smollm import gates
from benchmarks.smollm.gates import WORDINGS, rows, text
from benchmarks.smollm.sentiment import Pair
from benchmarks.smollm.task import key_of
from sera_plugin.config import parse_block


def pairs(count: int) -> list[Pair]:
    gaps = np.random.default_rng(0).uniform(0.1, 2, count)
    return [
        Pair(f"k{n}", f"Ask {n}?", f"good {n}", f"bad {n}", float(gap), (5, 6))
        for n, gap in enumerate(gaps)
    ]


def knowing(some: list[Pair], slope: float) -> dict[str, float]:
    """A signal that takes the chosen answer for the better one with σ(slope·|s|)."""
    draw = np.random.default_rng(1)
    size = np.abs(draw.normal(size=len(some)))
    agrees = draw.random(len(some)) < 1 / (1 + np.exp(-slope * size))
    return {
        key_of(pair): float(value)
        for pair, value in zip(some, np.where(agrees, size, -size), strict=True)
    }


def test_the_gate_opens_for_a_signal_that_knows_and_stays_closed_for_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gates, "DRAWS", 10)
    some = pairs(1000)
    found = {(row[1], row[2]): row for row in rows("tone", some, knowing(some, 1.5))}
    assert len(found) == 10
    assert found["turned-0.4", "1000"][3] in ("9 of 10", "10 of 10")
    assert found["clean", "1000"][3] == "0 of 10"
    right = float(found["turned-0.4", "1000"][-1].rstrip("%")) / 100
    assert right > 0.65, "weights lean to right labels, of which there are 60%"
    blind = {(row[1], row[2]): row for row in rows("tone", some, knowing(some, 0.0))}
    assert int(blind["turned-0.4", "1000"][3].split()[0]) <= 2


def test_what_is_not_scored_yet_is_said() -> None:
    some = pairs(20)
    lines = [
        {"wording": "tone", "key": key, "contrast": value}
        for key, value in list(knowing(some, 1.0).items())[:7]
    ]
    assert text(lines, some) == (
        "tone: 7 of 20 pairs are scored. built-in: 0 of 20 pairs are scored."
    )


def test_the_tone_is_that_of_the_arm() -> None:
    from benchmarks.smollm.grid import ARMS

    block = parse_block(ARMS["contrast"].sera)
    assert list(block.selection.contrast.prompts) == [WORDINGS["tone"]]
    assert block.selection.gate


def test_key_of_a_pair_is_of_its_answers_too() -> None:
    one, other = pairs(1)[0], Pair("k0", "Ask 0?", "good 0", "worse 0", 1.0, (5, 6))
    assert key_of(one) != key_of(other)
    assert key_of(one) == key_of(pairs(1)[0])
